"""What a server serves, and what it allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hyperlens.configuration import context_length
from hyperlens.errors import InputError
from hyperlens.lenses import HyperLens, Lens
from hyperlens.models import Model
from hyperlens.monitoring.generation import Monitor

MOST_CHOICES = 16
"""Answers of one request: its prompts times `n`."""
MOST_TOP = 20
"""Top tokens of each state that a request may ask for."""
MOST_TOP_TOKENS = 250_000
"""Top tokens of all states, tokens and answers of one request: about 4 MB of JSON."""


def _logit_like() -> Lens:
    return HyperLens((0,), "cached")


@dataclass(frozen=True)
class Service:
    """A model, how its answers are read unless a request says otherwise, and what requests may take.

    `largest_answer` is in tokens; `queue` counts the requests that may wait, each for at most `wait` seconds, and one that ends
    with the server has `grace` seconds. `log` is given each prompt and its answer; None keeps them to nobody. `name` is what
    clients call the model: its name on the hub, or that of its folder without the path to it. `longest_token` is that of the
    vocabulary, in characters.
    """

    model: Model = field(repr=False)
    lens: Lens = field(default_factory=_logit_like)
    stride: int = 1
    candidates: int | None = None
    top_k: int = 0
    largest_answer: int = 512
    queue: int = 64
    wait: float = 60.0
    grace: float = 10.0
    log: Callable[[dict[str, Any]], None] | None = field(default=None, repr=False)
    name: str = field(init=False)
    longest_token: int = field(init=False)

    def __post_init__(self) -> None:
        for name, value, least in (("answer's limit", self.largest_answer, 1), ("queue", self.queue, 1)):
            if value < least:
                raise InputError(f"the {name} is {value}; give a number from {least} up")
        if not 0 < self.wait < math.inf:
            raise InputError(f"the longest wait is {self.wait} seconds; give a number above 0")
        if self.model.tokenizer is None:
            raise InputError(f"{self.model.name} came without a tokenizer; give one, since clients send texts")
        object.__setattr__(self, "name", _name_model(self.model.name))
        object.__setattr__(self, "longest_token", max(map(len, self.model.tokenizer.get_vocab())))
        object.__setattr__(self, "model", replace(self.model, name=self.name))  # sentences for clients name no folder
        object.__setattr__(self, "lens", self.lens.fit_to(self.model))
        self.make_monitor()

    @property
    def tokenizer(self) -> Any:
        """The model's; there is one."""
        return self.model.tokenizer

    @property
    def context(self) -> int | None:
        """How many tokens prompt and answer may have together; None where the model names no limit."""
        return context_length(self.model.splice.config)

    @property
    def focal_depth(self) -> int:
        """The focal depth of requests that name none."""
        return self.lens.check_depths(self.model.layers)[0]

    def make_monitor(self, focal_depth: int | None = None, **choices: Any) -> Monitor:
        """What reads one request's answers. Raises InputError where it asks for what this model or lens has not."""
        lens = self.lens if focal_depth in (None, self.focal_depth) else self._refocus(focal_depth)
        usual = {"stride": self.stride, "candidates": self.candidates, "top_k": self.top_k}
        return Monitor(self.model, lens, **(usual | choices))

    def is_usual(self, monitor: Monitor) -> bool:
        """Whether a monitor reads as requests are read that choose nothing."""
        return (read_depth(monitor), monitor.stride, monitor.candidates) == (self.focal_depth, self.stride, self.candidates)

    def _refocus(self, focal_depth: int | None) -> Lens:
        if not isinstance(self.lens, HyperLens):
            raise InputError(f"this server reads through a {self.lens.name} lens at focal depth {self.focal_depth} only")
        deepest = self.model.layers - 1
        if focal_depth is None or focal_depth > deepest:
            raise InputError(f"the focal depth is above {deepest}, the deepest of this model; give 0 to {deepest}")
        return replace(self.lens, focal_depths=(focal_depth,))

    def describe(self) -> dict[str, Any]:
        """What a client may want to know before it asks."""
        from hyperlens import __version__

        return {
            "version": __version__,
            "model": self.name,
            "model_fingerprint": self.model.fingerprint,
            "layers": self.model.layers,
            "lens": self.lens.name,
            "focal_depth": self.focal_depth,
            "stride": self.stride,
            "candidates": self.candidates,
            "top_k": self.top_k,
            "chat": bool(self.tokenizer.chat_template),
            "limits": {
                "context": self.context,
                "new_tokens": self.largest_answer,
                "queue": self.queue,
                "wait_seconds": self.wait,
                "choices": MOST_CHOICES,
                "top_k": MOST_TOP,
                "top_tokens": MOST_TOP_TOKENS,
            },
        }


def _name_model(given: str) -> str:
    path = Path(given)
    return path.resolve().name if path.exists() else given


def read_depth(monitor: Monitor) -> int:
    """The one focal depth at which a monitor reads."""
    lens = monitor.lens
    assert isinstance(lens, Lens)
    return lens.check_depths(monitor.model.layers)[0]
