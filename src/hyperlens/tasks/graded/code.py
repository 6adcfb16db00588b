"""Short programs on registers of three bits: "x = 5 ; x += 4 ; x ^= 3 ; print x :" -> "2".

A register holds 0 to 7 and wraps around. The aside is dead code: a block before, on a register that is then overwritten or
never printed.
"""

from __future__ import annotations

import random

from hyperlens.tasks.graded.graded import Chain, Fragment, GradedTask, Variant

REGISTERS = ("x", "y")
VALUES = tuple(map(str, range(8)))
STATEMENTS = tuple([(sign, number) for sign in ("+=", "-=", "^=") for number in range(1, 6)] + [("*=", 3), ("*=", 5)])
WIDE = (("+=", 6), ("+=", 7), ("-=", 6), ("-=", 7), ("^=", 6), ("^=", 7), ("*=", 7))


def execute(value: int, sign: str, operand: int) -> int:
    """What the register holds after one statement; a bijection of the eight values, since only odd factors are used."""
    match sign:
        case "+=":
            return (value + operand) % 8
        case "-=":
            return (value - operand) % 8
        case "^=":
            return value ^ operand
        case _:
            return value * operand % 8


def draw_chain(steps: int, rng: random.Random, wide: bool) -> Chain:
    """A random register, its first value, and `steps` random statements."""
    register, value = rng.choice(REGISTERS), rng.randrange(8)
    start, taken, values, cores = str(value), [], [], [str(value)]
    for sign, operand in rng.choices(WIDE if wide else STATEMENTS, k=steps):
        value = execute(value, sign, operand)
        taken.append((sign, str(operand)))
        values.append(str(value))
        cores.append(f"{cores[-1]} {sign}{operand}")
    return Chain((register, start), tuple(taken), tuple(values), tuple(cores[1:]))


def write(chain: Chain, aside: Chain | None, variant: Variant) -> list[Fragment]:
    """`y = 2 ; y -= 1 ; x = 5 ; x += 4 ; print x :`; reworded, `x = x + 4 ;`; stepwise, `trace x :`."""

    def put(part: Chain) -> list[Fragment]:
        register, value = part.start
        lines = [Fragment(f"{register} = {value} ;")]
        for number, (sign, operand) in enumerate(part.steps, 1):
            change = f"= {register} {sign[0]}" if variant.reworded else sign
            lines.append(Fragment(f" {register} {change} {operand} ;", part, number))
        return lines

    before = [*put(aside), Fragment(" ")] if aside else []
    return [*before, *put(chain), Fragment(f" {'trace' if variant.stepwise else 'print'} {chain.start[0]} :")]


def claim(chain: Chain, value: str) -> str:
    """`x = 5 ; x += 4 ; print x : 7 ; x ^= 3 ;`."""
    return f" print {chain.start[0]} : {value} ;"


CODE = GradedTask(
    "code",
    (*REGISTERS, "=", "+=", "-=", "^=", "*=", "+", "-", "^", "*", ";", ":", "print", "trace", *VALUES),
    VALUES,
    draw_chain,
    write,
    claim,
)
