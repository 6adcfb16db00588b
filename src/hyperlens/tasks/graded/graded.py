"""Questions whose difficulty is known by construction: the number of steps that must be done one after the other.

A question is a *chain*: a start, and steps that each turn one value into the next. Every step is a bijection of the values,
so that all answers stay equally likely at every level and no step lets the earlier ones be skipped. Before the chain may
stand an *aside*: another chain of the same kind that has no bearing on the answer, which makes prompts of all levels
equally long. Within it may stand a *claim*: what the chain has come to after its first step, told rightly or wrongly.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from hyperlens.errors import InputError
from hyperlens.tasks.sample import Sample

LEVELS = (1, 2, 3, 4, 5)
UNSEEN_FROM = 2
"""Single steps are so few that training sees all of them; from two steps on the evaluated chains never occur in training."""
HELD_OUT_SHARE = 8
"""One chain in this many is kept out of training, chosen by a hash of its start and steps."""
MATCHED_STEPS = (6, 7, 8)
"""Steps of chain and aside together, where lengths are matched."""


@dataclass(frozen=True)
class Variant:
    """How a question is put: its answer at once or with the steps before it (`stepwise`); with an aside that makes all
    levels equally long (`matched`); in the second wording (`reworded`) or with the operands (`wide`) that training shows
    at level 1 only; with a claim that is right (`claimed` is True) or wrong (False), which training never shows.

    The chain holds, whatever is claimed of it, so that the right answer is the same. Claims do not change which questions are
    drawn (the field is no part of what seeds them), so that a right and a wrong one differ in the claimed value alone. Raises
    InputError for a claim in the second wording, which names steps in another order.
    """

    matched: bool = True
    stepwise: bool = False
    reworded: bool = False
    wide: bool = False
    claimed: bool | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.reworded and self.claimed is not None:
            raise InputError("a claim goes with the first wording alone; leave reworded or claimed away")


VARIANTS: dict[str, Variant] = {
    "matched": Variant(),
    "plain": Variant(matched=False),
    "stepwise": Variant(stepwise=True),
    "reworded": Variant(reworded=True),
    "wide": Variant(wide=True),
    "contradicted": Variant(claimed=False),
    "confirmed": Variant(claimed=True),
}
"""The variants that have a name: a task is asked for as `logic`, which is `logic:matched`, or as `logic:plain`."""


@dataclass(frozen=True)
class Chain:
    """A start and its steps, as the domain writes them; after each step the value, and what tells the chain so far from
    others."""

    start: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]
    values: tuple[str, ...]
    cores: tuple[str, ...]

    def is_held_out(self, steps: int) -> bool:
        """Whether training must never ask for the value after so many steps; depends on the chain alone, however it is put.

        Single steps are never held out.
        """
        digest = hashlib.sha256(self.cores[steps - 1].encode()).digest()
        return steps >= UNSEEN_FROM and digest[0] % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Fragment:
    """A part of a prompt and, where it ends a step, the chain and how many of its steps are done by then."""

    text: str
    chain: Chain | None = None
    done: int = 0


@dataclass(frozen=True)
class GradedTask:
    """A generated domain. `draw_chain(steps, rng, wide)` draws a chain, `write(chain, aside, variant)` puts it as a prompt,
    in fragments; `claim(chain, value)` says behind its first step that it has come to `value`.

    `words` are all the words of its texts, `answers` all that a chain can lead to, each equally likely at every level.
    """

    name: str
    words: tuple[str, ...]
    answers: tuple[str, ...]
    draw_chain: Callable[[int, random.Random, bool], Chain]
    write: Callable[[Chain, Chain | None, Variant], list[Fragment]]
    claim: Callable[[Chain, str], str]

    def draw(self, level: int, rng: random.Random, wide: bool, held_out: bool | None) -> Chain:
        """A chain of `level` steps that is held out, or one that training may see, since no beginning of it is held out; or
        any (None)."""
        while True:
            chain = self.draw_chain(level, rng, wide)
            if held_out is None:
                return chain
            kept = [chain.is_held_out(steps) for steps in range(1, level + 1)]
            if level < UNSEEN_FROM or (kept[-1] if held_out else not any(kept)):
                return chain

    def ask(self, level: int, rng: random.Random, variant: Variant, held_out: bool | None) -> tuple[str, str]:
        """One question as (prompt, target), its chain drawn like `draw`."""
        fragments, target = self.compose(level, rng, variant, held_out)
        return "".join(fragment.text for fragment in fragments), target

    def compose(self, level: int, rng: random.Random, variant: Variant, held_out: bool | None) -> tuple[list[Fragment], str]:
        """One question as `ask` gives it, its prompt in fragments."""
        chain = self.draw(level, rng, variant.wide, held_out)
        aside = self.draw_chain(rng.choice(MATCHED_STEPS) - level, rng, variant.wide) if variant.matched else None
        target = " then ".join(chain.values) if variant.stepwise else chain.values[-1]
        fragments = self.write(chain, aside, variant)
        return fragments if variant.claimed is None else self._claim(fragments, chain, variant.claimed), " " + target

    def _claim(self, fragments: list[Fragment], chain: Chain, right: bool) -> list[Fragment]:
        """The question with a claim behind the chain's first step. A wrong value is drawn from the question itself; right or
        wrong, all values are equally likely."""
        told = chain.values[0]
        if not right:
            question = "".join(fragment.text for fragment in fragments)
            told = random.Random(question).choice([value for value in self.answers if value != told])
        place = next(place for place, one in enumerate(fragments, 1) if one.chain is chain and one.done == 1)
        return [*fragments[:place], Fragment(self.claim(chain, told)), *fragments[place:]]

    def samples(
        self, limit: int, seed: int, variant: str | Variant = "matched", levels: Collection[int] = LEVELS
    ) -> list[Sample]:
        """`limit` distinct evaluation questions per level (fewer where a level has fewer), drawn from `seed`."""
        name, how = (variant, VARIANTS[variant]) if isinstance(variant, str) else ("custom", variant)
        task = self.name if name == "matched" else f"{self.name}:{name}"
        drawn = []
        for level in sorted(levels):
            rng = random.Random(f"{self.name}/{how}/{level}/{seed}")
            questions: dict[str, str] = {}
            for _ in range(50 * limit):
                if len(questions) == limit:
                    break
                prompt, target = self.ask(level, rng, how, held_out=True)
                questions.setdefault(prompt, target)
            drawn += [
                Sample(prompt, target, task=task, level=level, id=f"{task}/{level}/{number}")
                for number, (prompt, target) in enumerate(questions.items())
            ]
        return drawn


def check_levels(levels: Collection[int]) -> tuple[int, ...]:
    """The levels in order. Raises InputError where one does not exist."""
    for level in levels:
        if level not in LEVELS:
            raise InputError(f"there is no level {level}; choose from {', '.join(map(str, LEVELS))}")
    return tuple(sorted(set(levels)))


def cue(variant: Variant) -> Fragment:
    """The words that ask for the value of what stands before them."""
    return Fragment(" by steps is" if variant.stepwise else " is")


def contrast_aside(fragments: list[Fragment], aside: list[Fragment] | None) -> list[Fragment]:
    """`fragments` behind an aside: "not … but …"."""
    return fragments if aside is None else [Fragment("not "), *aside, Fragment(" but "), *fragments]
