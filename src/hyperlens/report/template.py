"""What every page shares: its look, its figures, and that no text of a sample or a model can become markup or be run."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from hyperlens.report.figures import Panel
from hyperlens.report.words import MARKS
from hyperlens.spelling import say_number, shorten, spell

DIGITS = 4
"""Digits of a number in a figure."""
SHADES = 20
"""Shades of a heat map."""


def fill_template(name: str, mark: str, **values: Any) -> str:
    """A page as text: the template `name` with its `values`, whose head has the `mark` that tells a page of ours."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": say_number,
        "spell": spell,
        "shorten": shorten,
        "shade": _shade,
        "whole": _keep_whole,
    }
    environment.globals |= {
        "embed": _embed,
        "marks": MARKS,
        "shades": SHADES,
        "mark": Markup(mark),
        "plotly": Markup(get_plotlyjs()),
    }
    return environment.get_template(name).render(**values)


def _read_template(name: str) -> str:
    return (files("hyperlens") / "data" / name).read_text(encoding="utf-8")


def _embed(panel: Panel) -> Markup:
    """A figure as JSON in which no sign can end the script that it stands in."""
    document = json.loads(panel.figure.to_json(), parse_float=lambda number: round(float(number), DIGITS))  # pyright: ignore[reportArgumentType]
    document["layout"].pop("template", None)
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _keep_whole(text: str) -> Markup:
    """The text with its intervals and pairs of numbers, which are not to be broken at the end of a line, in spans."""
    return Markup(re.sub(r"\[[^\[\]]*\]|\d+ / \d+|[−\d.]+ → [−\d.]+", r'<span class="whole">\g<0></span>', str(escape(text))))


def _shade(confidence: float) -> int:
    """Which of the shades of a heat map stands for a confidence."""
    return round(min(max(confidence, 0.0), 1.0) * SHADES)
