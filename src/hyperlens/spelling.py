"""Numbers and texts of others as pages show them: rounded alike everywhere, and unable to do anything."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from hyperlens.resampling import count_digits, write_number

NOTHING = "–"


def spell(text: object) -> str:
    """`text` with control characters, and those that turn or hide text, spelled out; so it can be shown and not do anything.

    >>> spell("a\\x1b[31m")
    'a\\\\u001b[31m'
    """
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else f"\\u{ord(sign):04x}"
        for sign in str(text)
        if unicodedata.category(sign) != "Cs"
    )


def shorten(text: object, most: int = 600) -> str:
    """A long text without its middle.

    >>> shorten("abcdefghij", 6)
    'ab […] ij'
    """
    said = spell(text)
    kept = max(1, (most - 2) // 2)
    return said if len(said) <= most else f"{said[:kept]} […] {said[-kept:]}"


def say_number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none.

    >>> say_number(-0.5), say_number(-0.001), say_number(None)
    ('−0.50', '0.00', '–')
    """
    return NOTHING if value is None or math.isnan(value) else write_number(value, digits)


def say_interval(value: Any, digits: int = 2) -> str:
    """A value with its interval in brackets, of a row or an Interval; with more digits where an end would else look like 0.

    >>> say_interval({"mean": -0.03, "low": -0.06, "high": -0.004}), say_interval({"mean": 0.1, "low": 0.0, "high": 0.2})
    ('−0.030 [−0.060, −0.004]', '0.10 [0.00, 0.20]')
    """
    row = value if isinstance(value, Mapping) else vars(value)
    middle = next(row[name] for name in ("mean", "rho", "value") if name in row)
    digits = count_digits((row["low"], row["high"]), digits)
    low, high = (say_number(row[end], digits) for end in ("low", "high"))
    return say_number(middle, digits) + (f" [{low}, {high}]" if NOTHING not in (low, high) else "")
