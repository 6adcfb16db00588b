"""How results show themselves in a notebook: small static HTML without script, legible on light and dark ground.

Colours are half transparent and letters those of the notebook, so that both grounds serve. Whatever is no Markup is spelled out
and escaped. Numbers are always there as text: no colour says anything alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from hyperlens.spelling import NOTHING, say_number, shorten, spell

EFFORT, CONFIDENCE = "214,106,24", "50,134,214"
"""Orange and blue: told apart by the colour-blind, and each seen on light and dark ground."""
STRONGEST = 0.6
"""How opaque the ground of the largest effort is: letters of the notebook's own colour stay legible on it."""
MOST_ROWS, MOST_LETTERS = 60, 120
COLUMN, HEIGHT, WIDTH = 5, 18, 90
"""Of drawings, in pixels: a state's column, a trajectory's height, an interval's width."""
STYLE = """
.hyperlens { font: 13px/1.45 system-ui, sans-serif; overflow-x: auto; }
.hyperlens p { margin: .35em 0; max-width: 60em; }
.hyperlens table { border-collapse: collapse; margin: .5em 0 .8em; font-size: 12px; border: 0;
  font-variant-numeric: tabular-nums; }
.hyperlens caption { caption-side: top; text-align: left; font-weight: 600; padding: .2em 0; color: inherit; }
.hyperlens table th, .hyperlens table td { padding: .15em .45em; text-align: right; vertical-align: middle; border: 0;
  border-bottom: 1px solid rgba(128,128,128,.35); background: none; color: inherit; white-space: nowrap; }
.hyperlens table .word { text-align: left; white-space: pre-wrap; overflow-wrap: break-word; min-width: 4em; max-width: 26em; }
.hyperlens .chip { padding: .1em .12em; border-radius: .2em; white-space: pre-wrap; }
.hyperlens td:not(.word) .chip { white-space: nowrap; }
.hyperlens svg { display: block; }
"""


def frame(title: str, *parts: str) -> str:
    """One result: its title, and Markup or sentences below it."""
    said = [part if isinstance(part, Markup) else draw_sentence(part) for part in parts]
    return Markup('<div class="hyperlens"><style>{}</style><p><strong>{}</strong></p>{}</div>').format(
        Markup(STYLE), spell(title), Markup("").join(said)
    )


def draw_sentence(text: str) -> Markup:
    """A paragraph."""
    return Markup("<p>{}</p>").format(shorten(text))


def draw_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], words: int = 1) -> Markup:
    """Rows of texts or Markup below their columns, the first of which are `words`; no more than 60, the others counted."""
    shown = rows[:MOST_ROWS]
    lines = [_draw_row("th", columns, words), *(_draw_row("td", row, words) for row in shown)]
    table = Markup("<table><caption>{}</caption><thead>{}</thead><tbody>{}</tbody></table>").format(
        spell(caption), lines[0], Markup("").join(lines[1:])
    )
    left = len(rows) - len(shown)
    return table + draw_sentence(f"and {left} more rows") if left else table


def draw_effort(value: float | None, said: str = "") -> Markup:
    """An effort as a number, or as it is `said`, on a ground that is darker the larger it is."""
    return _shade(said or say_number(value), value)


def draw_tokens(texts: Iterable[object], efforts: Iterable[float]) -> Markup:
    """Tokens one behind the other, the ground of each darker the larger its effort."""
    return Markup("").join(
        _shade(shorten(text, 40), value, say_number(value)) for text, value in zip(texts, efforts, strict=True)
    )


def draw_scale() -> Markup:
    """What the grounds mean."""
    return Markup("<p>Ω {}</p>").format(
        Markup(" ").join(
            _shade(f"\N{NO-BREAK SPACE}{value:g}\N{NO-BREAK SPACE}", value) for value in (0.0, 0.25, 0.5, 0.75, 1.0)
        )
    )


def draw_trajectory(values: Sequence[float], own: int) -> Markup:
    """Confidence at each state as a column, fainter from state `own` on, where the lens reads the model's own output."""
    known = [0.0 if math.isnan(value) else min(max(float(value), 0.0), 1.0) for value in values]
    parts = ((known[:own], 0, 1.0), (known[own:], own, 0.45))
    paths = Markup("").join(
        Markup('<path d="{}" fill="rgb({})" fill-opacity="{:g}"/>').format(_outline(part, start), CONFIDENCE, opacity)
        for part, start, opacity in parts
        if part
    )
    said = " ".join(say_number(value) for value in values)
    return Markup('<svg width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img"><title>{2}</title>{3}{4}</svg>').format(
        COLUMN * len(known), HEIGHT, f"confidence at states 0 to {len(known) - 1}: {said}", _rule(COLUMN * len(known)), paths
    )


def draw_interval(value: float | None, low: float | None, high: float | None, ends: tuple[float, float]) -> Markup:
    """A value as a dot with its interval as a line, on an axis from one of the `ends` to the other; 0 has a mark of its own."""
    if value is None or math.isnan(value):
        return Markup(NOTHING)
    known = [value if end is None or math.isnan(end) else end for end in (low, value, high)]
    first, dot, last = ((min(max(one, ends[0]), ends[1]) - ends[0]) / (ends[1] - ends[0]) * (WIDTH - 8) + 4 for one in known)
    zero = -ends[0] / (ends[1] - ends[0]) * (WIDTH - 8) + 4
    return Markup(
        '<svg width="{0}" height="14" viewBox="0 0 {0} 14" role="img"><title>{1}</title>'
        '<path d="M4 7H{2}M{3:.1f} 2V12" stroke="currentColor" stroke-opacity=".3"/>'
        '<path d="M{4:.1f} 7H{5:.1f}" stroke="rgb({6})" stroke-width="7" stroke-opacity=".45"/>'
        '<circle cx="{7:.1f}" cy="7" r="2.5" fill="rgb({6})"/></svg>'
    ).format(
        WIDTH,
        f"{say_number(known[1])} from {say_number(known[0])} to {say_number(known[2])}",
        WIDTH - 4,
        zero,
        first,
        last,
        CONFIDENCE,
        dot,
    )


def _draw_row(tag: str, cells: Sequence[object], words: int) -> Markup:
    """One row; texts that are no Markup are spelled out and kept short."""
    drawn = [
        Markup("<{0}{1}>{2}</{0}>").format(
            Markup(tag),
            Markup(' class="word"' if place < words else ""),
            cell if isinstance(cell, Markup) else shorten(cell, MOST_LETTERS),
        )
        for place, cell in enumerate(cells)
    ]
    return Markup("<tr>{}</tr>").format(Markup("").join(drawn))


def _shade(text: str, effort: float | None, title: str = "") -> Markup:
    opacity = 0.0 if effort is None or math.isnan(effort) else STRONGEST * min(max(float(effort), 0.0), 1.0)
    return Markup('<span class="chip" style="background:rgba({},{:.2f})"{}>{}</span>').format(
        EFFORT, opacity, Markup(' title="Ω {}"').format(title) if title else "", text
    )


def _outline(values: Sequence[float], start: int) -> str:
    """The path of columns of these heights, the first at state `start`."""
    steps = "".join(f"V{HEIGHT * (1 - value):.1f}h{COLUMN}" for value in values)
    return f"M{COLUMN * start} {HEIGHT}{steps}V{HEIGHT}Z"


def _rule(width: int) -> Markup:
    return Markup('<path d="M0 {0}H{1}" stroke="currentColor" stroke-opacity=".35"/>').format(HEIGHT - 0.5, width)
