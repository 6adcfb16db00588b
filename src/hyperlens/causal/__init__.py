"""The causal check of the tuned-lens paper (Belrose et al. 2023, arXiv 2303.08112), for any lens: does what matters to the
lens matter to the model, and in the same way?

Ablating a direction of a state changes what a lens reads of it, and what the model itself makes of it. The directions that
matter most to the lens are its causal basis; both changes are compared by their size and, as log-ratios, by their angle.

The paper's text could not be had: what is said of it in this room is from memory, and what is said of the original package was
read in its code (tuned-lens 0.2.0).
"""

from hyperlens.causal.ablation import Ablation, draw_directions, find_components
from hyperlens.causal.basis import CausalBasis, extract_causal_basis
from hyperlens.causal.responses import Responses, align_responses, average_alignment, correlate_influences, measure_influence

__all__ = [
    "Ablation",
    "CausalBasis",
    "Responses",
    "align_responses",
    "average_alignment",
    "correlate_influences",
    "draw_directions",
    "extract_causal_basis",
    "find_components",
    "measure_influence",
]
