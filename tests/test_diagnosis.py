from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hyperlens.contrast import estimate_mean
from hyperlens.diagnosis import (
    DOWN,
    FEW_ALIKE,
    FEW_PAIRS,
    FEWEST_PAIRS,
    MEASURES,
    OUTCOMES,
    PATTERNS,
    QUADRANTS,
    SMALLEST_CHANGE,
    STILL,
    UP,
    diagnose,
    estimate_changes,
    find_direction,
    find_outcomes,
    find_pattern,
    find_quadrants,
    holds_for,
    list_weaknesses,
    name_pattern,
    say_directions,
    say_interval,
)
from hyperlens.resampling import Interval


def draw_side(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    side = {name: rng.uniform(0.3, 0.6, count) for name in MEASURES}
    return side | {"accuracy": (rng.random(count) < 0.7).astype(float), "read": np.full(count, 2.0)}


def change_side(side: dict[str, np.ndarray], seed: int = 1, **by: float) -> dict[str, np.ndarray]:
    """The side with each named measure changed by so much on average, accuracy by answers that turn."""
    rng, changed = np.random.default_rng(seed), dict(side)
    for name, amount in by.items():
        if name == "accuracy":
            turned = rng.random(len(side[name])) < abs(amount)
            changed[name] = np.where(turned, float(amount > 0), side[name])
        else:
            changed[name] = side[name] + amount + rng.normal(0, 0.01, len(side[name]))
    return changed


def diagnose_pair(before, after):
    return diagnose(before, after, estimate_changes(before, after))


# names


@pytest.mark.parametrize(("confidence", "effort", "accuracy"), list(product((UP, STILL, DOWN), repeat=3)))
def test_every_combination_of_directions_has_exactly_one_name(confidence, effort, accuracy):
    holding = [one for one in PATTERNS if confidence in one.confidence and effort in one.effort and accuracy in one.accuracy]
    assert len(holding) == 1 and find_pattern(confidence, effort, accuracy) is holding[0]
    assert (holding[0].tone == "alarm") == (accuracy == DOWN) and (holding[0].tone == "gain") == (accuracy == UP)


@pytest.mark.parametrize(("confidence", "effort", "accuracy"), list(product((UP, STILL, DOWN), repeat=3)))
def test_a_sentence_says_of_each_direction_what_is_shown_and_denies_none_that_is(confidence, effort, accuracy):
    said = say_directions(confidence, effort, accuracy)
    affirmed, _, denied = said.partition("; that ") if "No change" not in said else ("", "", said)
    words = {
        "accuracy": {UP: "right more often", DOWN: "right less often"},
        "confidence": {UP: "is surer", DOWN: "is less sure"},
        "effort": {UP: "makes more effort", DOWN: "makes less effort"},
    }
    for name, direction in {"accuracy": accuracy, "confidence": confidence, "effort": effort}.items():
        assert (name in denied) == (direction == STILL)
        assert [way for way, text in words[name].items() if text in affirmed] == [direction] * (direction != STILL)
    assert said.endswith(".") and bool(denied) == ("shown" in said)


def test_a_sentence_reads_as_one():
    assert say_directions(DOWN, UP, DOWN) == "The model is right less often, is less sure and makes more effort."
    assert (
        say_directions(STILL, UP, STILL)
        == "The model makes more effort; that its accuracy or its confidence changed is not shown."
    )
    assert say_directions(STILL, STILL, STILL) == "No change of confidence, effort or accuracy is shown."


def test_a_name_holds_for_all_patterns_that_contain_it_and_no_others():
    contained = {
        one.name: {other.name for other in PATTERNS if holds_for(one.name, other.name)} - {one.name} for one in PATTERNS
    }
    blind, over, lost_both, suspected = (PATTERNS[place].name for place in (0, 1, 2, 4))
    assert {name: found for name, found in contained.items() if found} == {
        "overconfidence": {blind},
        "lost effort and accuracy": {blind},
        "lost accuracy": {blind, over, lost_both},
        "suspected blind confidence": {blind},
        "gained confidence": {blind, over, suspected},
        "lost effort": {blind, lost_both, suspected},
        "gained accuracy and confidence": {"learning"},
        "gained accuracy": {"learning", "gained accuracy and confidence"},
    }
    assert all(holds_for(one.name, one.name) for one in PATTERNS)


def test_no_two_patterns_share_a_name_or_a_condition():
    assert len({one.name for one in PATTERNS}) == len({one.condition for one in PATTERNS}) == len(PATTERNS)


def test_blind_confidence_is_surer_with_less_effort_and_worse_and_nothing_else():
    assert find_pattern(UP, DOWN, DOWN).name == "blind confidence"
    (found,) = (one for one in PATTERNS if one.name == "blind confidence")
    assert found.condition == "confidence up, effort down, accuracy down"
    assert find_pattern(UP, DOWN, STILL).name == "suspected blind confidence"
    assert find_pattern(UP, STILL, DOWN).name == "overconfidence"
    assert find_pattern(STILL, STILL, STILL).name == "no change shown"


@pytest.mark.parametrize(
    ("interval", "direction"),
    [
        ((0.1, 0.05, 0.2), UP),
        ((-0.1, -0.2, -0.05), DOWN),
        ((0.1, -0.05, 0.2), STILL),
        ((0.0, 0.0, 0.0), STILL),
        ((1e-7, 5e-8, 2e-7), STILL),
        ((np.nan, np.nan, np.nan), STILL),
        ((0.1, np.nan, np.nan), STILL),
    ],
)
def test_a_change_is_shown_where_its_interval_excludes_0_and_it_is_no_rounding(interval, direction):
    assert find_direction(Interval(*interval, n=FEWEST_PAIRS)) == direction
    assert find_direction(Interval(*interval, n=FEWEST_PAIRS), p=0.05) == direction


def test_too_few_pairs_and_what_chance_explains_show_nothing():
    assert find_direction(Interval(0.1, 0.05, 0.2, n=FEWEST_PAIRS - 1)) == STILL
    assert find_direction(Interval(0.1, 0.05, 0.2, n=500), p=0.0501) == STILL


# samples


def test_each_sample_is_in_one_quadrant():
    confidence, effort = map(np.array, zip(*product((0.1, -0.1, 0.0, np.nan), repeat=2), strict=True))
    found = [QUADRANTS[place] for place in find_quadrants(confidence, effort)]
    up_up, up_down, down_down = (found[place] for place in (0, 1, 5))
    assert (up_up, up_down, down_down) == (
        "confidence up, effort up",
        "confidence up, effort down",
        "confidence down, effort down",
    )
    assert found[4] == "confidence down, effort up"
    assert [name == "undefined" for name in found] == (np.isnan(confidence) | np.isnan(effort)).tolist()
    assert found.count("tied") == 5


def test_a_sample_is_tied_where_the_mean_would_be_called_rounding():
    changes = np.array([-SMALLEST_CHANGE, -0.9 * SMALLEST_CHANGE, 0.9 * SMALLEST_CHANGE, SMALLEST_CHANGE])
    tied = [False, True, True, False]
    for sides in ((changes, np.full(4, 0.1)), (np.full(4, 0.1), changes)):
        assert [QUADRANTS[place] == "tied" for place in find_quadrants(*sides)] == tied
    intervals = [Interval(value, value, value, n=500) for value in changes]
    assert [find_direction(interval) == STILL for interval in intervals] == tied


def test_each_sample_has_one_outcome():
    before, after = map(np.array, zip(*product((1.0, 0.0, np.nan), repeat=2), strict=True))
    named = [OUTCOMES[place] for place in find_outcomes(before, after)]
    assert named == ["stayed right", "broke", "unknown", "mended", "stayed wrong", *["unknown"] * 4]


# changes


def test_a_change_is_the_mean_of_the_differences_of_pairs_that_have_both():
    before = draw_side(60)
    after = change_side(before, effort=-0.05)
    before["effort"][:5], after["effort"][3:9] = np.nan, np.nan
    change = estimate_changes(before, after)["effort"]
    assert change.difference == estimate_mean(after["effort"] - before["effort"]) and change.difference.n == 51
    assert change.after.value - change.before.value == pytest.approx(change.difference.value)
    assert change.before == estimate_mean(before["effort"][9:])


@pytest.mark.parametrize("count", [60, 1500])
def test_swapped_sides_negate_every_change(count):
    before = draw_side(count)
    after = change_side(before, confidence=0.05, effort=-0.05, accuracy=-0.2)
    there, back = estimate_changes(before, after), estimate_changes(after, before)
    for name in MEASURES:
        there_, back_ = there[name].difference, back[name].difference
        assert (back_.value, back_.low, back_.high) == pytest.approx((-there_.value, -there_.high, -there_.low), abs=1e-12)


def test_pairs_show_what_two_groups_would_not():
    before = draw_side(60)
    assert name_pattern(estimate_changes(before, change_side(before, effort=-0.01))).name == "lost effort"


# verdicts


def test_planted_blind_confidence_is_found():
    before = draw_side(400)
    found = diagnose_pair(before, change_side(before, confidence=0.04, effort=-0.05, accuracy=-0.2))
    assert (found.pattern.name, found.weakened) == ("blind confidence", ())
    assert found.sentence.startswith("The model is right less often, is surer and makes less effort. Confidence +0.0")


def test_a_model_compared_with_itself_shows_no_change():
    before = draw_side(400)
    found = diagnose_pair(before, before)
    assert found.pattern.name == "no change shown" and found.weakened == ()
    assert found.sentence.endswith("accuracy 0.000 [0.000, 0.000].")


def test_few_samples_weaken_a_verdict_and_enough_do_not():
    for count in (FEW_PAIRS - 1, FEW_PAIRS):
        side = draw_side(count)
        assert any("only 99 samples" in one for one in diagnose_pair(side, side).weakened) == (count < FEW_PAIRS)


@pytest.mark.parametrize("count", [2, 8, FEWEST_PAIRS - 1])
def test_of_almost_no_samples_nothing_is_shown_and_that_is_said(count):
    before = draw_side(count) | {"accuracy": np.ones(count)}
    after = change_side(before, confidence=0.1, effort=-0.1) | {"accuracy": np.zeros(count)}
    found = diagnose_pair(before, after)
    assert found.pattern.name == "no change shown"
    assert "fewer than 20 samples seem to show is unreliable" in found.weakened[0]
    assert f"changes of accuracy ({count}), confidence ({count}), effort ({count}) count as not shown" in found.weakened[0]


@pytest.mark.parametrize(
    ("broken", "mended", "shown"), [(4, 0, False), (5, 0, False), (6, 0, True), (7, 1, False), (8, 1, True)]
)
def test_accuracy_changed_where_the_sign_test_shows_it_too(broken, mended, shown):
    before = draw_side(100) | {"accuracy": np.repeat([1.0, 0.0], 50)}
    after = before | {"accuracy": np.r_[np.zeros(broken), np.ones(50 - broken), np.ones(mended), np.zeros(50 - mended)]}
    change = estimate_changes(before, after)["accuracy"]
    assert change.difference.high < 0 and (change.direction == DOWN) == shown
    back = estimate_changes(after, before)["accuracy"]
    assert (back.direction == UP) == shown
    said = [one for one in diagnose_pair(before, after).weakened if "exact sign test" in one]
    assert bool(said) != shown and all(f"{broken} samples broke and {mended} were mended" in one for one in said)


@pytest.mark.parametrize("count", [FEWEST_PAIRS, 64])
def test_chance_alone_shows_a_change_as_seldom_as_it_is_said(count):
    rng, trials = np.random.default_rng(5), 250
    shown = {"accuracy": 0, "confidence": 0}
    for _ in range(trials):
        turn = rng.choice([-1, 0, 1], count, p=[0.05, 0.9, 0.05])
        before = {"accuracy": np.where(turn == 0, rng.random(count) < 0.6, turn < 0) + 0.0, "confidence": rng.random(count)}
        after = {"accuracy": before["accuracy"] + turn, "confidence": rng.random(count)}
        for name, change in estimate_changes(before, after).items():
            shown[name] += change.direction == DOWN
    assert 0 < shown["confidence"] / trials < 0.05 and shown["accuracy"] / trials < 0.025


@pytest.mark.parametrize("count", [FEWEST_PAIRS, 40, 99])
def test_the_smallest_change_that_is_said_to_be_shown_is_shown_and_a_smaller_one_is_not(count):
    side = draw_side(count)
    (said,) = (one for one in diagnose_pair(side, side).weakened if "There are only" in one)
    smallest, turning = float(said.split("less than ")[1].split()[0]), max(6, round(0.2 * count))
    for net in range(turning % 2, turning + 1, 2):
        before = side | {"accuracy": np.r_[np.ones((turning + net) // 2), np.zeros(count - (turning + net) // 2)]}
        after = side | {
            "accuracy": np.r_[np.zeros((turning + net) // 2), np.ones((turning - net) // 2), np.zeros(count - turning)]
        }
        assert (estimate_changes(before, after)["accuracy"].direction == DOWN) == (round(net / count, 2) >= smallest)


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (0, "The base was right in none of the 200 samples, so that accuracy cannot fall."),
        (5, "The base was right in only 5 of 200 samples, too few for a fall of accuracy to be shown."),
        (6, None),
        (194, None),
        (195, "The base was wrong in only 5 of 200 samples, too few for a rise of accuracy to be shown."),
        (200, "The base was wrong in none of the 200 samples, so that accuracy cannot rise."),
    ],
)
def test_accuracy_that_can_go_no_further_weakens_a_verdict(right, said):
    side = draw_side(200) | {"accuracy": np.repeat([1.0, 0.0], (right, 200 - right))}
    assert diagnose_pair(side, side).weakened == (() if said is None else (said,))
    away = side | {"accuracy": 1 - side["accuracy"]}
    assert not any("The base was" in one for one in diagnose_pair(side, away).weakened), "it went the other way, which is shown"


def test_an_end_that_is_not_0_is_never_said_as_0():
    assert say_interval(Interval(0.001, -0.0001, 0.002, n=50)) == "+0.0010 [−0.0001, +0.0020]"
    assert say_interval(Interval(0.001, 0.0, 0.002, n=50)) == "+0.001 [0.000, +0.002]"


def test_answers_that_nobody_graded_weaken_a_verdict():
    before = draw_side(200)
    half, none = (before | {"accuracy": np.where(np.arange(200) < kept, before["accuracy"], np.nan)} for kept in (100, 0))
    assert "Of 100 of 200 samples" in diagnose_pair(half, before).weakened[0]
    assert "Of no sample" in diagnose_pair(none, before).weakened[0]


def test_answers_of_another_length_weaken_a_verdict():
    before = draw_side(200)
    (said,) = diagnose_pair(before, before | {"read": np.where(np.arange(200) < 50, 6.0, 2.0)}).weakened
    assert "In 50 of 200 samples" in said and "from 2.0 to 3.0" in said


def test_effort_that_is_undefined_in_many_samples_weakens_a_verdict():
    before = draw_side(200)
    (said,) = diagnose_pair(before, before | {"effort": np.where(np.arange(200) < 30, np.nan, before["effort"])}).weakened
    assert said.startswith("Of 30 of 200 samples the effort is undefined")


def test_effort_that_fell_only_where_confidence_rose_is_said():
    before = draw_side(400)
    risen = np.arange(400) < 200
    after = before | {name: before[name] + np.where(risen, by, 0.0) for name, by in (("confidence", 0.2), ("effort", -0.1))}
    found = diagnose_pair(before, after)
    assert found.pattern.name == "suspected blind confidence" and (found.alike.value, found.alike.n) == (0.0, 200)
    assert any("among the 200 samples in which it changed by less than 0.05, ΔΩ is 0.000" in one for one in found.weakened)


def test_effort_that_is_only_the_share_of_a_larger_confidence_is_said():
    rng = np.random.default_rng(0)
    before = draw_side(800) | {"confidence": rng.uniform(0.2, 0.8, 800)}
    before["effort"] = 1 - before["confidence"] + rng.normal(0, 0.01, 800)
    after = before | {"confidence": before["confidence"] + 0.1, "effort": before["effort"] - 0.1}
    found = diagnose_pair(before, after)
    assert abs(found.matched.value) < 0.05 and any(
        "samples of like confidence before and after" in one for one in found.weakened
    )


@pytest.mark.parametrize("count", [8, 2 * FEW_ALIKE - 1, 2 * FEW_ALIKE])
def test_of_few_samples_of_like_confidence_nothing_is_said(count):
    before = draw_side(100)
    after = change_side(before, confidence=0.1, effort=-0.1)
    matched = Interval(0.3, 0.3, 0.3, n=count)  # of both sides
    found = list_weaknesses(before, after, estimate_changes(before, after), Interval(0.0, 0.0, 0.0, n=4), matched)
    assert any("not in pairs" in one for one in found) == (count == 2 * FEW_ALIKE)
