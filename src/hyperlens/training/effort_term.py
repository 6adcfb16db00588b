"""Effort with gradients: Ω of answer tokens during training, through the states of the trainer's own forward pass.

A few states are routed through the deepest layers together, in one more call, and read beside the last one. The gradient goes
back through those layers and, where they were recorded with gradients, through the states into the layers before.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hyperlens.effort import SMALLEST_GIVEN, measure_effort
from hyperlens.errors import InputError
from hyperlens.lenses.lens import route_stack
from hyperlens.readings import read_logits
from hyperlens.splice import Inputs, Probes, Splice, at_rest

BLOCK = 64 * 2**20
"""Bytes of logits that are kept for the gradient; of more rows they are made again on the way back."""


def choose_states(layers: int, focal_depth: int, count: int) -> tuple[int, ...]:
    """`count` of the states 0 … L − m − 1, in the middle of equal parts of them; all where there are no more.

    Raises InputError where the focal depth leaves no state, or none is wanted.

    >>> choose_states(16, 2, 4)
    (1, 5, 8, 12)
    """
    left = layers - focal_depth
    if focal_depth < 0 or left < 1:
        raise InputError(f"focal depth {focal_depth} leaves no state of a model of {layers} layers; give 0 to {layers - 1}")
    if count < 1:
        raise InputError(f"effort is to be read of {count} states; give a number from 1 up")
    count = min(count, left)
    return tuple(int((place + 0.5) * left / count) for place in range(count))


def read_effort(
    splice: Splice,
    inputs: Inputs,
    recorded: Mapping[int, Float[Tensor, "row token *width"]],
    states: tuple[int, ...],
    focal_depth: int,
    probes: Probes,
    targets: Int[Tensor, "probe"],
) -> Float[Tensor, "probe"]:
    """Ω of the target token at each probe, over the chosen `states` alone, with gradients if they are enabled.

    `recorded` has those states and state L of a pass over `inputs`, as `Splice.watch` gives them. Their mean of 1 − r_l is
    that of `measure_effort`, which with all states 0 … L − m − 1 is what `trace` reads with the target as reference, in the
    `jump` context. The routed passes are without dropout. NaN where the model's own confidence in the target is below 0.01.
    """
    start = splice.depth - focal_depth
    with splice.lock, at_rest(splice.model, gradients=torch.is_grad_enabled()):
        stack = torch.stack([recorded[state] for state in states])
        routed = route_stack(splice, inputs, stack, start, probes)
        left = torch.cat([routed, probes.pick(recorded[splice.depth])[None]])
        return measure_effort(_read_confidence(splice, left, targets).T, smallest=SMALLEST_GIVEN)


def _read_confidence(
    splice: Splice, left: Float[Tensor, "state probe *width"], targets: Int[Tensor, "probe"]
) -> Float[Tensor, "state probe"]:
    """The probability of the targets in what left the last layer, in blocks of rows that bound the logits."""
    rows, wanted = left.flatten(0, 1), targets.repeat(len(left))
    each = max(1, BLOCK // (4 * splice.config.vocab_size))

    def read(part: Tensor, reference: Tensor) -> Tensor:
        with splice.lock, at_rest(splice.model, gradients=torch.is_grad_enabled()):
            return read_logits(splice.head(part), reference, ("probability",))["probability"]

    if len(rows) <= each:
        return read(rows, wanted).unflatten(0, left.shape[:2])
    parts = [
        checkpoint(read, part, reference, use_reentrant=False, preserve_rng_state=False)
        for part, reference in zip(rows.split(each), wanted.split(each), strict=True)
    ]
    return torch.cat(parts).unflatten(0, left.shape[:2])
