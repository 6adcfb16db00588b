"""Effort between groups of samples: intervals, trends, and what is left of them once confidence or length is matched.

The sample, not the token, is the unit. Intervals are 95 % percentile-bootstrap intervals of 2,000 resamples. A resample is a
weight for each sample, how often it was drawn, and each statistic is a function of weights: so ranks need sorting only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
SMALLEST_SHARE = 1e-9
"""A side varies if the controls leave more than this share of the variance of its ranks."""
CHUNK = 2_000_000
"""Most weights, resamples times samples, that are held at once."""
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
    known = _complete(values)[0]
    if len(known) < 2:
        return Interval(float(known[0]) if len(known) else math.nan, math.nan, math.nan, len(known))
    return _estimate(lambda weights: weights @ known / weights.sum(1), [len(known)], seed)


def estimate_curve(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of `values[sample, state]` over samples, and the lower and upper end of its interval at each state: 3 × `[state]`.

    Whole samples are drawn again, not single values. The ends are NaN with fewer than two samples.
    """
    values = np.asarray(values, dtype=float)
    count, mean = len(values), values.mean(0) if len(values) else np.full(values.shape[1], np.nan)
    if count < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    drawn = np.concatenate([weights @ values / count for weights in _draw_weights([count], seed)])
    low, high = np.percentile(drawn, PERCENTILES, axis=0)
    return mean, low, high


def estimate_trend(levels: np.ndarray, values: np.ndarray, seed: int = 0, controls: tuple[np.ndarray, ...] = ()) -> Interval:
    """Spearman's rho of `levels[sample]` and `values[sample]`, in [−1, 1], and its interval.

    With `controls[sample]` it is the partial correlation: the ranks of both sides less what the ranks of the controls
    predict of them, so that effort cannot be confidence, or length, in disguise. Samples with a NaN are left out. NaN where
    fewer than three (and one for each control) are left, or a side never varies once the controls are taken out.
    """
    columns = _complete(levels, values, *controls)
    count = len(columns[0])
    if count < 3 + len(controls):
        return Interval(math.nan, math.nan, math.nan, count)
    return _estimate(lambda weights: _correlate_ranks(columns, weights), [count], seed)


def compare_trends(levels: np.ndarray, values: np.ndarray, others: np.ndarray, seed: int = 0) -> Interval:
    """Spearman's rho of level and `values[sample]` less that of level and `others[sample]`, in [−2, 2], and its interval.

    Both sides are of the same samples, drawn again together, so that what they share cancels out.
    """
    columns = _complete(levels, values, others)
    count = len(columns[0])
    if count < 3:
        return Interval(math.nan, math.nan, math.nan, count)
    pairs = (columns[:2], columns[::2])
    return _estimate(lambda weights: np.subtract(*(_correlate_ranks(pair, weights) for pair in pairs)), [count], seed)


def estimate_matched_trend(
    levels: np.ndarray, values: np.ndarray, matched: np.ndarray, strata: int = STRATA, seed: int = 0
) -> Interval:
    """Spearman's rho of level and value among samples that are alike in `matched[sample]`, and its interval.

    Samples are sorted into `strata` equally large ones by the rank of `matched` (equal values by chance, from `seed`); the
    rho of each is weighed by its size, and samples are drawn again within their stratum. Strata in which a side never
    varies are left out, and not counted in `n`.
    """
    columns = _complete(levels, values, matched)
    order = np.lexsort((np.random.default_rng(seed).random(len(columns[2])), columns[2]))
    parts = [tuple(column[part] for column in columns[:2]) for part in np.array_split(order, strata) if len(part) > 2]
    parts = [part for part in parts if not np.isnan(_correlate_ranks(part, np.ones((1, len(part[0])))))]
    if not parts:
        return UNKNOWN
    sizes = [len(part[0]) for part in parts]
    ends = np.cumsum(sizes)[:-1]

    def mix(weights: np.ndarray) -> np.ndarray:
        each = [_correlate_ranks(part, mine) for part, mine in zip(parts, np.split(weights, ends, axis=1), strict=True)]
        rho, size = np.stack(each), np.array(sizes)[:, None] * ~np.isnan(each)
        return np.nansum(rho * size, 0) / np.where(size.sum(0) > 0, size.sum(0), np.nan)

    return _estimate(mix, sizes, seed)


def estimate_auroc(easy: np.ndarray, hard: np.ndarray, seed: int = 0) -> Interval:
    """P(hard > easy) + ½ P(equal) for a random hard and a random easy sample, in [0, 1], and its interval.

    0.5 where they do not differ; Cliff's delta is 2·AUROC − 1. NaN values are left out; NaN where a side has fewer than two.
    """
    easy, hard = _complete(easy)[0], _complete(hard)[0]
    if min(len(easy), len(hard)) < 2:
        return Interval(math.nan, math.nan, math.nan, len(easy) + len(hard))
    both = np.concatenate([easy, hard])

    def count_pairs(weights: np.ndarray) -> np.ndarray:
        mine = weights[:, len(easy) :]
        above = (_rank(both, weights)[:, len(easy) :] * mine).sum(1) - len(hard) * (len(hard) + 1) / 2
        return above / (len(easy) * len(hard))

    return _estimate(count_pairs, [len(easy), len(hard)], seed)


def choose_depth(levels: np.ndarray, efforts: Mapping[int, np.ndarray], seed: int = 0) -> DepthChoice | None:
    """Choose the focal depth by its separation of the `levels[sample]` on one half, and measure it on the other.

    `efforts` maps focal depths to Ω`[sample]`. The halves hold every level alike and are drawn from `seed`; the smaller depth
    wins a tie. None where no depth has a trend on the first half.
    """
    levels = np.asarray(levels, dtype=float)
    first = _halve(levels, seed)
    calibration = {depth: _find_rho(levels[first], values[first]) for depth, values in sorted(efforts.items())}
    if all(math.isnan(rho) for rho in calibration.values()):
        return None
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


def _find_rho(levels: np.ndarray, values: np.ndarray) -> float:
    """Spearman's rho without an interval."""
    columns = _complete(levels, values)
    return float(_correlate_ranks(columns, np.ones((1, len(columns[0]))))[0]) if len(columns[0]) > 2 else math.nan


def _complete(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """The columns without the samples that have a NaN in any."""
    stacked = np.stack([np.asarray(column, dtype=float) for column in columns])
    return tuple(stacked[:, ~np.isnan(stacked).any(0)])


def _estimate(statistic: Callable[[np.ndarray], np.ndarray], sizes: Sequence[int], seed: int) -> Interval:
    """The statistic of all samples, and its interval over resamples within each of the groups of `sizes`.

    Resamples in which it is undefined are left out.
    """
    value = float(statistic(np.ones((1, sum(sizes))))[0])
    if math.isnan(value):
        return Interval(value, value, value, sum(sizes))
    drawn = np.concatenate([statistic(weights) for weights in _draw_weights(sizes, seed)])
    low, high = np.nanpercentile(drawn, PERCENTILES)
    return Interval(value, float(low), float(high), sum(sizes))


def _draw_weights(sizes: Sequence[int], seed: int) -> Iterator[np.ndarray]:
    """How often each sample was drawn in each of 2,000 resamples: float `[resample, sample]`, in chunks.

    Of each group, as many samples as it has are drawn, with replacement.
    """
    rng = np.random.default_rng(seed)
    for rows in np.array_split(np.arange(RESAMPLES), math.ceil(RESAMPLES * sum(sizes) / CHUNK)):
        yield np.concatenate([rng.multinomial(n, np.full(n, 1 / n), len(rows)) for n in sizes], axis=1).astype(float)


def _correlate_ranks(columns: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Correlation of the ranks of the first two columns in each resample, what those of the others predict taken out.

    NaN where nothing varies then on either side.
    """
    ranks = [_rank(column, weights) for column in columns]
    centred = [side - (weights * side).sum(1, keepdims=True) / weights.sum(1, keepdims=True) for side in ranks]
    left, right = (_residualise(side, centred[2:], weights) for side in centred[:2])
    before = [(weights * side**2).sum(1) for side in centred[:2]]
    after = [(weights * side**2).sum(1) for side in (left, right)]
    varied = (after[0] > SMALLEST_SHARE * before[0]) & (after[1] > SMALLEST_SHARE * before[1])
    product = (weights * left * right).sum(1)
    return np.where(varied, product / np.sqrt(np.where(varied, after[0] * after[1], 1.0)), np.nan)


def _residualise(side: np.ndarray, controls: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """`side` less its weighted least-squares prediction from the controls, all of them centred."""
    if not controls:
        return side
    matrix = np.stack(controls, -1)
    heavy = np.swapaxes(matrix * weights[..., None], -1, -2)
    slopes = np.linalg.pinv(heavy @ matrix, hermitian=True) @ (heavy @ side[..., None])
    return side - (matrix @ slopes)[..., 0]


def _rank(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank from 1 of each of `values[sample]` among the samples as often as they were drawn: `[resample, sample]`.

    Equal values share their mean rank.
    """
    kinds, kind = np.unique(values, return_inverse=True)
    order = np.argsort(kind, kind="stable")
    drawn = np.add.reduceat(weights[:, order], np.searchsorted(kind[order], np.arange(len(kinds))), axis=1)
    return (np.cumsum(drawn, axis=1) - (drawn - 1) / 2)[:, kind]
