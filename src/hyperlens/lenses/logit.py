"""The logit lens (nostalgebraist 2020): the model's own read-out of each residual state; focal depth 0."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hyperlens.certificate import Context
from hyperlens.lenses.lens import Lens


@dataclass(frozen=True)
class LogitLens(Lens):
    """Reads every state as if it left the last layer."""

    focal_depths: tuple[int, ...] | Literal["auto"] = field(default=(0,), init=False)
    context: Context = field(default="jump", init=False)

    @property
    def name(self) -> str:
        return "logit"
