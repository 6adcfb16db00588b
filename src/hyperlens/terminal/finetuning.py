"""A fine-tuning as it goes on, and what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from hyperlens.diagnosis import PATTERNS, say_signed
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


@dataclass(frozen=True)
class Asked:
    """What a fine-tuning was asked for, and its result does not say: the `tasks` of its examples, whether they are of `files`
    too, the `options` that a comparison needs, `shots` those for tasks alone, and the rule to `stop` at."""

    tasks: tuple[str, ...] = ()
    files: bool = False
    options: tuple[str, ...] = ()
    shots: tuple[str, ...] = ()
    stop: str = ""


def show_fine_tuning(console: Console, row: Mapping[str, Any]) -> None:
    """One line of a fine-tuning: how far it is, and the terms of its loss; or what a probe set shows, with the changes to the
    base and the `verdict`."""
    parts = [f"{name} {_spell_value(row, key)}" for key, name in SHOWN.items() if isinstance(row.get(key), float)]
    if parts:
        verdict = "" if "verdict" not in row else f": {row['verdict'] if row['step'] else 'the base'}"
        line = f"step {row['step']} of {row['steps']}  {'  '.join(parts)}{verdict}"
        console.print(make_safe(line, 400), soft_wrap=True, highlight=False)


def _spell_value(row: Mapping[str, Any], key: str) -> str:
    change = row.get(f"{key}/change") if row["step"] else None
    return spell(row[key], 4) + ("" if change is None else f" ({say_signed(change, 4)})")


def show_fine_tuned(
    console: Console,
    result: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]] = (),
    asked: Asked | None = None,
    best: Mapping[str, Any] | None = None,
) -> None:
    """What was made, how far it came, where it lies, and how to see what it changed; `best` says what else was kept."""
    asked, models = asked or Asked(), [f"Model: {result['out']}"]
    if best is not None:
        score = f"{best['rule']} {spell(best['score'], 3)}, step {best['step']}"
        models.append(f"Best ({score}): {result['out']}.checkpoint/best")
    for line in (*_list_remarks(result, asked), *_list_watched(result, log), *models, *_list_next(result, asked)):
        console.print(make_safe(line, 400), soft_wrap=True, highlight=False)


def _list_watched(result: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What was not measured, and how the last measurement ended where that is blind confidence."""
    looks = [row for row in log if "effort/share" in row]
    if skipped := sum("effort/seconds" not in row for row in looks):
        yield (
            f"{skipped} of {len(looks)} measurements were skipped for their cost; for fewer to be, raise --watch-share or "
            "--watch-every"
        )
    last = next((row for row in reversed(log) if "confidence/probe" in row), {})
    if last.get("blind_confidence"):
        yield (
            f"At its last reading, after step {last['step']}, {result['out']} shows {PATTERNS[0].name}: on what was watched it "
            "is surer with less effort, and right less often, than the base"
        )


def _list_remarks(result: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    examples, training = result["examples"], result["training"]
    if result["found"]:
        yield f"{result['out']} holds this fine-tuning already: nothing was trained or written"
    if training["stopped"]:
        rule = f'the rule "{asked.stop}"' if asked.stop and not result["found"] else "a rule"
        yield (
            f"Stopped by {rule} after step {training['steps']} of {training['planned']}; to train to the end, leave the rule "
            "away and choose another --out"
        )
    if unknown := examples.get("tokens_without_effort"):
        yield (
            f"{unknown} of {examples['answer_tokens']} answer tokens have no effort in the base, whose confidence in them is "
            "below 0.01; the effort term left them out"
        )


def _list_next(result: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    """The commands that compare, on samples that were not trained on."""
    drawn, seed = tuple(dict.fromkeys(asked.tasks)), next_seed(result["recipe"]["seed"], 2)  # one between is of what is watched
    words = ("hyperlens", "compare", str(result["base"]["name"]), str(result["out"]))
    if drawn:
        tasks = (word for name in drawn for word in ("--task", name))
        yield f"Next: {shlex.join((*words, *tasks, *asked.shots, '--seed', str(seed), *asked.options))}"
    if asked.files or not drawn:
        yield f"Next: {shlex.join((*words, '--file', 'HELD-OUT.jsonl', *asked.options))}"
    if rows := [name for name in drawn if name.partition(":")[0] in DATA_SETS]:
        yield (
            f"The rows of {', '.join(rows)} that were trained on are those of the evaluation: a comparison on them measures "
            "what was trained on too, whatever the seed"
        )
