"""How often a warning light that looks again and again shows a loss of accuracy where there is none; prints JSON.

64 probe samples are right or wrong by chance: at each look a tenth of them is drawn anew, right with the probability 0.7 that
the base had too. Nothing changes but by chance. Counted is the share of trainings in which accuracy is down at some look.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise

import numpy as np

from hyperlens.diagnosis import DOWN, estimate_changes

SAMPLES, RIGHT, PERSISTENCE = 64, 0.7, 0.9


def main() -> None:
    """Simulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainings", type=int, default=400)
    parser.add_argument("--looks", type=int, default=30)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    found = np.array([simulate(rng, options.looks) for _ in range(options.trainings)])
    names = ("interval alone", "with the sign test", "two readings in a row")
    print(json.dumps({**vars(options), **dict(zip(names, found.mean(0).round(3).tolist(), strict=True))}, indent=1))


def simulate(rng: np.random.Generator, looks: int) -> tuple[bool, bool, bool]:
    """One training: whether its accuracy is down at some look by the interval alone, by our rule, and by it twice in a row."""
    base = (rng.random(SAMPLES) < RIGHT).astype(float)
    now, intervals, shown = base, [], []
    for _ in range(looks):
        now = np.where(rng.random(SAMPLES) < PERSISTENCE, now, rng.random(SAMPLES) < RIGHT)
        change = estimate_changes({"accuracy": base}, {"accuracy": now})["accuracy"]
        intervals.append(change.difference.high < 0)
        shown.append(change.direction == DOWN)
    return any(intervals), any(shown), any(one and other for one, other in pairwise(shown))


if __name__ == "__main__":
    main()
