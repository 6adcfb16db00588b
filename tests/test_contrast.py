from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hyperlens.contrast import (
    choose_depth,
    compare_trends,
    estimate_auroc,
    estimate_curve,
    estimate_matched_trend,
    estimate_mean,
    estimate_trend,
)


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


def test_a_partial_trend_is_the_correlation_of_what_the_controls_leave():
    rng = np.random.default_rng(4)
    levels, confidence, length = rng.integers(1, 6, 90).astype(float), rng.random(90), rng.random(90)
    values = levels + 3 * confidence + rng.normal(size=90)
    ranks = [stats.rankdata(side) for side in (levels, values, confidence, length)]
    design = np.stack([np.ones(90), *ranks[2:]], 1)
    left, right = (side - design @ np.linalg.lstsq(design, side, rcond=None)[0] for side in ranks[:2])
    partial = estimate_trend(levels, values, controls=(confidence, length))
    assert partial.value == pytest.approx(np.corrcoef(left, right)[0, 1])
    assert partial.low < partial.value < partial.high


def test_a_trend_that_is_confidence_in_disguise_vanishes_once_confidence_is_matched():
    rng = np.random.default_rng(5)
    levels = np.repeat(np.arange(1.0, 6.0), 120)
    confidence = -levels + rng.normal(size=600)
    disguised, real = -confidence + 0.1 * rng.normal(size=600), levels + rng.normal(size=600)
    assert estimate_trend(levels, disguised).low > 0.5
    assert estimate_trend(levels, disguised, controls=(confidence,)).value < 0.1
    assert estimate_trend(levels, real, controls=(confidence,)).low > 0.2
    assert abs(estimate_matched_trend(levels, disguised, confidence, strata=20).value) < 0.25
    assert estimate_matched_trend(levels, real, confidence).low > 0.3


def test_a_control_that_never_varies_changes_nothing():
    rng = np.random.default_rng(6)
    levels, values = rng.integers(1, 5, 60).astype(float), rng.random(60)
    assert estimate_trend(levels, values, controls=(np.ones(60),)).value == pytest.approx(estimate_trend(levels, values).value)


def test_a_control_that_is_the_level_leaves_nothing():
    rng = np.random.default_rng(7)
    levels = rng.integers(1, 5, 60).astype(float)
    assert math.isnan(estimate_trend(levels, levels + rng.random(60), controls=(levels,)).value)


def test_strata_of_one_level_say_nothing():
    levels = np.repeat([1.0, 2.0, 3.0, 4.0], 10)
    matched = estimate_matched_trend(levels, np.random.default_rng(8).random(40), levels, strata=4)
    assert math.isnan(matched.value) and matched.n == 0


def test_the_auroc_counts_the_pairs_in_which_hard_is_above_easy():
    rng = np.random.default_rng(9)
    easy, hard = rng.integers(0, 5, 30).astype(float), rng.integers(1, 7, 40).astype(float)
    pairs = (hard[:, None] > easy) + 0.5 * (hard[:, None] == easy)
    auroc = estimate_auroc(easy, hard)
    assert auroc.value == pytest.approx(pairs.mean()) and auroc.low < auroc.value < auroc.high
    assert estimate_auroc(hard, easy).value == pytest.approx(1 - pairs.mean())
    assert estimate_auroc(easy, easy).value == pytest.approx(0.5)


def test_the_curve_of_means_has_the_interval_of_each_mean():
    values = np.random.default_rng(10).normal(size=(50, 3))
    mean, low, high = estimate_curve(values)
    np.testing.assert_allclose(mean, values.mean(0))
    for state in range(3):
        interval = estimate_mean(values[:, state])
        assert (low[state], high[state]) == pytest.approx((interval.low, interval.high), abs=0.05)
    assert np.isnan(estimate_curve(values[:1])[1]).all()


def test_the_depth_is_chosen_on_one_half_and_measured_on_the_other():
    rng = np.random.default_rng(11)
    levels = np.repeat(np.arange(1.0, 6.0), 40)
    efforts = {0: rng.random(200), 2: levels + rng.normal(size=200), 4: levels + 9 * rng.normal(size=200)}
    choice = choose_depth(levels, efforts)
    assert choice.chosen == 2 and set(choice.calibration) == {0, 2, 4}
    assert choice.held_out.n == choice.logit.n == 100
    assert choice.held_out.low > 0.5 > abs(choice.logit.value)


def test_the_chosen_depth_of_pure_noise_has_no_trend_on_the_half_that_did_not_choose_it():
    rng = np.random.default_rng(12)
    levels = np.repeat(np.arange(1.0, 6.0), 20)
    found = [choose_depth(levels, {m: rng.random(100) for m in range(8)}, seed) for seed in range(30)]
    assert np.mean([max(choice.calibration.values()) for choice in found]) > 0.1
    assert abs(np.mean([choice.held_out.value for choice in found])) < 0.07


def test_no_depth_is_chosen_where_none_has_a_trend():
    assert choose_depth(np.ones(20), {0: np.arange(20.0), 2: np.arange(20.0)}) is None


def test_two_trends_are_compared_on_the_same_samples():
    rng = np.random.default_rng(13)
    levels = np.repeat(np.arange(1.0, 6.0), 40)
    shared = rng.normal(size=200)
    better, worse = levels + shared, levels + 2 * shared
    difference = compare_trends(levels, better, worse)
    assert difference.value == pytest.approx(estimate_trend(levels, better).value - estimate_trend(levels, worse).value)
    assert 0 < difference.low < difference.value < difference.high
    same = compare_trends(levels, better, better)
    assert (same.value, same.low, same.high) == (0, 0, 0)
