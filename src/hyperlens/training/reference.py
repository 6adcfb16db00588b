"""The training of the reference model: a small decoder from scratch on the graded tasks.

Everything follows from the `Recipe`; its loss is that of the answer tokens alone. A training that was stopped goes on from
its last checkpoint with the same data, to the same curve.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3ForCausalLM

from hyperlens.training.checkpoints import (
    NAME,
    Checkpoint,
    check_shapes,
    read_log,
    restore_checkpoint,
    save_checkpoint,
    save_log,
)
from hyperlens.training.curriculum import Accuracies, Batch, Places, draw_batch, update_accuracies
from hyperlens.training.recipe import Recipe, build_model, build_tokenizer


def train_reference(
    recipe: Recipe,
    checkpoint: Path,
    every: int = 100,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    device: str = "cpu",
) -> Qwen3ForCausalLM:
    """Train by `recipe`, with a checkpoint and a line of `log.jsonl` in the folder `checkpoint` every `every` steps.

    Goes on where such a folder left off. Raises InputError for a checkpoint of another recipe, ArtefactError where a
    checkpoint cannot be written.
    """
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, len(build_tokenizer()))
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers types `to` as its wrapper
    optimisers = _build_optimisers(model, recipe)
    step, accuracies = _restore(checkpoint, recipe, model, optimisers)
    log = read_log(checkpoint, step)
    before = log[-1]["seconds"] if log else 0.0
    began, first, losses = time.monotonic(), step, []
    while step < recipe.steps:
        batch = draw_batch(random.Random(f"{recipe.seed}/{step}"), recipe, accuracies)
        loss, right = _train_step(model, optimisers, recipe, step, batch)
        update_accuracies(accuracies, batch, right)
        losses.append(loss)
        step += 1
        if step % every == 0 or step == recipe.steps:
            spent = time.monotonic() - began
            row = {
                "step": step,
                "loss": round(sum(losses) / len(losses), 4),
                "seconds": round(before + spent, 1),
                "seconds_left": round(spent / (step - first) * (recipe.steps - step)),
                **{cell: round(accuracy, 3) for cell, accuracy in sorted(accuracies.items())},
            }
            log, losses = [*log, row], []
            save_log(checkpoint, log)
            save_checkpoint(checkpoint, asdict(recipe), optimisers, Checkpoint(step, _weights(model), accuracies))
            report(row)
    return model


def _weights(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    """The model's weights, but for the unembedding, which is tied."""
    return {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}


def _restore(
    folder: Path, recipe: Recipe, model: Qwen3ForCausalLM, optimisers: list[torch.optim.Optimizer]
) -> tuple[int, Accuracies]:
    """Load a checkpoint into model and optimisers: its step and accuracies. Raises InputError for another recipe's.

    Another number of `steps` is the same recipe as long as both still have their learning rates on the plateau.
    """

    def may_differ(kept: Mapping[str, Any], step: int) -> Collection[str]:
        decay = kept.get("decay_share", recipe.decay_share)
        return ["steps"] if step <= min(recipe.plateau, round(kept.get("steps", 0) * (1 - decay))) else []

    found = restore_checkpoint(folder, asdict(recipe), optimisers, may_differ)
    if found is None:
        return 0, {}
    check_shapes(folder / NAME, found.tensors, _weights(model))
    model.load_state_dict(dict(found.tensors), strict=False)
    return found.step, dict(found.progress)


def _build_optimisers(model: Qwen3ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    inside = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if not any(parameter is matrix for matrix in inside)]
    return [
        torch.optim.Muon(inside, lr=recipe.matrix_rate, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _rate(step: int, recipe: Recipe) -> float:
    """Warm-up, a long plateau, then a straight line down to zero, as a factor of the learning rates."""
    return min(1.0, (step + 1) / recipe.warmup, (recipe.steps - step) / max(1, recipe.steps - recipe.plateau))


def _train_step(
    model: Qwen3ForCausalLM, optimisers: list[torch.optim.Optimizer], recipe: Recipe, step: int, batch: Batch
) -> tuple[float, torch.Tensor]:
    """One step on what is asked, every question weighing the same, and on the values that are passed; gives the loss of
    what is asked, and which questions were right."""
    states = model.model(batch.ids.to(model.device), use_cache=False).last_hidden_state
    asked, right = _measure_places(model, states, batch.asked)
    passed, _ = _measure_places(model, states, batch.passed)
    (asked + recipe.passed_weight * passed).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser, rate in zip(optimisers, (recipe.matrix_rate, recipe.other_rate), strict=True):
        optimiser.param_groups[0]["lr"] = rate * _rate(step, recipe)
        optimiser.step()
        optimiser.zero_grad()
    return asked.item(), right


def _measure_places(model: Qwen3ForCausalLM, states: torch.Tensor, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over questions of the mean loss of their places, and which questions have all of these right."""
    rows, positions, answers, questions = (
        part.to(states.device) for part in (places.rows, places.positions, places.answers, places.questions)
    )
    logits = model.lm_head(states[rows, positions])
    tokens = torch.bincount(questions)
    each = torch.nn.functional.cross_entropy(logits, answers, reduction="none") / tokens[questions]
    wrong = torch.bincount(questions, logits.argmax(-1) != answers)
    return each.sum() / (tokens > 0).sum().clamp(min=1), wrong == 0
