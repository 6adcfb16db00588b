"""Tuned lenses as the original package (tuned-lens 0.2) keeps them: `config.json` and `params.pt`."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperlens.artefact import place_bytes, place_json
from hyperlens.errors import ArtefactError, HyperLensWarning, InputError, first_sentence
from hyperlens.lenses.tuned import Origin, Translators, TunedLens
from hyperlens.lenses.unembedding import hash_unembedding
from hyperlens.models import Model

CONFIG, PARAMETERS = "config.json", "params.pt"
KIND = "linear_tuned_lens"
NEEDED = {"base_model_name_or_path": str, "d_model": int, "num_hidden_layers": int}
KNOWN = {*NEEDED, "bias", "base_model_revision", "unembed_hash", "lens_type"}
ITS_FAMILIES = {"bloom", "gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "opt"}
"""Models that the original package can read."""


def is_original(folder: Path) -> bool:
    """Whether a folder holds what the original package writes."""
    return (folder / CONFIG).is_file() and (folder / PARAMETERS).is_file()


def read_original(folder: Path) -> tuple[Translators, Origin]:
    """Its translators in float32, and what it says of the model. Runs no code that the file may hold. Raises ArtefactError."""
    config = _read_config(folder / CONFIG)
    tensors = _read_tensors(folder / PARAMETERS)
    states, width = config["num_hidden_layers"], config["d_model"]
    shapes = {"weight": (width, width)} | ({"bias": (width,)} if config.get("bias", True) else {})
    expected = {f"{state}.{name}": shape for state in range(states) for name, shape in shapes.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        here, there = (list(shapes[wrong[0]]) if wrong[0] in shapes else "nothing" for shapes in (found, expected))
        raise ArtefactError(
            f"{folder / PARAMETERS} has {here} as {wrong[0]} where {CONFIG} ({states} states of width {width}) asks for "
            f"{there}; put back the two files of one lens"
        )
    parts = {name: torch.stack([tensors[f"{state}.{name}"].float() for state in range(states)]) for name in shapes}
    if not all(torch.isfinite(part).all() for part in parts.values()):
        raise ArtefactError(f"{folder / PARAMETERS} holds values that are not finite; train the lens again")
    origin = Origin(config["base_model_name_or_path"], unembedding=config.get("unembed_hash"))
    return Translators(parts["weight"], parts.get("bias")), origin


def export_lens(lens: TunedLens, folder: str | os.PathLike[str], model: Model) -> Path:
    """Write a tuned lens of `model` as the original package reads it; gives the folder.

    The original reads states at focal depth 0 only, and only lenses with biases: where there are none, zeros are written.
    What is written names the model by its unembedding, so that it must be the one the lens was trained for. Raises InputError
    for another lens or model, ArtefactError where the folder holds something else or cannot be written.
    """
    replace(lens, transfer=False).fit_to(model)
    if lens.origin.focal_depth or lens.between:
        raise InputError("the original package reads no states through deeper layers; export a lens trained at focal depth 0")
    place = _check_folder(Path(folder).absolute())
    if (family := model.splice.config.model_type) not in ITS_FAMILIES:
        warnings.warn(f"the original package cannot read models of the family {family}", HyperLensWarning, stacklevel=2)
    torch.save(_name_tensors(lens.translators), buffer := io.BytesIO())
    place_bytes(place / PARAMETERS, buffer.getvalue())
    place_json(place / CONFIG, _describe(lens, model))
    return place


def _name_tensors(translators: Translators) -> dict[str, Tensor]:
    """Translators by the names that the original gives them, each with a storage of its own."""
    weight, bias = translators.weight, translators.bias
    bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias
    parts = {"weight": weight.detach().cpu(), "bias": bias.detach().cpu()}
    return {f"{state}.{name}": part[state].clone() for state in range(len(weight)) for name, part in parts.items()}


def _describe(lens: TunedLens, model: Model) -> dict[str, Any]:
    """The settings that the original reads."""
    return {
        "base_model_name_or_path": lens.origin.model,
        "d_model": lens.translators.weight.shape[-1],
        "num_hidden_layers": len(lens.translators.weight),
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": hash_unembedding(model),
        "lens_type": KIND,
    }


def _check_folder(place: Path) -> Path:
    """The folder, if it may be written: it is not there, is empty, or holds what the original package writes."""
    try:
        held = {file.name for file in place.iterdir()} if place.is_dir() else set()
    except OSError as error:
        raise ArtefactError(f"{place} cannot be read ({error.strerror}); choose another folder") from None
    if (place.exists() and not place.is_dir()) or held - {CONFIG, PARAMETERS}:
        raise ArtefactError(f"{place} holds something else than a lens of the original package; choose another folder")
    return place


def _read_config(file: Path) -> dict[str, Any]:
    """What the lens says of itself, if it is all there."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{file} cannot be read ({first_sentence(error)}); put back a copy") from None
    if not isinstance(config, dict):
        raise ArtefactError(f"{file} holds a {type(config).__name__}, not the settings of a lens; put back a copy")
    for name, kind in NEEDED.items():
        if type(config.get(name)) is not kind:
            raise ArtefactError(
                f"{file} says {json.dumps(config.get(name))} as {name}, which is no {kind.__name__}; put it right"
            )
        if kind is int and config[name] < 1:
            raise ArtefactError(f"{file} says {config[name]} as {name}, which is no number from 1 up; put it right")
    if (kind := config.get("lens_type", KIND)) != KIND:
        raise ArtefactError(f"{file} describes a lens of the kind {json.dumps(kind)}; only {KIND} can be read")
    if not isinstance(config.get("bias", True), bool) or not isinstance(config.get("unembed_hash"), str | None):
        raise ArtefactError(f"{file} gives a bias or unembed_hash that is none; put it right")
    if unknown := sorted(config.keys() - KNOWN):
        warnings.warn(
            f"{file} says more than is known ({', '.join(unknown)}), which is left out", HyperLensWarning, stacklevel=4
        )
    return config


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickle of which only tensors are read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of other protocols, before it refuses what they hold
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise ArtefactError(
            f"{file} is a pickle that holds more than tensors{what}, which may be code and was not run; get the lens from whom "
            "you trust, or train one with hyperlens tune-lens"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{file} is damaged ({first_sentence(error)}); put back a copy") from None
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ArtefactError(f"{file} holds something else than named tensors; put back a copy")
    if sparse := next((name for name, tensor in tensors.items() if tensor.layout != torch.strided), None):
        raise ArtefactError(f"{file} holds a sparse {sparse} where a translator needs all its values; put back a copy")
    if whole := next((name for name, tensor in tensors.items() if not tensor.is_floating_point()), None):
        raise ArtefactError(f"{file} holds whole numbers as {whole} where a translator needs fractions; put back a copy")
    return dict(tensors)
