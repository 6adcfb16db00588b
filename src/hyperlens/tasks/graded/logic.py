"""Truth values of two statements through connectives and negation: "p = true ; q = false ; p = p xor q ; p is" -> "true".

A step replaces one statement by its `xor` or `iff` with the other, or negates the one that changed last, so that every step
bears on the answer. These are the connectives that forget nothing: half of what goes into an `and` or `or` leaves no trace, so
a chain of them is shorter than it looks, and its answer can be guessed from the last of them. The order of steps matters, so
that counting negations is of no use either.
"""

from __future__ import annotations

import random

from hyperlens.tasks.graded.graded import Chain, Fragment, GradedTask, Variant, cue

STATEMENTS, WIDE = ("p", "q"), ("r", "s")
TRUTHS = ("true", "false")
SIGNS = {"not": 0.2, "xor": 0.5, "iff": 0.3}
"""How often each step is drawn: `not` and `iff` together as often as `xor`, so that steps turn the answer half of the time."""


def draw_chain(steps: int, rng: random.Random, wide: bool) -> Chain:
    """Two random truth values and `steps` random changes. Asked is the statement that changed last."""
    names = WIDE if wide else STATEMENTS
    truth = {name: rng.random() < 0.5 for name in names}
    start = tuple(_say(truth[name]) for name in names)
    changed, taken, values, cores = rng.choice(names), [], [], []
    for sign in rng.choices(list(SIGNS), list(SIGNS.values()), k=steps):
        changed = changed if sign == "not" else rng.choice(names)
        other = names[1 - names.index(changed)]
        differs = True if sign == "not" else truth[other]
        truth[changed] = (truth[changed] == differs) if sign == "iff" else (truth[changed] != differs)
        taken.append((changed, f"not {changed}" if sign == "not" else f"{changed} {sign} {other}"))
        values.append(_say(truth[changed]))
        cores.append(_name_core(names, start, taken))
    return Chain(names + start, tuple(taken), tuple(values), tuple(cores))


def _name_core(names: tuple[str, ...], start: tuple[str, ...], taken: list[tuple[str, str]]) -> str:
    """What tells the chain from others, but for one word whose change turns the answer: the last connective, or else the
    truth of what is negated. Two chains that differ in it alone are held out together, or the answers of the few chains of
    two steps would not stay balanced."""
    words = [change for _, change in taken]
    last = max((place for place, change in enumerate(words) if "not" not in change), default=None)
    if last is not None:
        words[last] = words[last].replace("xor", "with").replace("iff", "with")
    truths = [truth for name, truth in zip(names, start, strict=True) if last is not None or name != taken[-1][0]]
    return " ; ".join([*names, *truths, *words])


def write(chain: Chain, aside: Chain | None, variant: Variant) -> list[Fragment]:
    """`p = true ; q = false ; p = p xor q ; p is`, behind a block that it overwrites; reworded, `p becomes p xor q ;`."""
    sets, changes = ("is", "becomes") if variant.reworded else ("=", "=")

    def put(part: Chain) -> list[Fragment]:
        first, second, one, other = part.start
        lines = [Fragment(f"{first} {sets} {one} ; {second} {sets} {other} ;")]
        for number, (changed, change) in enumerate(part.steps, 1):
            lines.append(Fragment(f" {changed} {changes} {change} ;", part, number))
        return lines

    before = [*put(aside), Fragment(" ")] if aside else []
    return [*before, *put(chain), Fragment(f" {chain.steps[-1][0]}"), cue(variant)]


def claim(chain: Chain, value: str) -> str:
    """`p = p xor q ; p is false ;`."""
    return f" {chain.steps[0][0]} is {value} ;"


def _say(truth: bool) -> str:
    return TRUTHS[0] if truth else TRUTHS[1]


LOGIC = GradedTask(
    "logic", (*STATEMENTS, *WIDE, *TRUTHS, "=", ";", "becomes", "xor", "iff", "not"), TRUTHS, draw_chain, write, claim
)
