from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from hyperlens import effort

trajectories = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 9)), elements=st.floats(1e-6, 1.0))


@given(trajectories)
def test_effort_lies_between_zero_and_one(confidence):
    omega = effort.measure_effort(confidence)
    assert ((omega >= 0) & (omega <= 1)).all()


@given(trajectories)
def test_numpy_and_torch_agree_on_every_formula(confidence):
    tensor = torch.from_numpy(confidence)
    for formula in (
        effort.measure_progress,
        effort.measure_effort,
        effort.measure_raw_area,
        effort.measure_volatility,
        effort.measure_resolution,
        lambda c: effort.find_onset(effort.measure_progress(c)),
        lambda c: effort.find_commit(effort.measure_progress(c)),
    ):
        np.testing.assert_allclose(formula(confidence), formula(tensor).numpy(), rtol=1e-12, atol=1e-12)


@given(trajectories, st.integers(0, 7), st.floats(0.0, 1.0))
def test_more_confidence_at_any_state_is_never_more_effort(confidence, state, gain):
    state %= confidence.shape[1] - 1
    raised = confidence.copy()
    raised[:, state] += gain
    assert (effort.measure_effort(raised) <= effort.measure_effort(confidence) + 1e-12).all()


def test_effort_is_zero_when_the_final_confidence_is_there_from_the_start():
    assert effort.measure_effort(np.full(9, 0.3)) == 0


def test_effort_is_one_when_all_of_it_comes_in_the_last_step():
    assert effort.measure_effort(np.array([0, 0, 0, 0, 0.4])) == 1


def test_effort_does_not_depend_on_the_scale_of_confidence():
    confidence = np.array([0.01, 0.2, 0.5, 0.7, 0.9])
    assert effort.measure_effort(confidence) == pytest.approx(effort.measure_effort(confidence / 10))


def test_early_over_confidence_is_not_negative_effort_but_volatility():
    confidence = np.array([0.9, 0.2, 0.4])
    assert effort.measure_effort(confidence) == pytest.approx(0.25)
    assert effort.measure_volatility(confidence) == pytest.approx(0.9 - 0.5)


def test_effort_of_no_states_is_undefined():
    assert math.isnan(effort.measure_effort(np.array([0.4])))
    assert math.isnan(effort.measure_raw_area(np.array([0.4])))
    assert math.isnan(effort.find_commit(np.zeros((0,))))


def test_progress_among_options_begins_where_guessing_ends():
    confidence = np.array([[0.25, 0.5, 0.75, 1.0], [0.2, 0.3, 0.25, 0.25]])
    progress = effort.measure_progress(confidence, guess=0.25)
    np.testing.assert_allclose(progress[0], [0, 1 / 3, 2 / 3])
    assert np.isnan(progress[1]).all()


def test_a_given_token_that_the_model_excludes_has_no_effort():
    confidence = np.array([0.001, 0.002, 0.009])
    assert math.isnan(effort.measure_effort(confidence, smallest=effort.SMALLEST_GIVEN))
    assert effort.measure_effort(confidence) > 0


@pytest.mark.parametrize(
    ("progress", "onset", "commit"),
    [
        ([0.0, 0.1, 0.5, 0.95], 1, 3),
        ([0.0, 0.95, 0.5, 0.95], 1, 3),
        ([0.95, 0.95, 0.95, 0.95], 0, 0),
        ([0.0, 0.0, 0.0, 0.0], 4, 4),
        ([0.0, 0.95, 0.95, 0.5], 1, 4),
    ],
)
def test_onset_is_the_first_and_commit_the_lasting_arrival(progress, onset, commit):
    assert effort.find_onset(np.array(progress)) == onset
    assert effort.find_commit(np.array(progress)) == commit


def test_onset_and_commit_of_undefined_progress_are_undefined():
    assert math.isnan(effort.find_onset(np.full(4, np.nan)))
    assert math.isnan(effort.find_commit(np.array([0.1, np.nan, 0.95])))


@given(st.integers(1, 8))
def test_resolution_counts_equal_steps(steps):
    assert effort.measure_resolution(np.linspace(0, 1, steps + 1)) == pytest.approx(steps)


def test_resolution_of_one_jump_is_one_and_of_a_flat_line_undefined():
    assert effort.measure_resolution(np.array([0, 0, 0, 0.7])) == pytest.approx(1)
    assert math.isnan(effort.measure_resolution(np.full(4, 0.7)))


@given(arrays(np.float64, 6, elements=st.floats(0, 1)))
def test_monotone_confidence_has_no_volatility(values):
    assert effort.measure_volatility(np.sort(values)) == pytest.approx(0, abs=1e-12)


def test_the_gradient_of_effort_agrees_with_finite_differences():
    confidence = torch.rand(3, 7, dtype=torch.float64) * 0.5
    confidence[:, -1] = 0.9
    confidence.requires_grad_()
    assert torch.autograd.gradcheck(effort.measure_effort, confidence)


def test_undefined_effort_passes_no_gradient():
    confidence = torch.tensor([[0.1, 0.2, 0.0], [0.1, 0.2, 0.5]], requires_grad=True)
    effort.measure_effort(confidence).nansum().backward()
    assert torch.equal(confidence.grad[0], torch.zeros(3)) and torch.isfinite(confidence.grad).all()


paths = arrays(np.float64, (5, 9), elements=st.floats(0.0, 1.0))


@given(paths)
def test_the_logit_lens_magnifies_itself_by_one_and_keeps_its_own_order(confidence):
    moved = np.abs(np.diff(confidence)).sum()
    for ratio in (effort.measure_gain, effort.measure_path_ratio):
        assert ratio(confidence, confidence) == pytest.approx(1) if moved >= 0.05 else math.isnan(ratio(confidence, confidence))
    monotonicity = effort.measure_monotonicity(confidence, confidence)
    assert monotonicity.shape == (8,) and all(value == pytest.approx(1) or math.isnan(value) for value in monotonicity)


@given(paths, paths)
def test_numpy_and_torch_agree_on_magnification(logit, routed):
    for formula in (
        effort.measure_gain,
        effort.measure_path_ratio,
        effort.measure_directional_gain,
        effort.measure_monotonicity,
    ):
        ours, theirs = formula(routed[:, :6], logit), formula(torch.from_numpy(routed[:, :6]), torch.from_numpy(logit))
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-10, atol=1e-10)


def test_gain_is_a_ratio_of_sums_over_the_states_that_the_depth_leaves():
    logit = np.array([[0.0, 0.1, 0.1, 0.9], [0.0, 0.3, 0.3, 0.9]])
    routed = np.array([[0.0, 0.5, 0.9], [0.3, 0.5, 0.9]])
    assert effort.measure_gain(routed, logit) == pytest.approx((0.9 + 0.6) / (0.1 + 0.3))
    assert effort.measure_path_ratio(routed, logit) == pytest.approx((0.9 + 0.6) / (0.9 + 0.9))


def test_a_lens_that_does_not_move_has_no_gain():
    assert math.isnan(effort.measure_gain(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5, 1.0]])))
    assert effort.measure_path_ratio(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5, 1.0]])) == 2


@given(arrays(np.float64, (7, 3), elements=st.sampled_from([0.1, 0.2, 0.3, 0.4])))
def test_monotonicity_is_spearmans_correlation(confidence):
    other = confidence[::-1] ** 2
    for state, value in enumerate(effort.measure_monotonicity(confidence, other)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = stats.spearmanr(confidence[:, state], other[:, state]).statistic
        np.testing.assert_allclose(value, expected, atol=1e-12)


def test_any_monotone_distortion_of_confidence_keeps_monotonicity_at_one():
    confidence = np.random.default_rng(0).random((20, 6))
    np.testing.assert_allclose(effort.measure_monotonicity(confidence**3, confidence), 1)
    np.testing.assert_allclose(effort.measure_monotonicity(1 - confidence, confidence), -1)


@given(
    arrays(float, 5, elements=st.floats(0, 1)),
    arrays(float, 5, elements=st.floats(0, 1)),
    st.floats(0, 0.5),
)
def test_shortfall_is_zero_exactly_where_effort_is_as_wanted(found, base, shift):
    assert (effort.measure_shortfall(found, base) == np.maximum(0, base - found)).all()
    raised, lowered = (effort.measure_shortfall(found, base, aim, shift) for aim in ("raise", "lower"))
    assert (raised >= effort.measure_shortfall(found, base) - 1e-12).all()
    assert ((raised == 0) == (found >= base + shift)).all()
    assert ((lowered == 0) == (found - base + shift <= 0)).all()


def test_shortfall_of_what_is_undefined_costs_nothing_and_pulls_at_nothing():
    found = torch.tensor([0.2, float("nan"), 0.2], requires_grad=True)
    cost = effort.measure_shortfall(found, torch.tensor([0.5, 0.5, float("nan")]))
    cost.sum().backward()
    assert cost.tolist() == pytest.approx([0.3, 0, 0])
    assert found.grad is not None and found.grad.tolist() == [-1, 0, 0]
