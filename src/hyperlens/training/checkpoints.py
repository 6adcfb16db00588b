"""What a training keeps: its checkpoint, one safetensors file that holds weights, optimisers, step and accuracies, and its
log. Both are replaced whole, so that a crash or a full disk leaves the last good ones."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from hyperlens.errors import ArtefactError, InputError
from hyperlens.training.curriculum import Accuracies
from hyperlens.training.recipe import Recipe

NAME, LOG = "checkpoint.safetensors", "log.jsonl"


def save_checkpoint(
    folder: Path,
    recipe: Recipe,
    model: nn.Module,
    optimisers: list[torch.optim.Optimizer],
    step: int,
    accuracies: Accuracies,
) -> None:
    """Write the checkpoint beside the last one, then put it in its place. Raises ArtefactError, the last one intact."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    for number, optimiser in enumerate(optimisers):
        for parameter, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{number}/{parameter}/{name}": value for name, value in state.items()}
    about = {"recipe": json.dumps(asdict(recipe)), "step": str(step), "accuracies": json.dumps(accuracies)}
    content = save({name: value.detach().contiguous() for name, value in tensors.items()}, metadata=about)
    _replace(folder / NAME, content, step)


def save_log(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON line per row, before the checkpoint of the last row's step. Raises ArtefactError, the last one intact."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    _replace(folder / LOG, text.encode(), rows[-1]["step"])


def read_log(folder: Path, step: int) -> list[dict[str, Any]]:
    """The rows up to the checkpoint's `step`; one that was written after it belongs to no checkpoint."""
    file = folder / LOG
    if step == 0 or not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["step"] <= step]


def restore_checkpoint(
    folder: Path, recipe: Recipe, model: nn.Module, optimisers: list[torch.optim.Optimizer]
) -> tuple[int, Accuracies]:
    """Load the checkpoint into model and optimisers; (0, {}) where there is none. Raises InputError for another recipe's.

    Another number of `steps` is the same recipe as long as both still have their learning rates on the plateau.
    """
    file = folder / NAME
    if not file.exists():
        return 0, {}
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        tensors = load_file(file)
        step, kept, accuracies = int(about["step"]), json.loads(about["recipe"]), json.loads(about["accuracies"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{file} cannot be read ({error}); remove it to begin anew, or put back a copy") from error
    _check_same(folder, kept, recipe, step)
    weights = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    model.load_state_dict(weights, strict=False)
    for number, optimiser in enumerate(optimisers):
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            match name.split("/"):
                case ["optimiser", which, parameter, key] if int(which) == number:
                    states.setdefault(int(parameter), {})[key] = value
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    return step, accuracies


def _replace(file: Path, content: bytes, step: int) -> None:
    partial = file.with_name(f"{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ArtefactError(
            f"the checkpoint of step {step} cannot be written to {file.parent} ({error.strerror}); the one before it is "
            "intact: make room, then run the same command to go on from there"
        ) from error


def _check_same(folder: Path, kept: dict[str, Any], recipe: Recipe, step: int) -> None:
    """Refuse a checkpoint whose recipe lacks a field, has another one, or another value in it."""
    before, now = dict(kept), asdict(recipe)
    decay = before.get("decay_share", recipe.decay_share)
    if step <= min(recipe.plateau, round(before.get("steps", 0) * (1 - decay))):
        before["steps"] = now["steps"]
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    differing = [f"{name} is {before.get(name, 'absent')}, here {now.get(name, 'absent')}" for name in names]
    if differing:
        raise InputError(
            f"{folder} holds the checkpoint of another recipe ({'; '.join(differing)}); "
            "choose another --checkpoint, or ask for what it was begun with"
        )
