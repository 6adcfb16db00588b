"""The one door into a model: find its layers, read its residual states, run any slice of it exactly.

Nothing of the model is rewritten. For the time of one call the `forward` of its decoder layers is wrapped: a wrapped layer
may take another state than the one that reaches it, hand its input on unchanged (it is *bypassed*), and keep what passes.
Embedding, masks, rotary angles, final norm and unembedding are always the model's own.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from hyperlens.anatomy import (
    Anatomy,
    call_parameters,
    eager,
    given_state,
    input_device,
    returned_state,
    study_anatomy,
    token_embedding,
)
from hyperlens.configuration import plain_token, text_config
from hyperlens.errors import ModelError
from hyperlens.memory import KeptLayer, Memory

Way = Literal["bypass", "hook"]
_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Inputs:
    """A batch of token ids as the model is called with it.

    `mask` is 1 on tokens and 0 on padding (or says, added to the attention scores, who sees whom); None where nothing is
    padded or the padding is on the right, which no token of a causal model can see. `positions` counts each row's own
    tokens from 0; None lets the model count. `beside` is what else its forward takes, such as the pixels of an image and a
    map of the tokens that stand for it; then there is one row. `blind` leaves the pixels away wherever states are given:
    enough where they reach the model by its embedding alone.
    """

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"] | Float[Tensor, "row 1 token key"] | None = None
    positions: Int[Tensor, "row token"] | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    blind: bool = False

    def pick(self, rows: slice) -> Inputs:
        """Some rows of the batch; with something beside them there is only one."""
        mask, positions = (None if part is None else part[rows] for part in (self.mask, self.positions))
        return replace(self, ids=self.ids[rows], mask=mask, positions=positions)

    def repeat(self, times: int) -> Inputs:
        """The whole batch `times` over: rows 0 … n−1, then again rows 0 … n−1."""
        mask = None if self.mask is None else self.mask.repeat(times, *[1] * (self.mask.ndim - 1))
        positions = None if self.positions is None else self.positions.repeat(times, 1)
        beside = {name: part.repeat(times, *[1] * (part.ndim - 1)) for name, part in self.beside.items()}
        return Inputs(self.ids.repeat(times, 1), mask, positions, beside, self.blind)


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


class Splice:
    """Reads and runs slices of one model.

    State `l` of `depth` + 1 is what enters the layer that runs as number `l` + 1; state `depth` is what leaves the last one.
    Outside, every state is `[row, token, *width]`, whatever the order of its axes inside the model. `way` says how a slice is
    run: "bypass" skips the layers outside it, "hook" runs them all and overwrites the state where the slice begins.
    Raises ModelError where the model has no such layers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = text_config(model)
        self.lock = _LOCKS.setdefault(model, threading.RLock())
        with self.lock, at_rest(model):
            self.anatomy = study_anatomy(model)
        self.layers = self.anatomy.layers
        self.depth = len(self.anatomy.order)
        self.way: Way = "bypass"
        self.filler = plain_token(self.config)  # for places whose token does not matter
        self.parameters = call_parameters(model)

    @property
    def embedding(self) -> Tensor:
        """The matrix of token embeddings, one row per token id."""
        return token_embedding(self.model).weight

    @property
    def device(self) -> torch.device:
        """Where token ids have to be: the device of the embedding."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """What the layers compute in: the narrower of the precision of the states and that of most of the weights.

        Weights that are quantised, to 8 bit or fewer, do not count; they are computed with in that of the states.
        """
        sizes = Counter({self.anatomy.dtype: 1})
        for weight in (weight for layer in self.layers for weight in layer.parameters()):
            if weight.is_floating_point() and weight.dtype.itemsize > 1:
                sizes[weight.dtype] += weight.numel()
        return min(self.anatomy.dtype, max(sizes, key=sizes.__getitem__), key=lambda dtype: dtype.itemsize)

    def window(self, layer: int) -> int | None:
        """How many tokens, itself counted, a token sees in layer `layer` (from 0); None where it sees all before it."""
        width = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        if kinds is not None:
            return width if kinds[self.anatomy.order[layer]] == "sliding_attention" else None
        return width if getattr(self.config, "use_sliding_window", True) else None

    def new_cache(self, deepest: int) -> Cache:
        """An empty cache that keeps the keys and values of the `deepest` layers (of all, where all will run) and forgets the
        others'."""
        first = self.depth - deepest if self.way == "bypass" else 0
        return Cache(layers=[KeptLayer(number >= first) for number in range(self.depth)])

    @contextmanager
    def going(self, way: Way) -> Iterator[None]:
        """Run slices in another way for a while."""
        before, self.way = self.way, way
        try:
            yield
        finally:
            self.way = before

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
        The model may add the call to its `memory`. Raises ModelError where a state was asked for that never passed.
        """
        stop = self.depth if stop is None else stop
        bypass = states is not None and self.way == "bypass"
        skipped = {number for number in range(self.depth) if not start <= number < stop} if bypass else set()
        masks = memory.masks if memory is not None else {}
        visit = _Visit(self.anatomy, tuple(inputs.ids.shape), start, states, skipped, set(record), probes, masks, self.device)
        if states is not None and inputs.blind:
            inputs = replace(
                inputs, beside={name: part for name, part in inputs.beside.items() if not part.is_floating_point()}
            )
        ends = [inputs.ids.shape[1] - 1] if read else []
        with self.lock, eager(), _wrapped(self.layers, visit):
            output = self._call(inputs, ends, memory, memory is not None)
        visit.check_recorded(type(self.model).__name__)
        logits = output.logits.to(self.device)
        if not read:
            logits = logits[:0, 0:0].flatten(0, 1)
        elif logits.shape[1] == 1:  # differentiated without a copy
            logits = logits.squeeze(1)
        else:
            logits = logits[:, -1]
        return Pass(visit.recorded, logits)

    @contextmanager
    def watch(self, record: Collection[int]) -> Iterator[dict[int, Float[Tensor, "row token *width"]]]:
        """The states of these numbers, whole, as the caller's own calls of the model make them, with their gradients.

        Those of the first call that makes gradients, or makes none, as is the rule where the watch begins; other calls pass
        unseen. Nothing of any call is changed. Raises ModelError at the end where a state never passed so.
        """
        visit = _Watch(self.anatomy, (), 0, None, set(), set(record), None, {}, self.device)
        with self.lock, eager(), _wrapped(self.layers, visit):
            yield visit.recorded
        visit.check_recorded(type(self.model).__name__)

    def remember(self, inputs: Inputs, memory: Memory | None = None) -> Memory:
        """The model's own memory of a text, or of what `memory` is of and the text behind it; `memory` may be added to.

        Raises ModelError where the model makes none.
        """
        with self.lock, eager():
            output = self._call(inputs, [], memory, remember=True)
        for name, value in output.items():
            if name in self.parameters and value is not None:
                return Memory(value, name=name)
        raise ModelError(f"{type(self.model).__name__} gives no memory of a text back that it would take again")

    def head(self, states: Float[Tensor, "probe *width"]) -> Float[Tensor, "probe vocabulary"]:
        """All that the model does after its last layer, done by the model itself to each of `states`."""
        ids = torch.full((len(states), 1), self.filler, device=self.device)
        return self.run(Inputs(ids), states[:, None], start=self.depth).logits

    def own_logits(self, inputs: Inputs, columns: list[int]) -> Float[Tensor, "row column vocabulary"]:
        """The model's own logits at some columns, with nothing of ours in its way."""
        with self.lock, eager():
            logits = self._call(inputs, columns).logits.to(self.device)
        return logits if "logits_to_keep" in self.parameters else logits[:, columns]

    def _call(self, inputs: Inputs, kept: list[int], memory: Memory | None = None, remember: bool = False) -> Any:
        """The model's output, with the logits of the columns that are `kept` where it can leave the others away.

        What its signature does not know is not passed. What experts are balanced by is not asked for, whatever a trainer wrote
        into the configuration: layers that are bypassed have none. The columns are a list: given a number, gemma4 leaves all
        other tokens out of its last layers too, and a tensor would have to lie on the device of the last layer. Of a single
        column nothing is to be left away, and picking it would be differentiated slowly.
        """
        wanted = {"attention_mask": inputs.mask, "position_ids": inputs.positions, "logits_to_keep": kept, "return_dict": True}
        wanted |= {"output_router_logits": False}
        if kept and inputs.ids.shape[1] == 1:
            del wanted["logits_to_keep"]
        wanted |= {"use_cache": remember} | ({} if memory is None else {memory.name: memory.cache})
        known = {name: value for name, value in wanted.items() if value is not None and name in self.parameters}
        return self.model(input_ids=inputs.ids, **known, **inputs.beside)


@dataclass
class _Visit:
    """What one call of the model does to its layers, and the states that it recorded, all brought to the device `home`."""

    anatomy: Anatomy
    shape: tuple[int, ...]
    start: int
    states: Tensor | None
    skipped: set[int]
    record: set[int]
    probes: Probes | None
    masks: Mapping[int, Tensor]
    home: torch.device
    recorded: dict[int, Tensor] = field(default_factory=dict)
    passed: int = 0
    thread: int = field(default_factory=threading.get_ident)

    def forward(self, layer: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One layer's call in this pass. Calls from other threads get the layer as it is."""
        if threading.get_ident() != self.thread:
            return original(*args, **kwargs)
        number = self._count(layer)
        name, hidden = given_state(args, kwargs)
        hidden = self._enter(number, hidden)
        self._keep(number, hidden)
        if number in self.masks:
            kwargs["attention_mask"] = self.masks[number]
        if number in self.skipped:
            output = self._bypassed(number, hidden)
        elif name is None:
            output = original(hidden, *args[1:], **kwargs)
        else:
            output = original(*args, **{**kwargs, name: hidden})
        return self._leave(output) if number == len(self.anatomy.order) - 1 else output

    def check_recorded(self, name: str) -> None:
        """Raises ModelError where a state that was to be recorded never passed."""
        if missing := self.record - set(self.recorded):
            raise ModelError(f"state {min(missing)} of {name} never passed, so that it cannot be read")

    def _count(self, layer: int) -> int:
        """The number of this call. Raises ModelError where the model runs its layers in another order than on a plain text."""
        number, self.passed = self.passed, self.passed + 1
        if number >= len(self.anatomy.order) or self.anatomy.order[number] != layer:
            raise ModelError("the model runs other layers than on a plain text, so that its states have other numbers")
        return number

    def _enter(self, number: int, hidden: Tensor) -> Tensor:
        if self.states is None or number != self.start:
            return hidden
        return self.states.movedim((0, 1), self.anatomy.axes).to(hidden.device)

    def _leave(self, output: Any) -> Any:
        """The last layer's output, or the state that takes its place."""
        depth = len(self.anatomy.order)
        given = returned_state(output)
        state = self._enter(depth, given)
        self._keep(depth, state)
        return output if state is given else _with_state(output, state)

    def _bypassed(self, number: int, hidden: Tensor) -> Any:
        kind = self.anatomy.returns[number]
        return hidden if kind is None else _sequence(kind[0], (hidden, *[None] * (kind[1] - 1)))

    def _keep(self, number: int, hidden: Tensor) -> None:
        if number in self.record:
            state = hidden.movedim(self.anatomy.axes, (0, 1))
            if state.shape[:2] != self.shape:
                raise ModelError(
                    f"this model makes states of shape {list(state.shape[:2])} from tokens of shape {list(self.shape)}, as "
                    "where an image stands in front of the text; HyperLens reads one state for each token"
                )
            self.recorded[number] = (state if self.probes is None else self.probes.pick(state)).to(self.home)


@dataclass
class _Watch(_Visit):
    """A visit that only looks on, at one call of several: the first one in which gradients are made as they were asked for."""

    gradients: bool = field(default_factory=torch.is_grad_enabled)

    def _count(self, layer: int) -> int:
        self.passed %= len(self.anatomy.order)
        return super()._count(layer)

    def _keep(self, number: int, hidden: Tensor) -> None:
        if number not in self.recorded and torch.is_grad_enabled() == self.gradients:
            self.shape = tuple(hidden.movedim(self.anatomy.axes, (0, 1)).shape[:2])
            super()._keep(number, hidden)

    def check_recorded(self, name: str) -> None:
        if (missing := self.record - set(self.recorded)) and self.gradients:
            raise ModelError(
                f"state {min(missing)} of {name} never passed with gradients, so that nothing can be learned through it; leave "
                "away the terms that read it, or fine-tune another model"
            )
        super().check_recorded(name)


def _with_state(output: Any, state: Tensor) -> Any:
    """What a layer returned, with another state in it."""
    return _sequence(type(output), (state, *output[1:])) if isinstance(output, tuple | list) else state


def _sequence(kind: Any, items: tuple[Any, ...]) -> Any:
    """A tuple, list or named tuple of the items."""
    return kind(*items) if hasattr(kind, "_fields") else kind(items)


@contextmanager
def _wrapped(layers: Collection[nn.Module], visit: _Visit) -> Iterator[None]:
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
    """No dropout, no compiled code, and no gradients unless they are asked for; each module's training flag comes back."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with eager(), torch.set_grad_enabled(gradients):
            yield
    finally:
        for module in training:
            module.training = True
