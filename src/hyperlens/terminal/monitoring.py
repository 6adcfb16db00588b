"""A generation as it comes: tokens coloured by effort, and then what was measured of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from hyperlens.spelling import spell as spell_text
from hyperlens.terminal.cells import MOST_TOKENS, draw_line, make_safe, spell, spell_whole
from hyperlens.terminal.reading import show_resolution

if TYPE_CHECKING:
    from hyperlens.monitoring.generation import LiveToken

SCALE = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838")
"""Cividis in six steps, from no effort to all: told apart by lightness, whatever colours one sees."""
BESIDE = 60
"""Columns of the table beside the drawing."""
INK = ("#ffffff", "#ffffff", "#ffffff", "#000000", "#000000", "#000000")


def write_prompt(console: Console, prompt: str) -> None:
    """Write what the model goes on from, dim."""
    _write(console, prompt, Style(dim=True))


def write_token(console: Console, token: LiveToken) -> None:
    """Write what a token adds to the answer, on the colour of its effort; where that is undefined, dim."""
    _write(console, token.text, effort_style(token.effort))


def _write(console: Console, text: str, style: Style) -> None:
    """Text that is no markup and moves no cursor; a colour ends with its line."""
    for number, line in enumerate(text.split("\n")):
        if number:
            console.print()
        console.print(Text(spell_text(line.replace("\t", "    ")), style), end="", soft_wrap=True)
    console.file.flush()


def effort_style(effort: float) -> Style:
    """The colours for an effort in [0, 1]."""
    if math.isnan(effort):
        return Style(dim=True)
    step = min(int(effort * len(SCALE)), len(SCALE) - 1)
    return Style(color=INK[step], bgcolor=SCALE[step])


def show_generation(console: Console, tokens: Sequence[LiveToken], manifest: dict[str, Any]) -> None:
    """One line per token: the drawing of its trajectory, effort, onset and commit; and the means."""
    layers, depth = manifest["model"]["layers"], manifest["lens"]["focal_depths"][0]
    watched = manifest["monitor"]
    every = "" if watched["stride"] == 1 else f", every {watched['stride']}"
    table = Table()
    table.add_column("token")
    table.add_column(f"m = {depth}, states 0…{layers - depth}{every}")
    for name in ("p", "Ω", "onset", "commit"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name) if len(name) > 4 else 4)
    room = max(8, console.width - BESIDE)
    for token in tokens[:MOST_TOKENS]:
        numbers = (spell_whole(value) for value in (token.onset, token.commit))
        table.add_row(
            make_safe(token.text, 20) if token.text else Text("(no text)", Style(dim=True)),
            draw_line(_thin(token.confidence, room)),
            spell(float(token.confidence[-1])),
            Text(spell(token.effort), effort_style(token.effort)),
            *numbers,
        )
    if len(tokens) > MOST_TOKENS:
        table.caption = f"and {len(tokens) - MOST_TOKENS} more tokens; --json or --out give them all"
    console.print(table)
    known = [token.effort for token in tokens if not math.isnan(token.effort)]
    among = (
        "" if watched["candidates"] is None else f"; p among {watched['candidates']} candidates of each token, guessing aside"
    )
    mean = spell(float(np.mean(known))) if known else "-"
    console.print(
        f"{len(tokens)} tokens, mean Ω {mean} over {len(known)} of them, context {manifest['lens']['context']}{among}."
    )
    legend = Text("Ω 0 ")
    for colour in SCALE:
        legend.append("   ", Style(bgcolor=colour))
    console.print(legend.append(" 1"))
    show_resolution(console, manifest["lens"]["auto"])


def _thin(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spread, the first and the last with them."""
    return values if len(values) <= most else values[np.linspace(0, len(values) - 1, most).round().astype(int)]
