"""How long two large runs take to be compared: made up ones, of 10⁵ samples × 33 states × 4 focal depths each.

`python benchmarks/compare_scale.py` writes the runs (to --folder, kept there for another time), then compares them in fresh
processes, with one thread, and prints JSON: the median over repeats of wall-clock and processor seconds, from opening the
runs to the finished comparison, those of its page, and the process's largest memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from scale import DEPTHS, LAYERS, make_up

COMPARE = """
    import json, resource, sys, time
    from hyperlens.report import write_comparison
    from hyperlens.runs import compare_runs, open_run

    def measure(work):
        began, processor = time.perf_counter(), time.process_time()
        found = work()
        return found, time.perf_counter() - began, time.process_time() - processor

    before, after = sys.argv[1:]
    found, seconds, processor = measure(lambda: compare_runs(open_run(before), open_run(after)))
    _, page, page_processor = measure(lambda: write_comparison(found))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    times = {"seconds": seconds, "processor": processor, "page": page, "page_processor": page_processor, "memory_mb": most}
    print(json.dumps({**times, "samples": len(found.samples), "changes": len(found.changes), "broke": found.count_broken}))
"""


def main() -> None:
    """Make the runs where they are not there, compare them, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--levels", type=int, default=5, help="levels of each task")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    for seed, name in enumerate(("before", "after")):
        if not (folder / name / "COMPLETE").exists():
            make_up(folder / name, options.rows, options.levels, seed)
    found = {"rows": options.rows, "levels": options.levels, "states": LAYERS + 1, "depths": DEPTHS, "repeats": options.repeats}
    print(json.dumps({**found, **compare(folder, options.repeats)}))


def compare(folder: Path, repeats: int) -> dict[str, float]:
    """The medians over some fresh processes that compare the two runs in a folder."""
    one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS")}
    command = [sys.executable, "-c", textwrap.dedent(COMPARE), str(folder / "before"), str(folder / "after")]
    done = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **one}).stdout)
        for _ in range(repeats)
    ]
    return {name: round(statistics.median(row[name] for row in done), 2) for name in done[0]}


if __name__ == "__main__":
    main()
