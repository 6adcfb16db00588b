"""Trainings as they go on, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from hyperlens.terminal.cells import (
    make_safe,
    spell,
)


def show_training(console: Console, row: Mapping[str, Any], steps: int) -> None:
    """One line of a training: how far it is, its loss, the time left, and the accuracies of each domain, level by level."""
    domains: dict[str, list[str]] = {}
    for cell, accuracy in row.items():
        task, slash, level = cell.partition("/")
        if slash and level.isdigit():
            domains.setdefault(task, []).append(f"{accuracy:.2f}")
    left = str(timedelta(seconds=row["seconds_left"]))
    accuracies = "  ".join(f"{task} {' '.join(values)}" for task, values in domains.items())
    console.print(
        make_safe(f"step {row['step']} of {steps}  loss {row['loss']:.3f}  {left} left  {accuracies}", 400), soft_wrap=True
    )


def show_lens_training(console: Console, row: Mapping[str, Any], steps: int) -> None:
    """One line of the training of a lens: how far it is, and the mean KL over the states in training and in validation."""
    validation = sum(row["validation"]) / len(row["validation"])
    line = f"step {row['step']} of {steps}  KL {spell(row['loss'], 4)} in training, {spell(validation, 4)} in validation"
    left = "" if row["seconds_left"] is None else f"  {timedelta(seconds=row['seconds_left'])} left"
    console.print(make_safe(line + left, 400), soft_wrap=True, highlight=False)


def show_tuning(console: Console, result: Mapping[str, Any]) -> None:
    """What the translators do for each state on the validation part, and where they are kept."""
    console.print("KL from the model's output in nats, mean over the tokens of the validation part")
    table = Table()
    for name in ("state", "logit lens", "tuned lens", "share left"):
        table.add_column(name, justify="right")
    for state, (logit, tuned) in enumerate(zip(result["logit"], result["tuned"], strict=True)):
        share = spell(tuned / logit) if logit else "-"
        table.add_row(str(state), spell(logit, 4), spell(tuned, 4), share)
    console.print(table)
    console.print(make_safe(f"Lens: {result['lens']}", 400))
