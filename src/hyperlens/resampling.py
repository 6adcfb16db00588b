"""Resamples: samples drawn again, as weights, and statistics of ranks in all of them at once.

Intervals are 95 % percentile-bootstrap intervals of 2,000 resamples. A resample is a weight for each sample, how often it was
drawn, and each statistic is a function of weights: so ranks need sorting only once.

Of more than 1,000 samples the value is still that of all of them, but the interval is a limit. A mean, and a difference of
means, is normal with the variance that its resamples have, which needs none of them. A statistic of ranks is resampled on a
random subset of 500, m_g of the n_g samples of each group, with weights 1 + √(m_g/n_g)·(drawn − 1), which vary as little as
those of all n_g would; the interval is the value of all plus the deviations of the subset's resamples from the subset's own
value. This is the rescaled bootstrap (Rao and Wu 1988; the m-out-of-n bootstrap of Politis and Romano 1994 and Bickel, Götze
and van Zwet 1997, its scale put into the weights so that groups may be thinned unequally). The subset adds about 3 % of noise
to the width of an interval, as the 2,000 resamples do anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hyperlens.errors import InputError

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
WIDTH = 1.959963984540054
"""Half the width of a 95 % interval of the normal distribution, in standard deviations."""
MOST_RESAMPLED = 1000
"""Of more samples than this, intervals are limits: see the top of this module."""
THINNED = 500
"""How many of them are then resampled for a statistic of ranks."""
SMALLEST_SHARE = 1e-9
"""A side varies if the controls leave more than this share of the variance of its ranks."""
MOST_COUNTED = 4_000_000
"""Whole numbers below this are sorted by counting."""
MORE_DIGITS, SMALLEST = 2, 1e-12
"""Digits that an interval gets at most so that no end of it looks like 0 without being 0; what is below is a rounding error."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval over `n` samples; NaN where there were too few."""

    value: float
    low: float
    high: float
    n: int


def count_digits(ends: Iterable[float | None], digits: int) -> int:
    """How many digits an interval is said with: `digits`, or more where an `end` of it would else look like 0.

    >>> count_digits((-0.06, -0.0004), 3), count_digits((0.0, 0.2), 2)
    (4, 2)
    """
    known = [end for end in ends if end is not None and abs(end) > SMALLEST]
    return digits + next((more for more in range(MORE_DIGITS) if all(round(end, digits + more) for end in known)), MORE_DIGITS)


def write_number(value: float, digits: int) -> str:
    """A number with so many digits behind the point, a minus sign where it has one, and none before 0.

    >>> write_number(-0.5, 2), write_number(-0.001, 2)
    ('−0.50', '0.00')
    """
    said = f"{value:.{digits}f}"
    return f"−{said[1:]}" if said[0] == "-" and float(said) else said.lstrip("-")


def check_seed(seed: int) -> None:
    """That every generator of random numbers takes it: numpy's, torch's and scikit-learn's. Raises InputError."""
    if not 0 <= seed < 2**32:
        raise InputError(f"the seed is {seed}; give a whole number from 0 to {2**32 - 1}")


def next_seed(seed: int, step: int) -> int:
    """Another seed, from which other samples are drawn."""
    return (seed + step) % 2**32


@lru_cache(maxsize=8)
def draw_weights(sizes: tuple[int, ...], seed: int) -> np.ndarray:
    """How often each sample was drawn in each of 2,000 resamples: float `[resample, sample]`, not to be changed.

    Of each group, as many samples as it has are drawn, with replacement.
    """
    rng = np.random.default_rng(seed)
    weights = np.concatenate([rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in sizes], axis=1).astype(float)
    weights.flags.writeable = False
    return weights


def split_groups(sizes: Sequence[int]) -> Iterator[slice]:
    """Where each group of samples lies, one after the other."""
    ends = np.cumsum(sizes).tolist()
    return map(slice, [0, *ends[:-1]], ends)


def bound_mean(mean: Any, variance: Any, count: int) -> tuple[Any, Any]:
    """The ends of the interval that a mean of `count` samples has in the limit, from their variance: numbers or arrays."""
    half = WIDTH * np.sqrt(variance / count)
    return mean - half, mean + half


class Draws:
    """Resamples of the samples at `rows`, which are in groups of `sizes` one after the other, for statistics of ranks."""

    def __init__(self, rows: np.ndarray, sizes: tuple[int, ...], seed: int):
        self.all = Ranks(np.ones((len(rows), 1)), rows, sizes)
        self.thinned = None
        if len(rows) <= MOST_RESAMPLED:
            self.resampled = Ranks(draw_weights(sizes, seed).T.copy(), rows, sizes)
            return
        fewer = tuple(min(size, THINNED // len(sizes)) for size in sizes)
        rng = np.random.default_rng(seed)
        parts = zip(sizes, fewer, split_groups(sizes), strict=True)
        few = np.concatenate([rows[part][np.sort(rng.choice(size, less, replace=False))] for size, less, part in parts])
        weights = draw_weights(fewer, seed).T.copy()
        weights -= 1
        weights *= np.repeat(np.sqrt(np.divide(fewer, sizes)), fewer)[:, None]
        weights += 1
        self.thinned = Ranks(np.ones((len(few), 1)), few, fewer)
        self.resampled = Ranks(weights, few, fewer)

    def estimate(self, statistic: Callable[[Ranks], np.ndarray], least: float = -1.0, most: float = 1.0) -> Interval:
        """The statistic of all samples and its interval, within the range that it has. Resamples in which it is undefined are
        left out."""
        value, count = float(statistic(self.all)[0]), sum(self.all.sizes)
        if math.isnan(value):
            return Interval(value, value, value, count)
        found = statistic(self.resampled)
        if self.thinned is not None:
            found = np.clip(value + found - statistic(self.thinned), least, most)
        if np.isnan(found).all():
            return Interval(value, math.nan, math.nan, count)
        low, high = np.nanpercentile(found, PERCENTILES)
        return Interval(value, float(low), float(high), count)


class Ranks:
    """Ranks within each group, in resamples given by weights, of any columns, and sums of their products: each found once.

    `weights[place, resample]` is of the samples at `rows[place]`, which are in groups of `sizes` one after the other. Columns
    `[sample]` are known by their identity, and must not be changed meanwhile.
    """

    most_kept = 6

    def __init__(self, weights: np.ndarray, rows: np.ndarray, sizes: tuple[int, ...]):
        self.weights, self.rows, self.sizes = weights, rows, sizes
        self._known: list[np.ndarray] = []  # no column is forgotten, or another might get its identity
        self._ranks: dict[int, np.ndarray] = {}
        self._sums: dict[tuple[int, int], np.ndarray] = {}

    def multiply(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Σ w·x·y of the ranks x and y of two columns, each less its mean: `[group, resample]`."""
        key = (min(id(left), id(right)), max(id(left), id(right)))
        if key not in self._sums:
            sides = self.weights, self._rank(left), self._rank(right)
            self._sums[key] = np.stack([_sum_products(*(side[part] for side in sides)) for part in split_groups(self.sizes)])
        return self._sums[key]

    def count_pairs(self, column: np.ndarray) -> np.ndarray:
        """Share of the pairs of a sample of each of two groups in which the second is above, half where equal: `[resample]`."""
        parts = list(split_groups(self.sizes))
        easy, hard = (column[self.rows[part]] for part in parts)
        below, above = (self.weights[part] for part in parts)
        if self.weights.shape[1] == 1:
            first, last = _locate(np.sort(easy), np.sort(hard))
            return np.array([(first.sum() + last.sum()) / 2]) / math.prod(self.sizes)
        order = np.argsort(easy)
        first, last = _locate(easy[order], hard)
        passed = _accumulate(below[order])
        under = passed[first] if first is last else (passed[first] + passed[last]) / 2
        return np.einsum("sr,sr->r", under, above) / math.prod(self.sizes)

    def _rank(self, column: np.ndarray) -> np.ndarray:
        if id(column) not in self._ranks:
            self._known.append(column)
            each = [_rank(column[self.rows[part]], self.weights[part]) for part in split_groups(self.sizes)]
            self._ranks[id(column)] = each[0] if len(each) == 1 else np.concatenate(each)
            if len(self._ranks) > self.most_kept:
                del self._ranks[next(iter(self._ranks))]
        self._ranks[id(column)] = self._ranks.pop(id(column))
        return self._ranks[id(column)]


def correlate_ranks(ranks: Ranks, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Correlation of the ranks of the first two columns, what those of the others predict taken out: `[group, resample]`.

    NaN where nothing varies then on either side.
    """
    products = np.stack([np.stack([ranks.multiply(left, right) for right in columns], -1) for left in columns], -1)
    left = products[..., :2, :2]
    if len(columns) > 2:
        controls = np.linalg.pinv(products[..., 2:, 2:], hermitian=True)
        left = left - products[..., :2, 2:] @ controls @ products[..., 2:, :2]
    before, after = (np.diagonal(side, axis1=-2, axis2=-1)[..., :2] for side in (products, left))
    varied = (after > SMALLEST_SHARE * before).all(-1)
    return np.where(varied, left[..., 0, 1] / np.sqrt(np.where(varied, after[..., 0] * after[..., 1], 1.0)), np.nan)


def _sum_products(weights: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Σ w·x·y over samples: `[resample]`; a single column of weights is of all samples, once."""
    return np.einsum("sr,sr,sr->r", weights, left, right) if weights.shape[1] > 1 else left.T @ right[:, 0]


def _rank(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank of each of `values[sample]` among the samples as often as they were drawn, less the mean rank: `[sample, resample]`.

    Equal values share their mean rank. A single column of weights is of all samples, once.
    """
    kind = number_kinds(values)
    counts = np.bincount(kind)
    ends = np.cumsum(counts)
    if weights.shape[1] == 1:
        return (ends - counts / 2 - len(values) / 2)[kind, None]
    passed = _accumulate(weights[np.argsort(kind, kind="stable")])
    middle = passed[ends - counts] + passed[ends]
    middle -= len(values)
    middle /= 2
    return middle[kind]


def _accumulate(weights: np.ndarray) -> np.ndarray:
    """Sum of the weights before each sample, and of all: `[sample, resample]` -> `[sample + 1, resample]`.

    Row by row, which is several times faster than numpy's own sum along the first of two axes.
    """
    passed = np.zeros((len(weights) + 1, weights.shape[1]))
    for row, one in enumerate(weights):
        np.add(passed[row], one, out=passed[row + 1])
    return passed


def _locate(ordered: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of `ordered` are below each of the values, and how many are not above it; one array where these are equal."""
    first, last = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (first, first) if np.array_equal(first, last) else (first, last)


def number_kinds(values: np.ndarray) -> np.ndarray:
    """The distinct values numbered from 0 in ascending order: int `[sample]`. NaN is not looked for."""
    if len(values) and not -MOST_COUNTED < values.min() <= values.max() < MOST_COUNTED:
        return np.unique(values, return_inverse=True)[1]
    whole = values.astype(np.int64)
    if (whole != values).any():
        return np.unique(values, return_inverse=True)[1]
    whole -= whole.min(initial=0)
    here = np.bincount(whole) > 0
    return whole if here.all() else (np.cumsum(here) - 1)[whole]
