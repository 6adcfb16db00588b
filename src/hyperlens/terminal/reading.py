"""What was proved of a model, and what was read of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hyperlens.neighbours import NUMBERS, pool_neighbours
from hyperlens.runs.caveats import describe_lens, find_foreign
from hyperlens.terminal.cells import (
    MOST_TOKENS,
    draw_line,
    make_safe,
    spell,
    spell_whole,
)
from hyperlens.trajectory import Trajectory, measure_effort


def show_certificate(console: Console, name: str, certificate: Mapping[str, Any]) -> None:
    """What was proved of a model."""
    table = Table(show_header=False, title=make_safe(name), title_justify="left", box=None)
    for key, value in certificate.items():
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
            cells.append(spell(confidence[token, 0, -1]))
            for place in range(len(trajectory.focal_depths)):
                cells.append(draw_line(confidence[token, place]))
                cells += [
                    spell(measured["effort"].values[token, place]),
                    spell_whole(measured["commit"].values[token, place]),
                ]
            table.add_row(*cells)
        if len(mine) > MOST_TOKENS:
            table.caption = f"and {len(mine) - MOST_TOKENS} more tokens; --json or --out give them all"
        console.print(table)
    if others := [name for name in trajectory.manifest["readings"] if name != "probability"]:
        console.print(f"Drawn is the probability; {', '.join(others)}: see --json or --out.", highlight=False)
    _show_lens(console, trajectory.manifest["model"], trajectory.manifest["lens"])
    show_resolution(console, trajectory.manifest["lens"]["auto"])


def _show_lens(console: Console, model: Mapping[str, Any], lens: Mapping[str, Any]) -> None:
    """What was read with, where that is not HyperLens alone."""
    if describe_lens(lens) != f"context {lens['context']}":
        console.print(make_safe(f"Lens: {describe_lens(lens)}.", 400))
    for line in find_foreign(model["name"], model, lens["name"], lens):
        console.print(make_safe(line, 400))


def show_neighbours(console: Console, trajectory: Trajectory) -> None:
    """Other people's numbers: their mean over the texts at each focal depth, whose each is, and what was not read."""
    pooled = pool_neighbours(trajectory)
    texts = len(trajectory.samples)
    table = Table(title=f"Neighbours' numbers, mean of {texts} text{'s' * (texts > 1)}", title_justify="left")
    for column in ("number", "unit", "source"):
        table.add_column(column)
    for depth in trajectory.focal_depths:
        table.add_column(f"m = {depth}", justify="right")
    for name, number in NUMBERS.items():
        if name in pooled:
            values = pooled[name].values
            means = [column[~np.isnan(column)] for column in values.T]
            cells = [spell(float(known.mean()) if len(known) else None) for known in means]
            table.add_row(name.replace("_", " "), number.unit, number.source, *cells)
    console.print(table)
    for name, reading in pooled.attrs["missing"].items():
        console.print(f"Left out: {name.replace('_', ' ')}, which needs the reading {reading}.", highlight=False)


def show_resolution(console: Console, auto: Mapping[str, Any] | None) -> None:
    """How an automatic choice of the focal depth came about."""
    if auto is None:
        return
    sweep = ", ".join(
        f"m = {depth}: {'-' if row['resolution'] is None else format(row['resolution'], '.2f')}"
        for depth, row in auto["candidates"].items()
    )
    console.print(
        f"Focal depth {auto['chosen']} has the highest resolution (effective steps of the trajectory, "
        f"{auto['positions']} positions: {sweep}).",
        highlight=False,
    )
