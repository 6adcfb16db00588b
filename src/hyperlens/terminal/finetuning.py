"""A fine-tuning as it goes on, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from hyperlens.terminal.cells import make_safe, spell

SHOWN = {
    "loss": "loss",
    "kl": "KL from the base",
    "effort/term": "effort short by",
    "effort/mean": "Ω",
    "effort/base": "of the base",
    "accuracy/probe": "watched: accuracy",
    "confidence/probe": "confidence",
    "effort/probe": "Ω",
}
"""Values of a row of the log, and how they are called."""


def show_fine_tuning(console: Console, row: Mapping[str, Any]) -> None:
    """One line of a fine-tuning: how far it is, and the terms of its loss; or what a probe set shows."""
    parts = [f"{name} {spell(row[key], 4)}" for key, name in SHOWN.items() if isinstance(row.get(key), float)]
    if parts:
        line = f"step {row['step']} of {row['steps']}  {'  '.join(parts)}"
        console.print(make_safe(line, 400), soft_wrap=True, highlight=False)


def show_fine_tuned(console: Console, result: Mapping[str, Any]) -> None:
    """What was made, where it lies, and how to see what it changed."""
    examples = result["examples"]
    if unknown := examples.get("tokens_without_effort"):
        console.print(
            f"{unknown} of {examples['answer_tokens']} answer tokens have no effort in the base, whose confidence in them is "
            "below 0.01; the effort term left them out",
            soft_wrap=True,
        )
    console.print(make_safe(f"Model: {result['out']}", 400), soft_wrap=True)
    console.print(make_safe(f"Next: hyperlens compare {result['base']['name']} {result['out']}", 400), soft_wrap=True)
