"""How long a large run takes to be summed up and to be drawn: one that is made up, of 10⁶ rows × 33 states × 4 focal depths.

`python benchmarks/scale.py` writes the run (to --folder, kept there for another time), then reads it in a fresh process for
each figure, with one thread, and prints JSON: seconds and the process's largest memory. The summary is `sum_up`: all samples
read, groups, trends, choices, contrasts and signs. The report's data are what the page is drawn from.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

import hyperlens as hl
from hyperlens.runs.opening import begin, open_store
from hyperlens.runs.store import Shard, Store
from hyperlens.runs.summary import tabulate_samples
from hyperlens.tasks import Drawn, Sample

DEPTHS, LAYERS = (0, 1, 2, 4), 32
DOMAINS = ("mathematics", "code", "logic", "science")
READ = """
    import json, os, resource, sys, time
    from pathlib import Path
    from hyperlens.runs import open_run
    from hyperlens.runs.run import sum_up
    from hyperlens.runs.opening import open_store
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, processor = time.perf_counter(), time.process_time()
    {what}
    seconds, used = time.perf_counter() - began, time.process_time() - processor
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {{"memory_mb": most // 1024, "before_mb": started // 1024}}
    print(json.dumps({{"seconds": round(seconds, 2), "processor": round(used, 2), **memory}}))
"""
WHAT = {
    "open": "open_run(sys.argv[1])",
    "summary": "sum_up(open_store(sys.argv[1]))",
    "report_data": "from hyperlens.report import gather_report; gather_report(open_run(sys.argv[1]))",
}


def main() -> None:
    """Make the run where it is not there, read it, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--levels", type=int, default=0, help="levels of each task; 0 for easy and hard tasks without")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    if not (folder / "COMPLETE").exists():
        make_up(folder, options.rows, options.levels)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    found = {"rows": options.rows, "levels": options.levels, "states": LAYERS + 1, "depths": DEPTHS, "bytes": size}
    print(json.dumps({**found, **{name: read(folder, what, options.repeats) for name, what in WHAT.items()}}))


def make_up(folder: Path, rows: int, levels: int, seed: int = 0) -> None:
    """A finished run of so many samples of one answer token each, whose confidence rises earlier in the easy ones. The samples
    are the same for every `seed`, what is read of them is not."""
    tasks = tuple(hl.TaskSpec(f"{domain} {side}") for domain in DOMAINS for side in ("easy", "hard"))
    contrasts = tuple(hl.ContrastSpec(f"{domain} easy", f"{domain} hard", domain) for domain in DOMAINS)
    study = hl.Study("made-up", tasks=tasks, lenses=(hl.LensSpec(focal_depths=DEPTHS),), contrasts=contrasts)
    each, rng = rows // len(tasks), np.random.default_rng(seed)

    def draw(number: int) -> Drawn:
        names = [
            (f"question {place} of {tasks[number].name}?", place % levels + 1 if levels else None) for place in range(each)
        ]
        samples = (
            Sample(text, " yes", task=tasks[number].name, level=level, id=str(place))
            for place, (text, level) in enumerate(names)
        )
        return Drawn(tuple(samples), (), 32, (), "target")

    store = begin(folder, study, draw)
    lens = {"focal_depths": list(DEPTHS), "auto": None, "context": "jump"}
    store.add_model(
        0, {"name": "reference", "layers": LAYERS, "fingerprint": "made up", "lenses": {"jump": lens}, "certificate": {}}
    )
    for shard in store.shards:
        store.add_shard(shard, *invent(store, shard, rng))
    from hyperlens.runs.run import sum_up

    store.finish(sum_up(store))


def invent(store: Store, shard: Shard, rng: np.random.Generator) -> tuple[dict[str, pa.Table], dict[str, object]]:
    """The tables and the entry of a shard."""
    import xarray as xr

    task, count = store.study.tasks[shard.cell.task].name, len(shard.samples)
    numbers = np.array(shard.samples)
    levels = list_levels(store.folder, shard.cell.task)[numbers]
    late = rng.normal(14 + 4 * task.endswith("hard") + 2 * levels, 4, count)[:, None, None] - np.array(DEPTHS)[:, None] * 1.5
    final = rng.beta(8, 2, count)[:, None, None]
    states = np.arange(LAYERS + 1)
    confidence = (final / (1 + np.exp(-(states - late) / 1.5)) + rng.normal(0, 0.01, (count, len(DEPTHS), LAYERS + 1))).clip(
        0, 1
    )
    for place, depth in enumerate(DEPTHS):
        confidence[:, place, LAYERS - depth :] = final[:, 0]
    labels = {"sample": np.arange(count), "position": np.full(count, 20)}
    for name in ("token", "output", "reference"):
        labels |= {f"{name}_id": np.full(count, 5), f"{name}_text": np.full(count, " yes", dtype=object)}
    labels["output_probability"] = final[:, 0, 0].astype(np.float32)
    data = xr.Dataset(
        {"probability": (("token", "focal_depth", "state"), confidence.astype(np.float32))},
        coords={name: (("token",), values) for name, values in labels.items()} | {"focal_depth": list(DEPTHS), "state": states},
    )
    known = levels if levels.any() else None
    frame = pd.DataFrame({"id": numbers.astype(str), "task": task, "level": known, "tokens": 21, "read": 1, "cut": 0})
    frame["unknown"] = 0
    frame = frame.assign(generated=None, correct=rng.random(count) < 0.8).astype({"level": "Int64", "correct": "boolean"})
    manifest = {
        "model": {"name": "reference", "layers": LAYERS},
        "lens": {"name": "hyper", "focal_depths": list(DEPTHS), "context": "jump", "auto": None},
        "readings": ["probability"],
        "guess": 0.0,
        "smallest": 0.0,
        "positions": "answer",
        "reference": "output",
        "options": 0,
        "definitions": {},
    }
    trajectory = hl.Trajectory(data, frame, manifest)
    tokens = trajectory.to_tables()["tokens"]
    tokens = tokens.set_column(tokens.column_names.index("sample"), "sample", pa.array(numbers))
    for name, text in {"model": "reference", "lens": "jump", "task": task}.items():
        tokens = tokens.append_column(name, pa.array([text] * count))
    table = tabulate_samples(trajectory).assign(model="reference", lens="jump", spec=task, sample=numbers)
    tables = {"tokens": tokens, "samples": pa.Table.from_pandas(table.astype({"generated": "string"}), preserve_index=False)}
    return tables, {"skipped": [], "cut": 0, "largest_error": 0.0, "manifest": manifest}


@cache
def list_levels(folder: Path, task: int) -> np.ndarray:
    """The level of each sample of a task; 0 where it has none."""
    return np.array([sample.level or 0 for sample in open_store(folder).samples(task)])


def read(folder: Path, what: str, repeats: int) -> dict[str, float]:
    """The quickest of some fresh processes that do it."""
    code = textwrap.dedent(READ).format(what=what)
    one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS")}
    done = [
        subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, env={**os.environ, **one}
        )
        for _ in range(repeats)
    ]
    return min((json.loads(one.stdout) for one in done), key=lambda row: row["seconds"])


if __name__ == "__main__":
    main()
