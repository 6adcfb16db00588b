"""What decides the training of a tuned lens, beside its text and its model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyperlens.errors import InputError

RATES = {"muon": 0.1, "adamw": 0.01}
"""Optimisers, and their usual learning rate: high, since translators begin at zero and few steps have to suffice."""
BIAS_RATE = 0.01
"""Learning rate of the biases beside Muon, which takes matrices alone."""
DECAYS = ("linear", "cosine")
PRECISIONS = ("bfloat16",)
"""What the products of a step may be made in, where not in the model's own precision."""
WHOLE = ("steps", "step_tokens", "warmup", "focal_depth", "validation_tokens", "evaluate_every", "patience", "seed")


@dataclass(frozen=True)
class LensRecipe:
    """All that decides the training of a tuned lens, beside its text and its model."""

    optimiser: str = "muon"
    """`muon` for the matrices with AdamW for the biases, or `adamw` for both."""
    rate: float | None = None
    """Learning rate at its highest; what is usual for the optimiser by default."""
    steps: int = 500
    """Optimiser steps."""
    step_tokens: int = 4096
    """Tokens of a step, about; collected over as many batches as the memory needs."""
    warmup: int = 20
    """Steps over which the learning rate rises to its highest."""
    decay: str = "linear"
    """How it then falls to zero: `linear` or `cosine`."""
    weight_decay: float = 0.0
    """Pull towards the identity: share of a translator that a step takes away, times the learning rate."""
    clip: float = 1.0
    """Longest gradient of one state's translator; longer ones are shortened to it."""
    focal_depth: int = 0
    """Number m of deepest layers that follow a translator; those of states from L − m on stay the identity."""
    bias: bool = True
    """Whether translators have a bias beside their matrix."""
    validation_share: float = 0.1
    """Share of the text that is held out to validate."""
    validation_tokens: int = 16384
    """Most tokens that are held out."""
    evaluate_every: int = 50
    """Steps from one validation, and checkpoint, to the next."""
    patience: int = 0
    """Validations in a row without a better mean after which the training ends early; 0 for never."""
    seed: int = 0
    """What the order of the text and its division start from."""
    autocast: str | None = None
    """`bfloat16` for the products of a model in float32, in steps alone; what validates stays in float32."""

    def __post_init__(self) -> None:
        if self.optimiser not in RATES:
            raise InputError(f'"{self.optimiser}" is not an optimiser; choose from {", ".join(RATES)}')
        if self.decay not in DECAYS:
            raise InputError(f'"{self.decay}" is not a way for the rate to fall; choose from {", ".join(DECAYS)}')
        if self.autocast not in (None, *PRECISIONS):
            known = ", ".join(PRECISIONS)
            raise InputError(f'"{self.autocast}" is not a precision for autocast; give {known}, or leave it away')
        for name in WHOLE:
            if not isinstance(value := getattr(self, name), int) or isinstance(value, bool):
                raise InputError(f"{name} is {value}; give a whole number")
        for name in ("steps", "step_tokens", "validation_tokens", "evaluate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 1 up")
        for name in ("warmup", "weight_decay", "focal_depth", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 0 up")
        for name in ("rate", "clip"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give a number above 0")
        if not 0 < self.validation_share < 1:
            raise InputError(f"the validation share is {self.validation_share}; give a number between 0 and 1")

    @property
    def highest_rate(self) -> float:
        """The learning rate at its highest."""
        return RATES[self.optimiser] if self.rate is None else self.rate

    def scale_rate(self, step: int) -> float:
        """The learning rate of a step (from 0) as a share of the highest."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        left = (self.steps - step) / max(1, self.steps - self.warmup)
        return left if self.decay == "linear" else (1 - math.cos(math.pi * left)) / 2
