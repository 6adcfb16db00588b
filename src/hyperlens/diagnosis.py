"""What a change of model did to it: the names of patterns, quadrants and outcomes of samples, and what weakens a verdict.

Two models read the same samples, mostly a base and its fine-tuned self; what is drawn again are pairs. Blind confidence is
the paper's finding, its condition and all weaker patterns are ours (there is no public threshold).

When a change counts as shown is ours too: `find_direction`, the one rule of the comparison, its page and the warning light. By
its interval alone it would be found too often of few pairs: a percentile bootstrap of 2 values that do not differ in the mean
excludes 0 in half of all cases, of 4 in 0.21, of 12 in 0.10, of 20 in 0.065 instead of 0.05. And answers are right or wrong:
four that broke, with none mended, have an interval below 0 among any number of samples, and are chance with p = 0.125.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hyperlens.contrast import SignTest, contrast_matched, estimate_mean, estimate_means, sign_test
from hyperlens.resampling import Interval, count_digits

MEASURES = ("accuracy", "confidence", "effort", "struggle", "commit", "read")
"""What is measured of each sample: right or not, c_L, Ω, struggle length and commit state in layers, answer tokens."""
UP, DOWN, STILL = "up", "down", "not shown"
SMALLEST_CHANGE = 1e-5
"""A change below this, of a sample or on average, is rounding, as between batches of other sizes, whatever its interval."""
FEWEST_PAIRS = 20
"""Of fewer pairs nothing counts as shown: percentile intervals exclude 0 too often by chance."""
LARGEST_P = 0.05
"""Of the exact sign test, by which a change of accuracy counts as shown."""
RULE = (
    f"A change counts as shown where at least {FEWEST_PAIRS} pairs have it and its interval excludes 0; that of accuracy, "
    f"where the exact sign test of broken against mended samples has p ≤ {LARGEST_P} besides."
)
FEW_PAIRS = 100
"""With so many samples, of which a fifth turned from right to wrong or back, accuracy has to fall by 0.10 to be shown; with
fewer, that a pattern was not shown says little."""
TURNING, FEWEST_TURNING = 0.2, 6
"""The share of samples that usually turn, and how many have to, all of them one way, for the sign test to show it."""
LITTLE = 0.05
"""A final confidence that changed by less than this changed little."""
FEW_ALIKE = 30
"""Of fewer samples of like confidence, of each side, nothing can be told."""
DIGITS = 3
MANY = 0.05
"""Share of samples from which something about them is said."""
QUADRANTS = (
    "confidence up, effort down",
    "confidence up, effort up",
    "confidence down, effort down",
    "confidence down, effort up",
    "tied",
    "undefined",
)
"""Where a sample can be: `tied` if either did not change (by `SMALLEST_CHANGE`), `undefined` if either is not known."""
OUTCOMES = ("stayed right", "broke", "mended", "stayed wrong", "unknown")


@dataclass(frozen=True)
class Pattern:
    """What the changes of confidence, effort and accuracy are called together: for which directions of each the name holds.

    `tone` is "alarm" where accuracy fell, "warning" where that is to be feared, "gain" where it rose, else "plain".
    """

    name: str
    tone: str
    confidence: tuple[str, ...]
    effort: tuple[str, ...]
    accuracy: tuple[str, ...]

    @property
    def condition(self) -> str:
        """Exactly when it is found, in words."""
        sides = {"confidence": self.confidence, "effort": self.effort, "accuracy": self.accuracy}
        return ", ".join(f"{name} {_CONDITIONS[frozenset(allowed)]}" for name, allowed in sides.items())


_SAID = {
    "accuracy": {UP: "is right more often", DOWN: "is right less often"},
    "confidence": {UP: "is surer", DOWN: "is less sure"},
    "effort": {UP: "makes more effort", DOWN: "makes less effort"},
}
"""What is said of the model where a change is shown."""
_NOT_UP, _NOT_DOWN, _ANY = (STILL, DOWN), (STILL, UP), (UP, STILL, DOWN)
_CONDITIONS = {
    frozenset([UP]): "up",
    frozenset([DOWN]): "down",
    frozenset([STILL]): "not shown to change",
    frozenset(_NOT_UP): "not shown to rise",
    frozenset(_NOT_DOWN): "not shown to fall",
    frozenset(_ANY): "whatever it does",
}

PATTERNS = (
    Pattern("blind confidence", "alarm", (UP,), (DOWN,), (DOWN,)),
    Pattern("overconfidence", "alarm", (UP,), _NOT_DOWN, (DOWN,)),
    Pattern("lost effort and accuracy", "alarm", _NOT_UP, (DOWN,), (DOWN,)),
    Pattern("lost accuracy", "alarm", _NOT_UP, _NOT_DOWN, (DOWN,)),
    Pattern("suspected blind confidence", "warning", (UP,), (DOWN,), (STILL,)),
    Pattern("gained confidence", "plain", (UP,), _NOT_DOWN, (STILL,)),
    Pattern("lost effort", "warning", _NOT_UP, (DOWN,), (STILL,)),
    Pattern("gained effort", "plain", _NOT_UP, (UP,), (STILL,)),
    Pattern("lost confidence", "plain", (DOWN,), (STILL,), (STILL,)),
    Pattern("no change shown", "plain", (STILL,), (STILL,), (STILL,)),
    Pattern("learning", "gain", (UP,), (DOWN,), (UP,)),
    Pattern("gained accuracy and confidence", "gain", (UP,), _NOT_DOWN, (UP,)),
    Pattern("gained accuracy", "gain", _NOT_UP, _ANY, (UP,)),
)
"""All patterns; of each combination of directions exactly one holds."""


@dataclass(frozen=True)
class Change:
    """Means of one measure over the pairs that have it on both sides, and of the `difference` after − before, whose
    `direction` is up or down where it counts as shown, else not shown."""

    before: Interval
    after: Interval
    difference: Interval
    direction: str


@dataclass(frozen=True)
class Diagnosis:
    """A pattern, in a sentence with its numbers, and what weakens it.

    Ω is a share of the final confidence, so that ΔΩ is given too among the samples whose confidence changed by less than 0.05
    (`alike`), and at `matched` confidence: samples of both sides in strata of like confidence, no longer in pairs.
    """

    pattern: Pattern
    sentence: str
    weakened: tuple[str, ...]
    alike: Interval
    matched: Interval


Columns = Mapping[str, np.ndarray]
"""The measures of one side: float `[sample]` each, NaN where unknown; accuracy is 0 or 1."""


def find_direction(difference: Interval, p: float = 0.0) -> str:
    """up or down where a change counts as shown, else not shown.

    It does if its interval excludes 0, at least 20 pairs have it, it is no mere rounding, and `p`, for accuracy that of the
    exact sign test, is at most 0.05. The first is the definition, the others keep chance out of it; all of it is ours.
    """
    if difference.n < FEWEST_PAIRS or p > LARGEST_P or not abs(difference.value) >= SMALLEST_CHANGE:
        return STILL
    return UP if difference.low > 0 else DOWN if difference.high < 0 else STILL


def find_pattern(confidence: str, effort: str, accuracy: str) -> Pattern:
    """The one pattern that holds for three directions of `find_direction`."""
    (found,) = (
        pattern
        for pattern in PATTERNS
        if confidence in pattern.confidence and effort in pattern.effort and accuracy in pattern.accuracy
    )
    return found


def holds_for(name: str, other: str) -> bool:
    """Whether the name of one pattern holds for another one too: all that the first says is shown is shown there in all cases,
    as that of "lost accuracy" is in "blind confidence". Where accuracy rose, only names that say so hold."""
    named, pattern = (next(one for one in PATTERNS if one.name == each) for each in (name, other))
    sides = [(getattr(named, side), getattr(pattern, side)) for side in _SAID]
    shown = [(side, found) for side, found in sides if side in ((UP,), (DOWN,))]
    rose = pattern.accuracy == (UP,) != named.accuracy
    return name == other or (bool(shown) and all(side == found for side, found in shown) and not rose)


def say_directions(confidence: str, effort: str, accuracy: str) -> str:
    """A sentence that says of each of three directions what is shown, or that it is not."""
    directions = {"accuracy": accuracy, "confidence": confidence, "effort": effort}
    shown = [_SAID[name][direction] for name, direction in directions.items() if direction != STILL]
    rest = [f"its {name}" for name, direction in directions.items() if direction == STILL]
    if not shown:
        return "No change of confidence, effort or accuracy is shown."
    *others, last = shown
    said = f"The model {', '.join(others)} and {last}" if others else f"The model {last}"
    return f"{said}; that {' or '.join(rest)} changed is not shown." if rest else f"{said}."


def name_pattern(changes: Mapping[str, Change]) -> Pattern:
    """The pattern of the changes of confidence, effort and accuracy."""
    return find_pattern(*_list_directions(changes))


def _list_directions(changes: Mapping[str, Change]) -> list[str]:
    return [changes[name].direction for name in ("confidence", "effort", "accuracy")]


def estimate_changes(before: Columns, after: Columns, seed: int = 0) -> dict[str, Change]:
    """How each measure changed in pairs: means before, after, and of the differences, whose interval is that of the paired
    bootstrap. A pair counts for a measure where both sides have it."""
    names = list(before)
    first, second = (np.stack([side[name] for name in names], axis=1) for side in (before, after))
    unknown = np.isnan(first) | np.isnan(second)
    first, second = (np.where(unknown, np.nan, side) for side in (first, second))
    found = estimate_means(np.concatenate([first, second, second - first], axis=1), seed)
    thirds = (found[place : place + len(names)] for place in range(0, len(found), len(names)))
    ps = {"accuracy": sign_test(after["accuracy"] - before["accuracy"]).p} if "accuracy" in before else {}
    return {
        name: Change(*each, direction=find_direction(each[-1], ps.get(name, 0.0)))
        for name, *each in zip(names, *thirds, strict=True)
    }


def find_quadrants(confidence_change: np.ndarray, effort_change: np.ndarray) -> np.ndarray:
    """The place of each sample's quadrant in `QUADRANTS`: int `[sample]`."""
    place = np.where(confidence_change > 0, 0, 2) + (effort_change > 0)
    place[np.fmin(np.abs(confidence_change), np.abs(effort_change)) < SMALLEST_CHANGE] = QUADRANTS.index("tied")
    place[np.isnan(confidence_change) | np.isnan(effort_change)] = QUADRANTS.index("undefined")
    return place


def find_outcomes(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The place in `OUTCOMES` of what became of each sample, from 1 (right), 0 (wrong) or NaN on both sides: int `[sample]`."""
    place = np.where(before == 1, 0, 2) + (after != 1)
    place[np.isnan(before) | np.isnan(after)] = OUTCOMES.index("unknown")
    return place


def diagnose(before: Columns, after: Columns, changes: Mapping[str, Change], seed: int = 0) -> Diagnosis:
    """The verdict on the pairs of which `changes` are those of `estimate_changes`."""
    little = np.abs(after["confidence"] - before["confidence"]) < LITTLE
    alike = estimate_mean((after["effort"] - before["effort"])[little], seed)
    matched = contrast_matched(before["effort"], after["effort"], before["confidence"], after["confidence"], seed=seed)
    weakened = tuple(list_weaknesses(before, after, changes, alike, matched))
    sentence = f"{say_directions(*_list_directions(changes))} {_say_changes(changes)}"
    return Diagnosis(name_pattern(changes), sentence, weakened, alike, matched)


def list_weaknesses(
    before: Columns, after: Columns, changes: Mapping[str, Change], alike: Interval, matched: Interval
) -> Iterator[str]:
    """One sentence for each thing that weakens a verdict on these pairs."""
    count = len(before["confidence"])
    yield from _find_unreliable(changes)
    yield from _find_chance(changes["accuracy"], sign_test(after["accuracy"] - before["accuracy"]))
    yield from _find_few(count, changes["accuracy"].difference)
    yield from _find_bounds(changes["accuracy"])
    yield from _find_lengths(before["read"], after["read"], changes["read"])
    yield from _find_shares(changes, alike, matched)
    undefined = int((np.isnan(before["effort"]) | np.isnan(after["effort"])).sum())
    if undefined > MANY * count:
        yield f"Of {undefined} of {count} samples the effort is undefined on a side; they are left out of ΔΩ."


def _find_unreliable(changes: Mapping[str, Change]) -> Iterator[str]:
    """Intervals of so few pairs that they are not gone by."""
    pairs = {name: changes[name].difference.n for name in ("accuracy", "confidence", "effort")}
    few = [f"{name} ({n})" for name, n in pairs.items() if 0 < n < FEWEST_PAIRS]
    if few:
        yield (
            f"What fewer than {FEWEST_PAIRS} samples seem to show is unreliable, since their intervals exclude 0 too often by "
            f"chance: changes of {', '.join(few)} count as not shown."
        )


def _find_chance(accuracy: Change, turned: SignTest) -> Iterator[str]:
    """A change of accuracy that its interval shows, and the exact test does not."""
    if find_direction(accuracy.difference) != accuracy.direction:
        yield (
            f"The interval of the change of accuracy excludes 0, but that {turned.negative} samples broke and "
            f"{turned.positive} were mended can be chance (exact sign test, p = {turned.p:.3f}): it counts as not shown."
        )


def _find_few(count: int, accuracy: Interval) -> Iterator[str]:
    """Too few samples to show a fall of accuracy, or too few graded."""
    if not accuracy.n:
        yield "Of no sample it is known whether the answer is right, so that no change of accuracy can be shown."
    elif accuracy.n < (1 - MANY) * count:
        yield f"Of {count - accuracy.n} of {count} samples it is not known on both sides whether the answer is right."
    if FEWEST_PAIRS <= accuracy.n < FEW_PAIRS:
        yield (
            f"There are only {accuracy.n} samples: where a fifth of them, and at least {FEWEST_TURNING}, turn from right to "
            f"wrong or back, a change of accuracy by less than {_find_smallest_shown(accuracy.n):.2f} is not shown."
        )


def _find_bounds(accuracy: Change) -> Iterator[str]:
    """Accuracy that was so near an end that no fall, or no rise, of it could be shown."""
    count = accuracy.difference.n
    if accuracy.direction != STILL or count < FEWEST_PAIRS:
        return
    right = round(accuracy.before.value * count)
    for place, change, left in (("right", "fall", right), ("wrong", "rise", count - right)):
        if not left:
            yield f"The base was {place} in none of the {count} samples, so that accuracy cannot {change}."
        elif left < FEWEST_TURNING:
            yield f"The base was {place} in only {left} of {count} samples, too few for a {change} of accuracy to be shown."


def _find_smallest_shown(count: int) -> float:
    """The smallest change of accuracy that the sign test shows of so many pairs, of which as many turn as usually do."""
    turning = max(FEWEST_TURNING, round(TURNING * count))
    sides = ((most, turning - most) for most in range(turning // 2, turning + 1))
    shown = (most - rest for most, rest in sides if sign_test([1.0] * most + [-1.0] * rest).p <= LARGEST_P)
    return next(shown) / count


def _find_lengths(before: np.ndarray, after: np.ndarray, change: Change) -> Iterator[str]:
    """Answers of other lengths, over whose tokens effort and confidence are means."""
    changed, count = int((before != after).sum()), len(before)
    if changed > MANY * count:
        yield (
            f"In {changed} of {count} samples the number of answer tokens changed, on average from "
            f"{change.before.value:.1f} to {change.after.value:.1f}: confidence and effort are means over other tokens."
        )


def _find_shares(changes: Mapping[str, Change], alike: Interval, matched: Interval) -> Iterator[str]:
    """ΔΩ that is not the same once confidence is."""
    confidence, effort = changes["confidence"], changes["effort"]
    if confidence.direction == STILL:
        return
    about = f"Ω is a share of the final confidence, which changed by {say_signed(confidence.difference.value)}"
    if find_direction(alike) != effort.direction:
        few = ", too few to tell" if alike.n < FEW_ALIKE else ""
        yield (
            f"{about}; among the {alike.n} samples in which it changed by less than {LITTLE}{few}, ΔΩ is "
            f"{say_interval(alike)}, not {say_signed(effort.difference.value)}."
        )
    if matched.n >= 2 * FEW_ALIKE and not matched.low <= effort.difference.value <= matched.high:
        yield (
            f"{about}; among samples of like confidence before and after, not in pairs, ΔΩ is {say_interval(matched)}, not "
            f"{say_signed(effort.difference.value)}."
        )


def say_interval(interval: Interval) -> str:
    """A difference and its interval, with their signs, and digits that show every end that is not 0; said so where there is
    none."""
    if math.isnan(interval.value):
        return "unknown"
    if math.isnan(interval.low):
        return say_signed(interval.value)
    digits = count_digits((interval.low, interval.high), DIGITS)
    value, low, high = (say_signed(number, digits) for number in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _say_changes(changes: Mapping[str, Change]) -> str:
    named = (("Confidence", "confidence"), ("effort", "effort"), ("accuracy", "accuracy"))
    return ", ".join(f"{said} {say_interval(changes[name].difference)}" for said, name in named) + "."


def say_signed(value: float, digits: int = DIGITS) -> str:
    """A number with its sign; 0 has none."""
    said = f"{value:+.{digits}f}"
    return said[1:] if float(said) == 0 else said.replace("-", "−")
