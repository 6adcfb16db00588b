"""What a monitored training keeps in its output folder: the base's values, and the best model by the user's rule."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from hyperlens.artefact import place_folder, place_json
from hyperlens.diagnosis import MEASURES, Columns
from hyperlens.errors import ArtefactError, InputError, first_sentence
from hyperlens.models.adapters import save_network
from hyperlens.models.quiet import quiet
from hyperlens.monitoring.reading import check_identity, identify_probe, list_values
from hyperlens.trajectory import Trajectory

BASE, BEST, ABOUT = "effort_base.json", "best", "effort.json"


def save_base(folder: Path, values: Columns, identity: Mapping[str, Any]) -> None:
    """Write the base's values, with what they were measured on. Raises ArtefactError."""
    listed = {name: values[name].tolist() for name in MEASURES}
    place_json(folder / BASE, {"written_by": "hyperlens", "probe": dict(identity), "values": listed})


def find_base(given: Trajectory | str | os.PathLike[str], identity: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The values of a base: a trajectory of the probe set, its folder, or the file that an earlier training left.

    Raises InputError where it was measured on something else, ArtefactError where it cannot be read.
    """
    if not isinstance(given, Trajectory) and Path(given).is_file():
        return _read_values(Path(given), identity)
    where = "the base" if isinstance(given, Trajectory) else str(given)
    trajectory = given if isinstance(given, Trajectory) else Trajectory.load(given)
    depth = identity["lens"]["focal depth"]
    if depth not in trajectory.focal_depths:
        raise InputError(f"{where} has no focal depth {depth}; measure the base at that depth too, or give another focal_depth")
    check_identity(identify_probe(trajectory, depth), identity, where)
    return list_values(trajectory, depth)


def _read_values(file: Path, identity: Mapping[str, Any]) -> dict[str, np.ndarray]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        probe, values = document["probe"], {name: np.array(document["values"][name], dtype=float) for name in MEASURES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{file} holds no base that can be read ({first_sentence(error)}); give another base") from None
    check_identity(probe, identity, str(file))
    return values


def read_best(folder: Path) -> dict[str, Any] | None:
    """What is known of the best model that was kept so far; None where there is none. Raises ArtefactError where the folder
    holds something else, which would be lost."""
    place = folder / BEST
    if not place.exists():
        return None
    try:
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        return {"score": float(about["score"]), "rule": about["rule"], **about}
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtefactError(f"{place} was not written by EffortCallback and would be lost; give another output_dir") from None


def save_best(folder: Path, model: Any, tokenizer: Any, about: Mapping[str, Any]) -> None:
    """Save the model (of an adapted one the adapter) and its tokenizer as the best, in the place of the one before.

    Written beside it and moved there whole, so that what is there is always complete. Raises ArtefactError.
    """

    def write(partial: Path) -> None:
        with quiet():
            save_network(model, partial)
            tokenizer.save_pretrained(partial)
        place_json(partial / ABOUT, {"written_by": "hyperlens", **about})

    try:
        place_folder(folder / BEST, write)
    except SafetensorError as error:
        raise ArtefactError(f"the best model cannot be written to {folder} ({first_sentence(error)}); make room") from None
