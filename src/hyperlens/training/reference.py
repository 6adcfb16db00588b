"""The recipe of the reference model: a small decoder trained from scratch on the graded tasks.

Its data are questions of one domain packed behind each other, its loss is that of the answer tokens alone, and a domain's
next level joins in once the level before it is mostly right. Everything follows from `Recipe`; a run that was stopped goes
on from its last checkpoint with the same data.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from hyperlens.errors import InputError
from hyperlens.tasks.graded import GRADED, GradedTask

Accuracies = dict[str, float]
BEGIN, END, PAD = 1, 2, 3


@dataclass(frozen=True)
class Recipe:
    """All that decides the reference model. `steps` are optimiser steps of `rows` contexts of `length` tokens."""

    layers: int = 12
    width: int = 96
    heads: int = 4
    inner: int = 256
    rows: int = 64
    length: int = 64
    steps: int = 1500
    warmup: int = 200
    decay_share: float = 0.25
    matrix_rate: float = 0.003
    other_rate: float = 0.001
    unlock_at: float = 0.8
    seed: int = 0


def train_reference(
    recipe: Recipe, checkpoint: Path, every: int = 250, report: Callable[[dict], None] = lambda row: None
) -> Qwen3ForCausalLM:
    """Train by `recipe`, saving to the folder `checkpoint` every `every` steps; continues where such a folder left off."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = build_model(recipe, len(tokenizer))
    optimisers = _build_optimisers(model, recipe)
    step, accuracies = _restore(recipe, checkpoint, model, optimisers)
    began, first = time.monotonic(), step
    while step < recipe.steps:
        rng = random.Random(f"{recipe.seed}/{step}")
        task = _pick_task(rng, accuracies)
        loss, seen = _train_step(model, optimisers, recipe, step, *_draw_batch(task, rng, recipe, accuracies, tokenizer))
        _update(accuracies, task, seen)
        step += 1
        if step % every == 0 or step == recipe.steps:
            _save(recipe, checkpoint, model, optimisers, step, accuracies)
            left = (time.monotonic() - began) / (step - first) * (recipe.steps - step)
            report({"step": step, "loss": round(loss, 4), "seconds_left": round(left), **_rounded(accuracies)})
    return model


def save_reference(model: Qwen3ForCausalLM, recipe: Recipe, folder: Path) -> None:
    """The trained model as a folder that transformers loads: safetensors, configuration, tokenizer, and the recipe."""
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word or digit of the graded tasks; spaces only separate."""
    words = dict.fromkeys(word for task in GRADED.values() for word in task.words)
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "<pad>", ".", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"'s|[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build_model(recipe: Recipe, vocabulary: int) -> Qwen3ForCausalLM:
    """The untrained decoder that the recipe describes."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.width // recipe.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return Qwen3ForCausalLM(config)


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
    decay = recipe.decay_share * recipe.steps
    return min(1.0, (step + 1) / recipe.warmup, (recipe.steps - step) / decay)


def _pick_task(rng: random.Random, accuracies: Accuracies) -> GradedTask:
    """A domain, the more often the less of it is right yet."""
    tasks = list(GRADED.values())
    missing = [sum(1.05 - accuracies.get(f"{task.name}/{level}", 0.0) for level in task.levels) for task in tasks]
    return rng.choices(tasks, missing)[0]


def _level_weights(task: GradedTask, accuracies: Accuracies, recipe: Recipe) -> list[float]:
    """How often each level is asked: what is not yet right more often, what is not yet unlocked never."""
    weights, unlocked = [], True
    for level in task.levels:
        accuracy = accuracies.get(f"{task.name}/{level}", 0.0)
        weights.append(1.1 - accuracy if unlocked else 0.0)
        unlocked = unlocked and accuracy >= recipe.unlock_at
    return weights


def _draw_batch(
    task: GradedTask, rng: random.Random, recipe: Recipe, accuracies: Accuracies, tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and, where the next token is an answer, the level of its question (0 elsewhere): int64[rows, length]."""
    weights = _level_weights(task, accuracies, recipe)
    ids = torch.full((recipe.rows, recipe.length), PAD)
    levels = torch.zeros_like(ids)
    for row in range(recipe.rows):
        at = 1
        ids[row, 0] = BEGIN
        while True:
            level = rng.choices(task.levels, weights)[0]
            prompt, answer = task.draw(level, rng, held_out=False)
            tokens = tokenizer(f"{prompt} {answer} .", add_special_tokens=False)["input_ids"]
            if at + len(tokens) > recipe.length:
                break
            ids[row, at : at + len(tokens)] = torch.tensor(tokens)
            levels[row, at + len(tokens) - 3] = level
            at += len(tokens)
    return ids, levels


def _train_step(
    model: Qwen3ForCausalLM,
    optimisers: list[torch.optim.Optimizer],
    recipe: Recipe,
    step: int,
    ids: torch.Tensor,
    levels: torch.Tensor,
) -> tuple[float, Mapping[int, float]]:
    """One step on the answer tokens; gives the loss and the accuracy per level."""
    rows, positions = levels.nonzero(as_tuple=True)
    states = model.model(ids, use_cache=False).last_hidden_state[rows, positions]
    logits, answers, asked = model.lm_head(states), ids[rows, positions + 1], levels[rows, positions]
    loss = torch.nn.functional.cross_entropy(logits, answers)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser, rate in zip(optimisers, (recipe.matrix_rate, recipe.other_rate), strict=True):
        optimiser.param_groups[0]["lr"] = rate * _rate(step, recipe)
        optimiser.step()
        optimiser.zero_grad()
    right = (logits.argmax(-1) == answers).float()
    return loss.item(), {level: right[asked == level].mean().item() for level in asked.unique().tolist()}


def _update(accuracies: Accuracies, task: GradedTask, seen: Mapping[int, float]) -> None:
    for level, accuracy in seen.items():
        name = f"{task.name}/{level}"
        accuracies[name] = 0.95 * accuracies.get(name, 0.0) + 0.05 * accuracy


def _rounded(accuracies: Accuracies) -> Accuracies:
    return {name: round(accuracy, 3) for name, accuracy in sorted(accuracies.items())}


def _save(
    recipe: Recipe,
    folder: Path,
    model: Qwen3ForCausalLM,
    optimisers: list[torch.optim.Optimizer],
    step: int,
    accuracies: Accuracies,
) -> None:
    """One safetensors file holds it all, so that replacing it replaces everything or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{name}": value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    for number, optimiser in enumerate(optimisers):
        for parameter, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{number}/{parameter}/{name}": value for name, value in state.items()}
    about = {"recipe": json.dumps(asdict(recipe)), "step": str(step), "accuracies": json.dumps(accuracies)}
    partial = folder / "checkpoint.safetensors.tmp"
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, partial, metadata=about)
    os.replace(partial, folder / "checkpoint.safetensors")


def _restore(
    recipe: Recipe, folder: Path, model: Qwen3ForCausalLM, optimisers: list[torch.optim.Optimizer]
) -> tuple[int, Accuracies]:
    """Load the checkpoint into model and optimisers; (0, {}) where there is none."""
    file = folder / "checkpoint.safetensors"
    if not file.exists():
        return 0, {}
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    differing = [name for name, value in json.loads(about["recipe"]).items() if asdict(recipe).get(name) != value]
    if differing:
        raise InputError(f"{folder} holds another recipe (it differs in {', '.join(differing)}); choose another --checkpoint")
    tensors = load_file(file)
    weights = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    model.load_state_dict(weights, strict=False)
    for number, optimiser in enumerate(optimisers):
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            match name.split("/"):
                case ["optimiser", which, parameter, key] if int(which) == number:
                    states.setdefault(int(parameter), {})[key] = value
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(about["step"]), json.loads(about["accuracies"])
