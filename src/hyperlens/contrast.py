"""Effort between groups of samples: intervals and trends. The sample, not the token, is the unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile-bootstrap interval over `n` samples; NaN where there were too few."""

    value: float
    low: float
    high: float
    n: int


def estimate_mean(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean of `values[sample]` and its interval. NaN values are left out; `n` counts those that are not."""
    known = _known(values)
    if len(known) < 2:
        return Interval(float(known[0]) if len(known) else float("nan"), float("nan"), float("nan"), len(known))
    low, high = _bootstrap((known,), np.mean, seed)
    return Interval(float(known.mean()), low, high, len(known))


def estimate_trend(levels: np.ndarray, values: np.ndarray, seed: int = 0) -> Interval:
    """Spearman's rho of `levels[sample]` and `values[sample]`, in [−1, 1], and its interval.

    Pairs with a NaN are left out. NaN where fewer than three pairs are left, or either side never varies.
    """
    levels, values = np.asarray(levels, dtype=float), np.asarray(values, dtype=float)
    both = ~(np.isnan(levels) | np.isnan(values))
    levels, values = levels[both], values[both]
    rho = float(_spearman(levels, values)) if len(levels) > 2 else float("nan")
    if np.isnan(rho):
        return Interval(rho, rho, rho, len(levels))
    low, high = _bootstrap((levels, values), _spearman, seed)
    return Interval(rho, low, high, len(levels))


def _known(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return values[~np.isnan(values)]


def _bootstrap(data: tuple[np.ndarray, ...], statistic: object, seed: int) -> tuple[float, float]:
    """Percentile interval; resamples in which the statistic is undefined are left out."""
    drawn = stats.bootstrap(
        data,
        statistic,
        paired=len(data) > 1,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution
    low, high = np.nanpercentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _spearman(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's correlation of the ranks along `axis`; NaN where either side is constant."""
    ranks = [stats.rankdata(side, axis=axis) for side in (first, second)]
    centred = [side - side.mean(axis=axis, keepdims=True) for side in ranks]
    product = (centred[0] * centred[1]).sum(axis=axis)
    size = np.sqrt((centred[0] ** 2).sum(axis=axis) * (centred[1] ** 2).sum(axis=axis))
    return np.where(size > 0, product / np.where(size > 0, size, 1.0), np.nan)
