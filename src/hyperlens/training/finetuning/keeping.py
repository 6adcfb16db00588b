"""What a fine-tuning keeps: its checkpoints while it goes on, and what came of it, as a folder that any loader reads."""

from __future__ import annotations

import json
import platform
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hyperlens.artefact import place_folder, place_json, to_json
from hyperlens.errors import ArtefactError, InputError, first_sentence
from hyperlens.models import Model
from hyperlens.models.quiet import quiet
from hyperlens.training.checkpoints import list_differences
from hyperlens.training.finetuning.examples import Examples
from hyperlens.training.finetuning.recipe import FREE, FineTuneRecipe

RECIPE, LOG, VALUES = "recipe.json", "training.jsonl", "base_values"
STATE = "trainer_state.json"
"""What the trainer writes last of a checkpoint."""


def identify(model: Model, examples: Examples, recipe: FineTuneRecipe) -> dict[str, Any]:
    """All that decides what comes of a fine-tuning."""
    kept = {name: value for name, value in asdict(recipe).items() if name not in FREE}
    return {**kept, "rate": recipe.highest_rate, "base": model.fingerprint, "examples": examples.fingerprint}


def find_checkpoints(out: Path) -> Path:
    """The folder of the checkpoints of `out`, beside it."""
    return out.absolute().with_name(f"{out.absolute().name}.checkpoint")


def check_out(out: Path, identity: Mapping[str, Any]) -> Path:
    """The folder, if what comes of this fine-tuning may be written there: it is not there, is empty, or holds the same.

    Raises ArtefactError.
    """
    place = out.absolute()
    if place.is_file():
        raise ArtefactError(f"{place} is a file; what comes of a fine-tuning needs a folder of its own, choose another --out")
    if not place.exists() or not any(place.iterdir()):
        return place
    kept = _read_identity(place / RECIPE)
    if kept is None:
        raise ArtefactError(f"{place} exists and holds no fine-tuning of HyperLens; nothing was written, choose another --out")
    if differing := list_differences(kept, identity):
        raise ArtefactError(f"{place} holds another fine-tuning ({'; '.join(differing)}); choose another --out, or remove it")
    return place


def begin_checkpoints(folder: Path, identity: Mapping[str, Any], resume: bool) -> Path | None:
    """The last whole checkpoint of this fine-tuning in a folder, if there is one; without `resume` all are removed.

    Raises InputError where the folder holds the checkpoint of another one, ArtefactError where it cannot be used.
    """
    kept = _read_identity(folder / RECIPE)
    if kept is None and folder.exists() and any(folder.iterdir()):
        raise ArtefactError(f"{folder} exists and holds no checkpoint of HyperLens; remove it, or choose another --out")
    if not resume and kept is not None:
        shutil.rmtree(folder)
    elif kept is not None and (differing := list_differences(kept, identity)):
        raise InputError(
            f"{folder} holds the checkpoint of another fine-tuning ({'; '.join(differing)}); choose another --out, remove it, "
            "or ask for what it was begun with"
        )
    place_json(folder / RECIPE, {"written_by": "hyperlens", "identity": dict(identity)})
    return _find_last(folder)


def save_tuned(network: Any, model: Model, out: Path, document: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> Path:
    """The adapter, or the whole model, with its tokenizer, its recipe and its log; in one move, so that what is there is whole.

    Raises ArtefactError; the checkpoints are kept.
    """
    options = {"save_embedding_layers": False} if hasattr(network, "peft_config") else {}

    def write(partial: Path) -> None:
        with quiet():
            network.save_pretrained(partial, **options)
            assert model.tokenizer is not None
            model.tokenizer.save_pretrained(partial)
        (partial / "README.md").unlink(missing_ok=True)  # a template that PEFT leaves to be filled in
        (partial / LOG).write_text("".join(f"{to_json(row)}\n" for row in log), encoding="utf-8")
        place_json(partial / RECIPE, {"written_by": "hyperlens", **document})

    try:
        return place_folder(out, write)
    except SafetensorError as error:
        raise ArtefactError(f"{out} cannot be written ({first_sentence(error)}); make room, the checkpoint is kept") from None


def describe(model: Model, examples: Examples, recipe: FineTuneRecipe, undefined: int | None) -> dict[str, Any]:
    """What is saved beside a fine-tuned model: what it was made of, with what, and by what."""
    names = ("hyperlens", "torch", "transformers", "trl", "peft")
    return {
        "identity": identify(model, examples, recipe),
        "recipe": asdict(recipe) | {"rate": recipe.highest_rate},
        "examples": examples.describe() | ({} if undefined is None else {"tokens_without_effort": undefined}),
        "base": {"name": model.name, "fingerprint": model.fingerprint},
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
    }


def _find_last(folder: Path) -> Path | None:
    """The checkpoint of the most steps that was written to its end."""
    whole = [place for place in folder.glob("checkpoint-*") if _is_whole(place)]
    return max(whole, key=lambda place: int(place.name.rpartition("-")[2]), default=None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether the trainer's last file is there, and no file was cut off: of both kinds the end, or the length, would tell."""
    try:
        for file in checkpoint.glob("*.safetensors"):
            with safe_open(file, "pt"):
                pass
    except (OSError, SafetensorError):
        return False
    pickled = [file for file in checkpoint.iterdir() if file.suffix in (".pt", ".pth")]
    return all(map(zipfile.is_zipfile, pickled)) and _read_json(checkpoint / STATE) is not None


def _read_identity(file: Path) -> dict[str, Any] | None:
    document = _read_json(file)
    ours = isinstance(document, dict) and document.get("written_by") == "hyperlens"
    return document.get("identity") if ours and isinstance(document, dict) else None


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
