"""The lens that a name stands for, wherever one is given by name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from hyperlens.errors import NO_LENS, InputError
from hyperlens.lenses.hyper import HyperLens
from hyperlens.lenses.lens import Lens
from hyperlens.lenses.logit import LogitLens
from hyperlens.lenses.tuned import load_lens
from hyperlens.models import REFERENCE


def open_lens(
    name: str | os.PathLike[str],
    focal_depths: tuple[int, ...] | str | None = None,
    context: str = "jump",
    between: tuple[int, ...] = (),
    transfer: bool = False,
) -> Lens:
    """The lens "hyper" or "logit", which takes no more, or the tuned lens of a folder (a path is always one).

    Without `focal_depths` at what is usual for it. Raises InputError and ArtefactError.
    """
    if name == "logit":
        return LogitLens()
    if name == "hyper":
        return HyperLens("auto" if focal_depths is None else focal_depths, context, between)
    if isinstance(name, str) and name != REFERENCE and not Path(name).is_dir():
        raise InputError(NO_LENS.format(name))
    return replace(load_lens(name, focal_depths, context, transfer), between=between)
