"""One sample of a run with all that was read of its tokens: only its shard is opened, and only its rows are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hyperlens import effort
from hyperlens.artefact import read_columns, read_parquet
from hyperlens.errors import ArtefactError
from hyperlens.runs.run import read_spelling
from hyperlens.runs.store import Shard
from hyperlens.runs.tokens import read_states
from hyperlens.viewer.library import Library, Opened, Refused

LABELS = {
    "position": "position",
    "token": "token_text",
    "output": "output_text",
    "reference": "reference_text",
    "output_probability": "output_probability",
}
OF_SAMPLE = ("task", "spec", "sample", "id", "level", "correct", "generated")
TOP = ("top_ids", "top_probabilities")
MOST_TOP = 400_000
"""Top tokens in one answer; of a long text fewer are shown of each state."""
ROWS_AT_A_TIME = 1024
DIGITS = 4


def read_sample(
    library: Library, opened: Opened, model: str, lens: str, task: str, number: int, reading: str | None = None
) -> dict[str, Any]:
    """A sample by its task, as shown or as the study calls it, and its number there: its texts, its tokens, and by focal depth
    their confidence at the states 0 … L − m, effort Ω, onset and commit, rounded to 4 digits; `values` of another `reading`;
    `top`, the most probable tokens of each state as [text, probability], None where the run kept none.

    Raises Refused where it was not read, or the reading was not.
    """
    shard, row = _find_row(opened, model, lens, task, number)
    file = opened.store.file(shard, "tokens")
    names = read_columns(file)
    kept = dict.fromkeys(name.partition("@")[0] for name in names if "@" in name)
    readings = [name for name in kept if name not in TOP]
    if reading is not None and reading not in readings:
        raise Refused(400, f'"{reading}" was not read; choose from {", ".join(readings)}', "reading")
    depths = list(opened.run.models[model]["lenses"][lens]["focal_depths"])
    wanted = {f"{name}@{depth}" for name in ("probability", reading, *TOP) for depth in depths}
    columns = [name for name in names if name in wanted or name in LABELS.values()]
    table = _pick_rows(file, columns, number)
    prompt, target = _read_texts(library, opened, shard, number)
    manifest = opened.entries[shard].get("manifest", {})
    return {
        **{name: row[name] for name in OF_SAMPLE},
        "prompt": prompt,
        "target": target,
        "layers": _count_layers(table, depths),
        "depths": depths,
        "tokens": _list_tokens(table),
        **_measure_tokens(table, depths, manifest.get("guess", 0.0), manifest.get("smallest", 0.0)),
        "top": _list_top(table, depths, read_spelling(opened.store, shard)) if TOP[0] in kept else None,
        "readings": readings,
        **({} if reading is None else {"reading": reading, "values": _list_values(table, depths, reading)}),
    }


def _find_row(opened: Opened, model: str, lens: str, task: str, number: int) -> tuple[Shard, dict[str, Any]]:
    """The shard that a sample is in, and its row there; that of a task which the study calls so before others."""
    names = [spec.name for spec in opened.store.study.tasks]
    for shard in sorted(opened.shards(model, lens), key=lambda shard: names[shard.cell.task] != task):
        if number in shard.samples:
            table = read_parquet(opened.store.file(shard, "samples"), OF_SAMPLE)
            place = np.flatnonzero(table["sample"].to_numpy() == number)
            row = table.slice(int(place[0]), 1).to_pylist()[0] if len(place) else {}
            if task in (row.get("task"), row.get("spec")):
                return shard, row
    raise Refused(404, f'there is no sample {number} of task "{task}" that was read; choose one from the list', "sample")


def _pick_rows(file: Path, columns: Sequence[str], number: int) -> pa.Table:
    """The rows of one sample, in the order of its text, without ever having the whole file in memory. Raises ArtefactError."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            kept = list(_keep_rows(opened, columns, number))
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtefactError(f"{file} cannot be read ({str(error).splitlines()[0]}); run the study again") from None
    if not kept:
        raise Refused(404, f"no token of sample {number} was read", "sample")
    return pa.Table.from_batches(kept).sort_by("position")


def _keep_rows(file: pq.ParquetFile, columns: Sequence[str], number: int) -> Iterator[pa.RecordBatch]:
    """Those of one sample; of what is saved together, only the parts that have some are read, a part after the other."""
    places = np.flatnonzero(file.read(["sample"])["sample"].to_numpy() == number)
    first = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if ((places >= first) & (places < first + count)).any():
            yield from _take_batches(file, columns, group, places - first)
        first += count


def _take_batches(file: pq.ParquetFile, columns: Sequence[str], group: int, places: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows at these places of one part, some of which may lie before or behind it."""
    first = 0
    for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=list(columns)):
        mine = places[(places >= first) & (places < first + len(batch))] - first
        if len(mine):
            yield batch.take(pa.array(mine))
        first += len(batch)
        if first > places.max():
            return


def _read_texts(library: Library, opened: Opened, shard: Shard, number: int) -> tuple[str, str | None]:
    texts = library.texts(opened, shard.cell.task).slice(number, 1).to_pylist()[0]
    return texts["prompt"], texts["target"]


def _count_layers(table: pa.Table, depths: Sequence[int]) -> int:
    return table.schema.field(f"probability@{depths[0]}").type.list_size - 1


def _list_tokens(table: pa.Table) -> list[dict[str, Any]]:
    """The labels of each token; None where a run did not keep one."""
    nothing = [None] * len(table)
    columns = [table[name].to_pylist() if name in table.column_names else nothing for name in LABELS.values()]
    return [dict(zip(LABELS, row, strict=True)) for row in zip(*columns, strict=True)]


def _list_values(table: pa.Table, depths: Sequence[int], reading: str) -> dict[str, list[list[float]]]:
    """A reading by focal depth, at the states that the lens reads."""
    return {str(depth): _round(_read_depth(table, depth, reading)) for depth in depths}


def _list_top(table: pa.Table, depths: Sequence[int], spelled: Mapping[int, str]) -> dict[str, Any]:
    """The most probable tokens by focal depth, token and state, as many of each state as an answer may have."""
    states, found = _count_layers(table, depths) + 1, {}
    most = max(1, MOST_TOP // (len(table) * states * len(depths)))
    for depth in depths:
        whole = (read_states(table, depth, name).reshape(len(table), states, -1) for name in TOP)
        ids, shares = (values[:, : states - depth, :most] for values in whole)
        known, places = np.unique(ids, return_inverse=True)
        texts = np.array([spelled[token] for token in known.tolist()], dtype=object)[places].reshape(ids.shape)
        found[str(depth)] = np.stack([texts, np.round(shares.astype(np.float64), DIGITS).astype(object)], -1).tolist()
    return found


def _measure_tokens(table: pa.Table, depths: Sequence[int], guess: float, smallest: float) -> dict[str, Any]:
    """Confidence, effort, onset and commit by focal depth."""
    found: dict[str, dict[str, Any]] = {name: {} for name in ("confidence", "effort", "onset", "commit")}
    for depth in depths:
        confidence = _read_depth(table, depth, "probability")
        progress = effort.measure_progress(confidence, guess, smallest)
        found["confidence"][str(depth)] = _round(confidence)
        found["effort"][str(depth)] = _round(effort.measure_effort(confidence, guess, smallest))
        found["onset"][str(depth)] = _whole(effort.find_onset(progress))
        found["commit"][str(depth)] = _whole(effort.find_commit(progress))
    return found


def _read_depth(table: pa.Table, depth: int, reading: str) -> np.ndarray:
    values = read_states(table, depth, reading).astype(np.float64)
    return values[:, : values.shape[1] - depth]


def _round(values: np.ndarray) -> list[Any]:
    return np.round(values, DIGITS).tolist()


def _whole(states: np.ndarray) -> list[int | None]:
    return [None if np.isnan(state) else int(state) for state in states.tolist()]
