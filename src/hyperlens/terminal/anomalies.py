"""Odd trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hyperlens.terminal.cells import (
    make_safe,
    spell,
    spell_interval,
)


def show_anomalies(console: Console, document: Mapping[str, Any], top: int) -> None:
    """How well each score tells groups of samples from normal ones, and the oddest samples of all."""
    normal, methods = document["normal"], document["settings"]["methods"]
    title = f"Odd beside {', '.join(normal['tasks'])}? AUROC [95 %]; fitted on {normal['fitted']} samples"
    table = Table(title=make_safe(f"{title}, compared with {normal['held_out']} others", 200), title_justify="left")
    simple = [name for name in ("mahalanobis", "confidence", "length") if name not in methods]
    for name in ("samples", "n", *methods, *simple):
        table.add_column(name, justify="left" if name == "samples" else "right")
    rows = [(group["group"], str(group["n"]), group["auroc"]) for group in document["groups"]]
    if labels := document.get("labels"):
        rows.append(("odd by their labels", f"{labels['odd']} of {labels['odd'] + labels['others']}", labels["auroc"]))
    for name, count, auroc in rows:
        table.add_row(make_safe(name), count, *(spell_interval(auroc[score]) for score in (*methods, *simple)))
    console.print(table)
    note = "Beside them: mahalanobis, the distance from the normal mean; missing confidence alone; unusual length alone."
    console.print(note, highlight=False)
    if labels and labels["unmatched"]:
        console.print(f"Labels that are of no sample that was scored: {labels['unmatched']}.", highlight=False)
    _show_odd_samples(console, document["samples"], methods[0], top)


def _show_odd_samples(console: Console, samples: Sequence[Mapping[str, Any]], method: str, top: int) -> None:
    """The samples that score highest, and how many could not be scored."""
    known = [row for row in samples if not np.isnan(row["scores"][method])]
    table = Table(title=make_safe(f"The oddest by {method}"), title_justify="left")
    for name in ("score", "samples", "id", "text"):
        table.add_column(name, justify="right" if name == "score" else "left")
    for row in sorted(known, key=lambda row: -row["scores"][method])[:top]:
        labels = map(make_safe, (row["group"], row["id"]))
        table.add_row(spell(row["scores"][method], 3), *labels, make_safe(row["text"], 100))
    if table.row_count:
        console.print(table)
    if lost := len(samples) - len(known):
        console.print(f"{lost} samples have a reading that is not finite and were not scored.", highlight=False)
