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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from hyperlens.anatomy import (
    call_parameters,
    eager,
    input_device,
    study_anatomy,
    token_embedding,
)
from hyperlens.configuration import plain_token, text_config
from hyperlens.errors import ModelError
from hyperlens.memory import KeptLayer, Memory
from hyperlens.narrowing import LayerCall, Narrow, find_narrow, narrowed
from hyperlens.visits import Following, Probes, Visit, Watch, wrap_forwards

Way = Literal["bypass", "hook"]
WAYS: tuple[Way, ...] = ("bypass", "hook")
_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Prefix:
    """Tokens that all texts of a batch begin with, run once: so many, and the keys and values that each layer made of them."""

    length: int
    cache: Cache = field(repr=False)


@dataclass(frozen=True)
class Inputs:
    """A batch of token ids as the model is called with it.

    `mask` is 1 on tokens and 0 on padding (or says, added to the attention scores, who sees whom); None where nothing is
    padded or the padding is on the right, which no token of a causal model can see. `positions` counts each row's own
    tokens from 0; None lets the model count. `beside` is what else its forward takes, such as the pixels of an image and a
    map of the tokens that stand for it; then there is one row. `blind` leaves the pixels away wherever states are given:
    enough where they reach the model by its embedding alone. Behind a `prefix` the tokens are those that follow it, and
    columns are counted from there; then nothing is padded on the left.
    """

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"] | Float[Tensor, "row 1 token key"] | None = None
    positions: Int[Tensor, "row token"] | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    blind: bool = False
    prefix: Prefix | None = None

    @property
    def before(self) -> int:
        """How many tokens of each row stand in its prefix."""
        return 0 if self.prefix is None else self.prefix.length

    def pick(self, rows: slice) -> Inputs:
        """Some rows of the batch; with something beside them there is only one."""
        mask, positions = (None if part is None else part[rows] for part in (self.mask, self.positions))
        return replace(self, ids=self.ids[rows], mask=mask, positions=positions)

    def repeat(self, times: int) -> Inputs:
        """The whole batch `times` over: rows 0 … n−1, then again rows 0 … n−1."""
        mask = None if self.mask is None else self.mask.repeat(times, *[1] * (self.mask.ndim - 1))
        positions = None if self.positions is None else self.positions.repeat(times, 1)
        beside = {name: part.repeat(times, *[1] * (part.ndim - 1)) for name, part in self.beside.items()}
        return Inputs(self.ids.repeat(times, 1), mask, positions, beside, self.blind, self.prefix)


@dataclass(frozen=True)
class Pass:
    """What one call of the model gave: the states asked for, by number, and the logits of each row's last column."""

    states: dict[int, Tensor]
    logits: Float[Tensor, "row vocabulary"]


class Splice:
    """Reads and runs slices of one model.

    State `l` of `depth` + 1 is what enters the layer that runs as number `l` + 1; state `depth` is what leaves the last one.
    Outside, every state is `[row, token, *width]`, whatever the order of its axes inside the model. `way` says how a slice is
    run: "bypass" skips the layers outside it, "hook" runs them all and overwrites the state where the slice begins. `narrow`
    says what of the last layer only rows which are read need to pass; `short_end` that what comes behind it takes fewer tokens,
    so that one will do where nothing is read; `end_proved` that the logits are what the unembedding gives, and nothing else is
    done to them; `prefix_proved` that a text may be run in two parts.
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
        self.narrow = Narrow()
        self.short_end = self.end_proved = self.prefix_proved = False
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

    @cached_property
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

    def new_cache(self, deepest: int, prefix: Prefix | None = None) -> Cache:
        """An empty cache, or one behind a prefix, that keeps the keys and values of the `deepest` layers (of all, where all
        will run) and forgets the others'."""
        first = 0 if self.way == "hook" and deepest else self.depth - deepest
        before: Any = [None] * self.depth if prefix is None else prefix.cache.layers
        return Cache(layers=[KeptLayer(number >= first, before[number]) for number in range(self.depth)])

    def run_prefix(self, ids: Int[Tensor, "token"]) -> Prefix:
        """Run what several texts begin with."""
        cache = self.new_cache(self.depth)
        last = torch.tensor([len(ids) - 1], device=self.device)
        self.run(Inputs(ids[None]), memory=Memory(cache), read=False, ends=Probes(torch.zeros_like(last), last))
        return Prefix(len(ids), cache)

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
        ends: Probes | None = None,
    ) -> Pass:
        """Call the model once; with `states`, let them enter at state `start` and run only layers `start` + 1 … `stop`.

        `record` names the states to give back, at the `probes` or whole. Logits are those of the last column; they mean
        something only where `stop` is the depth; without `read` there are none, and no row goes through the unembedding.
        What leaves the last layer is there at `ends` alone, which are the `probes` if there are some: other rows may be left
        out of what is `narrow` in it. The model may add the call to its `memory`. Raises ModelError where a state was asked for
        that never passed.
        """
        stop = self.depth if stop is None else stop
        if memory is None and inputs.prefix is not None:
            memory = Memory(self.new_cache(0, inputs.prefix))
        bypass = states is not None and self.way == "bypass"
        skipped = {number for number in range(self.depth) if not start <= number < stop} if bypass else set()
        masks = memory.masks if memory is not None else {}
        shape = (len(inputs.ids), inputs.ids.shape[1])
        last = self._narrowed(shape, probes if ends is None else ends, read)
        short = self.short_end and not read
        visit = Visit(self.anatomy, shape, start, states, skipped, set(record), probes, masks, self.device, last, short)
        if states is not None and inputs.blind:
            inputs = replace(
                inputs, beside={name: part for name, part in inputs.beside.items() if not part.is_floating_point()}
            )
        columns = [inputs.ids.shape[1] - 1] if read else []
        with self.lock, eager(), wrap_forwards(self.layers, visit.forward):
            output = self._call(inputs, columns, memory, memory is not None)
        visit.check_recorded(type(self.model).__name__)
        logits = output.logits.to(self.device)
        if not read:
            logits = logits[:0, 0:0].flatten(0, 1)
        elif logits.shape[1] == 1:  # differentiated without a copy
            logits = logits.squeeze(1)
        else:
            logits = logits[:, -1]
        return Pass(visit.recorded, logits)

    def find_narrow(self, ids: Int[Tensor, "row token"]) -> Narrow:
        """What of the last layer only rows which are read need to pass, as a call on `ids` shows it."""
        layer, calls = self.layers[self.anatomy.order[-1]], []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(LayerCall(module, args, kwargs, self.anatomy.axes, (len(ids), ids.shape[1])))

        with self.lock, eager():
            hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
            try:
                self._call(Inputs(ids), [])
            finally:
                hook.remove()
            return find_narrow(calls[-1])

    def _narrowed(self, shape: tuple[int, int], ends: Probes | None, read: bool) -> AbstractContextManager[None]:
        """What the last layer runs in: narrowed to what is read, where that is at most half, and no gradients are made."""
        if ends is None or not self.narrow or torch.is_grad_enabled():
            return nullcontext()
        if read:
            ends = ends.join_last(*shape)
        if 2 * len(ends.rows) > shape[0] * shape[1]:
            return nullcontext()
        return narrowed(self.narrow, ends, self.anatomy.axes, shape)

    @contextmanager
    def watch(self, record: Collection[int]) -> Iterator[dict[int, Float[Tensor, "row token *width"]]]:
        """The states of these numbers, whole, as the caller's own calls of the model make them, with their gradients.

        Those of the first call that makes gradients, or makes none, as is the rule where the watch begins; other calls pass
        unseen. Nothing of any call is changed. Raises ModelError at the end where a state never passed so.
        """
        visit = Watch(self.anatomy, (), 0, None, set(), set(record), None, {}, self.device)
        with self.lock, eager(), wrap_forwards(self.layers, visit.forward):
            yield visit.recorded
        visit.check_recorded(type(self.model).__name__)

    @contextmanager
    def follow(self, record: Collection[int]) -> Iterator[Following]:
        """Look on at the caller's own calls of the model, one after the other, as generation makes them.

        Of each call the states of these numbers are kept until the next one, at its last column. Nothing of any call is
        changed; the splice may be used between them, inside `Following.aside`.
        """
        following = Following(self.anatomy, (), 0, None, set(), set(record), None, {}, self.device)
        with self.lock, eager(), wrap_forwards(self.layers, following.forward):
            yield following

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

    def head(
        self, states: Float[Tensor, "probe *width"], tokens: Int[Tensor, "probe candidate"] | None = None
    ) -> Float[Tensor, "probe logit"]:
        """All that the model does after its last layer, done by the model itself to each of `states`.

        With `tokens` only their logits: where the unembedding is a plain matrix, no other row of it is read.
        """
        ids = torch.full((len(states), 1), self.filler, device=self.device)
        unembedding = self.model.get_output_embeddings()
        if tokens is None or not isinstance(unembedding, nn.Linear) or not _is_plain(unembedding):
            logits = self.run(Inputs(ids), states[:, None], start=self.depth).logits
            return logits if tokens is None else logits.gather(-1, tokens)
        with self.lock, _replaced(unembedding, _restrict(unembedding, tokens)):
            return self.run(Inputs(ids), states[:, None], start=self.depth).logits

    @property
    def ends_plainly(self) -> bool:
        """Whether the logits are what a plain matrix gives: as it was proved, and as it still is."""
        unembedding = self.model.get_output_embeddings()
        return self.end_proved and isinstance(unembedding, nn.Linear) and _is_plain(unembedding)

    def read_plainly(
        self, states: Float[Tensor, "probe *width"], read: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    ) -> Float[Tensor, "probe"]:
        """What `read` makes of what enters the unembedding, `[probe, width]`, its matrix and its bias, one number for each.

        Only where the model `ends_plainly`; then nothing is done to logits that `read` leaves out.
        """
        ids = torch.full((len(states), 1), self.filler, device=self.device)
        unembedding: Any = self.model.get_output_embeddings()

        def forward(given: Tensor) -> Tensor:
            return read(given.flatten(0, -2), unembedding.weight, unembedding.bias).unflatten(0, given.shape[:-1])[..., None]

        with self.lock, _replaced(unembedding, forward):
            return self.run(Inputs(ids), states[:, None], start=self.depth).logits.squeeze(-1)

    def check_end(self, states: Float[Tensor, "probe *width"]) -> bool:
        """Whether the unembedding is a plain matrix that lies here, and what it gives are the logits: tried with marks that no
        scale, cap or shift would leave as they are."""
        unembedding = self.model.get_output_embeddings()
        if not isinstance(unembedding, nn.Linear) or not _is_plain(unembedding) or type(unembedding.weight.data) is not Tensor:
            return False
        marks = torch.tensor([-1000.0, 3.0, 0.125, 1000.0], device=unembedding.weight.device)
        ids = torch.full((len(states), 1), self.filler, device=self.device)
        with self.lock, _replaced(unembedding, lambda given: marks.expand(*given.shape[:-1], -1)):
            found = self.run(Inputs(ids), states[:, None], start=self.depth).logits
        return found.shape == (len(states), 4) and bool((found == marks.to(found.device)).all())

    def own_logits(self, inputs: Inputs, columns: list[int]) -> Float[Tensor, "row column vocabulary"]:
        """The model's own logits at some columns, with nothing of ours in its way."""
        memory = None if inputs.prefix is None else Memory(self.new_cache(0, inputs.prefix))
        with self.lock, eager():
            logits = self._call(inputs, columns, memory, memory is not None).logits.to(self.device)
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


def _is_plain(unembedding: nn.Linear) -> bool:
    """Whether its logits are those of a matrix that lies here, with nothing put around it."""
    hooked = unembedding._forward_hooks or unembedding._forward_pre_hooks or "forward" in unembedding.__dict__
    return type(unembedding) is nn.Linear and not hooked and not unembedding.weight.is_meta


def _restrict(unembedding: nn.Linear, tokens: Int[Tensor, "probe candidate"]) -> Callable[[Tensor], Tensor]:
    """An unembedding's forward that gives the logits of some tokens for each probe."""
    rows = tokens.to(unembedding.weight.device)

    def forward(given: Tensor) -> Tensor:
        logits = (unembedding.weight[rows] @ given.transpose(1, 2)).transpose(1, 2)
        return logits if unembedding.bias is None else logits + unembedding.bias[rows][:, None]

    return forward


@contextmanager
def _replaced(unembedding: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let `forward` stand for that of the unembedding for the time of one call of this thread."""
    thread, original = threading.get_ident(), unembedding.forward
    unembedding.forward = lambda input: (forward if threading.get_ident() == thread else original)(input)
    try:
        yield
    finally:
        del unembedding.forward
