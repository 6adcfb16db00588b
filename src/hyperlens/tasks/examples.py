"""Solved examples that stand before a question, none of them a question that is measured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from hyperlens.errors import InputError
from hyperlens.tasks.graded import VARIANTS, GradedTask
from hyperlens.tasks.options import letter_options
from hyperlens.tasks.rows import Row
from hyperlens.tasks.sample import Sample
from hyperlens.tasks.selection import put_sample, refuse_sample
from hyperlens.tasks.spec import TaskSpec

TRIES = 1000
"""How often an example is drawn again that is one of the measured questions."""

MOST_ROWS = 5000
"""Rows of a training split among which examples are drawn; more of them would only take time."""


def thin_rows(rows: list[Row], seed: str) -> list[Row]:
    """Some of the rows, where there are many."""
    return rows if len(rows) <= MOST_ROWS else random.Random(f"{seed}/examples").sample(rows, MOST_ROWS)


def add_examples(
    drawn: Sequence[Sample], examples: Sequence[Sample], spec: TaskSpec, read: str, seed: int, lettered: bool
) -> list[Sample]:
    """The samples, each behind solved examples of its own draw, none of them measured, with an image, or from amid a chat."""
    measured = {sample.prompt for sample in drawn}
    usual = len(drawn[0].options)
    fresh = [one for one in examples if one.prompt not in measured and one.target and not one.images and not one.shots]
    pool = [one for one in fresh if not refuse_sample(one, read, usual)]
    if len(pool) < spec.few_shot:
        raise InputError(
            f'"{spec.name}" has {len(pool)} rows that are not measured, of {spec.few_shot} that few_shot asks for; lower '
            "limit or few_shot, or add rows to draw examples from"
        )
    solved = [_solve(one, read, lettered) for one in pool]
    return [
        replace(sample, shots=(*random.Random(f"{seed}/examples/{sample.id}").sample(solved, spec.few_shot), *sample.shots))
        for sample in drawn
    ]


def _solve(example: Sample, read: str, lettered: bool) -> tuple[str, str]:
    """An example as a prompt and its target."""
    put = put_sample(example, read, lettered, False)
    put = letter_options(put) if read == "options" else put
    return put.prompt, put.target or ""


def ask_examples(
    task: GradedTask, variant: str, levels: Sequence[int], spec: TaskSpec, measured: set[str], seed: str
) -> tuple[tuple[str, str], ...]:
    """Solved questions of any of the levels, from the chains that training may see."""
    rng = random.Random(f"examples/{seed}")
    found: dict[str, str] = {}
    for _ in range(TRIES * spec.few_shot):
        if len(found) == spec.few_shot:
            break
        prompt, target = task.ask(rng.choice(levels), rng, VARIANTS[variant], held_out=False)
        if prompt not in measured:
            found.setdefault(prompt, target)
    if len(found) < spec.few_shot:
        raise InputError(f'"{spec.name}" has too few questions at these levels for few_shot = {spec.few_shot}; lower it')
    return tuple(found.items())
