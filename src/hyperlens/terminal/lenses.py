"""Lenses side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hyperlens.terminal.cells import (
    draw_line,
    make_safe,
    spell,
    spell_cell,
    spell_interval,
)


def show_evaluation(console: Console, document: Mapping[str, Any]) -> None:
    """Lenses side by side: how near each is to the model's output at what cost, state by state, and how its effort follows the
    levels of each task."""
    inputs, layers, common = document["inputs"], document["model"]["layers"], document["common_states"]
    about = f"{document['model']['name']}, {inputs['tokens']} tokens of {inputs['texts']} texts"
    table = Table(title=make_safe(f"How near to the output? ({about})", 200), title_justify="left")
    names = ("m", "KL [95 %]", "bias", "next-token\nloss", "KL of\nanswers", "KL, all\nits states", "prediction\ndepth")
    table.add_column("lens")
    for name in (*names, "resolution", "Ω", "passes", "time", "read-outs"):
        table.add_column(name, justify="right")
    table.add_column(f"KL, states 0…{layers}", no_wrap=True)
    highest = max(np.log1p(row["by_state"]["kl"]).max() for row in document["rows"])
    for row in document["rows"]:
        near, cost = row["common"], row["cost"]
        cells: list[Any] = [make_safe(_name_lens(row)), str(row["focal_depth"]), spell_interval(near["kl"])]
        cells += [spell(near[name]) for name in ("bias", "next_token_loss")]
        cells += [spell(value["value"]) for value in (row["answer_kl"], row["inner"]["kl"], row["prediction_depth"])]
        cells += [spell(row["resolution"]["value"]), spell(row["effort"]["value"]), spell(cost["passes"])]
        cells += [spell(cost["measured"]), str(cost["readouts"]), draw_line(np.log1p(row["by_state"]["kl"]) / highest)]
        table.add_row(*map(spell_cell, cells))
    console.print(table)
    _show_separation(console, document["rows"])
    loss = spell(document["output"]["next_token_loss"])
    note = f"KL, bias and next-token loss in nats, over states 0…{common - 1}, which every row can change; the model's own "
    note += f"loss is {loss}. Passes and time are by those of one plain pass. Drawn: ln(1 + KL)."
    console.print(make_safe(note, 500))
    for source in document.get("sources", ()):
        console.print(make_safe(_describe_source(source), 500))


def _describe_source(source: Mapping[str, Any]) -> str:
    """How much of a source was read, what its intervals draw, and which lenses had been trained on it."""
    counted = f"{source['read']} of {source['texts']} {source['unit']}s of {source['name']}"
    seen = "".join(f"; {name} was trained on it" for name in source["trained_on_it"])
    return f"Read: {counted}, each drawn as a whole for the intervals{seen}."


def _name_lens(row: Mapping[str, Any]) -> str:
    """A lens by its name, and what else decides what it reads."""
    lens = row["lens"]
    context = f", {lens['context']}" if row["focal_depth"] else ""
    between = f", between {', '.join(map(str, lens['between']))}" if lens["between"] else ""
    transfer = f", lens of {lens['origin']['model']}" if lens.get("transfer") else ""
    return f"{row['name']}{context}{between}{transfer}"


def _show_separation(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """How the effort of each lens follows the levels of each task, where there are levels."""
    tasks = [part["task"] for part in rows[0]["separation"]]
    table = Table(title="Does its effort follow the level? Spearman's rho [95 %]", title_justify="left")
    for name in (
        "task",
        "lens",
        "m",
        "all its states",
        "common states",
        "at matched\nconfidence",
        "AUROC, hardest\nv. easiest",
    ):
        table.add_column(name, justify="left" if name in ("task", "lens") else "right")
    for number, task in enumerate(tasks):
        table.add_section()
        for row in rows:
            part = row["separation"][number]
            columns = [spell_interval(part[name]) for name in ("rho", "common", "matched", "auroc")]
            table.add_row(make_safe(task), make_safe(_name_lens(row)), str(row["focal_depth"]), *columns)
    if tasks:
        console.print(table)
