"""The samples of a run as a list: filtered, sorted, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hyperlens.artefact import read_parquet
from hyperlens.viewer.library import Library, Opened, Refused

COLUMNS = ("task", "spec", "sample", "id", "level", "correct", "confidence", "read")
BY_DEPTH = ("effort", "commit", "struggle")
Sort = Literal["effort", "confidence", "accuracy", "commit", "struggle", "sample"]
Show = Literal["all", "right", "wrong", "wrong_confident"]
PROMPT_SIGNS = 200
"""How much of a prompt a list shows."""


@dataclass(frozen=True)
class Query:
    """Which samples of one model, lens and focal depth are wanted, and in which order. Samples of which the sorted measure is
    not known come last."""

    model: str
    lens: str
    depth: int
    task: str | None = None
    level: int | None = None
    sort: Sort = "effort"
    down: bool = True
    search: str = ""
    show: Show = "all"
    offset: int = 0
    limit: int = 100


def list_samples(library: Library, opened: Opened, query: Query) -> dict[str, Any]:
    """One page of samples, and how many there are in `total`. `confident_from` is the confidence from which on a wrong answer
    counts as confident: the median of the right ones of the same tasks, or of all where none is right."""
    table = _read_rows(library, opened, query)
    columns = _Columns(table)
    kept = columns.matches(query)
    confident = _find_confident(columns, kept)
    if query.show != "all":
        kept &= columns.correct == (query.show == "right")
    if query.show == "wrong_confident":
        kept &= columns.confidence >= confident
    if query.search:
        kept &= _find_text(library, opened, table, columns, query.search)
    places = np.flatnonzero(kept)
    chosen = places[_order(columns, places, query)][query.offset : query.offset + query.limit]
    rows = _spell_rows(library, opened, table.take(pa.array(chosen)))
    return {"total": len(places), "confident_from": round(confident, 4), "rows": rows}


class _Columns:
    """What samples are filtered and sorted by, as floats with NaN where unknown."""

    def __init__(self, table: pa.Table):
        self.table = table
        self.sample, self.level, self.correct, self.confidence, self.effort, self.commit, self.struggle = (
            table[name].cast(pa.float64()).to_numpy() for name in ("sample", "level", "correct", "confidence", *BY_DEPTH)
        )
        self.accuracy = self.correct
        self.specs, self.spec = _number(table["spec"])

    def matches(self, query: Query) -> np.ndarray:
        """Whether each sample is of the task and level."""
        kept = np.ones(len(self.sample), dtype=bool)
        if query.task is not None:
            names, codes = _number(self.table["task"])
            if query.task not in names:
                raise Refused(404, f'there is no task "{query.task}"; choose from {", ".join(names)}', "task")
            kept &= codes == names.index(query.task)
        if query.level is not None:
            kept &= self.level == query.level
        return kept


def _read_rows(library: Library, opened: Opened, query: Query) -> pa.Table:
    """The sample rows of a model and lens, with what was measured at one focal depth."""
    wanted = [*COLUMNS, *(f"{name}@{query.depth}" for name in BY_DEPTH)]

    def read() -> pa.Table:
        files = [opened.store.file(shard, "samples") for shard in opened.shards(query.model, query.lens)]
        tables = [read_parquet(file, wanted) for file in files]
        whole = pa.concat_tables(tables, promote_options="permissive") if tables else _empty(wanted)
        whole = whole.rename_columns([*COLUMNS, *BY_DEPTH])
        for name in ("task", "spec"):
            whole = whole.set_column(whole.column_names.index(name), name, whole[name].dictionary_encode())
        return whole.combine_chunks()

    return library.table(opened, ("rows", query.model, query.lens, query.depth), read)


def _empty(names: list[str]) -> pa.Table:
    kinds = {"task": pa.string(), "spec": pa.string(), "id": pa.string(), "sample": pa.int64(), "level": pa.int64()}
    return pa.table({name: pa.array([], kinds.get(name, pa.float64())) for name in names})


def _number(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The texts of a column, and the number of that of each row among them."""
    encoded = column.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # of no rows
        return [], np.zeros(0, dtype=int)
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _find_confident(columns: _Columns, kept: np.ndarray) -> float:
    for some in (kept & (columns.correct == 1), kept):
        known = columns.confidence[some & ~np.isnan(columns.confidence)]
        if len(known):
            return float(np.median(known))
    return 0.0


def _find_text(library: Library, opened: Opened, table: pa.Table, columns: _Columns, text: str) -> np.ndarray:
    """Whether the prompt, target or id of each sample has a text in it, in upper or lower case."""
    found = _contains(table["id"], text)
    for code, place in enumerate(_find_specs(opened, columns.specs)):
        mine = columns.spec == code
        texts = library.texts(opened, place)
        inside = _contains(texts["prompt"], text) | _contains(texts["target"], text)
        found[mine] |= inside[columns.sample[mine].astype(int)]
    return found


def _contains(column: pa.ChunkedArray, text: str) -> np.ndarray:
    found = pc.match_substring(column, text, ignore_case=True)  # pyright: ignore[reportAttributeAccessIssue]
    return found.fill_null(False).to_numpy().copy()


def _find_specs(opened: Opened, names: list[str]) -> Iterator[int]:
    """The numbers of tasks in the study, by their names there."""
    known = [spec.name for spec in opened.store.study.tasks]
    return (known.index(name) for name in names)


def _order(columns: _Columns, places: np.ndarray, query: Query) -> np.ndarray:
    """The places in the order asked for; those that are equal in the order of the study."""
    ties = (columns.sample[places], columns.spec[places])
    if query.sort == "sample":
        order = np.lexsort(ties)
        return order[::-1] if query.down else order
    values = getattr(columns, query.sort)[places]
    return np.lexsort((*ties, -values if query.down else values))  # NaN comes last either way


def _spell_rows(library: Library, opened: Opened, table: pa.Table) -> list[dict[str, Any]]:
    """Rows as the page shows them, each with the beginning of its prompt."""
    rows = table.to_pylist()
    places = dict(zip(names := list(dict.fromkeys(row["spec"] for row in rows)), _find_specs(opened, names), strict=True))
    for row in rows:
        prompts = library.texts(opened, places[row["spec"]])["prompt"]
        row["prompt"] = prompts[row["sample"]].as_py()[:PROMPT_SIGNS]
        row["tokens"] = row.pop("read")
        row |= {name: None if row[name] is None else round(row[name], 4) for name in ("confidence", *BY_DEPTH)}
    return rows
