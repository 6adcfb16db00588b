"""Sums of two to five digits modulo ten: "3 + 4 + 8 ends in" -> "5"."""

from __future__ import annotations

import random

from hyperlens.tasks.graded.graded import GradedTask

DIGITS = tuple("0123456789")


def ask(level: int, rng: random.Random) -> tuple[str, str]:
    """A sum of `level` + 1 random digits, and its last digit. Every answer is equally likely at every level."""
    digits = rng.choices(DIGITS, k=level + 1)
    return " + ".join(digits) + " ends in", str(sum(map(int, digits)) % 10)


ARITHMETIC = GradedTask("arithmetic", (1, 2, 3, 4), (*DIGITS, "+", "ends", "in"), ask)
