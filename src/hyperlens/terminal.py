"""What the command line shows: tables and small drawings, with all that comes from texts and models made harmless."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hyperlens.trajectory import Trajectory, measure_effort

BLOCKS = "▁▂▃▄▅▆▇█"
MOST_TOKENS = 60


def make_safe(text: object, most: int = 60) -> Text:
    """`text` as it is, but for control characters, which are spelled out; no markup, at most `most` characters."""
    spelled = "".join(
        {"\n": "⏎", "\t": "⇥"}.get(sign, sign) if sign.isprintable() or sign in "\n\t" else f"\\u{ord(sign):04x}"
        for sign in str(text)
        if unicodedata.category(sign) != "Cs"
    )
    return Text(spelled if len(spelled) <= most else spelled[: most - 1] + "…")


def draw_line(values: Sequence[float] | np.ndarray) -> str:
    """Values in [0, 1] as one block each, lowest to highest; a dot where there is none.

    >>> draw_line([0.0, 0.5, 1.0])
    '▁▅█'
    """
    return "".join("·" if np.isnan(value) else BLOCKS[int(min(max(value, 0.0), 1.0) * 7 + 0.5)] for value in values)


def show_certificate(console: Console, name: str, certificate: Mapping[str, Any]) -> None:
    """What was proved of a model."""
    table = Table(show_header=False, title=make_safe(name), title_justify="left", box=None)
    for key in ("architecture", "layers", "certified", "way", "contexts", "max_error", "reason"):
        value = certificate[key]
        shown = ", ".join(value) if isinstance(value, list | tuple) else f"{value:.2g}" if isinstance(value, float) else value
        table.add_row(key.replace("_", " "), make_safe("-" if shown is None else shown, 400))
    console.print(table)


def show_trajectory(console: Console, trajectory: Trajectory) -> None:
    """One line per token that was read: what follows it, and the drawing, effort and commit state at each focal depth."""
    measured = measure_effort(trajectory)
    confidence = trajectory.to_numpy("probability")
    data = trajectory.data
    bounds = np.searchsorted(data["sample"].values, np.arange(len(trajectory.samples) + 1))
    for number, text in enumerate(trajectory.samples["text"]):
        mine = range(bounds[number], bounds[number + 1])
        table = Table(title=make_safe(text, 100), title_justify="left")
        for name in ("position", "token", "y", "p(y)"):
            table.add_column(name, justify="right" if name in ("position", "p(y)") else "left")
        for depth in trajectory.focal_depths:
            table.add_column(f"m = {depth}, states 0…{trajectory.layers}", no_wrap=True)
            table.add_column("Ω", justify="right")
            table.add_column("commit", justify="right")
        for token in mine[:MOST_TOKENS]:
            cells: list[Any] = [str(data["position"].values[token])]
            cells += [make_safe(data[name].values[token], 20) for name in ("token_text", "reference_text")]
            cells.append(_number(confidence[token, 0, -1]))
            for place in range(len(trajectory.focal_depths)):
                cells.append(draw_line(confidence[token, place]))
                cells += [_number(measured["effort"].values[token, place]), _whole(measured["commit"].values[token, place])]
            table.add_row(*cells)
        if len(mine) > MOST_TOKENS:
            table.caption = f"and {len(mine) - MOST_TOKENS} more tokens; --json or --out give them all"
        console.print(table)
    if others := [name for name in trajectory.manifest["readings"] if name != "probability"]:
        console.print(f"Drawn is the probability; {', '.join(others)}: see --json or --out.", highlight=False)
    show_depths(console, trajectory.manifest)


def show_depths(console: Console, manifest: Mapping[str, Any]) -> None:
    """Which focal depths were read, and how an automatic choice came about."""
    lens = manifest["lens"]
    if lens["auto"] is None:
        return
    sweep = ", ".join(
        f"m = {depth}: {'-' if row['resolution'] is None else format(row['resolution'], '.2f')}"
        for depth, row in lens["auto"]["candidates"].items()
    )
    console.print(
        f"Focal depth {lens['auto']['chosen']} has the highest resolution (effective steps of the trajectory, "
        f"{lens['auto']['positions']} positions: {sweep}).",
        highlight=False,
    )


def show_study(console: Console, document: Mapping[str, Any], folder: object) -> None:
    """The table of a study by task and level, how effort follows the level, and where all of it is kept."""
    manifest, lens = document["manifest"], document["manifest"]["lens"]
    table = Table(
        title=make_safe(f"{manifest['model']['name']}: {manifest['model']['layers']} layers, context {lens['context']}"),
        title_justify="left",
    )
    for name in ("task", "level", "n", "accuracy", "confidence"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for depth in lens["focal_depths"]:
        table.add_column(f"Ω at m = {depth}  [95 %]", justify="right")
        table.add_column("correct only", justify="right")
    task = None
    for group in document["groups"]:
        if task not in (None, group["task"]):
            table.add_section()
        task = group["task"]
        cells: list[Any] = [make_safe(task), _whole(group["level"]), str(group["n"])]
        cells += [_number(group["accuracy"]), _number(group["confidence"])]
        for depth in lens["focal_depths"]:
            effort = group["effort"][str(depth)]
            cells.append(f"{_number(effort['mean'])} [{_number(effort['low'])}, {_number(effort['high'])}]")
            cells.append(_number(group["correct"]["effort"][str(depth)]["mean"]))
        table.add_row(*map(_cell, cells))
    console.print(table)
    for trend in document["trends"]:
        line = f"{trend['task']}: at m = {trend['depth']} effort follows the level with Spearman's rho {_number(trend['rho'])} "
        console.print(make_safe(f"{line}[{_number(trend['low'])}, {_number(trend['high'])}]", 200))
    show_depths(console, manifest)
    console.print(make_safe(f"Ω: mean share of the final confidence still missing before state L − m. Kept in {folder}", 400))


def _cell(value: Any) -> Text:
    return value if isinstance(value, Text) else Text(str(value))


def _number(value: float | np.floating | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.2f}"


def _whole(value: int | float | np.floating | None) -> str:
    return "-" if value is None or np.isnan(value) else str(int(value))
