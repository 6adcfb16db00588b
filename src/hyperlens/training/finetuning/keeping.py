"""What a fine-tuning keeps: its checkpoints while it goes on, and what came of it, as a folder that any loader reads."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from hyperlens.artefact import PARTIAL, list_versions, place_folder, place_json, to_json
from hyperlens.errors import ArtefactError, InputError, first_sentence
from hyperlens.models import Model
from hyperlens.models.adapters import save_network
from hyperlens.models.quiet import quiet
from hyperlens.training.checkpoints import list_differences
from hyperlens.training.finetuning.examples import Examples
from hyperlens.training.finetuning.recipe import FREE, FineTuneRecipe

RECIPE, LOG, VALUES = "recipe.json", "training.jsonl", "base_values"
STATE = "trainer_state.json"
"""What the trainer writes last of a checkpoint."""
ADAPTER = "adapter_model.safetensors"
PARTS = (STATE, "optimizer.pt", "scheduler.pt", "rng_state*.pth", "*model*.safetensors")
"""What a checkpoint needs, for a training to go on from it as if it had never stopped."""


def identify(model: Model, examples: Examples, recipe: FineTuneRecipe) -> dict[str, Any]:
    """All that decides what comes of a fine-tuning."""
    kept = {name: value for name, value in asdict(recipe).items() if name not in FREE}
    return {**kept, "rate": recipe.highest_rate, "base": model.fingerprint, "examples": examples.fingerprint}


def find_checkpoints(out: Path) -> Path:
    """The folder of the checkpoints of `out`, beside it."""
    return out.absolute().with_name(f"{out.absolute().name}.checkpoint")


def holds_tuned(place: Path, identity: Mapping[str, Any], resume: bool) -> bool:
    """Whether a folder holds what comes of this fine-tuning; False where it may be written, since nothing is there.

    Raises ArtefactError where it holds anything else, or the same and it is to be trained anew: nothing is replaced.
    """
    if place.is_file():
        raise ArtefactError(f"{place} is a file; what comes of a fine-tuning needs a folder of its own, choose another --out")
    if _is_vacant(place):
        return False
    kept = _read_identity(place / RECIPE)
    if kept is None:
        raise ArtefactError(f"{place} exists and holds no fine-tuning of HyperLens; nothing was written, choose another --out")
    if differing := list_differences(kept, identity):
        raise ArtefactError(f"{place} holds another fine-tuning ({'; '.join(differing)}); choose another --out, or remove it")
    if not resume:
        raise ArtefactError(f"{place} holds this fine-tuning already; to train it anew, choose another --out, or remove it")
    return True


def read_tuned(place: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is known of the fine-tuned model in a folder, and the log of its training. Raises ArtefactError."""
    about = {name: value for name, value in _read_json(place / RECIPE).items() if name != "written_by"}
    try:
        return about, [json.loads(line) for line in (place / LOG).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{place / LOG} cannot be read ({first_sentence(error)}); remove {place} to train anew") from None


def load_weights(network: Any, folder: Path) -> None:
    """Give a network the weights that were saved of one like it; of an adapted one the adapter's. Raises ArtefactError."""
    try:
        with quiet():
            if hasattr(network, "peft_config"):
                from peft import set_peft_model_state_dict

                set_peft_model_state_dict(network, load_file(folder / ADAPTER))
            else:  # read by the library, which knows by which names a family is saved
                widest = max((one.dtype for one in network.parameters()), key=lambda dtype: dtype.itemsize)
                saved = type(network).from_pretrained(folder, dtype=widest, local_files_only=True)
                network.load_state_dict(saved.state_dict())
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_sentence(error)
        raise ArtefactError(f"the weights in {folder} cannot be read ({reason}); remove it, and train anew") from None


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """Of a whole checkpoint: the steps that were done, `global_step`, of how many, `max_steps`, and the log so far."""
    return _read_json(checkpoint / STATE)


def count_steps(out: Path) -> int:
    """After how many steps a fine-tuning would go on: those of the last whole checkpoint of `out`, 0 where there is none."""
    last = _find_last(find_checkpoints(out))
    return 0 if last is None else read_progress(last)["global_step"]


def begin_checkpoints(folder: Path, identity: Mapping[str, Any], resume: bool) -> Path | None:
    """The last whole checkpoint of this fine-tuning in a folder, if there is one; without `resume` all are removed.

    Raises InputError where the folder holds the checkpoint of another one, ArtefactError where it cannot be used.
    """
    kept = _read_identity(folder / RECIPE)
    if kept is None and not _is_vacant(folder):
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

    def write(partial: Path) -> None:
        with quiet():
            save_network(network, partial)
            assert model.tokenizer is not None
            model.tokenizer.save_pretrained(partial)
        (partial / "README.md").unlink(missing_ok=True)  # a template that PEFT leaves to be filled in
        (partial / LOG).write_text("".join(f"{to_json(row)}\n" for row in log), encoding="utf-8")
        place_json(partial / RECIPE, {"written_by": "hyperlens", **document})

    try:
        return place_folder(out, write)
    except SafetensorError as error:
        raise ArtefactError(f"{out} cannot be written ({first_sentence(error)}); make room, the checkpoint is kept") from None


def describe(
    model: Model, examples: Examples, recipe: FineTuneRecipe, undefined: int | None, training: Mapping[str, Any]
) -> dict[str, Any]:
    """What is saved beside a fine-tuned model: what it was made of, with what, how far, and by what."""
    return {
        "identity": identify(model, examples, recipe),
        "recipe": asdict(recipe) | {"rate": recipe.highest_rate},
        "examples": examples.describe() | ({} if undefined is None else {"tokens_without_effort": undefined}),
        "training": dict(training),
        "base": {"name": model.name, "fingerprint": model.fingerprint},
        "versions": list_versions("hyperlens", "torch", "transformers", "trl", "peft"),
    }


def _find_last(folder: Path) -> Path | None:
    """The checkpoint of the most steps that was written to its end."""
    whole = [place for place in folder.glob("checkpoint-*") if _is_whole(place)]
    return max(whole, key=lambda place: int(place.name.rpartition("-")[2]), default=None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether all parts are there, and no file was cut off: of both kinds the end, or the length, would tell."""
    if not all(any(checkpoint.glob(part)) for part in PARTS):
        return False
    index = _read_json(checkpoint / "model.safetensors.index.json") or {"weight_map": {}}
    weights = {*checkpoint.glob("*.safetensors"), *(checkpoint / name for name in index["weight_map"].values())}
    try:
        for file in weights:
            with safe_open(file, "pt"):
                pass
    except (OSError, SafetensorError):
        return False
    pickled = [file for file in checkpoint.iterdir() if file.suffix in (".pt", ".pth")]
    state = _read_json(checkpoint / STATE)
    return all(map(zipfile.is_zipfile, pickled)) and isinstance(state, dict) and {"global_step", "max_steps"} <= state.keys()


def _is_vacant(folder: Path) -> bool:
    """Whether there is nothing in a folder but what a writing that was interrupted left."""
    return not folder.exists() or all(file.suffix in (PARTIAL, ".tmp") for file in folder.iterdir())


def _read_identity(file: Path) -> dict[str, Any] | None:
    document = _read_json(file)
    ours = isinstance(document, dict) and document.get("written_by") == "hyperlens"
    return document.get("identity") if ours and isinstance(document, dict) else None


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
