"""What a lens says of all tokens together, summed up state by state while its logits pass: never tokens × vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyperlens.errors import MemoryLimitError
from hyperlens.models import Model
from hyperlens.readings import read_logits
from hyperlens.tracing import Limits
from hyperlens.tracing.batches import Seen

BYTES = 8
"""Of each sum: float64."""
Place = tuple[int, int]
"""A focal depth and a state."""
OUTPUT = (-1, -1)
"""In place of a focal depth and a state: the model's own output."""


@dataclass(frozen=True)
class Sums:
    """Sums over tokens, by focal depth and state: ln Σ q(v) for each v of the vocabulary, and Σ −ln q(next token).

    The model's own output passes with each depth, and counts at the one named `first`. The logarithm of the sum is kept, since
    a token may be so improbable everywhere that its probability is 0 in float32.
    """

    first: int
    marginals: dict[Place, Tensor] = field(default_factory=dict)
    losses: dict[Place, float] = field(default_factory=dict)

    def add(self, seen: Seen) -> None:
        """Take in some logits; what `Job.watch` calls."""
        for state, logits in enumerate(seen.logits, seen.first):
            self._add((seen.depth, state), logits, seen.following)
        if seen.depth == self.first and seen.first == 0:
            self._add(OUTPUT, seen.output, seen.following)

    def _add(self, place: Place, logits: Float[Tensor, "probe vocabulary"], following: Int[Tensor, "probe"]) -> None:
        log_q = logits.float().log_softmax(-1)
        total = log_q.logsumexp(0).double().cpu()
        self.marginals[place] = torch.logaddexp(self.marginals[place], total) if place in self.marginals else total
        loss = -float(log_q.gather(-1, following[:, None]).double().cpu().sum())
        self.losses[place] = self.losses.get(place, 0.0) + loss

    def average_loss(self, depth: int, layers: int, tokens: int) -> np.ndarray:
        """Next-token loss in nats per token of the states 0 … L; from L − m on it is the model's own."""
        places = [(depth, state) for state in range(layers - depth)] + [OUTPUT] * (depth + 1)
        return np.array([self.losses[place] for place in places]) / tokens

    def measure_bias(self, depth: int, layers: int) -> np.ndarray:
        """KL(p̄ ‖ q̄) in nats of the states 0 … L, p̄ and q̄ the means over tokens of the model's distribution and of the lens's;
        0 from state L − m on."""
        bias = np.zeros(layers + 1)
        for state in range(layers - depth):
            logits, none = self.marginals[depth, state], torch.zeros((), dtype=torch.long)
            bias[state] = float(read_logits(logits, none, ("kl_to_output",), self.marginals[OUTPUT])["kl_to_output"])
        return bias


def group_depths(model: Model, depths: tuple[int, ...], limits: Limits) -> tuple[list[tuple[int, ...]], Limits]:
    """The focal depths in groups whose sums fit into half of the memory, each to be read in a pass of its own; and the limits
    that are left to the reading. Raises MemoryLimitError where those of one depth do not fit."""
    each = (model.layers + 1) * model.splice.config.vocab_size * BYTES
    many = limits.memory_mb * 2**20 // 2 // each
    if not many:
        raise MemoryLimitError(
            f"sums of {model.layers + 1} states over a vocabulary of {model.splice.config.vocab_size} tokens need more than "
            f"half of memory_mb {limits.memory_mb}; give at least {-(-2 * each // 2**20)} (--memory-mb)"
        )
    groups = [depths[first : first + many] for first in range(0, len(depths), many)]
    return groups, replace(limits, memory_mb=limits.memory_mb - min(many, len(depths)) * each // 2**20)
