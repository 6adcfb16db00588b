"""A study: one model over samples of several tasks, traced, grouped by task and level, and kept in a folder."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperlens.artefact import check_place, read_document, write_artefact
from hyperlens.errors import ArtefactError, InputError
from hyperlens.runs.summary import summarise
from hyperlens.tasks import GRADED, LEVELS, Sample, check_levels, find_task
from hyperlens.trajectory import Trajectory

if TYPE_CHECKING:
    from hyperlens.models import Model


@dataclass(frozen=True)
class Study:
    """What is measured: `tasks` by name (all that come with us by default; `logic:plain` is a variant of `logic`) at some
    `levels`, `limit` samples of each drawn from `seed`, read at `focal_depths` ("auto" chooses one by resolution and puts the
    logit lens beside it, "sweep" reads all that it chooses from) in a `context`. With `samples`, those are read instead of
    tasks. The gold answer is fed, and the reference is the model's own top token at each of its positions.
    """

    tasks: tuple[str, ...] = tuple(GRADED)
    levels: tuple[int, ...] = LEVELS
    samples: tuple[Sample, ...] = ()
    limit: int = 50
    seed: int = 0
    focal_depths: tuple[int, ...] | str = "auto"
    context: str = "jump"
    readings: tuple[str, ...] = ("probability",)

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise InputError(f"the limit is {self.limit} samples per level; give a number from 1 up")
        object.__setattr__(self, "tasks", tuple(dict.fromkeys(name.removesuffix(":matched") for name in self.tasks)))
        object.__setattr__(self, "levels", check_levels(self.levels))
        for name in self.tasks:
            find_task(name)

    def draw_samples(self) -> list[Sample]:
        """The samples that are read, the same for the same study. Raises InputError where one has no answer."""
        if not self.samples:
            found = [find_task(name) for name in self.tasks]
            return [one for task, variant in found for one in task.samples(self.limit, self.seed, variant, self.levels)]
        for number, sample in enumerate(self.samples, 1):
            if sample.target is None and not sample.options:
                raise InputError(f"sample {number} ({sample.id}) has no target, which a study needs; add one, or use trace")
        return list(self.samples)


@dataclass(frozen=True)
class Run:
    """A finished study: its manifest; its groups, trends and labelled depth choices (as `hyperlens study --json` prints
    them); its trajectory."""

    manifest: dict[str, Any]
    groups: list[dict[str, Any]]
    trends: list[dict[str, Any]]
    choices: list[dict[str, Any]]
    folder: Path

    @property
    def headline_depths(self) -> tuple[int, ...]:
        """The focal depths that tables show: the one chosen by resolution with m = 0 beside it, or all that were asked for."""
        lens = self.manifest["lens"]
        return tuple(lens["focal_depths"] if lens["auto"] is None else lens["auto"]["beside"])

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
    settings = {**asdict(study), "samples": len(study.samples)}
    manifest = {**trajectory.manifest, "kind": "study", "study": settings, "seed": study.seed}
    results = summarise(trajectory, study.seed)
    write_artefact(place, manifest, trajectory.to_tables(), {"results": results})
    return open_run(place)


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Read a study's folder, without torch. Raises ArtefactError where it is not one, or not finished."""
    manifest = read_document(folder)
    if manifest.get("kind") != "study":
        raise ArtefactError(f"{folder} holds a {manifest.get('kind')}, not a study; give the folder that a study wrote")
    results = read_document(folder, "results")
    if missing := {"groups", "trends", "choices"} - set(results):
        raise ArtefactError(
            f"{folder} was written by another version, without {', '.join(sorted(missing))}; run the study again"
        )
    return Run(manifest, results["groups"], results["trends"], results["choices"], Path(folder).absolute())
