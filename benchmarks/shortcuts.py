"""Can the graded questions be answered without doing the steps? What order-blind baselines reach, per domain and level.

Run: python benchmarks/shortcuts.py [--questions 5000] [--out docs/shortcuts.json]

Every baseline learns from questions that training may see and is scored on as many that are held out. From level 3 on none
may be more than 5 points above chance, and none may be more skilled (further above chance) at a level than at the one before
it, beyond noise: 3.5 standard errors of the difference, over 128 comparisons; at two steps the distinct chains are few, and
they, not the questions, are what is counted. Exit status 1 where a baseline does.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hyperlens.tasks.graded import GRADED, LEVELS, VARIANTS, GradedTask

Questions = list[tuple[str, str]]
MARGIN = 0.05
NOISE = 3.5


def draw(task: GradedTask, level: int, variant: str, number: int, held_out: bool) -> Questions:
    """Questions as (prompt, answer)."""
    rng = random.Random(f"audit/{task.name}/{level}/{variant}/{held_out}")
    questions = [task.ask(level, rng, VARIANTS[variant], held_out) for _ in range(number)]
    return [(prompt, target.strip()) for prompt, target in questions]


def most_frequent(seen: Questions, asked: Questions) -> float:
    """Always the answer that was seen most often."""
    answer = Counter(answer for _, answer in seen).most_common(1)[0][0]
    return float(np.mean([right == answer for _, right in asked]))


def last_value(task: GradedTask, asked: Questions) -> float:
    """The last word of the prompt that could be an answer."""
    candidates = set(task.answers)
    said = [[word for word in prompt.replace("'s", " 's").split() if word in candidates] for prompt, _ in asked]
    return float(np.mean([bool(words) and words[-1] == right for words, (_, right) in zip(said, asked, strict=True)]))


def first_value(task: GradedTask, asked: Questions) -> float:
    """The first word of the prompt that could be an answer."""
    candidates = set(task.answers)
    said = [[word for word in prompt.replace("'s", " 's").split() if word in candidates] for prompt, _ in asked]
    return float(np.mean([bool(words) and words[0] == right for words, (_, right) in zip(said, asked, strict=True)]))


def linear_on_counts(seen: Questions, asked: Questions) -> float:
    """A logistic regression on how often each word occurs, whatever the order."""
    words = CountVectorizer(token_pattern=r"'s|[A-Za-z]+|[0-9]+|[-+*^]=|[^\sA-Za-z0-9]", lowercase=False)
    model = make_pipeline(words, StandardScaler(with_mean=False), LogisticRegression(C=0.1, max_iter=300))
    model.fit(*zip(*seen, strict=True))
    return float(model.score(*zip(*asked, strict=True)))


def audit(task: GradedTask, variant: str, number: int) -> list[dict]:
    """What each baseline reaches on `number` held-out questions of each level."""
    rows = []
    for level in LEVELS:
        seen, asked = (draw(task, level, variant, number, held_out) for held_out in (False, True))
        reached = {
            "most frequent value": most_frequent(seen, asked),
            "last value": last_value(task, asked),
            "first value": first_value(task, asked),
            "linear on word counts": linear_on_counts(seen, asked),
        }
        rng = random.Random(f"audit/{task.name}/{level}")
        chains = len({task.draw(level, rng, False, True).cores[-1] for _ in range(number)})
        about = {"task": task.name, "variant": variant, "level": level, "n": number, "chains": chains}
        rows.append({**about, "chance": 1 / len(task.answers), **reached})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def find_faults(rows: list[dict]) -> list[str]:
    """Each baseline that is too good, or better at a harder level, in a sentence."""
    baselines = [name for name in rows[0] if " " in name]
    faults = []
    for name in baselines:
        for row in rows:
            if row["level"] >= 3 and row[name] > row["chance"] + MARGIN:
                faults.append(f"{row['task']}:{row['variant']} level {row['level']}: {name} reaches {row[name]:.3f}")
        for easier, harder in pairwise(rows):
            same = (easier["task"], easier["variant"]) == (harder["task"], harder["variant"])
            if same and harder[name] - harder["chance"] > max(easier[name] - easier["chance"], 0) + NOISE * _error(
                easier, harder
            ):
                faults.append(
                    f"{harder['task']}:{harder['variant']}: {name} rises to {harder[name]:.3f} at level {harder['level']}"
                )
    return faults


def _error(easier: dict, harder: dict) -> float:
    """Standard error of the difference of two shares near chance, each over its distinct chains."""
    chance = harder["chance"]
    return math.sqrt(chance * (1 - chance) * (1 / easier["chains"] + 1 / harder["chains"]))


def main() -> None:
    """Audit all domains, with and without asides."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=5000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = [
        row for task in GRADED.values() for variant in ("matched", "plain") for row in audit(task, variant, given.questions)
    ]
    faults = find_faults(rows)
    document = json.dumps({"cells": rows, "faults": faults}, indent=1)
    print(document)
    if given.out:
        given.out.write_text(document + "\n", encoding="utf-8")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
