"""Tokens and texts of some samples of a run, read from the files that hold them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from hyperlens.artefact import read_parquet
from hyperlens.runs.run import cell_names
from hyperlens.runs.store import Store

MOST_TOKENS = 24
"""Tokens of a sample that are kept to be shown."""
LABELS = ("position", "token_id", "reference_id", "token_text", "reference_text")
"""Columns of tokens, beside their confidence, that `read_tokens` needs."""

Place = tuple[str, int]
"""A sample: the name of its task in the study, and its number there."""


@dataclass(frozen=True)
class Token:
    """A token after which was read: the reference, which is what the model itself finds most likely next or has written, its
    confidence at the states 0 … L, and what stands next in the text, None where that is not known."""

    text: str
    reference: str
    confidence: tuple[float, ...]
    follows: str | None = None


@dataclass(frozen=True)
class Reading:
    """The first tokens of a sample, how many more there are, and what the model wrote where it was to write."""

    tokens: tuple[Token, ...]
    left_out: int
    generated: str | None


def gather_readings(store: Store, model: str, lens: str, wanted: Collection[Place], depth: int) -> dict[Place, Reading]:
    """What was read of the wanted samples at one focal depth; shards without them are not opened."""
    found: dict[Place, Reading] = {}
    for shard in store.shards:
        names = cell_names(store, shard.cell)
        shown = [number for number in shard.samples if (names[2], number) in wanted] if names[:2] == (model, lens) else []
        if shown and store.file(shard, "tokens").exists():
            columns = ["sample", f"probability@{depth}", *LABELS]
            table = sort_samples(read_parquet(store.file(shard, "tokens"), columns))
            written = read_parquet(store.file(shard, "samples"), ["sample", "generated"]).to_pydict()
            answers = dict(zip(written["sample"], written["generated"], strict=True))
            samples = table["sample"].to_numpy()
            for number in shown:
                places = np.flatnonzero(samples == number)
                tokens = tuple(read_tokens(table.take(pa.array(places[: MOST_TOKENS + 1])), depth))[:MOST_TOKENS]
                found[names[2], number] = Reading(tokens, len(places) - len(tokens), answers.get(number))
    return found


def sort_samples(table: pa.Table) -> pa.Table:
    """The tokens of each sample behind one another, as they mostly are."""
    samples = table["sample"].to_numpy()
    return table.take(pa.array(np.argsort(samples, kind="stable"))) if (np.diff(samples) < 0).any() else table


def read_states(table: pa.Table, depth: int, reading: str = "probability") -> np.ndarray:
    """Confidence, or another reading, of each token at all states."""
    return table[f"{reading}@{depth}"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


def read_tokens(table: pa.Table, depth: int) -> Iterator[Token]:
    """The tokens of one sample, in order, each with the next one of the text where that was read too."""
    texts, references = table["token_text"].to_pylist(), table["reference_text"].to_pylist()
    positions, ids, wanted = (table[name].to_numpy() for name in ("position", "token_id", "reference_id"))
    for place, values in enumerate(read_states(table, depth).tolist()):
        follows = None
        if place + 1 < len(table) and positions[place + 1] == positions[place] + 1:
            follows = references[place] if ids[place + 1] == wanted[place] else texts[place + 1]
        yield Token(texts[place], references[place], tuple(values), follows)


def find_last(tokens: Sequence[Token], read: str, target: str | None, correct: bool) -> str | None:
    """What follows the last token that was read: what is left of the target behind the ones before; None where that cannot be
    told, since the texts of tokens are not always parts of the text."""
    if read == "generated" or correct:
        return tokens[-1].reference
    before = len("".join("".join(token.text for token in tokens[1:]).split()))
    places = [place for place, sign in enumerate(target or "") if not sign.isspace()]
    known = "".join("".join(token.text for token in tokens[1:]).split()) == "".join((target or "").split())[:before]
    if target is None or not known or before >= len(places):
        return None
    left = target[places[before] :].strip()
    return tokens[-1].reference if left == tokens[-1].reference.strip() else left


def read_texts(store: Store, wanted: Iterable[Place]) -> dict[Place, tuple[str, str | None]]:
    """Prompt and target of some samples."""
    numbers: dict[str, list[int]] = {}
    for spec, number in wanted:
        numbers.setdefault(spec, []).append(number)
    found = {}
    for place, spec in enumerate(store.study.tasks):
        if mine := numbers.get(spec.name):
            texts = read_task(store, place, ["prompt", "target"]).take(pa.array(mine)).to_pylist()
            found |= {(spec.name, number): (row["prompt"], row["target"]) for number, row in zip(mine, texts, strict=True)}
    return found


def read_task(store: Store, place: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of the samples of a task, which the run's folder holds under its number."""
    (file,) = (store.folder / "tasks").glob(f"{place:02d}-*.parquet")
    return read_parquet(file, columns)
