"""The one door into a model: find its layers, read its residual states, run any slice of it exactly.

Nothing of the model is rewritten. For the time of one call the `forward` of its decoder layers is wrapped: a wrapped layer
may take another state than the one that reaches it, hand its input on unchanged (it is *bypassed*), and keep what passes.
Embedding, masks, rotary angles, final norm and unembedding are always the model's own.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from hyperlens.errors import ModelError

Way = Literal["bypass", "hook"]
_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Inputs:
    """A batch of token ids as the model is called with it.

    `mask` is 1 on tokens and 0 on padding (or says, added to the attention scores, who sees whom); None where nothing is
    padded or the padding is on the right, which no token of a causal model can see. `positions` counts each row's own
    tokens from 0; None lets the model count.
    """

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"] | Float[Tensor, "row 1 token key"] | None = None
    positions: Int[Tensor, "row token"] | None = None

    def pick(self, rows: slice) -> Inputs:
        """Some rows of the batch."""
        mask, positions = (None if part is None else part[rows] for part in (self.mask, self.positions))
        return Inputs(self.ids[rows], mask, positions)

    def repeat(self, times: int) -> Inputs:
        """The whole batch `times` over: rows 0 … n−1, then again rows 0 … n−1."""
        mask = None if self.mask is None else self.mask.repeat(times, *[1] * (self.mask.ndim - 1))
        positions = None if self.positions is None else self.positions.repeat(times, 1)
        return Inputs(self.ids.repeat(times, 1), mask, positions)


@dataclass(frozen=True)
class Probes:
    """The places of a batch at which states are read: `states[rows, positions]`."""

    rows: Int[Tensor, "probe"]
    positions: Int[Tensor, "probe"]

    def pick(self, states: Float[Tensor, "row token *width"]) -> Float[Tensor, "probe *width"]:
        """The states at the probes."""
        return states[self.rows.to(states.device), self.positions.to(states.device)]

    def repeat(self, times: int, rows: int) -> Probes:
        """The same probes in each of `times` copies of a batch of `rows` rows."""
        shifts = torch.arange(times, device=self.rows.device).repeat_interleave(len(self.rows)) * rows
        return Probes(self.rows.repeat(times) + shifts, self.positions.repeat(times))


@dataclass(frozen=True)
class Pass:
    """What one call of the model gave: the states asked for, by number, and the logits of each row's last column."""

    states: dict[int, Tensor]
    logits: Float[Tensor, "row vocabulary"]


@dataclass(frozen=True)
class Memory:
    """The keys and values that a call sees besides its own, and the masks of the layers that see only a part of them."""

    cache: Cache
    masks: Mapping[int, Float[Tensor, "row 1 token key"]] = field(default_factory=dict)


class KeptLayer(CacheLayerMixin):
    """One layer's keys and values as its own pass made them: kept by reference, seen by later passes, never added to."""

    is_sliding = False

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep = keep

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)
        if self.keep:
            self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class Splice:
    """Reads and runs slices of one model.

    State `l` of `depth` + 1 is what enters layer `l` + 1; state `depth` is what leaves the last layer. `way` says how a slice
    is run: "bypass" skips the layers outside it, "hook" runs them all and overwrites the state where the slice begins.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = text_config(model)
        self.layers = find_layers(model)
        self.depth = len(self.layers)
        self.way: Way = "bypass"
        self.lock = _LOCKS.setdefault(model, threading.RLock())
        self._parameters = _parameters(model)
        self._arities: list[int | None] = []

    @property
    def embedding(self) -> Tensor:
        """The matrix of token embeddings, one row per token id."""
        return cast(nn.Embedding, self.model.get_input_embeddings()).weight

    @property
    def device(self) -> torch.device:
        """Where token ids have to be: the device of the embedding."""
        if self.embedding.device.type == "meta":  # offloaded by accelerate, whose hook knows where it computes
            hook: Any = getattr(self.model.get_input_embeddings(), "_hf_hook", None)
            return torch.device(hook.execution_device)
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the residual states."""
        return next(p.dtype for p in self.layers.parameters() if p.is_floating_point())

    @property
    def filler(self) -> int:
        """A token id for places whose token does not matter; not the padding token, about which some models warn."""
        return 1 if getattr(self.config, "pad_token_id", None) == 0 else 0

    def window(self, layer: int) -> int | None:
        """How many tokens, itself counted, a token sees in layer `layer` (from 0); None where it sees all before it."""
        width = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        if kinds is not None:
            return width if kinds[layer] == "sliding_attention" else None
        return width if getattr(self.config, "use_sliding_window", True) else None

    def new_cache(self, deepest: int) -> Cache:
        """An empty cache that keeps the keys and values of the `deepest` layers and forgets the others'."""
        return Cache(layers=[KeptLayer(number >= self.depth - deepest) for number in range(self.depth)])

    def run(
        self,
        inputs: Inputs,
        states: Float[Tensor, "row token *width"] | None = None,
        start: int = 0,
        stop: int | None = None,
        record: Collection[int] = (),
        probes: Probes | None = None,
        memory: Memory | None = None,
        read: bool = True,
    ) -> Pass:
        """Call the model once; with `states`, let them enter at state `start` and run only layers `start` + 1 … `stop`.

        `record` names the states to give back, at the `probes` or whole. Logits are those of the last column; they mean
        something only where `stop` is the depth; without `read` there are none, and no row goes through the unembedding.
        Raises ModelError where a state was asked for that never passed.
        """
        stop = self.depth if stop is None else stop
        bypass = states is not None and self.way == "bypass"
        skipped = {number for number in range(self.depth) if not start <= number < stop} if bypass else set()
        with self.lock:
            if skipped and not self._arities:
                self._learn_arities(inputs)
            masks = memory.masks if memory is not None else {}
            visit = _Visit(start, states, skipped, set(record), probes, masks, self._arities, self.depth, self.device)
            with _wrapped(self.layers, visit):
                logits = self._call(inputs, memory.cache if memory is not None else None, read)
        if missing := set(record) - set(visit.recorded):
            raise ModelError(f"state {min(missing)} of {type(self.model).__name__} never passed, so that it cannot be read")
        return Pass(visit.recorded, logits)

    def head(self, states: Float[Tensor, "probe *width"]) -> Float[Tensor, "probe vocabulary"]:
        """All that the model does after its last layer, done by the model itself to each of `states`."""
        ids = torch.full((len(states), 1), self.filler, device=self.device)
        return self.run(Inputs(ids), states[:, None], start=self.depth).logits

    def _call(self, inputs: Inputs, cache: Cache | None, read: bool = True) -> Tensor:
        """The model's logits of the last column (of none unless `read`); what its signature does not know is left away."""
        kept = 1 if read else torch.empty(0, dtype=torch.long, device=inputs.ids.device)
        wanted = {"attention_mask": inputs.mask, "position_ids": inputs.positions, "past_key_values": cache}
        wanted |= {"use_cache": cache is not None, "logits_to_keep": kept, "return_dict": True}
        known = {name: value for name, value in wanted.items() if value is not None and name in self._parameters}
        logits = self.model(input_ids=inputs.ids, **known).logits.to(self.device)
        return logits[:, -1] if read else logits[:0, 0:0].flatten(0, 1)

    def _learn_arities(self, inputs: Inputs) -> None:
        """See once what each layer returns, a tensor (None) or a tuple of n, so that a bypassed one can return the same."""
        visit = _Visit(0, None, set(), set(), None, {}, [None] * self.depth, self.depth, self.device)
        with torch.no_grad(), _wrapped(self.layers, visit):
            self._call(Inputs(inputs.ids[:1, :1]), None)
        self._arities = visit.arities


@dataclass
class _Visit:
    """What one call of the model does to its layers, and the states that it recorded, all brought to the device `home`."""

    start: int
    states: Tensor | None
    skipped: set[int]
    record: set[int]
    probes: Probes | None
    masks: Mapping[int, Tensor]
    arities: list[int | None]
    depth: int
    home: torch.device
    recorded: dict[int, Tensor] = field(default_factory=dict)
    thread: int = field(default_factory=threading.get_ident)

    def forward(self, number: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Layer `number` for this call. Calls from other threads get the layer as it is."""
        if threading.get_ident() != self.thread:
            return original(*args, **kwargs)
        hidden, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        hidden = self._enter(number, hidden)
        self._keep(number, hidden)
        if number in self.masks:
            kwargs["attention_mask"] = self.masks[number]
        output = self._bypassed(number, hidden) if number in self.skipped else original(hidden, *args, **kwargs)
        if number == self.depth - 1:
            output = self._leave(output)
        elif self.arities and number not in self.skipped:
            self.arities[number] = len(output) if isinstance(output, tuple) else None
        return output

    def _enter(self, number: int, hidden: Tensor) -> Tensor:
        return hidden if self.states is None or number != self.start else self.states.to(hidden.device)

    def _leave(self, output: Any) -> Any:
        """The last layer's output, or the state that takes its place."""
        first, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        first = self._enter(self.depth, first)
        self._keep(self.depth, first)
        if self.arities and self.depth - 1 not in self.skipped:
            self.arities[-1] = None if rest is None else 1 + len(rest)
        return first if rest is None else (first, *rest)

    def _bypassed(self, number: int, hidden: Tensor) -> Any:
        arity = self.arities[number]
        return hidden if arity is None else (hidden, *[None] * (arity - 1))

    def _keep(self, number: int, hidden: Tensor) -> None:
        if number in self.record:
            self.recorded[number] = (hidden if self.probes is None else self.probes.pick(hidden)).to(self.home)


@contextmanager
def _wrapped(layers: nn.ModuleList, visit: _Visit) -> Iterator[None]:
    """Wrap each layer's forward for `visit`, and put back exactly what was there."""
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for number, layer in enumerate(layers):
            layer.forward = partial(visit.forward, number, layer.forward)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is not None:
                layer.forward = forward
            else:
                layer.__dict__.pop("forward", None)


@contextmanager
def at_rest(model: PreTrainedModel, gradients: bool = False) -> Iterator[None]:
    """No dropout, and no gradients unless they are asked for; each module's training flag comes back as it was."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for module in training:
            module.training = True


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the model's language decoder."""
    return model.config.get_text_config(decoder=True)


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers: the outermost ModuleList with as many items as the configuration counts hidden layers.

    Raises ModelError where there is none.
    """
    count = getattr(text_config(model), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(
        f"{type(model).__name__} has no list of {count} decoder layers; HyperLens reads decoder-only models whose layers "
        "are one ModuleList of that length"
    )


def _parameters(model: PreTrainedModel) -> set[str]:
    """The names that the model's forward accepts, seen through wrappers such as adapters."""
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    inner = unwrap()
    return set(inspect.signature(type(inner).forward).parameters)
