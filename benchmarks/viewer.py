"""How long the viewer's server takes: a run of 10⁵ samples opened, and a sample of 1,000 tokens × 33 states × 4 focal depths.

`python benchmarks/viewer.py` writes both runs (to --folder, kept there for another time), starts a fresh viewer for each
repeat, asks as its page does, and prints JSON: medians of wall-clock seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
from scale import DEPTHS, LAYERS, make_up

import hyperlens as hl
from hyperlens.runs.opening import begin
from hyperlens.tasks import Drawn, Sample

TOKENS, LONG_SAMPLES = 1000, 128


def main() -> None:
    """Make the runs where they are not there, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    folder = make_runs(options.folder or Path(tempfile.mkdtemp()), options.rows)
    found = [measure(folder) for _ in range(options.repeats)]
    medians = {name: round(statistics.median(one[name] for one in found), 3) for name in found[0]}
    print(json.dumps({"rows": options.rows, "tokens": TOKENS, "states": LAYERS + 1, "depths": DEPTHS, **medians}))


def make_runs(folder: Path, rows: int = 100_000) -> Path:
    """The folder with two finished runs: `many`, of so many samples of one token, and `long`, of samples of 1,000 tokens."""
    if not (folder / "many" / "COMPLETE").exists():
        make_up(folder / "many", rows, 5)
    if not (folder / "long" / "COMPLETE").exists():
        make_long(folder / "long")
    return folder


def make_long(folder: Path, tokens: int = TOKENS, count: int = LONG_SAMPLES) -> None:
    """A finished run of long samples, whose tokens are read at random."""
    study = hl.Study("long", tasks=(hl.TaskSpec("texts"),), lenses=(hl.LensSpec(focal_depths=DEPTHS),))
    samples = tuple(Sample(f"text {number}", " word" * tokens, task="texts", id=str(number)) for number in range(count))
    store = begin(folder, study, lambda _: Drawn(samples, (), tokens, (), "target"))
    lens = {"focal_depths": list(DEPTHS), "auto": None, "context": "jump"}
    store.add_model(0, {"name": "reference", "layers": LAYERS, "fingerprint": "made up", "lenses": {"jump": lens}})
    for shard in store.shards:
        tables = {"tokens": _invent_tokens(shard.samples, tokens), "samples": _invent_samples(shard.samples, tokens)}
        manifest = {"guess": 0.0, "smallest": 0.0}
        store.add_shard(shard, tables, {"skipped": [], "cut": 0, "largest_error": 0.0, "manifest": manifest})
    from hyperlens.runs.run import sum_up

    store.finish(sum_up(store))


def _invent_tokens(samples: tuple[int, ...], tokens: int) -> pa.Table:
    rows, rng = len(samples) * tokens, np.random.default_rng(0)
    final = rng.beta(8, 2, rows).astype(np.float32)
    columns = {"sample": pa.array(np.repeat(samples, tokens)), "position": pa.array(np.tile(np.arange(tokens), len(samples)))}
    for name in ("token", "output", "reference"):
        columns |= {f"{name}_id": pa.array(np.full(rows, 5)), f"{name}_text": pa.array([" word"] * rows)}
    columns["output_probability"] = pa.array(final)
    for depth in DEPTHS:
        values = np.sort(rng.random((rows, LAYERS + 1), dtype=np.float32), 1) * final[:, None]
        values[:, LAYERS - depth :] = final[:, None]
        columns[f"probability@{depth}"] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), LAYERS + 1)
    return pa.table(columns)


def _invent_samples(samples: tuple[int, ...], tokens: int) -> pa.Table:
    rng, count = np.random.default_rng(1), len(samples)
    frame = pd.DataFrame({"model": "reference", "lens": "jump", "task": "texts", "spec": "texts", "sample": samples})
    frame = frame.assign(id=frame["sample"].astype(str), level=1, tokens=tokens, read=tokens, cut=0, unknown=0, generated=None)
    measured = {
        f"{name}@{depth}": rng.random(count) for name in ("effort", "common_effort", "struggle", "commit") for depth in DEPTHS
    }
    frame = frame.assign(correct=rng.random(count) < 0.5, confidence=rng.random(count), **measured)
    return pa.Table.from_pandas(frame.astype({"generated": "string", "correct": "boolean"}), preserve_index=False)


def measure(folder: Path) -> dict[str, float]:
    """Seconds until a fresh viewer has answered what the page of each run asks first, and what it asks for a sample."""
    with start_viewer(folder) as client:
        numbers = {row["place"]: row["id"] for row in client.get("/api/runs").json()["runs"]}
        many, long = numbers["many"], numbers["long"]
        opened = _time(client, f"/api/runs/{many}") + _time(client, f"/api/runs/{many}/samples?sort=effort&limit=100")
        again = _time(client, f"/api/runs/{many}/samples?sort=confidence&order=up&limit=100")
        client.get(f"/api/runs/{long}/samples?limit=1")
        sample = _time(client, f"/api/runs/{long}/sample?task=texts&sample=77")
        return {"open": opened, "sort": again, "search": _time(client, f"/api/runs/{many}/samples?search=77"), "sample": sample}


@contextmanager
def start_viewer(folder: Path) -> Iterator[httpx.Client]:
    """A viewer of the runs in a folder, in a process of its own with one thread."""
    one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS")}
    command = [sys.executable, "-c", "from hyperlens.cli import main; main()", "view", str(folder), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **one})
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        headers = {"Authorization": f"Bearer {said['token']}"}
        with httpx.Client(base_url=said["url"], headers=headers, trust_env=False, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def _time(client: httpx.Client, address: str) -> float:
    began = time.perf_counter()
    answer = client.get(address)
    answer.raise_for_status()
    answer.json()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
