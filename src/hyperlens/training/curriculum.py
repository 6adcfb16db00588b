"""What the reference model is asked while it trains: in each context, questions of one domain behind each other.

A domain's next level joins in once the level before it is mostly right, and what is not yet right is asked more often. The
value that a chain has come to is to be predicted after each of its steps, not only where it is asked for, unless the chain
so far is held out: so every prompt teaches as many single steps as it has. Asides, other wordings and other operands join in
as a level becomes right: without them a context holds three times as many questions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import torch

from hyperlens.tasks.graded import GRADED, LEVELS, GradedTask, Variant
from hyperlens.training.recipe import BEGIN, PAD, STOP, Recipe, build_tokenizer

Accuracies = dict[str, float]
"""Cell (`logic/3`, `logic/3:stepwise`, `logic/1:wide`) -> share answered right, averaged over the latest batches."""

MEMORY = 0.9


@dataclass(frozen=True)
class Places:
    """Places in a batch at which the model is to predict `answers`, and the number of the question that each belongs to."""

    rows: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    questions: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Token ids; where the answers are predicted; where chains have come to a value that nobody asks for yet; and what each
    question counts for."""

    ids: torch.Tensor
    asked: Places
    passed: Places
    cells: list[str]


@dataclass(frozen=True)
class _Question:
    """A question as tokens, and (place in the prompt, token of the value) of the steps that it passes."""

    cell: str
    prompt: list[int]
    target: list[int]
    passed: list[tuple[int, int]]


def draw_batch(rng: random.Random, recipe: Recipe, accuracies: Accuracies) -> Batch:
    """`recipe.rows` contexts, more of them of the domains of which less is right yet."""
    tasks = list(GRADED.values())
    missing = [sum(1.05 - accuracies.get(f"{task.name}/{level}", 0.0) for level in LEVELS) for task in tasks]
    levels = {task.name: _weigh_levels(task, accuracies, recipe) for task in tasks}
    ids = torch.full((recipe.rows, recipe.length), PAD)
    asked: list[tuple[int, int, int, int]] = []
    passed: list[tuple[int, int, int, int]] = []
    cells: list[str] = []
    for row, task in enumerate(rng.choices(tasks, missing, k=recipe.rows)):
        tokens = [BEGIN]
        while True:
            question = _draw_question(task, rng, recipe, levels[task.name], accuracies)
            if len(tokens) + len(question.prompt) + len(question.target) > recipe.length:
                break
            first, number = len(tokens), len(cells)
            last = first + len(question.prompt) - 1
            asked += [(row, last + place, token, number) for place, token in enumerate(question.target)]
            passed += [(row, first + place, token, number) for place, token in question.passed]
            tokens += question.prompt + question.target
            cells.append(question.cell)
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return Batch(ids, _gather_places(asked), _gather_places(passed), cells)


def _gather_places(places: list[tuple[int, int, int, int]]) -> Places:
    rows, positions, answers, questions = torch.tensor(places).reshape(-1, 4).T
    return Places(rows, positions, answers, questions)


def update_accuracies(accuracies: Accuracies, batch: Batch, right: torch.Tensor) -> None:
    """Take in which `right[question]` were answered without a wrong token."""
    seen: dict[str, list[bool]] = {}
    for cell, correct in zip(batch.cells, right.tolist(), strict=True):
        seen.setdefault(cell, []).append(correct)
    for cell, correct in seen.items():
        accuracies[cell] = MEMORY * accuracies.get(cell, 0.0) + (1 - MEMORY) * sum(correct) / len(correct)


def _draw_question(
    task: GradedTask, rng: random.Random, recipe: Recipe, weights: list[float], accuracies: Accuracies
) -> _Question:
    """A question whose target ends with the full stop."""
    level = rng.choices(LEVELS, weights)[0]
    known, rare = accuracies.get(f"{task.name}/{level}", 0.0), rng.random()
    variant = Variant(
        matched=rng.random() < recipe.matched_share * known,
        stepwise=rng.random() < recipe.stepwise_share,
        reworded=level == 1 and rare < recipe.rare_share * known,
        wide=level == 1 and rare > 1 - recipe.rare_share * known,
    )
    kind = "reworded" if variant.reworded else "wide" if variant.wide else "stepwise" if variant.stepwise else ""
    fragments, target = task.compose(level, rng, variant, held_out=False)
    longest = 1 if variant.reworded or variant.wide else sum(weight > 0 for weight in weights)
    text, passed = "", []
    for fragment in fragments:
        text += fragment.text
        if fragment.chain is not None and fragment.done <= longest and not fragment.chain.is_held_out(fragment.done):
            passed.append((len(_encode(text)) - 1, _encode(fragment.chain.values[fragment.done - 1])[0]))
    return _Question(f"{task.name}/{level}{kind and ':' + kind}", _encode(text), [*_encode(target), STOP], passed)


def _weigh_levels(task: GradedTask, accuracies: Accuracies, recipe: Recipe) -> list[float]:
    """How often each level is asked: what is not yet right more often, what is not yet unlocked never."""
    weights, unlocked = [], True
    for level in LEVELS:
        accuracy = accuracies.get(f"{task.name}/{level}", 0.0)
        weights.append(1.1 - accuracy if unlocked else 0.0)
        unlocked = unlocked and accuracy >= recipe.unlock_at
    return weights


def _encode(text: str) -> list[int]:
    return [token for word in text.split() for token in _encode_word(word)]


@cache
def _encode_word(word: str) -> tuple[int, ...]:
    return tuple(_tokenizer()(word, add_special_tokens=False)["input_ids"])


@cache
def _tokenizer():
    return build_tokenizer()
