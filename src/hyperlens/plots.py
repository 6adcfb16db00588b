"""Figures: lines, dots and distributions in, plotly figures out; grounds are left to the page, or white for paper.

Each `draw_…` makes one panel, small enough for a phone; `join_panels` sets several side by side for a paper or a notebook.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

GREY = "rgba(128,128,128,0.35)"
FONT = "system-ui, sans-serif"
SCALE = ["#5e3eff", "#9266d2", "#e24b94", "#c02632", "#ba900c"]
"""Blue to ochre: told apart by the colour-blind, in print, and on light and dark ground."""
BESIDE = "#808080"
"""What stands beside the others and has no place in their order."""
FEW_KINDS, DASHES, BESIDE_DASH = 6, ("solid", "dash", "dot"), "dashdot"
"""Up to so many kinds of lines are told apart by colour alone; more by dashes in turn too, so that neighbours differ."""
FAINT = 0.07
"""How much of its colour the band of each of so many lines has."""
PAIR = ("#3f7fd4", "#d3622a")
"""Easy and hard."""
HEIGHT = 240
"""Of a panel, in pixels."""
COLUMN = (336, 672)
"""Width of a figure for one column of a page of paper and for both: 3.5 and 7 inches, in pixels of 1/96 inch."""


@dataclass(frozen=True)
class Line:
    """Values `y` at `x` with their intervals, None or NaN where there is none; `name` is what the legend calls it, and `beside`
    says that it has no place in the order of the others."""

    name: str
    x: Sequence[Any]
    y: Sequence[float | None]
    low: Sequence[float | None] = field(default=())
    high: Sequence[float | None] = field(default=())
    beside: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Spread:
    """How the effort of `n` samples is distributed: `counts` in equal bins over [0, 1], quartiles and median; `beside` as of a
    Line."""

    name: str
    counts: Sequence[int]
    quartiles: tuple[float, float, float]
    n: int
    beside: bool = False


@dataclass(frozen=True)
class Style:
    """How a line is drawn: its colour, and solid, dash, dot or dashdot; or dots, by the name of their symbol."""

    colour: str
    dash: str = "solid"
    symbol: str = ""


@dataclass(frozen=True)
class Points:
    """Single samples, a dot each at `x` and `y`, drawn in one style; `name` is what the legend calls them."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style


def draw_curves(lines: Sequence[Line], layers: int, pair: bool = False) -> go.Figure:
    """Mean confidence at each state, one line with its band each. They end at state L − m: from there on the lens reads the
    model's own output."""
    figure, many = go.Figure(), len(lines) > FEW_KINDS
    for line, style in zip(lines, pick_styles([line.beside for line in lines], pair), strict=True):
        states, name = list(line.x), html.escape(line.name)
        low, high = _known(line.low), _known(line.high)
        if not any(map(math.isnan, (*low, *high))):
            figure.add_scatter(
                x=states + states[::-1],
                y=[*high, *low[::-1]],
                fill="toself",
                fillcolor=_fade(style.colour, FAINT) if many else _fade(style.colour),
                mode="none",
                hoverinfo="skip",
                showlegend=False,
                legendgroup=name,
            )
        figure.add_scatter(
            x=states,
            y=list(line.y),
            mode="lines",
            name=name,
            legendgroup=name,
            line={"color": style.colour, "width": 2.2, "dash": style.dash},
            hovertemplate="%{fullData.name}, state %{x}: %{y:.2f}<extra></extra>",
        )
    figure.update_xaxes(title_text="state", range=[0, layers])
    figure.update_yaxes(title_text="confidence", range=[-0.02, 1.02])
    return _finish(figure)


def draw_effort(lines: Sequence[Line]) -> go.Figure:
    """Mean effort Ω by level, one line with its intervals each."""
    figure = _draw_dots(lines, "level %{x}: Ω %{y:.2f}")
    figure.update_xaxes(title_text="level", dtick=1)
    figure.update_yaxes(title_text="effort Ω", range=[-0.02, 1.02])
    return _finish(figure)


def draw_accuracy(lines: Sequence[Line]) -> go.Figure:
    """Accuracy of samples of like effort, by their mean effort, one line with its intervals each."""
    figure = _draw_dots(lines, "Ω %{x:.2f}: %{y:.0%} right")
    figure.update_xaxes(title_text="effort Ω", range=[-0.02, 1.02])
    figure.update_yaxes(title_text="accuracy", range=[-0.04, 1.04])
    return _finish(figure)


def draw_spreads(spreads: Sequence[Spread]) -> go.Figure:
    """Distribution of effort, one ridge each from top to bottom; the bar on its foot spans the middle half, the dot is the
    median."""
    figure = go.Figure()
    styles = pick_styles([spread.beside for spread in spreads])
    for place, (spread, colour) in enumerate(zip(spreads, (style.colour for style in styles), strict=True)):
        foot, bins = -place, len(spread.counts)
        tallest = max(spread.counts, default=0) or 1
        outline = [foot + 0.82 * count / tallest for count in spread.counts]
        edges = [edge / bins for bin in range(bins) for edge in (bin, bin + 1)]
        figure.add_scatter(
            x=[0, *edges, 1],
            y=[foot, *(height for height in outline for _ in range(2)), foot],
            fill="toself",
            fillcolor=_fade(colour, 0.35),
            line={"color": colour, "width": 1},
            mode="lines",
            hoverinfo="skip",
            name=html.escape(spread.name),
            showlegend=False,
        )
        first, median, third = spread.quartiles
        figure.add_scatter(
            x=[first, third],
            y=[foot, foot],
            mode="lines",
            line={"color": colour, "width": 5},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=[median],
            y=[foot],
            mode="markers",
            marker={"color": colour, "size": 10, "line": {"color": "#fff", "width": 1.5}},
            name=html.escape(spread.name),
            showlegend=False,
            hovertemplate="%{fullData.name}: "
            + f"median {median:.2f}, middle half {first:.2f} to {third:.2f}, n = {spread.n}<extra></extra>",
        )
    figure.update_xaxes(title_text="effort Ω", range=[-0.02, 1.02])
    figure.update_yaxes(
        tickvals=[-place for place in range(len(spreads))],
        ticktext=[html.escape(_shorten(spread.name)) for spread in spreads],
        showgrid=False,
        range=[-len(spreads) + 0.75, 1.0],
        automargin=True,
    )
    return _finish(figure, 75 + 40 * len(spreads))


def draw_differences(lines: Sequence[Line], title: str = "Ω hard − Ω easy", longest: int = 40) -> go.Figure:
    """Differences with their intervals, `x` what each is of, from top to bottom, in at most `longest` letters; one colour of
    dots for each line."""
    figure = go.Figure()
    labels = list(dict.fromkeys(label for line in lines for label in line.x))
    for number, (line, colour) in enumerate(zip(lines, pick_colours(len(lines)), strict=True)):
        shift = 0.7 * ((number + 0.5) / len(lines) - 0.5)
        figure.add_scatter(
            x=list(line.y),
            y=[-labels.index(label) - shift for label in line.x],
            error_x=_reach(line),
            mode="markers",
            name=html.escape(line.name),
            marker={"color": colour, "size": 9, "symbol": ("circle", "diamond", "square", "triangle-up", "cross")[number % 5]},
            hovertemplate="%{fullData.name}: %{x:.3f}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": "#888", "width": 1.5})
    figure.update_xaxes(title_text=title)
    figure.update_yaxes(
        tickvals=[-place for place in range(len(labels))],
        ticktext=[html.escape(_shorten(str(label), longest)) for label in labels],
        range=[-len(labels) + 0.5, 0.5],
        automargin=True,
    )
    return _finish(figure, 75 + len(labels) * (16 + 14 * len(lines)))


def draw_quadrants(clouds: Sequence[Points]) -> go.Figure:
    """Change of effort by change of confidence, a dot for each sample; the axes part the quadrants, named in the corners."""
    figure = go.Figure()
    for cloud in clouds:
        figure.add_scatter(
            x=list(cloud.x),
            y=list(cloud.y),
            mode="markers",
            name=html.escape(cloud.name),
            marker={"color": cloud.style.colour, "symbol": cloud.style.symbol, "size": 7, "opacity": 0.75},
            hovertemplate="%{fullData.name}: confidence %{x:+.3f}, Ω %{y:+.3f}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": "#888", "width": 1.5})
    figure.add_hline(y=0, line={"color": "#888", "width": 1.5})
    for right, top in product((0, 1), (0, 1)):
        figure.add_annotation(
            text=f"{('less sure', 'surer')[right]},<br>{('less', 'more')[top]} effort",
            **{
                "x": right,
                "y": top,
                "xref": "paper",
                "yref": "paper",
                "showarrow": False,
                "font_size": 10,
                "align": ("left", "right")[right],
            },
            **{"xanchor": ("left", "right")[right], "yanchor": ("bottom", "top")[top]},
        )
    for update, values, title in (
        (figure.update_xaxes, [x for cloud in clouds for x in cloud.x], "confidence, after − before"),
        (figure.update_yaxes, [y for cloud in clouds for y in cloud.y], "effort Ω, after − before"),
    ):
        reach = 1.12 * max([0.05, *map(abs, values)])
        update(title_text=title, range=[-reach, reach])
    return _finish(figure, 320)


def join_panels(panels: Sequence[tuple[str, Any]]) -> go.Figure:
    """Titled panels as one figure on white ground with one legend, as wide as one column of a page or both."""
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    width, height = COLUMN[columns > 1], max(panel.layout.height for _, panel in panels) - 40
    named = len({trace.name for _, panel in panels for trace in panel.data if trace.showlegend is not False and trace.name})
    top = 45 + 20 * (1 + named * 90 // width) * (named > 1)
    tall = rows * height + top + 45
    inner = tall - top - 45
    longest = max((len(label) for _, panel in panels for label in panel.layout.yaxis.ticktext or ()), default=0)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[html.escape(title) for title, _ in panels],
        horizontal_spacing=min((58 + 6 * longest) / width, 0.5 / max(1, columns - 1)),
        vertical_spacing=min(75 / inner, 0.5 / max(1, rows - 1)),
    )
    shown: set[str] = set()
    for place, (_, panel) in enumerate(panels):
        row, column = place // columns + 1, place % columns + 1
        for trace in panel.data:
            legend = named > 1 and trace.showlegend is not False and trace.name not in shown
            shown |= {trace.name} if legend else set()
            figure.add_trace(trace, row, column)
            figure.data[-1].showlegend = legend
        for shape in panel.layout.shapes:
            figure.add_vline(x=shape.x0, line=shape.line.to_plotly_json(), row=row, col=column)  # pyright: ignore[reportArgumentType]
        figure.update_xaxes(panel.layout.xaxis, row=row, col=column)
        figure.update_yaxes(panel.layout.yaxis, row=row, col=column)
        if column > 1 and not panel.layout.yaxis.ticktext:
            figure.update_yaxes(title_text="", row=row, col=column)
    _finish(figure, tall)
    figure.update_layout(
        width=width,
        margin={"l": 55, "r": 15, "t": top, "b": 45},
        font={"color": "#222", "size": 11},
        paper_bgcolor="#fff",
        plot_bgcolor="#fff",
        showlegend=named > 1,
        legend={"orientation": "h", "y": 1 + (top - 8) / inner, "yanchor": "top", "x": 0, "xanchor": "left"},
    )
    figure.update_annotations(font_size=12)
    return figure


def pick_colours(count: int) -> list[str]:
    """`count` colours in order, told apart by the colour-blind and on light and dark ground."""
    return [str(colour) for colour in sample_colorscale(SCALE, [n / max(1, count - 1) for n in range(count)])]


def pick_styles(beside: Sequence[bool], pair: bool = False) -> list[Style]:
    """A style for each line: colours in order, and grey for those `beside` the others; of a pair, the first is dashed."""
    if pair and len(beside) == 2:
        return [Style(_to_rgb(colour), dash) for colour, dash in zip(PAIR, ("dash", "solid"), strict=True)]
    if all(beside):
        beside = [False] * len(beside)
    colours = pick_colours(len(beside) - sum(beside))
    dashes = DASHES if len(beside) > FEW_KINDS else DASHES[:1]
    ordered = iter([Style(colour, dashes[place % len(dashes)]) for place, colour in enumerate(colours)])
    return [Style(_to_rgb(BESIDE), BESIDE_DASH) if one else next(ordered) for one in beside]


def _draw_dots(lines: Sequence[Line], said: str) -> go.Figure:
    figure = go.Figure()
    for line, colour in zip(lines, pick_colours(len(lines)), strict=True):
        figure.add_scatter(
            x=list(line.x),
            y=list(line.y),
            error_y=_reach(line),
            mode="lines+markers",
            name=html.escape(line.name),
            line={"color": colour, "width": 2.2},
            marker={"size": 6},
            hovertemplate="%{fullData.name}, " + said + "<extra></extra>",
        )
    return figure


def _reach(line: Line) -> dict[str, Any]:
    """How far the intervals reach from their values; nowhere where one is not known."""
    above, below = (
        [
            0.0 if math.isnan(end) or math.isnan(value) else abs(end - value)
            for end, value in zip(ends, _known(line.y), strict=True)
        ]
        for ends in (_known(line.high), _known(line.low))
    )
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 1.4, "width": 3}


def _known(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _to_rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))})"


def _fade(colour: str, share: float = 0.18) -> str:
    return colour.replace("rgb(", "rgba(").replace(")", f", {share})")


def _shorten(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _finish(figure: go.Figure, height: int = HEIGHT) -> go.Figure:
    """The look that all figures share; grounds are left to the page."""
    figure.update_layout(
        height=height,
        margin={"l": 50, "r": 12, "t": 12, "b": 42},
        font={"family": FONT, "size": 12, "color": "#808080"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        hovermode="closest",
        dragmode=False,
        template="none",
    )
    figure.update_xaxes(gridcolor=GREY, zeroline=False, linecolor=GREY, title_standoff=6)
    figure.update_yaxes(gridcolor=GREY, zeroline=False, linecolor=GREY, title_standoff=6)
    return figure
