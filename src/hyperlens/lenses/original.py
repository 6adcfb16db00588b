"""Tuned lenses as the original package (tuned-lens 0.2) keeps them: `config.json` and `params.pt`."""

from __future__ import annotations

from pathlib import Path

from hyperlens.errors import ArtefactError
from hyperlens.lenses.tuned import Origin, Translators


def is_original(folder: Path) -> bool:
    """Whether a folder holds what the original package writes."""
    return (folder / "config.json").is_file() and (folder / "params.pt").is_file()


def read_original(folder: Path) -> tuple[Translators, Origin]:
    """Its translators and what it says of the model. Raises ArtefactError."""
    raise ArtefactError(f"{folder} cannot be read yet")
