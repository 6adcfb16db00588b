"""Effort between groups of samples: intervals, trends, and what is left of them once confidence or length is matched.

The sample, not the token, is the unit. Intervals are 95 % percentile-bootstrap intervals of 2,000 resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95
RESAMPLE_VALUES = 500_000
"""Most values of one side that are drawn in one go."""
STRATA = 4
"""Into how many equally large strata samples are sorted by what is to be matched."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile-bootstrap interval over `n` samples; NaN where there were too few."""

    value: float
    low: float
    high: float
    n: int


UNKNOWN = Interval(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class DepthChoice:
    """The focal depth that separates the levels best on one half of the samples, and how it does on the other half.

    `calibration` has Spearman's rho of level and effort at each depth on the first half; `chosen` the largest of them;
    `held_out` and `logit` are the rho of the chosen depth and of m = 0 on the second half, which chose nothing.
    """

    chosen: int
    calibration: dict[int, float]
    held_out: Interval
    logit: Interval


def estimate_mean(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean of `values[sample]` and its interval. NaN values are left out; `n` counts those that are not."""
    known = _known(values)
    if len(known) < 2:
        return Interval(float(known[0]) if len(known) else float("nan"), float("nan"), float("nan"), len(known))
    low, high = _bootstrap((known,), np.mean, seed)
    return Interval(float(known.mean()), low, high, len(known))


def estimate_curve(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of `values[sample, state]` over samples, and the lower and upper end of its interval at each state: 3 × `[state]`.

    Whole samples are drawn again, not single values. The ends are NaN with fewer than two samples.
    """
    values = np.asarray(values, dtype=float)
    count, mean = len(values), values.mean(0) if len(values) else np.full(values.shape[1], np.nan)
    if count < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES) / count @ values
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    return mean, low, high


def estimate_trend(levels: np.ndarray, values: np.ndarray, seed: int = 0, controls: tuple[np.ndarray, ...] = ()) -> Interval:
    """Spearman's rho of `levels[sample]` and `values[sample]`, in [−1, 1], and its interval.

    With `controls[sample]` it is the partial correlation: the ranks of both sides less what the ranks of the controls
    predict of them, so that effort cannot be confidence, or length, in disguise. Samples with a NaN are left out. NaN where
    fewer than three (and one for each control) are left, or a side never varies once the controls are taken out.
    """
    columns = _complete(levels, values, *controls)
    rho = _measure(columns, _spearman, fewest=3 + len(controls))
    low, high = (rho, rho) if np.isnan(rho) else _bootstrap(columns, _spearman, seed)
    return Interval(rho, low, high, len(columns[0]))


def estimate_matched_trend(
    levels: np.ndarray, values: np.ndarray, matched: np.ndarray, strata: int = STRATA, seed: int = 0
) -> Interval:
    """Spearman's rho of level and value among samples that are alike in `matched[sample]`, and its interval.

    Samples are sorted into `strata` equally large ones by the rank of `matched` (equal values by chance, from `seed`); the
    rho of each is weighed by its size, and samples are drawn again within their stratum. Strata in which a side never
    varies are left out, and not counted in `n`.
    """
    levels, values, matched = _complete(levels, values, matched)
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(matched)), matched))
    parts = [
        part for part in np.array_split(order, strata) if len(part) > 2 and not np.isnan(_spearman(levels[part], values[part]))
    ]
    if not parts:
        return UNKNOWN
    sizes = np.array([len(part) for part in parts])
    each = np.array([_spearman(levels[part], values[part]) for part in parts])
    drawn = np.stack([_resample((levels[part], values[part]), _spearman, rng) for part in parts])
    known = ~np.isnan(drawn)
    mixed = (np.where(known, drawn, 0.0) * sizes[:, None]).sum(0) / np.maximum((known * sizes[:, None]).sum(0), 1)
    low, high = np.percentile(mixed, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float((each * sizes).sum() / sizes.sum()), float(low), float(high), int(sizes.sum()))


def estimate_auroc(easy: np.ndarray, hard: np.ndarray, seed: int = 0) -> Interval:
    """P(hard > easy) + ½ P(equal) for a random hard and a random easy sample, in [0, 1], and its interval.

    0.5 where they do not differ; Cliff's delta is 2·AUROC − 1. NaN values are left out; NaN where a side has fewer than two.
    """
    easy, hard = _known(easy), _known(hard)
    count = len(easy) + len(hard)
    if min(len(easy), len(hard)) < 2:
        return Interval(float("nan"), float("nan"), float("nan"), count)
    low, high = _bootstrap((easy, hard), _auroc, seed, paired=False)
    return Interval(float(_auroc(easy, hard)), low, high, count)


def choose_depth(levels: np.ndarray, efforts: Mapping[int, np.ndarray], seed: int = 0) -> DepthChoice:
    """Choose the focal depth by its separation of the `levels[sample]` on one half, and measure it on the other.

    `efforts` maps focal depths to Ω`[sample]`. The halves hold every level alike and are drawn from `seed`; the smaller depth
    wins a tie.
    """
    levels = np.asarray(levels, dtype=float)
    first = _halve(levels, seed)
    calibration = {
        depth: _measure(_complete(levels[first], values[first]), _spearman) for depth, values in sorted(efforts.items())
    }
    chosen = max(calibration, key=lambda depth: (np.nan_to_num(calibration[depth], nan=-2.0), -depth))
    held_out, logit = (
        estimate_trend(levels[~first], efforts[depth][~first], seed) if depth in efforts else UNKNOWN for depth in (chosen, 0)
    )
    return DepthChoice(chosen, calibration, held_out, logit)


def _halve(levels: np.ndarray, seed: int) -> np.ndarray:
    """True for a random half of the samples of each level."""
    rng = np.random.default_rng(seed)
    first = np.zeros(len(levels), dtype=bool)
    for level in np.unique(levels):
        mine = rng.permutation(np.flatnonzero(levels == level))
        first[mine[: len(mine) // 2]] = True
    return first


def _known(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return values[~np.isnan(values)]


def _complete(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """The columns without the samples that have a NaN in any."""
    stacked = np.stack([np.asarray(column, dtype=float) for column in columns])
    return tuple(stacked[:, ~np.isnan(stacked).any(0)])


def _measure(columns: tuple[np.ndarray, ...], statistic: Callable, fewest: int = 3) -> float:
    """The statistic of paired columns; NaN where it is undefined, or there are too few samples."""
    return float(statistic(*columns)) if len(columns[0]) >= fewest else float("nan")


def _bootstrap(data: tuple[np.ndarray, ...], statistic: Callable, seed: int, paired: bool = True) -> tuple[float, float]:
    """Percentile interval; resamples in which the statistic is undefined are left out."""
    drawn = _resample(data, statistic, np.random.default_rng(seed), paired)
    low, high = np.nanpercentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _resample(data: tuple[np.ndarray, ...], statistic: Callable, rng: np.random.Generator, paired: bool = True) -> np.ndarray:
    """The statistic of each of 2,000 resamples; of paired columns the same samples are drawn."""
    results = []
    for rows in np.array_split(np.arange(RESAMPLES), math.ceil(RESAMPLES * len(data[0]) / RESAMPLE_VALUES)):
        drawn = [rng.integers(len(side), size=(len(rows), len(side))) for side in (data[:1] if paired else data)]
        results.append(statistic(*(side[drawn[0 if paired else number]] for number, side in enumerate(data)), axis=-1))
    return np.concatenate(results)


def _spearman(first: np.ndarray, second: np.ndarray, *controls: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's correlation of the ranks along `axis`, what the ranks of the controls predict of them taken out.

    NaN where nothing varies then on either side.
    """
    ranks = [stats.rankdata(side, axis=axis) for side in (first, second, *controls)]
    centred = [side - side.mean(axis=axis, keepdims=True) for side in ranks]
    left, right = (_residualise(side, centred[2:]) for side in centred[:2])
    product = (left * right).sum(axis=axis)
    sizes = [(side**2).sum(axis=axis) for side in (left, right)]
    smallest = [1e-9 * (side**2).sum(axis=axis) for side in centred[:2]]
    varied = (sizes[0] > smallest[0]) & (sizes[1] > smallest[1])
    return np.where(varied, product / np.sqrt(np.where(varied, sizes[0] * sizes[1], 1.0)), np.nan)


def _residualise(side: np.ndarray, controls: list[np.ndarray]) -> np.ndarray:
    """`side` less its least-squares prediction from the controls, all centred along the last axis."""
    if not controls:
        return side
    matrix = np.stack(np.broadcast_arrays(*controls), -1)
    square = np.swapaxes(matrix, -1, -2) @ matrix
    weights = np.linalg.pinv(square, hermitian=True) @ (np.swapaxes(matrix, -1, -2) @ side[..., None])
    return side - (matrix @ weights)[..., 0]


def _auroc(easy: np.ndarray, hard: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mann and Whitney's U of the hard samples, as a share of all pairs."""
    ranks = stats.rankdata(np.concatenate([easy, hard], axis=axis), axis=axis)
    mine = np.take(ranks, range(easy.shape[axis], ranks.shape[axis]), axis=axis)
    count = hard.shape[axis]
    return np.asarray((mine.sum(axis=axis) - count * (count + 1) / 2) / (easy.shape[axis] * count))
