"""Chains of + − × on a dial of thirteen numbers, from left to right: "3 + 4 * 5 is" -> "9".

The dial runs from 2 to 14 and starts over, so it is arithmetic modulo 13 in which 13 stands for 0 and 14 for 1. That way
some answers have one digit and some two, and none is the beginning of another: "1" alone never ends an answer.
"""

from __future__ import annotations

import random

from hyperlens.tasks.graded.graded import Chain, Fragment, GradedTask, Variant, contrast_aside, cue

DIAL = tuple(range(2, 15))
OPERANDS, WIDE = (2, 3, 4, 5, 6, 7), (8, 9)
PLUS, MINUS, TIMES = "+", "-", "*"
SPOKEN = {PLUS: "plus", MINUS: "minus", TIMES: "times"}


def turn(value: int, sign: str, operand: int) -> int:
    """Where the dial stands after one step; a bijection of its thirteen numbers."""
    raw = value + operand if sign == PLUS else value - operand if sign == MINUS else value * operand
    return (raw - DIAL[0]) % len(DIAL) + DIAL[0]


def draw_chain(steps: int, rng: random.Random, wide: bool) -> Chain:
    """A random number and `steps` random signs and operands."""
    value = rng.choice(DIAL)
    start, taken, values, cores = str(value), [], [], [str(value)]
    for _ in range(steps):
        sign, operand = rng.choice((PLUS, MINUS, TIMES)), rng.choice(WIDE if wide else OPERANDS)
        value = turn(value, sign, operand)
        taken.append((sign, str(operand)))
        values.append(str(value))
        cores.append(f"{cores[-1]} {sign}{operand}")
    return Chain((start,), tuple(taken), tuple(values), tuple(cores[1:]))


def write(chain: Chain, aside: Chain | None, variant: Variant) -> list[Fragment]:
    """`not 7 * 2 but 3 + 4 is`; reworded, `3 plus 4 is`."""

    def put(part: Chain) -> list[Fragment]:
        steps = [(SPOKEN[sign] if variant.reworded else sign, operand) for sign, operand in part.steps]
        return [Fragment(part.start[0]), *(Fragment(f" {sign} {number}", part, n) for n, (sign, number) in enumerate(steps, 1))]

    return [*contrast_aside(put(chain), put(aside) if aside else None), cue(variant)]


def claim(chain: Chain, value: str) -> str:
    """`3 + 4 is 9 * 5 is`."""
    return f" is {value}"


MATHEMATICS = GradedTask(
    "mathematics",
    (*SPOKEN, *SPOKEN.values(), *map(str, range(10)), *(f"##{digit}" for digit in range(10))),
    tuple(map(str, DIAL)),
    draw_chain,
    write,
    claim,
)
