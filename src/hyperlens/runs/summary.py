"""What a study found, as rows: groups by task and level, trends over levels, depths chosen with labels, contrasts, signs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from hyperlens.contrast import (
    Interval,
    adjust_holm,
    choose_depth,
    contrast_groups,
    contrast_means,
    contrast_strata,
    estimate_matched_trends,
    estimate_mean,
    estimate_means,
    estimate_trends,
    find_strata,
    number_kinds,
    sign_test,
)
from hyperlens.trajectory import Trajectory, average_tokens, measure_effort

Row = dict[str, Any]
Depths = Mapping[tuple[str, str], tuple[int, ...]]
"""The focal depths that were read, by the names of model and lens."""
MEASURES = ("effort", "common_effort", "struggle", "commit")
CLEAR = 0.05
"""The largest p-value, adjusted by Holm, of a difference that is called clear."""
MATCHED = {"confidence": "confidence", "length": "tokens", "read": "read"}
"""What easy and hard samples are matched by, and its column."""


@runtime_checkable  # beartype looks at every argument in tests
class Contrasted(Protocol):
    """Which samples are easy and which are hard: those of a task, of all its levels where none are given."""

    @property
    def name(self) -> str: ...
    @property
    def easy(self) -> str: ...
    @property
    def hard(self) -> str: ...
    @property
    def easy_levels(self) -> tuple[int, ...]: ...
    @property
    def hard_levels(self) -> tuple[int, ...]: ...


def summarise(
    table: pd.DataFrame,
    depths: Depths,
    contrasts: Sequence[Contrasted] = (),
    seed: int = 0,
    chosen: Mapping[tuple[str, str], int] | None = None,
) -> dict[str, list[Row]]:
    """All that a run's results.json says of its samples: `groups`, `trends`, `choices`, `contrasts` and `signs`.

    `table` has one row per sample, as `tabulate_samples` makes them, of all models and lenses; `chosen` the focal depth of
    each model and lens that the signs are counted at. Intervals, permutations and halves are drawn from `seed`.
    """
    cells = _list_cells(table, depths)
    rows = _contrast_cells(cells, contrasts, seed)
    return {
        "groups": [row for cell in cells for row in _group_cell(cell, seed)],
        "trends": [row for cell in cells for row in _trend_cell(cell, seed)],
        "choices": [row for cell in cells for row in _choose_cell(cell, seed)],
        "contrasts": rows,
        "signs": count_signs(rows, chosen),
    }


def tabulate_samples(trajectory: Trajectory) -> pd.DataFrame:
    """One row per sample: model and lens, its labels, its mean confidence c_L, and its mean effort, struggle and commit
    at each depth, as `effort@2`."""
    measured = measure_effort(trajectory)
    manifest = trajectory.manifest
    columns = {
        f"{name}@{depth}": average_tokens(trajectory, measured[name].values[:, place])
        for name in MEASURES
        for place, depth in enumerate(trajectory.focal_depths)
    }
    return trajectory.samples.assign(
        model=manifest["model"]["name"],
        lens=_name_lens(manifest["lens"]),
        confidence=average_tokens(trajectory, trajectory.data["probability"].values[:, 0, -1].astype(float)),
        **columns,
    )


def list_depths(trajectory: Trajectory) -> dict[tuple[str, str], tuple[int, ...]]:
    """The focal depths of a trajectory by model and lens, as they are named in `tabulate_samples`."""
    return {(trajectory.manifest["model"]["name"], _name_lens(trajectory.manifest["lens"])): trajectory.focal_depths}


def _name_lens(lens: Mapping[str, Any]) -> str:
    """A lens as a study calls it by default."""
    return lens["context"] if lens["name"] == "hyper" else lens["name"]


def group_effort(table: pd.DataFrame, depths: Depths, seed: int = 0) -> list[Row]:
    """Accuracy, confidence, effort, struggle length and commit state with intervals by task and level, over all samples and
    over the correct ones alone; `undefined` counts the samples without effort, which its mean leaves out."""
    return [row for cell in _list_cells(table, depths) for row in _group_cell(cell, seed)]


def find_trends(table: pd.DataFrame, depths: Depths, seed: int = 0) -> list[Row]:
    """Spearman's rho of level and effort for each task and focal depth, where the task has levels.

    Beside the plain one: over the `correct` samples alone; `partial`, what is left with the ranks of confidence, of length,
    and of both taken out; `matched`, among samples of like confidence, and of like length.
    """
    return [row for cell in _list_cells(table, depths) for row in _trend_cell(cell, seed)]


def choose_depths(table: pd.DataFrame, depths: Depths, seed: int = 0) -> list[Row]:
    """For each task with levels, the focal depth that follows them best on one half of its samples, and how well it and the
    logit lens do on the other half. Nothing where only one depth was read."""
    return [row for cell in _list_cells(table, depths) for row in _choose_cell(cell, seed)]


def contrast_tasks(table: pd.DataFrame, depths: Depths, contrasts: Sequence[Contrasted], seed: int = 0) -> list[Row]:
    """How the effort of hard samples differs from that of easy ones, for each model, lens, contrast and focal depth.

    Both sides, their difference, AUROC, Cliff's delta and permutation p-value; the difference among the `correct` samples
    alone; and `matched`, among samples of like confidence, prompt length, and number of answer tokens. `p_holm` is adjusted
    for all `compared` p-values of the same lens in the run. A contrast of which a side has no sample has no row.
    """
    return _contrast_cells(_list_cells(table, depths), contrasts, seed)


def is_clear(contrast: Mapping[str, Any]) -> bool:
    """Whether a row of `contrast_tasks` differs clearly: the interval of its difference excludes 0, and p, adjusted for all
    comparisons, is at most `CLEAR`."""
    low, high, adjusted = contrast["difference"]["low"], contrast["difference"]["high"], contrast["p_holm"]
    known = None not in (low, high, adjusted)
    return known and adjusted <= CLEAR and (low > 0 or high < 0)


def count_signs(rows: Sequence[Row], chosen: Mapping[tuple[str, str], int] | None = None) -> list[Row]:
    """In how many cells, model × contrast, hard samples have more effort, for each lens and focal depth, by the sign test.

    `rows` are those of `contrast_tasks`. A depth is counted where two models share it, or where there is but one model;
    "chosen" is the depth of each model in `chosen`. `clear` counts only those of `is_clear`. Cells of one
    model, or of one contrast, are not independent, as the test takes them to be.
    """
    signs = []
    for lens in dict.fromkeys(row["lens"] for row in rows):
        mine = [row for row in rows if row["lens"] == lens]
        needed = min(2, len({row["model"] for row in mine}))
        for depth in sorted({row["depth"] for row in mine}):
            here = [row for row in mine if row["depth"] == depth]
            if len({row["model"] for row in here}) >= needed:
                signs.append(_count_cells(lens, depth, here))
        if chosen is not None:
            at_chosen = [row for row in mine if chosen.get((row["model"], lens)) == row["depth"]]
            signs.append(_count_cells(lens, "chosen", at_chosen))
    return signs


class _Samples:
    """Some rows of a table, column by column as float arrays, with their model, lens and task, and focal depths."""

    def __init__(self, columns: Mapping[str, np.ndarray], rows: np.ndarray, names: Row, depths: tuple[int, ...]):
        self.columns, self.rows, self.names, self.depths = columns, rows, names, depths

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name][self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, kept: np.ndarray) -> _Samples:
        """Those for which `kept[sample]` is true."""
        return _Samples(self.columns, self.rows[kept], self.names, self.depths)

    def by_level(self) -> Iterator[tuple[int | None, _Samples]]:
        """The samples of each level, those without one first, then ascending."""
        levels = self["level"]
        if np.isnan(levels).any():
            yield None, self.where(np.isnan(levels))
        for level in np.unique(levels[~np.isnan(levels)]):
            yield int(level), self.where(levels == level)

    @cached_property
    def graded(self) -> bool:
        """Whether there is more than one level."""
        levels = self["level"]
        known = levels[~np.isnan(levels)]
        return bool(known.min(initial=np.inf) < known.max(initial=-np.inf))

    @cached_property
    def efforts(self) -> np.ndarray:
        """The distinct efforts at each depth numbered in their order, NaN where undefined: `[sample, depth]`. Enough for
        ranks, and faster to sort again."""
        return np.stack([_number(self[f"effort@{depth}"]) for depth in self.depths]).T


def _list_cells(table: pd.DataFrame, depths: Depths) -> list[_Samples]:
    """The samples of each model, lens and task: models, then lenses, then tasks in the order in which they first appear."""
    found = [pd.factorize(table[name]) for name in ("model", "lens", "task")]
    sizes = tuple(max(len(names), 1) for _, names in found)
    numbers = np.ravel_multi_index(tuple(codes for codes, _ in found), sizes)
    columns = {str(name): _as_floats(column) for name, column in table.items() if pd.api.types.is_numeric_dtype(column)}
    order = np.argsort(numbers, kind="stable")
    present, starts = np.unique(numbers[order], return_index=True)
    cells = []
    for number, rows in zip(present, np.split(order, starts[1:]), strict=True):
        codes = np.unravel_index(number, sizes)
        model, lens, task = (str(names[code]) for code, (_, names) in zip(codes, found, strict=True))
        if (model, lens) in depths:
            cells.append(_Samples(columns, rows, {"model": model, "lens": lens, "task": task}, tuple(depths[model, lens])))
    return cells


def _as_floats(column: pd.Series) -> np.ndarray:
    return column.to_numpy(dtype=float, na_value=np.nan)


def _number(values: np.ndarray) -> np.ndarray:
    """The distinct values numbered in their order, as floats; NaN stays NaN."""
    known = ~np.isnan(values)
    numbered = np.full(len(values), np.nan)
    numbered[known] = number_kinds(values[known])
    return numbered


def _group_cell(samples: _Samples, seed: int) -> Iterator[Row]:
    """The rows of `group_effort` for one cell."""
    for level, group in samples.by_level():
        accuracy = estimate_mean(group["correct"], seed)
        yield {
            **samples.names,
            "level": level,
            "tokens": _average(group["tokens"]),
            "read": _average(group["read"]),
            "unknown": _average(group["unknown"] / group["tokens"]),
            **_measure_group(group, seed),
            "accuracy": accuracy.value if accuracy.n else None,
            "accuracy_interval": {"low": accuracy.low, "high": accuracy.high},
            "correct": _measure_group(group.where(group["correct"] == 1), seed),
        }


def _trend_cell(samples: _Samples, seed: int) -> Iterator[Row]:
    """The rows of `find_trends` for one cell."""
    if not samples.graded:
        return
    levels, right = samples["level"], samples["correct"] == 1
    sides = {"confidence": _number(samples["confidence"]), "length": _number(samples["tokens"])}
    controls = {**{name: (side,) for name, side in sides.items()}, "both": tuple(sides.values())}
    found = estimate_trends(levels, samples.efforts, ((), *controls.values()), seed)
    correct = estimate_trends(levels[right], samples.efforts[right], seed=seed)
    matched = {name: estimate_matched_trends(levels, samples.efforts, side, seed=seed) for name, side in sides.items()}
    for place, depth in enumerate(samples.depths):
        plain, *partial = (_as_rho(interval) for interval in found[place])
        yield {
            **samples.names,
            "depth": depth,
            **plain,
            "correct": _as_rho(correct[place][0]),
            "partial": dict(zip(controls, partial, strict=True)),
            "matched": {name: _as_rho(each[place]) for name, each in matched.items()},
        }


def _choose_cell(samples: _Samples, seed: int) -> Iterator[Row]:
    """The row of `choose_depths` for one cell, or none."""
    if not samples.graded or len(samples.depths) < 2:
        return
    choice = choose_depth(samples["level"], dict(zip(samples.depths, samples.efforts.T, strict=True)), seed)
    if choice is not None:
        yield {
            **samples.names,
            "chosen": choice.chosen,
            "calibration": {str(depth): rho for depth, rho in choice.calibration.items()},
            "held_out": _as_rho(choice.held_out),
            "logit": _as_rho(choice.logit),
        }


def _contrast_cells(cells: Sequence[_Samples], contrasts: Sequence[Contrasted], seed: int) -> list[Row]:
    """The rows of `contrast_tasks`."""
    by_name = {(cell.names["model"], cell.names["lens"], cell.names["task"]): cell for cell in cells}
    rows = []
    for model, lens in dict.fromkeys((model, lens) for model, lens, _ in by_name):
        for contrast in contrasts:
            easy = _pick_levels(by_name.get((model, lens, contrast.easy)), contrast.easy_levels)
            hard = _pick_levels(by_name.get((model, lens, contrast.hard)), contrast.hard_levels)
            if easy is None or hard is None:
                continue
            labels = {
                "model": model,
                "lens": lens,
                "contrast": contrast.name,
                "easy_task": contrast.easy,
                "hard_task": contrast.hard,
                "easy_levels": list(contrast.easy_levels),
                "hard_levels": list(contrast.hard_levels),
            }
            rows += [labels | row for row in _contrast_depths(easy, hard, seed)]
    return _adjust_rows(rows)


def _measure_group(samples: _Samples, seed: int) -> Row:
    depths = samples.depths
    names = [f"{name}@{depth}" for name in MEASURES for depth in depths]
    values = np.stack([samples[name] for name in names]).T
    found = [_as_mean(interval) for interval in estimate_means(values, seed)]
    count, keys = len(depths), [str(depth) for depth in depths]
    means = {
        name: dict(zip(keys, found[place * count : (place + 1) * count], strict=True)) for place, name in enumerate(MEASURES)
    }
    undefined = dict(zip(keys, np.isnan(values[:, :count]).sum(0).tolist(), strict=True))
    return {"n": len(samples), "confidence": _average(samples["confidence"]), **means, "undefined": undefined}


def _pick_levels(samples: _Samples | None, levels: tuple[int, ...]) -> _Samples | None:
    """The samples of some levels, or of all where none are given; None where there are none."""
    if samples is not None and levels:
        samples = samples.where(np.isin(samples["level"], levels))
    return samples if samples is not None and len(samples) else None


def _contrast_depths(easy: _Samples, hard: _Samples, seed: int) -> list[Row]:
    """The rows of one contrast, without its names: one for each depth."""
    easy_side, hard_side = (_describe_side(side) for side in (easy, hard))
    strata = {name: find_strata(easy[column], hard[column]) for name, column in MATCHED.items()}
    right_easy, right_hard = (side["correct"] == 1 for side in (easy, hard))
    rows = []
    for depth in easy.depths:
        low, high = (side[f"effort@{depth}"] for side in (easy, hard))
        found = contrast_groups(low, high, seed)
        rows.append(
            {
                "depth": depth,
                "easy": {**_as_mean(estimate_mean(low, seed)), **easy_side, "n": found.n_easy},
                "hard": {**_as_mean(estimate_mean(high, seed)), **hard_side, "n": found.n_hard},
                "difference": asdict(found.difference),
                "auroc": asdict(found.auroc),
                "cliff": asdict(found.cliff),
                "p": found.p,
                "correct": asdict(contrast_means(low[right_easy], high[right_hard], seed)),
                "matched": {name: asdict(contrast_strata(low, high, rows, seed)) for name, rows in strata.items()},
            }
        )
    return rows


def _describe_side(samples: _Samples) -> Row:
    """What may explain a difference in effort: means of the samples of one side, over those where it is known."""
    columns = {"accuracy": "correct", "confidence": "confidence", "tokens": "tokens", "read": "read"}
    return {name: _average(samples[column]) for name, column in columns.items()}


def _adjust_rows(rows: list[Row]) -> list[Row]:
    """The rows with `p_holm`, and over how many p-values of their lens it was `compared`."""
    by_lens: dict[str, list[Row]] = {}
    for row in rows:
        by_lens.setdefault(row["lens"], []).append(row)
    for mine in by_lens.values():
        adjusted = adjust_holm([row["p"] for row in mine])
        compared = sum(not np.isnan(p) for p in adjusted)
        for row, p in zip(mine, adjusted, strict=True):
            row |= {"p_holm": p, "compared": compared}
    return rows


def _count_cells(lens: str, depth: int | str, rows: Sequence[Row]) -> Row:
    """The row of `count_signs` for one lens and depth."""
    differences = [row["difference"] for row in rows if not np.isnan(row["difference"]["value"])]
    clear = [row["difference"]["value"] for row in rows if is_clear(row)]
    return {
        "lens": lens,
        "depth": depth,
        "cells": len(differences),
        "models": len({row["model"] for row in rows}),
        **asdict(sign_test([one["value"] for one in differences])),
        "clear": asdict(sign_test(clear)),
    }


def _average(values: np.ndarray) -> float | None:
    """Mean of what is known; None where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _as_mean(interval: Interval) -> dict[str, float]:
    return {"mean": interval.value, "low": interval.low, "high": interval.high}


def _as_rho(interval: Interval) -> dict[str, float]:
    return {"rho": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
