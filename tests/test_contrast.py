from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hyperlens.contrast import estimate_mean, estimate_trend


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(120):
        interval = estimate_mean(rng.normal(size=40))
        covered += interval.low <= 0 <= interval.high
    assert 105 <= covered <= 120


def test_the_mean_leaves_out_what_is_undefined_and_says_how_many_are_left():
    interval = estimate_mean(np.array([1.0, np.nan, 3.0]))
    assert (interval.value, interval.n) == (2.0, 2)
    assert 1.0 <= interval.low <= interval.high <= 3.0


def test_too_few_values_have_no_interval():
    assert math.isnan(estimate_mean(np.array([])).value)
    one = estimate_mean(np.array([0.5]))
    assert one.value == 0.5 and math.isnan(one.low)


def test_the_trend_is_spearmans_rho():
    rng = np.random.default_rng(1)
    levels = rng.integers(1, 5, 80).astype(float)
    values = levels + rng.normal(size=80)
    trend = estimate_trend(levels, values)
    assert trend.value == pytest.approx(stats.spearmanr(levels, values).statistic)
    assert trend.low < trend.value < trend.high and trend.low > 0


def test_a_trend_over_one_level_is_undefined():
    assert math.isnan(estimate_trend(np.ones(9), np.arange(9.0)).value)
    assert math.isnan(estimate_trend(np.array([1.0, 2.0]), np.array([1.0, 2.0])).value)


def test_intervals_are_the_same_for_the_same_seed():
    values = np.random.default_rng(2).random(30)
    assert estimate_mean(values, seed=3) == estimate_mean(values, seed=3)
    assert estimate_mean(values, seed=3) != estimate_mean(values, seed=4)
