"""When does fine-tuning make the reference model blindly confident, and does keeping its effort help? Held-out questions only.

The model is fine-tuned on 64 questions with operands that its own training showed in single steps alone, answers only, and
measured before and after: in the domain, on the domain's old questions, and on those of the other domains. Each job's
measurements are kept in `--work`, so that a stopped run goes on; `--share 1/2` does every second job, for two processes. Then
writes docs/blind_confidence.json, and fills the tables and draws the figure of docs/blind_confidence.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blind_confidence_page import fill_page

import hyperlens as hl
from hyperlens.contrast import estimate_mean, estimate_trend
from hyperlens.diagnosis import estimate_changes, name_pattern
from hyperlens.runs.summary import tabulate_samples
from hyperlens.tasks import GRADED, Sample
from hyperlens.tasks.graded.graded import LEVELS, Variant
from hyperlens.tracing import Limits

ROOT = Path(__file__).resolve().parent.parent
RESULTS, WORK = ROOT / "docs" / "blind_confidence.json", ROOT / "runs" / "blind_confidence"
EXAMPLES, BATCH, TEST_SEED, TRAIN_SEED = 64, 16, 1234, 77
DEPTHS = (0, 2)
DATA = {"easy": (1, 2), "mixed": LEVELS, "steps": (1, 2)}
"""Levels of the questions that are trained on; `steps` have the values of all steps written, the others bare answers."""
GRID = {"rate": (3e-4, 1e-3), "epochs": (4, 32)}
SEEDS, GRID_SEEDS = (0, 1, 2), (0, 1)
"""Seeds of the cures and of what they are compared with, and those of everything else."""
WORST = {"data": "easy", "rate": 1e-3, "epochs": 32}
"""Where the cures are tried: on the grid, where most is lost."""
LORA_RATES = (5e-3,)
CURES: dict[str, dict[str, Any]] = {
    "keep Ω, λ = 0.1": {"effort_weight": 0.1},
    "keep Ω, λ = 1": {"effort_weight": 1.0},
    "raise Ω": {"effort_weight": 1.0, "aim": "raise", "shift": 0.15},
    "lower Ω": {"effort_weight": 1.0, "aim": "lower", "shift": 0.15},
    "KL to the base": {"kl_weight": 1.0},
    "label smoothing": {"label_smoothing": 0.1},
}
MEASURES = ("accuracy", "confidence", "effort", "effort@0", "struggle", "commit")
COLUMNS = {"accuracy": "correct", "effort": "effort@2", "struggle": "struggle@2", "commit": "commit@2"}


@dataclass(frozen=True)
class Job:
    """One fine-tuning: `method` names a cure, or is `plain`; `tuning` is full or lora."""

    domain: str
    data: str = "easy"
    method: str = "plain"
    rate: float = 1e-3
    epochs: int = 32
    seed: int = 0
    tuning: str = "full"

    @property
    def name(self) -> str:
        """What its measurements are kept under."""
        return "-".join(str(value).replace(" ", "_") for value in asdict(self).values())


def main() -> None:
    """Do what is left of the jobs, and sum up once all are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="folder of what was measured")
    parser.add_argument("--share", default="1/1", help="which part of the jobs this process does")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["draw"], help="make the page of the JSON that is there")
    options = parser.parse_args()
    if options.only != "draw":
        torch.set_num_threads(options.threads)
        mine, parts = map(int, options.share.split("/"))
        options.work.mkdir(parents=True, exist_ok=True)
        jobs = list(list_jobs())
        run_jobs(jobs[mine - 1 :: parts], options.work)
        if not all((options.work / f"{job.name}.json").exists() for job in jobs):
            print("other processes have jobs left; run this again after them")
            return
        RESULTS.write_text(json.dumps(sum_up(jobs, options.work), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    fill_page(json.loads(RESULTS.read_text(encoding="utf-8")))


def list_jobs() -> Iterator[Job]:
    """All fine-tunings, seed by seed."""
    for seed in SEEDS:
        for domain in GRADED:
            yield from (Job(domain, **WORST, method=method, seed=seed) for method in ("plain", *CURES))
            if seed not in GRID_SEEDS:
                continue
            yield Job(domain, **WORST | {"data": "steps"}, seed=seed)
            yield from (Job(domain, **WORST | {"rate": rate}, tuning="lora", seed=seed) for rate in LORA_RATES)
            for data, rate, epochs in product(("easy", "mixed"), GRID["rate"], GRID["epochs"]):
                if (data, rate, epochs) != tuple(WORST.values()):
                    yield Job(domain, data, rate=rate, epochs=epochs, seed=seed)


def run_jobs(jobs: list[Job], work: Path) -> None:
    """Do each job that was not done yet."""
    base = hl.load_model("reference")
    for number, job in enumerate(jobs, 1):
        if (file := work / f"{job.name}.json").exists():
            continue
        began = time.monotonic()
        if not (before := work / f"base-{job.domain}.json").exists():
            keep(before, {"tests": measure(base, job.domain)})
        found = hl.fine_tune(base, draw_examples(job), describe_recipe(job))
        tuned = hl.load_model(found.network, base.tokenizer)
        row = {"job": asdict(job), "loss": found.log[-1].get("loss"), "tests": measure(tuned, job.domain)}
        keep(file, row)
        print(f"{number}/{len(jobs)} {job.name} {time.monotonic() - began:.0f} s", flush=True)


def describe_recipe(job: Job) -> hl.FineTuneRecipe:
    """How a job is trained."""
    recipe = hl.FineTuneRecipe(
        method=job.tuning, rate=job.rate, epochs=float(job.epochs), batch=BATCH, end=False, save_every=10**6, seed=job.seed
    )
    return replace(recipe, **CURES.get(job.method, {}))


def draw_examples(job: Job) -> list[Sample]:
    """Questions that no test holds: of their chains none is held out."""
    rng, task = random.Random(f"{job.domain}/{job.data}/{job.seed}/{TRAIN_SEED}"), GRADED[job.domain]
    variant, questions = Variant(wide=True, stepwise=job.data == "steps"), dict[str, str]()
    while len(questions) < EXAMPLES:
        level = DATA[job.data][len(questions) % len(DATA[job.data])]
        prompt, target = task.ask(level, rng, variant, held_out=False)
        questions.setdefault(prompt, target)
    return [Sample(prompt, target) for prompt, target in questions.items()]


def draw_tests(domain: str) -> dict[str, list[Sample]]:
    """`new`, what was tuned for: the new operands at all levels, 40 each; `new, by steps`; the domain's `old` questions; and
    those of the `others`."""
    task = GRADED[domain]
    others = [sample for name, other in GRADED.items() if name != domain for sample in other.samples(10, TEST_SEED)]
    return {
        "new": task.samples(40, TEST_SEED, "wide"),
        "new, by steps": task.samples(10, TEST_SEED, Variant(wide=True, stepwise=True)),
        "old": task.samples(20, TEST_SEED),
        "others": others,
    }


def measure(model: hl.Model, domain: str) -> dict[str, dict[str, list[float]]]:
    """What was read of each sample of each test, the model's own top token as reference."""
    found = {}
    for name, samples in draw_tests(domain).items():
        read = hl.trace(model, samples, hl.HyperLens(DEPTHS), "answer", "output", limits=Limits(progress=False))
        frame = tabulate_samples(read)
        found[name] = {
            column: [round(float(value), 5) for value in frame[COLUMNS.get(column, column)].astype(float)]
            for column in MEASURES
        }
        found[name]["level"] = [float(sample.level or 0) for sample in samples]
    return found


def keep(file: Path, row: dict[str, Any]) -> None:
    """Write what was measured, all or nothing."""
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(row), encoding="utf-8")
    with contextlib.suppress(FileExistsError):
        partial.replace(file)


def sum_up(jobs: list[Job], work: Path) -> dict[str, Any]:
    """All that the page says."""
    rows = {job: json.loads((work / f"{job.name}.json").read_text(encoding="utf-8")) for job in jobs}
    bases = {name: json.loads((work / f"base-{name}.json").read_text(encoding="utf-8"))["tests"] for name in GRADED}
    cells = {replace(job, seed=0): None for job in jobs}
    listed = [describe_cell(cell, [rows[job] for job in jobs if replace(job, seed=0) == cell], bases) for cell in cells]
    return {
        "examples": EXAMPLES,
        "batch": BATCH,
        "worst": WORST,
        "base": {name: {test: average(side) for test, side in tests.items()} for name, tests in bases.items()},
        "cells": listed,
        "causal": list(compare_methods(rows)),
        "warning": find_warnings(rows, bases),
        "runs": [
            {
                **asdict(job),
                "change": {name: mean_change(bases[job.domain]["new"], row["tests"]["new"], name) for name in MEASURES},
            }
            for job, row in rows.items()
        ],
    }


def average(side: dict[str, list[float]]) -> dict[str, Any]:
    """Means of each measure over a test, and their accuracy by level."""
    levels, right = np.array(side["level"]), np.array(side["accuracy"])
    means = {name: round(float(np.nanmean(side[name])), 4) for name in MEASURES}
    return means | {
        "n": len(levels),
        "by_level": [round(float(right[levels == level].mean()), 3) for level in sorted(set(levels))],
    }


def columns(side: dict[str, list[float]]) -> dict[str, np.ndarray]:
    """The measures as arrays."""
    return {name: np.array(side[name], dtype=float) for name in MEASURES}


def describe_cell(cell: Job, rows: list[dict[str, Any]], bases: dict[str, Any]) -> dict[str, Any]:
    """A fine-tuning over its seeds: changes of the mean over seeds of each sample, and the pattern of each seed alone."""
    tests = {}
    for name in rows[0]["tests"]:
        before = columns(bases[cell.domain][name])
        sides = [columns(row["tests"][name]) for row in rows]
        after = {measure: np.mean([side[measure] for side in sides], axis=0) for measure in MEASURES}
        changes = estimate_changes(before, after)
        tests[name] = {
            "pattern": name_pattern(changes).name,
            "each": [name_pattern(estimate_changes(before, side)).name for side in sides],
            **{measure: spell(changes[measure]) for measure in MEASURES},
        }
    losses = [row["loss"] for row in rows]
    return {**asdict(cell), "seeds": len(rows), "loss": round(float(np.mean(losses)), 4), "tests": tests}


def spell(change: Any) -> dict[str, Any]:
    """A change as JSON."""
    return {
        "before": round(change.before.value, 4),
        "after": round(change.after.value, 4),
        "change": [round(part, 4) for part in (change.difference.value, change.difference.low, change.difference.high)],
    }


def compare_methods(rows: dict[Job, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What each cure changes against plain fine-tuning of the same seeds on the same samples: the data are the same, and only
    the term differs."""
    for domain in (*GRADED, "all"):
        for method in CURES:
            parts: dict[str, list[np.ndarray]] = {name: [] for name in MEASURES}
            for one in GRADED if domain == "all" else (domain,):
                jobs = [Job(one, method=method, seed=seed) for seed in SEEDS]
                pairs = [(rows[job]["tests"]["new"], rows[replace(job, method="plain")]["tests"]["new"]) for job in jobs]
                for name in MEASURES:
                    parts[name].append(np.mean([columns(side)[name] - columns(plain)[name] for side, plain in pairs], axis=0))
            found = {name: estimate_mean(np.concatenate(part)) for name, part in parts.items()}
            yield {
                "domain": domain,
                "method": method,
                **{name: [round(value, 4) for value in (one.value, one.low, one.high)] for name, one in found.items()},
            }


def find_warnings(rows: dict[Job, dict[str, Any]], bases: dict[str, Any]) -> dict[str, Any]:
    """Over the plain fine-tunings: how the change of effort and of confidence goes with that of accuracy, and with the number
    of optimiser steps × rate taken out, in and across domains."""
    plain = [job for job in rows if job.method == "plain" and job.data in ("easy", "mixed") and job.tuning == "full"]

    def changes(name: str, jobs: list[Job]) -> np.ndarray:
        return np.array([mean_change(bases[job.domain]["new"], rows[job]["tests"]["new"], name) for job in jobs])

    found = {}
    for domain in (*GRADED, "all"):
        jobs = [job for job in plain if domain in (job.domain, "all")]
        accuracy = changes("accuracy", jobs)
        trends = {name: estimate_trend(accuracy, changes(name, jobs)) for name in ("confidence", "effort", "effort@0")}
        found[domain] = {
            "runs": len(jobs),
            **{name: [round(part, 3) for part in (one.value, one.low, one.high)] for name, one in trends.items()},
        }
    return found


def mean_change(before: dict[str, list[float]], after: dict[str, list[float]], name: str) -> float:
    """Mean change of one measure."""
    return round(float(np.nanmean(columns(after)[name] - columns(before)[name])), 4)


if __name__ == "__main__":
    main()
