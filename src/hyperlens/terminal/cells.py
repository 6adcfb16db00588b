"""What stands in a cell: text made harmless, small drawings, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
from rich.text import Text

from hyperlens.resampling import write_number
from hyperlens.spelling import spell as spell_text

BLOCKS = "▁▂▃▄▅▆▇█"
MOST_TOKENS = 60


def make_safe(text: object, most: int = 60) -> Text:
    """`text` as it is, but for control characters, which are spelled out; no markup, at most `most` columns wide."""
    safe = Text(spell_text(text).replace("\n", "⏎").replace("\t", "⇥"))
    safe.truncate(most, overflow="ellipsis")
    return safe


def draw_line(values: Sequence[float] | np.ndarray) -> str:
    """Values in [0, 1] as one block each, lowest to highest; a dot where there is none.

    >>> draw_line([0.0, 0.5, 1.0])
    '▁▅█'
    """
    return "".join("·" if np.isnan(value) else BLOCKS[int(min(max(value, 0.0), 1.0) * 7 + 0.5)] for value in values)


def spell_cell(value: Any) -> Text:
    """A cell as text without markup."""
    return value if isinstance(value, Text) else Text(str(value))


def spell_duration(seconds: float | int | None) -> str:
    """Seconds; hours and minutes where there are more."""
    return "-" if seconds is None else f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def spell_size(count: float | int | None) -> str:
    """Bytes as people say them."""
    if count is None:
        return "-"
    power = min(4, max(0, (len(str(int(count))) - 1) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def spell(value: float | np.floating | None, digits: int = 2) -> str:
    """A number with so many digits behind the point; a dash where there is none."""
    return "-" if value is None or np.isnan(value) else write_number(float(value), digits)


def spell_interval(value: Mapping[str, Any]) -> str:
    """A value and its interval."""
    return f"{spell(value['value'])} [{spell(value['low'])}, {spell(value['high'])}]"


def spell_rho(value: Mapping[str, Any]) -> str:
    """A correlation and its interval."""
    return f"{spell(value['rho'])} [{spell(value['low'])}, {spell(value['high'])}]"


def spell_whole(value: int | float | np.floating | None) -> str:
    """A whole number; a dash where there is none."""
    return "-" if value is None or np.isnan(value) else str(int(value))
