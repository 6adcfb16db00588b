"""Looking on at `generate`: what each call of the model saw and made, kept until it is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DummyLayer, DynamicLayer
from transformers.generation.utils import ALL_CACHE_NAMES

from hyperlens.errors import InputError
from hyperlens.memory import KeptLayer, Memory, witness_updates
from hyperlens.models import Model
from hyperlens.routing import CachedForm
from hyperlens.visits import Following

Seen = Mapping[int, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Step:
    """One new token of each text: the call that predicts it, and which token was chosen.

    `ids` are all tokens before it, the last of which stands at the position that is read; `mask` is None where nothing is
    padded. `states` are those of that position by number, `logits` the model's own. `seen` has, by layer, the keys and values
    that it saw, its own last; or `memory` is the model's own of the tokens before it. `open` says which texts go on.
    """

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"] | None
    states: Mapping[int, Tensor]
    logits: Float[Tensor, "row vocabulary"]
    chosen: Int[Tensor, "row"]
    open: Bool[Tensor, "row"]
    seen: Seen = field(default_factory=dict)
    memory: Memory | None = None


class Calls:
    """The calls that `generate` makes, as the model's own hooks show them."""

    def __init__(self, model: Model, following: Following, deepest: int) -> None:
        self.splice, self.following, self.deepest = model.splice, following, deepest
        self.form: CachedForm | None = model.certificate.cached_form if deepest else None
        self.first = self.splice.depth - deepest if self.splice.way == "bypass" else 0
        self.stack = ExitStack()
        self.thread = threading.get_ident()
        self.begun = False
        self.logits: Tensor | None = None
        self.mask: Tensor | None = None
        self.cache: Any = None
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        self.memory: Memory | None = None

    @property
    def aside(self) -> bool:
        """Whether a call is none of `generate`: one of ours, or of another thread."""
        return self.following.paused or threading.get_ident() != self.thread

    def before(self, network: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Look at the memory that a call is given."""
        if self.aside:
            return
        self.mask = given.get("attention_mask")
        name = next((name for name in ALL_CACHE_NAMES if given.get(name) is not None), None)
        if self.form == "rows":
            self._witness(given.get(name) if name else None)
        elif self.form == "steps":
            alone = self.begun and name and given["input_ids"].shape[1] == 1
            self.memory = Memory(given[name], name=name).keep(self.first) if alone and name else None
        self.begun = True

    def after(self, network: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        """Keep the logits of the last column."""
        if not self.aside:
            logits = output.logits
            self.logits = logits[:, -1] if logits.shape[1] == 1 else logits[:, -1].clone()

    def take(self, ids: Int[Tensor, "row token"], chosen: Int[Tensor, "row"], unfinished: Bool[Tensor, "row"]) -> Step:
        """The step that chose the tokens behind `ids`."""
        assert self.logits is not None
        mask = None if self.mask is None else self.mask[:, : ids.shape[1]]
        return Step(ids, mask, dict(self.following.recorded), self.logits, chosen, unfinished, dict(self.seen), self.memory)

    def _witness(self, cache: Any) -> None:
        """Look at what the deep layers see. Raises InputError where the model keeps its memory in another way."""
        if cache is not None and cache is self.cache:
            return
        layers = cache.layers[self.first :] if isinstance(cache, Cache) else []
        if not isinstance(cache, Cache) or not all(isinstance(layer, DynamicLayer | DummyLayer) for layer in layers):
            kind = type(cache).__name__ if cache is not None else "no memory"
            raise InputError(
                f"this generation runs with {kind}, and states can be routed beside a dynamic cache alone; give use_cache=True "
                "and leave cache_implementation away, or choose focal depth 0"
            )
        self.cache = cache
        own = [number for number, layer in enumerate(layers, self.first) if isinstance(layer, DynamicLayer)]
        self.seen = self.stack.enter_context(witness_updates(cache, own))


@contextmanager
def follow_calls(model: Model, record: Sequence[int], deepest: int) -> Iterator[Calls]:
    """Look on at all calls that are made of the model inside; nothing of them is changed, and nothing stays behind."""
    network = model.network
    with model.splice.follow(record) as following:
        calls = Calls(model, following, deepest)
        with calls.stack:
            for hook in (
                network.register_forward_pre_hook(calls.before, with_kwargs=True),
                network.register_forward_hook(calls.after, with_kwargs=True),
            ):
                calls.stack.callback(hook.remove)
            yield calls


def join_seen(steps: Sequence[Step], depth: int) -> Cache:
    """What the tokens of the steps saw as one memory: all that the first one saw, and behind it what each other added.

    Layers that share another's keys and values have none of their own.
    """
    layers = [KeptLayer(False) for _ in range(depth)]
    for number in steps[0].seen:
        layers[number].keys, layers[number].values = (
            torch.cat([step.seen[number][part] for step in steps], -2) if len(steps) > 1 else steps[0].seen[number][part]
            for part in (0, 1)
        )
    return Cache(layers=list(layers))


def keep_last(step: Step) -> Step:
    """The step with what its own token added to what was seen before it, and no more."""
    return replace(step, seen={number: tuple(part[..., -1:, :].clone() for part in pair) for number, pair in step.seen.items()})
