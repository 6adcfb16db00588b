"""What decides a fine-tuning, beside its examples and its model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyperlens.errors import InputError
from hyperlens.resampling import check_seed

RATES = {"lora": 2e-4, "full": 2e-5}
"""Methods, and the learning rate that is usual for each."""
DECAYS = {"linear": "linear", "cosine": "cosine", "none": "constant_with_warmup"}
"""How the rate falls after the warmup, and what transformers calls it."""
AIMS = ("keep", "raise", "lower")

COUNTS = ("batch", "accumulation", "states", "lora_rank")
WHOLE = (*COUNTS, "warmup", "focal_depth", "save_every", "log_every", "seed")
FREE = ("save_every", "log_every")
"""Fields that change what is kept and told of a training, and nothing of what it comes to."""


@dataclass(frozen=True)
class FineTuneRecipe:
    """All that decides a fine-tuning, beside its examples and its model. Raises InputError for values that none has.

    The loss of a step is a mean over its answer tokens, all in nats but the effort: cross-entropy, smoothed by
    `label_smoothing`, + `kl_weight` · KL(base ‖ tuned) + `effort_weight` · shortfall of Ω.
    """

    method: str = "lora"
    """`lora` trains small matrices beside the weights, `full` the weights themselves."""
    rate: float | None = None
    """Learning rate of AdamW at its highest; what is usual for the method by default."""
    epochs: float = 1.0
    """How often every example is seen; parts of a whole are allowed."""
    steps: int | None = None
    """Optimiser steps, in place of `epochs`."""
    batch: int = 16
    """Examples of an optimiser step."""
    accumulation: int = 1
    """Parts of a step, one after the other, that its memory is divided by; nothing of the result changes."""
    warmup: int = 0
    """Steps over which the learning rate rises to its highest."""
    decay: str = "linear"
    """How it then falls to zero: `linear`, `cosine`, or `none` to stay."""
    weight_decay: float = 0.0
    """Share of the weights that a step takes away, times the learning rate."""
    clip: float = 1.0
    """Longest gradient; a longer one is shortened to it."""
    label_smoothing: float = 0.0
    """Share of the cross-entropy that is spread over the whole vocabulary."""
    kl_weight: float = 0.0
    """Weight of KL(base ‖ tuned) at the answer tokens."""
    effort_weight: float = 0.0
    """Weight λ of the effort term: the shortfall of Ω, summed over the tokens that have one in the base, and divided by all
    answer tokens of the step. Those whose Ω means nothing, and the token that ends a text, add 0 and are counted."""
    focal_depth: int = 2
    """Number m of deepest layers at which the term reads Ω."""
    states: int = 4
    """How many of the states 0 … L − m − 1 it reads, evenly spread; Ω is their mean."""
    aim: str = "keep"
    """What it asks of Ω: `keep` max(0, Ω_base − Ω); `raise` max(0, Ω_base + shift − Ω); `lower` max(0, Ω − Ω_base + shift)."""
    shift: float = 0.0
    """How far Ω is to be raised or lowered, from 0 to 1."""
    lora_rank: int = 16
    """Rank of the small matrices."""
    lora_alpha: float = 32.0
    """Their strength, times the rank."""
    lora_dropout: float = 0.0
    """Share of their inputs that is left out at random in training."""
    lora_targets: str = "all-linear"
    """Layers that have them: `all-linear` (but the unembedding), or names joined by commas, such as `q_proj,v_proj`."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again on the way back, for less memory and more time."""
    length: int | None = None
    """Most tokens of an example; what the model's context holds by default. A longer one is refused, never cut."""
    end: bool = True
    """Whether the token that ends a text (a chat's turn) is learned after the answer, where the answer does not end with it."""
    save_every: int = 100
    """Steps from one checkpoint to the next."""
    log_every: int = 10
    """Steps from one row of the log to the next."""
    seed: int = 0
    """What the order of the examples, and what is random in the model, start from."""

    def __post_init__(self) -> None:
        for name, known in (("method", RATES), ("decay", DECAYS), ("aim", AIMS)):
            if getattr(self, name) not in known:
                raise InputError(f'"{getattr(self, name)}" is no {name}; choose from {", ".join(known)}')
        for name in (*WHOLE, *(name for name in ("steps", "length") if getattr(self, name) is not None)):
            if not isinstance(value := getattr(self, name), int) or isinstance(value, bool):
                raise InputError(f"{name} is {value}; give a whole number")
        self._check_ranges()
        if self.batch % self.accumulation:
            raise InputError(
                f"a step of {self.batch} examples has no {self.accumulation} equal parts; give an accumulation that divides it"
            )
        if self.shift and self.aim == "keep":
            raise InputError(f"the shift is {self.shift}, and to keep Ω there is none; choose the aim raise or lower")

    def _check_ranges(self) -> None:
        for name in (*COUNTS, "save_every", "log_every", "steps", "length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 1 up")
        for name in ("warmup", "weight_decay", "kl_weight", "effort_weight", "focal_depth"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 0 up")
        check_seed(self.seed)
        for name in ("rate", "epochs", "clip", "lora_alpha"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; give a number above 0")
        for name in ("label_smoothing", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a share from 0 to below 1")
        if not 0 <= self.shift <= 1:
            raise InputError(f"shift is {self.shift}; give a number from 0 to 1")

    @property
    def highest_rate(self) -> float:
        """The learning rate at its highest."""
        return RATES[self.method] if self.rate is None else self.rate

    @property
    def plain(self) -> bool:
        """Whether the loss is the cross-entropy alone."""
        return not (self.label_smoothing or self.kl_weight or self.effort_weight)
