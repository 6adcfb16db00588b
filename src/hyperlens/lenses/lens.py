"""What a lens is: how a residual state is prepared, and which layers it is then routed through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hyperlens.certificate import CONTEXTS, compare_jump, relative_error
from hyperlens.errors import InputError
from hyperlens.models import Model
from hyperlens.routing import CachedForm, join_probes, route_cached, route_jump, run_recalling
from hyperlens.splice import Inputs, Probes, Splice

CHOICES = ("auto", "sweep")
"""Focal depths that are chosen once the model is known: one by resolution and the logit lens, or all candidates."""


@dataclass(frozen=True)
class Lens:
    """The settings of a lens. `focal_depths` are the numbers m of deepest layers, "auto" to choose one by resolution, or
    "sweep" for all that "auto" chooses from.

    `context` says what a routed state attends to: in "jump" the states of all positions at its own depth, in "cached" the
    keys and values that the model itself computed for the positions before it. `between` are layers, by number from 1, that
    a state passes on its way to the deepest m, if they come after it: with all of them nothing is skipped, and every state
    is read as the model's own output. In "jump" only.
    """

    focal_depths: tuple[int, ...] | str = "auto"
    context: str = "jump"
    between: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise InputError(f'"{self.context}" is not a context; choose from {", ".join(CONTEXTS)}')
        if self.between and self.context != "jump":
            raise InputError(
                f'layers in between are passed by all positions together; give the context jump, not "{self.context}"'
            )
        for layer in self.between:
            if not isinstance(layer, int) or isinstance(layer, bool):
                raise InputError(f"layer {layer!r} in between is not a whole number; give numbers such as (3, 7)")
        object.__setattr__(self, "between", tuple(sorted(set(self.between))))
        if self.focal_depths in CHOICES:
            return
        if isinstance(self.focal_depths, str) or not self.focal_depths:
            raise InputError(
                f'"{self.focal_depths}" is no list of focal depths; give numbers such as (0, 2, 4), "auto" or "sweep"'
            )
        for depth in self.focal_depths:
            if not isinstance(depth, int) or isinstance(depth, bool) or depth < 0:
                raise InputError(f"focal depth {depth} is not a whole number from 0 up; give one between 0 and the layers")
        object.__setattr__(self, "focal_depths", tuple(sorted(set(self.focal_depths))))

    @property
    def name(self) -> str:
        """How results name this kind of lens."""
        raise NotImplementedError

    def prepare(self, state: int, hidden: Float[Tensor, "*place width"]) -> Float[Tensor, "*place width"]:
        """State number `state` as it is to be routed."""
        return hidden

    def fit_to(self, model: Model) -> Lens:
        """This lens, ready to read `model`. Raises InputError where it is not for that model."""
        return self

    def describe(self) -> dict[str, Any]:
        """What results keep of a lens, beside its focal depths."""
        return {"name": self.name, "context": self.context, "between": list(self.between)}

    def check_depths(self, layers: int) -> tuple[int, ...]:
        """The focal depths, if a model of so many layers has them, and those in between. Raises InputError."""
        if self.between and not 1 <= self.between[0] <= self.between[-1] <= layers:
            raise InputError(f"the layers in between are {list(self.between)}; this model has the layers 1 to {layers}")
        if isinstance(self.focal_depths, str):
            raise InputError("the focal depth is still to be chosen; resolve it first")
        if self.focal_depths[-1] > layers:
            raise InputError(f"focal depth {self.focal_depths[-1]} is above this model's {layers} layers; give 0 to {layers}")
        return self.focal_depths


@dataclass(frozen=True)
class Routed:
    """One batch as a lens sees it: what leaves the last layer at the probes, and the model's own logits of the last column.

    `pick` gives the residual state of a number at the probes, as the model left it. `prove` gives the relative error of one row
    of a batch in "jump": of its own state of each depth, routed, and of what all rows of the last layer give, against its own
    output, at the last of its probes.
    """

    own: Float[Tensor, "probe *width"]
    logits: Float[Tensor, "row vocabulary"]
    by_depth: Iterator[tuple[int, Float[Tensor, "state probe *width"]]]
    pick: Callable[[int], Float[Tensor, "probe *width"]]
    prove: Callable[[int], float]


def route_batch(
    lens: Lens,
    splice: Splice,
    inputs: Inputs,
    probes: Probes,
    depths: tuple[int, ...],
    stack_tokens: int,
    form: CachedForm = "rows",
    every: bool = False,
) -> Routed:
    """Run the batch once, then route its states 0 … L − m − 1 (in "cached", in its `form`: to L − m) for each focal depth m.

    `stack_tokens` bounds the tokens that go through the deepest layers at once; the depths are computed as they are asked for.
    With `every` the states that no depth routes can be picked too.
    """
    last, deepest = splice.depth, max(depths)
    whole, recall = (deepest > 0 or bool(lens.between)) and lens.context == "jump", None
    record = {*range(last - (0 if every else min(depths)) + 1), last} | ({last - 1} if whole and deepest else set())
    if deepest and not whole:
        done, recall = run_recalling(splice, inputs, record, probes, deepest, form)
    else:
        done = splice.run(inputs, record=record, probes=None if whole else probes, ends=probes)
    states = done.states

    def route(m: int) -> Tensor:
        count = last - m
        if m and recall is not None:
            rows = torch.stack([*(lens.prepare(state, states[state]) for state in range(count)), states[count]])
            return route_cached(splice, inputs, rows, count, probes, recall, stack_tokens)
        if count and (m or lens.between):
            return _jump(lens, splice, inputs, probes, states, count, stack_tokens)
        rows = [lens.prepare(state, pick(state)) for state in range(count)]
        return torch.stack(rows) if rows else own[None][:0]

    def pick(state: int) -> Tensor:
        return probes.pick(states[state]) if whole else states[state]

    def prove(row: int) -> float:
        if not (whole and deepest):
            return 0.0
        end = int((probes.rows == row).nonzero().max())
        place = Probes(torch.zeros_like(probes.rows[:1]), probes.positions[end : end + 1])
        text, mine = inputs.pick(slice(row, row + 1)), {last - m: states[last - m][row : row + 1] for m in depths}
        entering = states[last - 1][row : row + 1]
        all_rows = splice.run(text, entering, last - 1, record=[last], read=False).states[last]  # nothing is left out
        error = relative_error(place.pick(all_rows), own[end : end + 1])
        return max(error, compare_jump(splice, text, mine, own[end : end + 1], place, depths))

    own = pick(last)
    return Routed(own, done.logits, ((m, route(m)) for m in depths), pick, prove)


def _jump(
    lens: Lens, splice: Splice, inputs: Inputs, probes: Probes, states: dict[int, Tensor], count: int, stack_tokens: int
) -> Float[Tensor, "state probe *width"]:
    """States 0 … `count` − 1 through the layers that they are to pass, as many in one call as `stack_tokens` allows."""
    texts, length = inputs.ids.shape
    rows = max(1, min(texts, stack_tokens // length))
    each = max(1, stack_tokens // (rows * length)) if inputs.blind or not inputs.beside else 1
    parts = []
    for first in range(0, texts, rows):
        part = slice(first, first + rows)
        mine = ((probes.rows >= first) & (probes.rows < first + rows)).nonzero().squeeze(1)
        inside = Probes(probes.rows[mine] - first, probes.positions[mine])
        routed = []
        for low in range(0, count, each):
            entering = [lens.prepare(state, states[state][part]) for state in range(low, min(low + each, count))]
            stack = torch.stack(entering) if len(entering) > 1 else entering[0][None]
            stack = pass_between(lens, splice, inputs.pick(part), stack, low, count)
            routed.append(route_stack(splice, inputs.pick(part), stack, count, inside))
        parts.append((mine, torch.cat(routed)))
    return join_probes(parts)


def route_stack(
    splice: Splice, inputs: Inputs, stack: Float[Tensor, "state row token *width"], start: int, probes: Probes
) -> Float[Tensor, "state probe *width"]:
    """The stacked states of all positions through the layers after `start`, if there are any: what arrives at the probes."""
    if start < splice.depth:
        return route_jump(splice, inputs, stack, start, probes)
    return torch.stack([probes.pick(state) for state in stack])


def pass_between(
    lens: Lens, splice: Splice, inputs: Inputs, stack: Float[Tensor, "state row token *width"], first: int, count: int
) -> Float[Tensor, "state row token *width"]:
    """States `first`, `first` + 1 … through the layers in between that come after them and before the deepest."""
    for layer in (layer for layer in lens.between if first < layer <= count):
        passing = min(len(stack), layer - first)
        entering = stack[:passing].flatten(0, 1)
        done = splice.run(inputs.repeat(passing), entering, layer - 1, layer, record=[layer], read=False).states[layer]
        stack = torch.cat([done.unflatten(0, (passing, -1)), stack[passing:]])
    return stack
