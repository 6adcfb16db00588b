"""A study: one model over samples of several tasks, traced, grouped by task and level, and kept in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from hyperlens.artefact import check_place, read_document, write_artefact
from hyperlens.contrast import Interval, estimate_mean, estimate_trend
from hyperlens.errors import ArtefactError, InputError
from hyperlens.tasks import GRADED, Sample
from hyperlens.trajectory import Trajectory, pool_effort

if TYPE_CHECKING:
    from hyperlens.models import Model


@dataclass(frozen=True)
class Study:
    """What is measured: `tasks` by name (all that come with us by default), `limit` samples per level drawn from `seed`,
    read at `focal_depths` ("auto" chooses one and puts the logit lens beside it) in a `context`. With `samples`, those are
    read instead of tasks. The gold answer is fed, and the reference is the model's own top token at each of its positions.
    """

    tasks: tuple[str, ...] = tuple(GRADED)
    samples: tuple[Sample, ...] = ()
    limit: int = 50
    seed: int = 0
    focal_depths: tuple[int, ...] | str = "auto"
    context: str = "jump"
    readings: tuple[str, ...] = ("probability",)

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise InputError(f"the limit is {self.limit} samples per level; give a number from 1 up")
        for name in self.tasks:
            if name not in GRADED:
                raise InputError(f'there is no task "{name}"; choose from {", ".join(GRADED)}')

    def draw_samples(self) -> list[Sample]:
        """The samples that are read, the same for the same study. Raises InputError where one has no answer."""
        if not self.samples:
            return [sample for name in self.tasks for sample in GRADED[name].samples(self.limit, self.seed)]
        for number, sample in enumerate(self.samples, 1):
            if sample.target is None and not sample.options:
                raise InputError(f"sample {number} ({sample.id}) has no target, which a study needs; add one, or use trace")
        return list(self.samples)


@dataclass(frozen=True)
class Run:
    """A finished study: its manifest, its groups and trends (as `hyperlens study --json` prints them), its trajectory."""

    manifest: dict[str, Any]
    groups: list[dict[str, Any]]
    trends: list[dict[str, Any]]
    folder: Path

    @property
    def trajectory(self) -> Trajectory:
        """Everything that was read, from the folder."""
        return Trajectory.load(self.folder)


def run_study(model: Model, study: Study, out: str | os.PathLike[str], batch_tokens: int = 4096) -> Run:
    """Trace the study's samples, group them, and write all of it to the folder `out`. Raises HyperLensError."""
    from hyperlens.lenses import HyperLens
    from hyperlens.tracing import Limits, trace

    place = check_place(out)
    samples = study.draw_samples()
    answered = all(sample.target is not None for sample in samples)
    trajectory = trace(
        model,
        samples,
        HyperLens(study.focal_depths, study.context),
        "answer" if answered else "last",
        "output",
        study.readings,
        Limits(batch_tokens=batch_tokens),
    )
    groups, trends = group_effort(trajectory), find_trends(trajectory)
    settings = {**asdict(study), "samples": len(study.samples)}
    manifest = {**trajectory.manifest, "kind": "study", "study": settings, "seed": study.seed}
    results = {"groups": groups, "trends": trends}
    write_artefact(place, manifest, trajectory.to_tables(), {"results": results})
    return open_run(place)


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Read a study's folder, without torch. Raises ArtefactError where it is not one, or not finished."""
    manifest = read_document(folder)
    if manifest.get("kind") != "study":
        raise ArtefactError(f"{folder} holds a {manifest.get('kind')}, not a study; give the folder that a study wrote")
    return Run(manifest, **read_document(folder, "results"), folder=Path(folder))


def group_effort(trajectory: Trajectory) -> list[dict[str, Any]]:
    """Accuracy, confidence and effort with intervals by task and level, over all samples and over the correct ones alone."""
    table = _per_sample(trajectory)
    groups = []
    for cell, rows in table.groupby(["task", "level"], dropna=False, sort=False):
        task, level = cast("tuple[str, int | None]", cell)
        known = rows["correct"].dropna()
        right = rows.loc[rows["correct"].fillna(False).to_numpy(dtype=bool)]
        groups.append(
            {
                "model": trajectory.manifest["model"]["name"],
                "task": task,
                "level": None if level is pd.NA or level is None else int(level),
                **_measure_group(rows, trajectory.focal_depths),
                "accuracy": float(known.to_numpy(dtype=float).mean()) if len(known) else None,
                "correct": _measure_group(right, trajectory.focal_depths),
            }
        )
    return groups


def find_trends(trajectory: Trajectory) -> list[dict[str, Any]]:
    """Spearman's rho of level and effort for each task and focal depth, where the task has levels."""
    table = _per_sample(trajectory)
    trends = []
    for task, rows in table.groupby("task", sort=False):
        levels = rows["level"].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
        if len(set(levels[~np.isnan(levels)])) < 2:
            continue
        for depth in trajectory.focal_depths:
            trend = estimate_trend(levels, rows[f"effort@{depth}"].to_numpy(dtype=float))
            trends.append(
                {
                    "model": trajectory.manifest["model"]["name"],
                    "task": task,
                    "depth": depth,
                    "rho": trend.value,
                    "low": trend.low,
                    "high": trend.high,
                }
            )
    return trends


def _per_sample(trajectory: Trajectory) -> pd.DataFrame:
    """One row per sample: its labels, its mean confidence c_L, and its mean effort at each depth."""
    pooled = pool_effort(trajectory)
    confidence = pd.Series(trajectory.data["probability"].values[:, 0, -1].astype(float))
    means = confidence.groupby(trajectory.data["sample"].values).mean()
    efforts = {f"effort@{depth}": pooled["mean"].sel(focal_depth=depth).values for depth in trajectory.focal_depths}
    return trajectory.samples.assign(confidence=means, **efforts)


def _measure_group(rows: pd.DataFrame, depths: Sequence[int]) -> dict[str, Any]:
    return {
        "n": len(rows),
        "confidence": float(rows["confidence"].to_numpy().mean()) if len(rows) else None,
        "effort": {str(depth): _as_json(estimate_mean(rows[f"effort@{depth}"].to_numpy(dtype=float))) for depth in depths},
    }


def _as_json(interval: Interval) -> dict[str, float]:
    return {"mean": interval.value, "low": interval.low, "high": interval.high}
