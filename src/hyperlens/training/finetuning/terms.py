"""What a fine-tuning's loss has beside the cross-entropy: all sums over answer tokens, read in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hyperlens.readings import read_logits
from hyperlens.splice import Probes, Splice, at_rest
from hyperlens.training.effort_term import BLOCK
from hyperlens.training.finetuning.examples import LEFT_OUT


class Spread(NamedTuple):
    """Sums over tokens, in nats: what label smoothing adds to the cross-entropy where all of it is spread, and
    KL(base ‖ tuned)."""

    smoothing: Float[Tensor, ""]
    kl: Float[Tensor, ""]


def find_answers(labels: Int[Tensor, "row token"]) -> tuple[Probes, Int[Tensor, "probe"]]:
    """The places that predict a token which is learned, and those tokens."""
    rows, places = (labels[:, 1:] != LEFT_OUT).nonzero(as_tuple=True)
    return Probes(rows, places), labels[rows, places + 1]


def read_spread(
    splice: Splice,
    left: Float[Tensor, "probe *width"],
    targets: Int[Tensor, "probe"],
    base: Callable[[slice], Float[Tensor, "probe vocabulary"]] | None,
) -> Spread:
    """The sums for what `left` the last layer, with gradients; `base` gives the base's logits of some probes: without, no KL.

    Logits exist for a block of probes at a time, and are made again on the way back.
    """
    each = max(1, BLOCK // (4 * splice.config.vocab_size))

    def read(part: Tensor, reference: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        with splice.lock, at_rest(splice.model, gradients=torch.is_grad_enabled()):
            logits = splice.head(part)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        spread = wide.gather(-1, reference[:, None]).squeeze(-1) - wide.mean(-1)
        if base is None:
            return spread.sum(), spread.new_zeros(())
        return spread.sum(), read_logits(logits, reference, ("kl_to_output",), base(place))["kl_to_output"].sum()

    places = [slice(first, first + each) for first in range(0, len(targets), each)]
    sums = [
        checkpoint(read, left[place], targets[place], place, use_reentrant=False, preserve_rng_state=False) for place in places
    ]
    return Spread(*(torch.stack(part).sum() for part in zip(*sums, strict=True)))
