"""Can the graded questions be answered without doing the steps? What order-blind baselines learn, per domain and level.

Run: python benchmarks/shortcuts.py [--questions 5000] [--out docs/shortcuts.json]

Every baseline learns from 5,000 questions and is scored on as many others, twice: on *held out* chains after learning from
those that training may see, and on *all* chains, where no small set of held-out chains adds noise of its own (logic holds out
14 of two steps). From level 3 on none may be more than 5 points above chance in either. And none may be more skilled, that is
further above chance, at a level than at the one before it: judged on all chains, by 3.5 standard errors of the difference of
two shares of 5,000 (128 comparisons). Exit status 1 where a baseline does.
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


def draw(task: GradedTask, level: int, variant: str, number: int, name: str, held_out: bool | None) -> Questions:
    """Questions as (prompt, answer), from chains that are held out, that are not, or (None) from all."""
    rng = random.Random(f"audit/{task.name}/{level}/{variant}/{name}")
    questions = [task.ask(level, rng, VARIANTS[variant], held_out) for _ in range(number)]
    return [(prompt, target.strip()) for prompt, target in questions]


def most_frequent(seen: Questions, asked: Questions) -> float:
    """Always the answer that was seen most often."""
    answer = Counter(answer for _, answer in seen).most_common(1)[0][0]
    return float(np.mean([right == answer for _, right in asked]))


def by_value(task: GradedTask, place: int, seen: Questions, asked: Questions) -> float:
    """The answer that was seen most often with the same last (or first) value in the prompt, so also its opposite."""
    candidates = set(task.answers)

    def find(prompt: str) -> str:
        words = [word for word in prompt.replace("'s", " 's").split() if word in candidates]
        return words[place] if words else ""

    answers: dict[str, Counter[str]] = {}
    for prompt, answer in seen:
        answers.setdefault(find(prompt), Counter())[answer] += 1
    said = {value: counted.most_common(1)[0][0] for value, counted in answers.items()}
    return float(np.mean([said.get(find(prompt)) == right for prompt, right in asked]))


def linear_on_counts(seen: Questions, asked: Questions) -> float:
    """A logistic regression on how often each word occurs, whatever the order."""
    words = CountVectorizer(token_pattern=r"'s|[A-Za-z]+|[0-9]+|[-+*^]=|[^\sA-Za-z0-9]", lowercase=False)
    model = make_pipeline(words, StandardScaler(with_mean=False), LogisticRegression(C=0.1, max_iter=300))
    model.fit(*zip(*seen, strict=True))
    return float(model.score(*zip(*asked, strict=True)))


def audit(task: GradedTask, variant: str, number: int) -> list[dict]:
    """What each baseline reaches on `number` questions of each level, of held-out and of all chains."""
    rows = []
    for level in LEVELS:
        for chains, learn, score in (("held out", False, True), ("all", None, None)):
            seen = draw(task, level, variant, number, f"{chains} learn", learn)
            asked = draw(task, level, variant, number, f"{chains} score", score)
            about = {"task": task.name, "variant": variant, "level": level, "chains": chains, "n": number}
            reached = {
                "most frequent value": most_frequent(seen, asked),
                "last value": by_value(task, -1, seen, asked),
                "first value": by_value(task, 0, seen, asked),
                "linear on word counts": linear_on_counts(seen, asked),
            }
            rows.append({**about, "chance": 1 / len(task.answers), **reached})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def find_faults(rows: list[dict]) -> list[str]:
    """Each baseline that is too good, or better at a harder level, in a sentence."""
    baselines = [name for name in rows[0] if " " in name]
    whole = [row for row in rows if row["chains"] == "all"]
    faults = []
    for name in baselines:
        for row in rows:
            if row["level"] >= 3 and row[name] > row["chance"] + MARGIN:
                faults.append(
                    f"{row['task']}:{row['variant']} level {row['level']}, {row['chains']}: {name} reaches {row[name]:.3f}"
                )
        for easier, harder in pairwise(whole):
            same = (easier["task"], easier["variant"]) == (harder["task"], harder["variant"])
            chance = harder["chance"]
            noise = NOISE * math.sqrt(2 * chance * (1 - chance) / harder["n"])
            if same and harder[name] - chance > max(easier[name] - chance, 0) + noise:
                faults.append(
                    f"{harder['task']}:{harder['variant']}: {name} rises to {harder[name]:.3f} at level {harder['level']}"
                )
    return faults


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
