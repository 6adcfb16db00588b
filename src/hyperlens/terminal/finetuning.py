"""A fine-tuning as it goes on, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from hyperlens.resampling import next_seed
from hyperlens.tasks import DATA_SETS
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


def show_fine_tuned(console: Console, result: Mapping[str, Any], drawn: Sequence[str] = ()) -> None:
    """What was made, how far it came, where it lies, and how to see what it changed; `drawn` are the tasks of its examples."""
    for line in (*_list_remarks(result), f"Model: {result['out']}", *_list_next(result, drawn)):
        console.print(make_safe(line, 400), soft_wrap=True)


def _list_remarks(result: Mapping[str, Any]) -> Iterator[str]:
    examples, training = result["examples"], result["training"]
    if result["found"]:
        yield f"{result['out']} holds this fine-tuning already: nothing was trained or written"
    if training["stopped"]:
        yield (
            f"Stopped by a rule after step {training['steps']} of {training['planned']}; to train to the end, leave the rule "
            "away and choose another --out"
        )
    if unknown := examples.get("tokens_without_effort"):
        yield (
            f"{unknown} of {examples['answer_tokens']} answer tokens have no effort in the base, whose confidence in them is "
            "below 0.01; the effort term left them out"
        )


def _list_next(result: Mapping[str, Any], drawn: Sequence[str]) -> Iterator[str]:
    """The command that compares, on samples that were not trained on where tasks can draw others."""
    words = ["hyperlens compare", result["base"]["name"], result["out"], *(f"--task {name}" for name in dict.fromkeys(drawn))]
    seed = next_seed(result["recipe"]["seed"], 2)  # the one between is that of samples to be watched
    yield f"Next: {' '.join(map(str, words))}{f' --seed {seed}' if drawn else ''}"
    if rows := [name for name in dict.fromkeys(drawn) if name.partition(":")[0] in DATA_SETS]:
        yield (
            f"The rows of {', '.join(rows)} that were trained on are those of the evaluation: a comparison on them measures "
            "what was trained on too, whatever the seed"
        )
