"""The training's checkpoint: one safetensors file that holds weights, optimisers, step and accuracies, replaced whole."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from hyperlens.errors import ArtefactError, InputError
from hyperlens.training.curriculum import Accuracies
from hyperlens.training.recipe import Recipe

NAME = "checkpoint.safetensors"


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
    partial = folder / f"{NAME}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / NAME)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ArtefactError(
            f"the checkpoint of step {step} cannot be written to {folder} ({error.strerror}); the one before it is intact: "
            "make room, then run the same command to go on from there"
        ) from error


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
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{file} cannot be read ({error}); remove it to begin anew, or put back a copy") from error
    step = int(about["step"])
    _check_same(folder, Recipe(**json.loads(about["recipe"])), recipe, step)
    weights = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    model.load_state_dict(weights, strict=False)
    for number, optimiser in enumerate(optimisers):
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            match name.split("/"):
                case ["optimiser", which, parameter, key] if int(which) == number:
                    states.setdefault(int(parameter), {})[key] = value
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    return step, json.loads(about["accuracies"])


def _check_same(folder: Path, kept: Recipe, asked: Recipe, step: int) -> None:
    before, now = asdict(kept), asdict(asked)
    if step <= min(kept.plateau, asked.plateau):
        before["steps"] = now["steps"]
    differing = [f"{name} is {before[name]}, here {now[name]}" for name in now if before[name] != now[name]]
    if differing:
        raise InputError(
            f"{folder} holds the checkpoint of another recipe ({'; '.join(differing)}); "
            "choose another --checkpoint, or ask for what it was begun with"
        )
