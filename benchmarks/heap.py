"""What it costs when freed memory goes back to the system: a plain forward pass in calls of several sizes, with glibc's heap as
it is by itself, keeping what is freed, and giving all larger blocks back; each in a process of its own. Prints JSON.

    python benchmarks/heap.py [--repeats 5] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from statistics import median
from typing import Any

import torch
from overhead import KEPT_HEAP, PROMPTS, TIMED, TOKENS, build_llama, plain_pass, seconds, usual_heap

HEAPS = {"by itself": {}, "keeps": KEPT_HEAP, "gives back": {"MALLOC_MMAP_THRESHOLD_": str(2**20)}}
TEXTS = (1, 2, 4, 8, 16)


def main() -> None:
    """One process for each heap, or the measurement in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.here:
        print(json.dumps(measure_calls(given.repeats)))
        return
    command = [sys.executable, __file__, "--here", "--repeats", str(given.repeats), "--threads", str(given.threads)]
    found = {}
    for name, heap in HEAPS.items():
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=usual_heap() | heap)
        found[name] = json.loads(done.stdout)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=2))


def measure_calls(repeats: int) -> dict[str, dict[str, Any]]:
    """By tokens of a call: the median, least and greatest seconds of one pass over all texts, and its page faults."""
    network = build_llama(**{**TIMED, "vocabulary": 1000})
    texts = torch.randint(1, 1000, (PROMPTS, TOKENS), generator=torch.Generator().manual_seed(1))
    taken: dict[int, list[float]] = {size: [] for size in TEXTS}
    faults: dict[int, list[int]] = {size: [] for size in TEXTS}
    for number in range(repeats + 1):
        for size in TEXTS:
            calls = [plain_pass(network, part.tolist()) for part in texts.split(size)]
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            spent = seconds(lambda calls=calls: [call() for call in calls])
            if number:
                taken[size].append(spent)
                faults[size].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {
        str(size * TOKENS): {
            "seconds": round(median(taken[size]), 3),
            "range": [round(min(taken[size]), 3), round(max(taken[size]), 3)],
            "page_faults": round(median(faults[size])),
        }
        for size in TEXTS
    }


if __name__ == "__main__":
    main()
