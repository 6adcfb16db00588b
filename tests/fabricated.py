"""Runs that nobody measured: folders as a study writes them, with numbers that a test wants in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

import hyperlens as hl
from hyperlens.runs.opening import begin
from hyperlens.runs.store import Shard, Store
from hyperlens.tasks.drawing import draw_given

LAYERS = 4
NOTHING: dict[str, Any] = {"groups": [], "trends": [], "choices": [], "contrasts": [], "signs": []}
MEASURED = ("correct", "confidence", "read", "effort", "struggle", "commit")


def make_table(count: int, tasks: Sequence[str] = ("sums",), levels: Sequence[int] = (1, 2), seed: int = 0) -> pd.DataFrame:
    """Samples of each task, their levels in turn, with random measures."""
    rng, rows = np.random.default_rng(seed), count * len(tasks)
    return pd.DataFrame(
        {
            "spec": np.repeat(tasks, count),
            "sample": np.tile(np.arange(count), len(tasks)),
            "level": np.resize(levels, rows),
            "correct": rng.random(rows) < 0.7,
            "confidence": rng.uniform(0.3, 0.6, rows),
            "read": rng.integers(1, 4, rows),
            "effort": rng.uniform(0.4, 0.8, rows),
            "struggle": rng.uniform(0, 2, rows),
            "commit": rng.uniform(1, 3, rows),
        }
    )


def save_run(
    folder: Path,
    table: pd.DataFrame,
    name: str = "base",
    lens: hl.LensSpec | None = None,
    document: Mapping[str, Any] | None = None,
    lens_document: Mapping[str, Any] | None = None,
    shard_samples: int = 100,
    read: str = "target",
    asked: str = "What is",
    left_out: Sequence[int] = (),
) -> hl.Run:
    """A finished run of one model in which the samples of `table` have its measures; those `left_out` were drawn, not read."""
    specs = list(dict.fromkeys(table["spec"]))
    lens = lens or hl.LensSpec(focal_depths=(0, 2))
    tasks = tuple(hl.TaskSpec(spec, read=read) for spec in specs)
    study = hl.Study("made", (hl.ModelSpec(name),), tasks, (lens,), shard_samples=shard_samples)
    parts = {spec: table[table["spec"] == spec].set_index("sample", drop=False) for spec in specs}
    drawn = {spec: [_ask(asked, row) for row in parts[spec].to_dict("records")] for spec in specs}
    store = begin(folder, study, lambda number: draw_given(study.tasks[number], drawn[study.tasks[number].name]))
    depths = list(lens.focal_depths) if isinstance(lens.focal_depths, tuple) else [0, 2]
    read_by = {"focal_depths": depths, "auto": None, "context": lens.context, **(lens_document or {})}
    known = {"name": name, "source": name, "layers": LAYERS, "fingerprint": f"{name}'s", "dtype": "float32", **(document or {})}
    store.add_model(0, {**known, "lenses": {lens.name: read_by}})
    for shard in store.shards:
        mine = parts[specs[shard.cell.task]]
        _add_shard(store, shard, mine.loc[[one for one in shard.samples if one not in left_out]], name, lens.name, depths)
    store.finish(NOTHING)
    return hl.open_run(folder)


def _ask(asked: str, row: Mapping[Any, Any]) -> hl.Sample:
    number = int(row["sample"])
    return hl.Sample(
        f"{asked} {number}?", f" {number}", task=row["spec"], level=int(row["level"]), id=f"{row['spec']}/{number}"
    )


def _add_shard(store: Store, shard: Shard, mine: pd.DataFrame, name: str, lens: str, depths: Sequence[int]) -> None:
    labels = {"model": name, "lens": lens, "task": mine["spec"], "spec": mine["spec"], "id": mine["sample"].astype(str)}
    plain = mine[["sample", "level", "read"]].assign(tokens=9, cut=0, unknown=0, generated=None)
    whole = {"level": "Int64", "correct": "boolean", "generated": "string"}
    measured = {f"{one}@{depth}": mine[one] for one in ("effort", "struggle", "commit") for depth in depths}
    common = {f"common_effort@{depth}": mine["effort"] for depth in depths}
    frame = plain.assign(**labels, correct=mine["correct"], confidence=mine["confidence"], **measured, **common).astype(whole)
    samples = pa.Table.from_pandas(frame, preserve_index=False)
    owners = np.repeat(mine["sample"].to_numpy(), mine["read"])
    states = np.repeat(mine["confidence"].to_numpy(np.float32), mine["read"])[:, None] * np.linspace(0.2, 1, LAYERS + 1)
    said = pa.array([f"{name}{number}" for number in owners])
    places = np.arange(len(owners))
    tokens: dict[str, Any] = {"sample": owners, "position": places, "token_id": places, "reference_id": places + 1}
    tokens |= {"token_text": said, "reference_text": said}
    values = pa.FixedSizeListArray.from_arrays(pa.array(states.astype(np.float32).ravel()), LAYERS + 1)
    tokens |= {f"probability@{depth}": values for depth in depths}
    entry = {"skipped": [], "cut": 0, "manifest": {"versions": {"hyperlens": "1"}}}
    store.add_shard(shard, {"tokens": pa.table(tokens), "samples": samples}, entry)
