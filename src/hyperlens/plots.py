"""Figures: a trajectory or the groups of a study in, a plotly figure out."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from hyperlens.contrast import estimate_curve
from hyperlens.trajectory import Trajectory, average_tokens

GREY = "rgba(128,128,128,0.35)"
FONT = "system-ui, sans-serif"


def draw_trajectories(trajectory: Trajectory, task: str, seed: int = 0) -> go.Figure:
    """Mean confidence of `task` at each state, one line per level with its 95 % interval, one panel per focal depth.

    Each line ends at state L − m: from there on the lens reads the model's own output.
    """
    depths, mine = trajectory.focal_depths, (trajectory.samples["task"] == task).to_numpy()
    levels = trajectory.samples["level"].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    kinds = sorted(set(levels[mine & ~np.isnan(levels)])) or [np.nan]
    figure = make_subplots(
        1, len(depths), shared_yaxes=True, horizontal_spacing=_space(len(depths)), subplot_titles=_name_depths(depths)
    )
    for place, depth in enumerate(depths, 1):
        confidence = average_tokens(trajectory, trajectory.confidence(depth).astype(float))
        for level, colour in zip(kinds, pick_colours(len(kinds)), strict=True):
            rows = mine & (np.isnan(levels) if np.isnan(level) else levels == level)
            mean, low, high = estimate_curve(confidence[rows], seed)
            name, states = "all" if np.isnan(level) else f"level {level:.0f}", list(range(len(mean)))
            band = {"x": states + states[::-1], "y": [*high, *low[::-1]], "fill": "toself", "fillcolor": _fade(colour)}
            figure.add_scatter(**band, mode="none", hoverinfo="skip", showlegend=False, legendgroup=name, row=1, col=place)
            figure.add_scatter(
                x=states,
                y=mean,
                mode="lines",
                name=name,
                line={"color": colour, "width": 2.2},
                legendgroup=name,
                showlegend=place == 1,
                hovertemplate=f"{name}, state %{{x}}: %{{y:.2f}}<extra></extra>",
                row=1,
                col=place,
            )
    figure.update_xaxes(title_text="state", range=[0, trajectory.layers])
    figure.update_yaxes(range=[-0.02, 1.02])
    figure.update_yaxes(title_text="confidence in the answer", col=1)
    return _finish(figure, 300)


def draw_effort(groups: Sequence[Mapping[str, Any]], depths: Sequence[int]) -> go.Figure:
    """Mean effort Ω by level with its 95 % interval, one panel per task, one line per focal depth."""
    tasks = list(dict.fromkeys(group["task"] for group in groups))
    figure = make_subplots(
        1,
        len(tasks),
        shared_yaxes=True,
        horizontal_spacing=_space(len(tasks)),
        subplot_titles=[html.escape(task) for task in tasks],
    )
    for place, task in enumerate(tasks, 1):
        rows = [group for group in groups if group["task"] == task]
        for depth, colour in zip(depths, pick_colours(len(depths)), strict=True):
            efforts = [row["effort"][str(depth)] for row in rows]
            means = [effort["mean"] for effort in efforts]
            above, below = ([_reach(effort, end) for effort in efforts] for end in ("high", "low"))
            figure.add_scatter(
                x=["all" if row["level"] is None else row["level"] for row in rows],
                y=means,
                error_y={"type": "data", "array": above, "arrayminus": below, "thickness": 1.4, "width": 3},
                mode="lines+markers",
                name=_name_depths([depth])[0],
                line={"color": colour, "width": 2.2},
                legendgroup=str(depth),
                showlegend=place == 1,
                hovertemplate=f"m = {depth}, level %{{x}}: Ω %{{y:.2f}}<extra></extra>",
                row=1,
                col=place,
            )
    figure.update_xaxes(title_text="level", dtick=1)
    figure.update_yaxes(title_text="effort Ω", rangemode="tozero", col=1)
    return _finish(figure, 320)


def pick_colours(count: int) -> list[str]:
    """`count` colours in order, told apart by the colour-blind and on light and dark ground."""
    return [str(colour) for colour in sample_colorscale("Plasma", [0.18 + 0.66 * n / max(1, count - 1) for n in range(count)])]


def _reach(effort: Mapping[str, Any], end: str) -> float:
    """How far an interval reaches from its mean; 0 where it is not known."""
    return 0.0 if effort[end] is None else abs(effort[end] - effort["mean"])


def _space(panels: int) -> float:
    """The gap between panels, as a share of the width; plotly refuses gaps that leave no room for the panels."""
    return min(0.015, 0.5 / max(1, panels - 1))


def _name_depths(depths: Sequence[int]) -> list[str]:
    return ["logit lens (m = 0)" if depth == 0 else f"m = {depth}" for depth in depths]


def _fade(colour: str) -> str:
    return colour.replace("rgb(", "rgba(").replace(")", ", 0.18)")


def _finish(figure: go.Figure, height: int) -> go.Figure:
    """The look that all figures share; grounds are left to the page."""
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 15, "t": 65, "b": 50},
        font={"family": FONT, "size": 13, "color": "#808080"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.16, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#a0a0a0"},
    )
    figure.update_xaxes(gridcolor=GREY, zeroline=False, linecolor=GREY)
    figure.update_yaxes(gridcolor=GREY, zeroline=False, linecolor=GREY)
    return figure
