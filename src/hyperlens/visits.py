"""What one call of a model does to its layers: states take others' places, layers are passed by, states are kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hyperlens.anatomy import Anatomy, given_state, returned_state
from hyperlens.errors import ModelError


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

    def join_last(self, rows: int, tokens: int) -> Probes:
        """These places and the last of each row, each once, in their order."""
        last = torch.arange(1, rows + 1, device=self.rows.device) * tokens - 1
        places = torch.cat([self.rows * tokens + self.positions, last]).unique()
        return Probes(places // tokens, places % tokens)


@dataclass
class Visit:
    """What one call of the model does to its layers, and the states that it recorded, all brought to the device `home`.

    The last layer runs inside `around_last`; where the visit is `short`, it hands one token of each row on.
    """

    anatomy: Anatomy
    shape: tuple[int, ...]
    start: int
    states: Tensor | None
    skipped: set[int]
    record: set[int]
    probes: Probes | None
    masks: Mapping[int, Tensor]
    home: torch.device
    around_last: AbstractContextManager[None] = field(default_factory=nullcontext)
    short: bool = False
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
        final = number == len(self.anatomy.order) - 1
        with self.around_last if final else nullcontext():
            if number in self.skipped:
                output = self._bypassed(number, hidden)
            elif name is None:
                output = original(hidden, *args[1:], **kwargs)
            else:
                output = original(*args, **{**kwargs, name: hidden})
        return self._leave(output) if final else output

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
        if self.short:
            state = state.narrow(self.anatomy.axes[1], 0, 1)
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
class Watch(Visit):
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


@dataclass
class Following(Visit):
    """A visit that looks on at call after call: `recorded` has the states of the latest one, at its last column."""

    paused: bool = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For calls that are not the caller's own."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def forward(self, layer: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if self.paused else super().forward(layer, original, *args, **kwargs)

    def _count(self, layer: int) -> int:
        self.passed %= len(self.anatomy.order)
        return super()._count(layer)

    def _keep(self, number: int, hidden: Tensor) -> None:
        if number in self.record:
            self.recorded[number] = hidden.movedim(self.anatomy.axes, (0, 1))[:, -1].clone().to(self.home)


def _with_state(output: Any, state: Tensor) -> Any:
    """What a layer returned, with another state in it."""
    return _sequence(type(output), (state, *output[1:])) if isinstance(output, tuple | list) else state


def _sequence(kind: Any, items: tuple[Any, ...]) -> Any:
    """A tuple, list or named tuple of the items."""
    return kind(*items) if hasattr(kind, "_fields") else kind(items)


@contextmanager
def wrap_forwards(modules: Collection[nn.Module], wrapper: Callable[..., Any]) -> Iterator[None]:
    """Let `wrapper(number, forward, ...)` stand for the forward of each module, and put back exactly what was there."""
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for number, module in enumerate(modules):
            module.forward = partial(wrapper, number, module.forward)
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is not None:
                module.forward = forward
            else:
                module.__dict__.pop("forward", None)
