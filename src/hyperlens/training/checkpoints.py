"""What a training keeps: its checkpoint, one safetensors file that holds all that it goes on from, and its log. Both are
replaced whole, so that a crash or a full disk leaves the last good ones."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyperlens.artefact import is_artefact
from hyperlens.errors import ArtefactError, InputError, first_sentence

NAME, LOG = "checkpoint.safetensors", "log.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """A training after `step` steps: the tensors that it trains and keeps, and what else of its `progress` is known."""

    step: int
    tensors: Mapping[str, Tensor]
    progress: Mapping[str, Any] = field(default_factory=dict)


def check_checkpoints(folder: str | os.PathLike[str]) -> Path:
    """The folder as a path, if checkpoints may be kept there. Raises ArtefactError where it holds results of ours."""
    place = Path(folder)
    if is_artefact(place):
        raise ArtefactError(f"{place} holds results of HyperLens, not a checkpoint; choose another --checkpoint")
    return place


def save_checkpoint(
    folder: Path, recipe: Mapping[str, Any], optimisers: Sequence[torch.optim.Optimizer], checkpoint: Checkpoint
) -> None:
    """Write the checkpoint, with the state of the optimisers, beside the last one, then put it in its place.

    `recipe` is all that decides the training. Raises ArtefactError, the last checkpoint intact.
    """
    tensors = {f"tensor/{name}": value for name, value in checkpoint.tensors.items()}
    for number, optimiser in enumerate(optimisers):
        for parameter, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{number}/{parameter}/{name}": value for name, value in state.items()}
    about = {name: json.dumps(part) for name, part in (("recipe", dict(recipe)), ("progress", dict(checkpoint.progress)))}
    about["step"] = str(checkpoint.step)
    content = {name: value.detach().contiguous() for name, value in tensors.items()}
    _replace(folder / NAME, lambda file: save_file(content, file, about), checkpoint.step)


def save_log(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON line per row, before the checkpoint of the last row's step. Raises ArtefactError, the last one intact."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    _replace(folder / LOG, lambda file: file.write_text(text, encoding="utf-8"), rows[-1]["step"])


def read_log(folder: Path, step: int) -> list[dict[str, Any]]:
    """The rows up to the checkpoint's `step`; one that was written after it belongs to no checkpoint."""
    file = folder / LOG
    if step == 0 or not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["step"] <= step]


def restore_checkpoint(
    folder: Path,
    recipe: Mapping[str, Any],
    optimisers: Sequence[torch.optim.Optimizer],
    may_differ: Callable[[Mapping[str, Any], int], Collection[str]] = lambda kept, step: (),
) -> Checkpoint | None:
    """Read the checkpoint and load the optimisers from it; None where there is none.

    `may_differ` names the fields of the recipe in which the one that was kept is still the same training at its step. Raises
    InputError for the checkpoint of another recipe, ArtefactError for a damaged one.
    """
    file = folder / NAME
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        loaded = load_file(file)
        step, kept = int(about["step"]), json.loads(about["recipe"])
        progress = json.loads(about["progress"] if "progress" in about else about["accuracies"])  # as earlier versions have it
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{file} cannot be read ({error}); remove it to begin anew, or put back a copy") from error
    _check_same(folder, kept, recipe, may_differ(kept, step))
    for number, optimiser in enumerate(optimisers):
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in loaded.items():
            match name.split("/"):
                case ["optimiser", which, parameter, key] if int(which) == number:
                    states.setdefault(int(parameter), {})[key] = value
        _check_states(file, optimiser, states, step)
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    trained = {name: value for name, value in loaded.items() if name.startswith(("tensor/", "model/"))}
    return Checkpoint(step, {name.partition("/")[2]: value for name, value in trained.items()}, progress)


def check_shapes(file: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ArtefactError where a checkpoint lacks a tensor, or has one of another shape than is `expected`."""
    for name, tensor in expected.items():
        here = list(found[name].shape) if name in found else "nothing"
        if here != list(tensor.shape):
            raise ArtefactError(
                f"{file} is damaged: it has {here} as {name}, where {list(tensor.shape)} belongs; remove it to begin anew, or "
                "put back a copy"
            )


def list_differences(kept: Mapping[str, Any], recipe: Mapping[str, Any], forgiven: Collection[str] = ()) -> list[str]:
    """Each field that one recipe lacks or has another value in, as `steps is 6, here 7`."""
    names = [name for name in {**kept, **recipe} if kept.get(name) != recipe.get(name) and name not in forgiven]
    return [f"{name} is {kept.get(name, 'absent')}, here {recipe.get(name, 'absent')}" for name in names]


def _check_states(file: Path, optimiser: torch.optim.Optimizer, states: Mapping[int, Mapping[str, Tensor]], step: int) -> None:
    """Raises ArtefactError where, after some steps, an optimiser's state of a parameter is missing or of another shape."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters if step else ()):
        found = {f"state {number}, {name}": value for name, value in states.get(number, {}).items() if value.ndim}
        check_shapes(file, found, {name: parameter for name in found or [f"state {number}"]})


def _replace(file: Path, write: Callable[[Path], object], step: int) -> None:
    partial = file.with_name(f"{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb+") as opened:
            os.fsync(opened.fileno())
        os.replace(partial, file)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        reason = getattr(error, "strerror", None) or first_sentence(error)
        raise ArtefactError(
            f"the checkpoint of step {step} cannot be written to {file.parent} ({reason}); the one before it is "
            "intact: make room, then run the same command to go on from there"
        ) from error


def _check_same(folder: Path, kept: Mapping[str, Any], recipe: Mapping[str, Any], forgiven: Collection[str]) -> None:
    """Refuse a checkpoint whose recipe lacks a field, has another one, or another value in it."""
    if differing := list_differences(kept, recipe, forgiven):
        raise InputError(
            f"{folder} holds the checkpoint of another recipe ({'; '.join(differing)}); "
            "choose another --checkpoint, or ask for what it was begun with"
        )
