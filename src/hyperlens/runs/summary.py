"""What a study found, as rows: groups by task and level, trends over the levels, focal depths chosen with labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

from hyperlens.contrast import Interval, choose_depth, estimate_matched_trend, estimate_mean, estimate_trend
from hyperlens.trajectory import Trajectory, average_tokens, measure_effort

Row = dict[str, Any]
MEASURES = ("effort", "struggle", "commit")


def summarise(trajectory: Trajectory, seed: int = 0) -> dict[str, list[Row]]:
    """All that `hyperlens study --json` prints of a trajectory; intervals and halves are drawn from `seed`."""
    table = tabulate_samples(trajectory)
    return {
        "groups": group_effort(trajectory, table, seed),
        "trends": find_trends(trajectory, table, seed),
        "choices": choose_depths(trajectory, table, seed),
    }


def tabulate_samples(trajectory: Trajectory) -> pd.DataFrame:
    """One row per sample: its labels, its mean confidence c_L, and its mean effort, struggle and commit at each depth, as
    `effort@2`."""
    measured = measure_effort(trajectory)
    confidence = average_tokens(trajectory, trajectory.data["probability"].values[:, 0, -1].astype(float))
    columns = {
        f"{name}@{depth}": average_tokens(trajectory, measured[name].values[:, place])
        for name in (*MEASURES, "common_effort")
        for place, depth in enumerate(trajectory.focal_depths)
    }
    return trajectory.samples.assign(confidence=confidence, **columns)


def group_effort(trajectory: Trajectory, table: pd.DataFrame | None = None, seed: int = 0) -> list[Row]:
    """Accuracy, confidence, effort, struggle length and commit state with intervals by task and level, over all samples and
    over the correct ones alone; `undefined` counts the samples without effort, which its mean leaves out."""
    table = tabulate_samples(trajectory) if table is None else table
    groups = []
    order = {task: number for number, task in enumerate(table["task"].unique())}
    cells = {cast("tuple[str, Any]", cell): rows for cell, rows in table.groupby(["task", "level"], dropna=False, sort=False)}
    for (task, level), rows in sorted(cells.items(), key=lambda item: (order[item[0][0]], _sortable(item[0][1]))):
        known = rows["correct"].dropna()
        groups.append(
            {
                "model": trajectory.manifest["model"]["name"],
                "task": task,
                "level": None if level is pd.NA or level is None else int(level),
                "tokens": float(rows["tokens"].to_numpy(dtype=float).mean()),
                **_measure_group(rows, trajectory.focal_depths, seed),
                "accuracy": float(known.to_numpy(dtype=float).mean()) if len(known) else None,
                "correct": _measure_group(_correct(rows), trajectory.focal_depths, seed),
            }
        )
    return groups


def find_trends(trajectory: Trajectory, table: pd.DataFrame | None = None, seed: int = 0) -> list[Row]:
    """Spearman's rho of level and effort for each task and focal depth, where the task has levels.

    Beside the plain one: over the `correct` samples alone; `partial`, what is left with the ranks of confidence, of length,
    and of both taken out; `matched`, among samples of like confidence, and of like length.
    """
    table = tabulate_samples(trajectory) if table is None else table
    trends = []
    for task, rows, levels in _graded_tasks(table):
        confidence, length = (rows[name].to_numpy(dtype=float) for name in ("confidence", "tokens"))
        right = rows["correct"].fillna(False).to_numpy(dtype=bool)
        for depth in trajectory.focal_depths:
            values = rows[f"effort@{depth}"].to_numpy(dtype=float)
            controls = {"confidence": (confidence,), "length": (length,), "both": (confidence, length)}
            trends.append(
                {
                    "model": trajectory.manifest["model"]["name"],
                    "task": task,
                    "depth": depth,
                    **_as_rho(estimate_trend(levels, values, seed)),
                    "correct": _as_rho(estimate_trend(levels[right], values[right], seed)),
                    "partial": {name: _as_rho(estimate_trend(levels, values, seed, taken)) for name, taken in controls.items()},
                    "matched": {
                        "confidence": _as_rho(estimate_matched_trend(levels, values, confidence, seed=seed)),
                        "length": _as_rho(estimate_matched_trend(levels, values, length, seed=seed)),
                    },
                }
            )
    return trends


def choose_depths(trajectory: Trajectory, table: pd.DataFrame | None = None, seed: int = 0) -> list[Row]:
    """For each task with levels, the focal depth that follows them best on one half of its samples, and how well it and the
    logit lens do on the other half. Nothing where only one depth was read."""
    table = tabulate_samples(trajectory) if table is None else table
    if len(trajectory.focal_depths) < 2:
        return []
    choices = []
    for task, rows, levels in _graded_tasks(table):
        efforts = {depth: rows[f"effort@{depth}"].to_numpy(dtype=float) for depth in trajectory.focal_depths}
        choice = choose_depth(levels, efforts, seed)
        if choice is None:
            continue
        choices.append(
            {
                "task": task,
                "chosen": choice.chosen,
                "calibration": {str(depth): rho for depth, rho in choice.calibration.items()},
                "held_out": _as_rho(choice.held_out),
                "logit": _as_rho(choice.logit),
            }
        )
    return choices


def _graded_tasks(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, np.ndarray]]:
    """The tasks with more than one level, their rows and the levels of these."""
    for task, rows in table.groupby("task", sort=False):
        levels = rows["level"].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
        if len(set(levels[~np.isnan(levels)])) > 1:
            yield str(task), rows, levels


def _sortable(level: Any) -> float:
    return -1.0 if level is None or level is pd.NA else float(level)


def _correct(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[rows["correct"].fillna(False).to_numpy(dtype=bool)]


def _measure_group(rows: pd.DataFrame, depths: Sequence[int], seed: int) -> Row:
    means = {
        name: {str(depth): _as_mean(estimate_mean(rows[f"{name}@{depth}"].to_numpy(dtype=float), seed)) for depth in depths}
        for name in MEASURES
    }
    undefined = {str(depth): int(np.isnan(rows[f"effort@{depth}"].to_numpy(dtype=float)).sum()) for depth in depths}
    confidence = float(rows["confidence"].to_numpy().mean()) if len(rows) else None
    return {"n": len(rows), "confidence": confidence, **means, "undefined": undefined}


def _as_mean(interval: Interval) -> dict[str, float]:
    return {"mean": interval.value, "low": interval.low, "high": interval.high}


def _as_rho(interval: Interval) -> dict[str, float]:
    return {"rho": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
