"""HyperLens (arXiv 2605.05741): each residual state routed through the model's deepest m layers, then read."""

from __future__ import annotations

from dataclasses import dataclass

from hyperlens.lenses.lens import Lens


@dataclass(frozen=True)
class HyperLens(Lens):
    """Reads each state through the deepest layers. Focal depth 0 is the logit lens.

    Prior art for the operator: `extra_layers` of tuned-lens 0.0.3-0.0.5, `decoder_layer_names` of transformer-utils.
    """

    @property
    def name(self) -> str:
        return "hyper"
