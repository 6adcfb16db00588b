"""Mean curves and the tokens of some samples, gathered in one pass over a run's shards: never are all tokens in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import pandas as pd
import pyarrow as pa

from hyperlens.artefact import read_parquet
from hyperlens.contrast import estimate_curve
from hyperlens.plots import Line
from hyperlens.report.data import Curves
from hyperlens.resampling import MOST_RESAMPLED, bound_mean
from hyperlens.runs import Run
from hyperlens.runs.run import cell_names
from hyperlens.runs.tokens import LABELS, MOST_TOKENS, Place, Token, read_states, read_tokens, sort_samples

Atom = tuple[str, int | None]
"""A task and a level: samples that are always shown together."""


@dataclass(frozen=True)
class Rows:
    """Sample rows of a run, column by column: floats with NaN where nothing is known, or texts."""

    columns: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["sample"])

    def where(self, kept: np.ndarray) -> Rows:
        """Those at these places, or for which `kept[row]` is true."""
        return Rows({name: column[kept] for name, column in self.columns.items()})

    def by(self, name: str) -> Iterator[tuple[str, Rows]]:
        """The rows of each text in a column, in the order in which they first appear."""
        codes, names = pd.factorize(self[name])
        for code, one in enumerate(names):
            yield str(one), self if len(names) == 1 else self.where(codes == code)

    def by_level(self) -> Iterator[tuple[int | None, Rows]]:
        """The rows of each level, ascending, those without one last."""
        levels = self["level"]
        for level in np.unique(levels[~np.isnan(levels)]):
            yield int(level), self.where(levels == level)
        if np.isnan(levels).any():
            yield None, self.where(np.isnan(levels))


class Sum:
    """Curves added up: enough for their mean and its interval. All are kept while there are few enough to resample."""

    def __init__(self, states: int):
        self.count, self.total, self.squares = 0, np.zeros(states), np.zeros(states)
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, numbers: np.ndarray, curves: np.ndarray) -> None:
        """Add `curves[sample, state]` of the samples of these numbers; those with a NaN are left out."""
        known = ~np.isnan(curves).any(1)
        numbers, curves = numbers[known], curves[known]
        self.count += len(curves)
        self.total += curves.sum(0)
        self.squares += np.square(curves).sum(0)
        self.kept = [*self.kept, (numbers, curves)] if self.count <= MOST_RESAMPLED else []

    def __add__(self, other: Sum) -> Sum:
        both = Sum(len(self.total))
        both.count = self.count + other.count
        both.total, both.squares = self.total + other.total, self.squares + other.squares
        both.kept = [*self.kept, *other.kept] if both.count <= MOST_RESAMPLED else []
        return both

    def line(self, name: str, seed: int) -> Line:
        """Mean and interval at each state, as `contrast.estimate_curve` has them; only of at least one curve."""
        if self.count <= MOST_RESAMPLED:
            numbers = np.concatenate([numbers for numbers, _ in self.kept])
            curves = np.concatenate([curves for _, curves in self.kept])
            mean, low, high = estimate_curve(curves[np.argsort(numbers, kind="stable")], seed)
        else:
            mean = self.total / self.count
            low, high = bound_mean(mean, np.maximum(self.squares / self.count - mean**2, 0), self.count)
        return Line(name, range(len(mean)), mean.tolist(), low.tolist(), high.tolist())


Sums = Mapping[Atom, Mapping[int, Sum]]
"""The curves of each task and level at each focal depth."""


def read_shards(
    run: Run, model: str, lens: str, rows: Rows, wanted: Mapping[Place, bool], main: int
) -> tuple[Sums, dict[Place, tuple[Token, ...]]]:
    """The curves of each task and level at each focal depth of one model and lens, whose samples are `rows`, and the first
    tokens of the wanted samples at the depth `main`."""
    document = run.models[model]
    layers, depths = document["layers"], document["lenses"][lens]["focal_depths"]
    atoms, owners = _find_atoms(rows)
    sums = {atom: {depth: Sum(layers - depth + 1) for depth in depths} for atom in atoms}
    tokens: dict[Place, tuple[Token, ...]] = {}
    for shard in run.store.shards:
        names, file = cell_names(run.store, shard.cell), run.store.file(shard, "tokens")
        if names[:2] != (model, lens) or names[2] not in owners or not file.exists():
            continue
        shown = [number for number in shard.samples if (names[2], number) in wanted]
        texts = LABELS if shown else ()
        table = sort_samples(read_parquet(file, ["sample", *(f"probability@{depth}" for depth in depths), *texts]))
        samples = table["sample"].to_numpy()
        starts = np.flatnonzero(np.diff(samples, prepend=-1))
        numbers, counts = samples[starts], np.diff(starts, append=len(samples))
        mine = owners[names[2]][numbers]
        for depth in depths:
            values = read_states(table, depth)[:, : layers - depth + 1]
            curves = np.add.reduceat(values, starts, axis=0, dtype=np.float64) / counts[:, None]
            for atom in np.unique(mine[mine >= 0]):
                sums[atoms[atom]][depth].add(numbers[mine == atom], curves[mine == atom])
        for number in shown:
            places = np.flatnonzero(samples == number)[: MOST_TOKENS + 1]
            tokens[names[2], number] = tuple(read_tokens(table.take(pa.array(places)), main))[:MOST_TOKENS]
    return sums, tokens


def find_curves(run: Run, sums: Sums, depths: Sequence[int]) -> Iterator[Curves]:
    """The curves of the easy and hard side of each contrast of two tasks, and by level of each task; a task without levels is
    shown by itself only where no contrast shows it."""
    seed = run.store.study.seed
    levels: dict[str, list[int | None]] = {}
    for task, level in sums:
        levels.setdefault(task, []).append(level)
    compared = set()
    for contrast in run.store.study.contrasts:
        sides = [(contrast.easy, contrast.easy_levels), (contrast.hard, contrast.hard_levels)]
        atoms = [[(task, one) for one in levels.get(task, []) if not only or one in only] for task, only in sides]
        if contrast.easy == contrast.hard or not all(sum(sums[atom][depths[0]].count for atom in side) for side in atoms):
            continue
        compared |= {contrast.easy, contrast.hard}
        names = [_name_side(what, *side) for what, side in zip(("easy", "hard"), sides, strict=True)]
        for depth in depths:
            lines = (
                reduce(Sum.__add__, (sums[atom][depth] for atom in side)).line(name, seed)
                for name, side in zip(names, atoms, strict=True)
            )
            yield Curves(f"{contrast.name}: easy against hard", depth, tuple(lines), pair=True)
    for task, here in levels.items():
        if here == [None] and task in compared:
            continue
        for depth in depths:
            found = {level: sums[task, level][depth] for level in here}
            lines = [(level, one.line(name_level(level), seed)) for level, one in found.items() if one.count]
            if lines:
                yield Curves(task, depth, tuple(replace(line, beside=level is None) for level, line in lines))


def name_level(level: int | None) -> str:
    """What a legend calls a level."""
    return "without a level" if level is None else f"level {level}"


def _name_side(what: str, task: str, levels: Sequence[int]) -> str:
    only = f", level {', '.join(map(str, levels))}" if levels else ""
    return f"{what}: {task}{only}"


def _find_atoms(rows: Rows) -> tuple[list[Atom], dict[str, np.ndarray]]:
    """The tasks and levels there are, in order, and for each task of the study the place of each of its samples among them, −1
    where there is none."""
    atoms: list[Atom] = []
    owners = {spec: np.full(int(mine["sample"].max()) + 1, -1) for spec, mine in rows.by("spec")}
    for task, of_task in rows.by("task"):
        for level, of_level in of_task.by_level():
            for spec, mine in of_level.by("spec"):
                owners[spec][mine["sample"].astype(int)] = len(atoms)
            atoms.append((task, level))
    return atoms, owners
