"""The logit lens (nostalgebraist 2020): the model's own read-out of each residual state; focal depth 0."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperlens.lenses.lens import Lens


@dataclass(frozen=True)
class LogitLens(Lens):
    """Reads every state as if it left the last layer."""

    focal_depths: tuple[int, ...] | str = field(default=(0,), init=False)
    context: str = field(default="jump", init=False)
    between: tuple[int, ...] = field(default=(), init=False)

    @property
    def name(self) -> str:
        return "logit"
