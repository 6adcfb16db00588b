"""What a measurement of the probe set says: its means, how they differ from the base's, and the name of that pattern."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hyperlens.artefact import to_json
from hyperlens.diagnosis import MEASURES, PATTERNS, Change, Columns, estimate_changes, holds_for, name_pattern
from hyperlens.errors import InputError
from hyperlens.trajectory import Trajectory, average_tokens, measure_effort

COMPARED = ("accuracy", "confidence", "effort")
"""The measures that a verdict is made of."""
BLIND = PATTERNS[0].name
SUCCESSIVE = 2
"""So many readings in a row have to show a pattern before it is acted on: a training is looked at many times. Of 64 samples, a
tenth of whose answers vary by chance alone from look to look, accuracy is down at some look of 30 in 0.09 of all trainings, at
two in a row in 0.06 (benchmarks/looks.py)."""


@dataclass(frozen=True)
class Reading:
    """The probe set, or one task of it, after `step` training steps.

    Means over the samples where they are known: `accuracy` (all answer tokens are the model's own top token), `confidence` (its
    probability of that) and `effort` Ω in [0, 1], `struggle` and `commit` in layers; else NaN. `changes` are those to the base
    by the name of the measure, in pairs with 95 % intervals, `verdict` the name of their pattern, as in `hyperlens.diagnosis`:
    "no change shown" of fewer than 20 samples.
    `tasks` are the readings of the tasks by name, where there are several.
    """

    step: int
    samples: int
    accuracy: float
    confidence: float
    effort: float
    struggle: float
    commit: float
    changes: Mapping[str, Change]
    verdict: str
    tasks: Mapping[str, Reading] = field(default_factory=dict)


def list_values(trajectory: Trajectory, focal_depth: int) -> dict[str, np.ndarray]:
    """The measures of each sample of a trajectory at one of its focal depths: float `[sample]` each, NaN where unknown."""
    measured, place = measure_effort(trajectory), trajectory.focal_depths.index(focal_depth)
    own = trajectory.data["probability"].values[:, place, -1].astype(float)
    return {
        "accuracy": trajectory.samples["correct"].to_numpy(dtype=float, na_value=math.nan),
        "confidence": average_tokens(trajectory, own),
        **{name: average_tokens(trajectory, measured[name].values[:, place]) for name in ("effort", "struggle", "commit")},
        "read": trajectory.samples["read"].to_numpy(dtype=float),
    }


def compare_values(step: int, values: Columns, base: Columns, tasks: Sequence[str]) -> Reading:
    """The reading of a measurement beside the base; `tasks[sample]` are the names of their tasks."""
    names = [name for name in dict.fromkeys(tasks) if name]
    parts = {name: np.array([task == name for task in tasks]) for name in names} if len(names) > 1 else {}
    each = {name: _compare_rows(step, values, base, rows, {}) for name, rows in parts.items()}
    return _compare_rows(step, values, base, np.ones(len(tasks), dtype=bool), each)


def _compare_rows(step: int, values: Columns, base: Columns, rows: np.ndarray, tasks: Mapping[str, Reading]) -> Reading:
    after, before = ({name: side[name][rows] for name in MEASURES} for side in (values, base))
    changes = estimate_changes(before, after)
    means = {name: _average(after[name]) for name in MEASURES if name != "read"}
    return Reading(step, int(rows.sum()), **means, changes=changes, verdict=name_pattern(changes).name, tasks=tasks)


def is_settled(readings: Sequence[Reading], pattern: str) -> bool:
    """Whether a pattern is to be acted on: the last two readings of a training both show it, or one that contains it."""
    last = readings[-SUCCESSIVE:]
    return len(last) == SUCCESSIVE and all(holds_for(pattern, reading.verdict) for reading in last)


def list_logs(reading: Reading) -> dict[str, float]:
    """The reading as numbers for a tracker: `accuracy/probe`, its `change` to the base with the ends of its interval, the same
    of confidence and effort, and of each task without ends. What is unknown is left out."""
    logs = {"effort/struggle": reading.struggle, "effort/commit": reading.commit}
    for name in COMPARED:
        for prefix, part in [("probe", reading), *((f"task/{task}", part) for task, part in reading.tasks.items())]:
            difference = part.changes[name].difference
            logs |= {f"{name}/{prefix}": getattr(part, name), f"{name}/{prefix}/change": difference.value}
            if part is reading:
                logs |= {f"{name}/{prefix}/change_low": difference.low, f"{name}/{prefix}/change_high": difference.high}
    if not math.isnan(reading.accuracy):
        logs["blind_confidence"] = float(reading.verdict == BLIND)
    return {name: value for name, value in logs.items() if not math.isnan(value)}


def identify_probe(trajectory: Trajectory, focal_depth: int) -> dict[str, Any]:
    """What has to be the same for two measurements to be compared: texts, the places read in them, lens and reference."""
    manifest, samples = trajectory.manifest, trajectory.samples
    texts = [samples[name].tolist() for name in ("text", "tokens", "read")]
    places = [trajectory.data[name].values.tolist() for name in ("sample", "position", "token_id")]
    lens = {name: manifest["lens"].get(name) for name in ("name", "context", "between")}
    return {
        "texts": hashlib.sha256(to_json([texts, places]).encode()).hexdigest(),
        "lens": lens | {"focal depth": focal_depth},
        "positions": manifest["positions"],
        "reference": manifest["reference"],
        "layers": trajectory.layers,
    }


def check_identity(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Raises InputError that names what differs where a base is of another probe set, or was measured otherwise."""
    if differing := [name for name in expected if found.get(name) != expected[name]]:
        raise InputError(
            f"{where} does not fit this probe set: its {' and '.join(differing)} differ; give a base of the same samples "
            "in the same order, read at the same focal depth"
        )


def _average(values: np.ndarray) -> float:
    """Mean of what is known; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
