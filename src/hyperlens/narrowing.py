"""The last layer at the rows that are read alone: which of its modules only these rows need to pass.

What is read at a position comes through its own row of the last layer; other rows matter to it by what they are attended to,
their keys and values, and by nothing behind that. Which modules these are is found by trying, whatever the family calls them:
a module is *narrow* where the outcome at some rows stays what it is though all others are NaN, both on the way into the module
and out of it. NaN spreads to whatever is computed from it, so that what stays finite and equal was not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hyperlens.anatomy import returned_state
from hyperlens.visits import Probes, wrap_forwards

CLOSE = 1e-4
"""How far, as a share of the largest value, rounding may take a row that was computed beside fewer others."""


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: with what, and on which axes its states count rows and tokens."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    axes: tuple[int, int]
    shape: tuple[int, int]

    def repeat(self) -> Tensor:
        """The state that the layer gives when it is called so again, `[row, token, *width]`."""
        return returned_state(self.layer(*self.args, **self.kwargs)).movedim(self.axes, (0, 1))


def find_narrow(call: LayerCall) -> list[nn.Module]:
    """The modules of a layer that other rows need not pass. May raise anything that the layer's own code raises."""
    rows, tokens = call.shape
    places = Probes(torch.arange(rows), tokens - 1 - torch.arange(rows) % tokens)
    expected, narrow = places.pick(call.repeat()), []
    for module in _list_candidates(call):
        inside = any(module is part for one in narrow for part in one.modules())
        if not inside and _is_close(_poison(call, module, places), expected):
            narrow.append(module)
    return narrow


@contextmanager
def narrowed(modules: Sequence[nn.Module], places: Probes, axes: tuple[int, int], shape: tuple[int, ...]) -> Iterator[None]:
    """Let only the states at `places` of `shape` (rows and tokens) pass the modules; what they give at the others is 0."""

    thread = threading.get_ident()

    def pass_some(number: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        mine = threading.get_ident() == thread and _takes_one(args, kwargs)
        given = args[0].movedim(axes, (0, 1)) if mine else None
        if given is None or given.shape[:2] != shape:
            return original(*args, **kwargs)
        rows, positions = places.rows.to(given.device), places.positions.to(given.device)
        some = original(given[rows, positions][None].movedim((0, 1), axes)).movedim(axes, (0, 1))[0]
        whole = some.new_zeros(*shape, *some.shape[1:])
        whole[rows, positions] = some
        return whole.movedim((0, 1), axes)

    with wrap_forwards(modules, pass_some):
        yield


def _takes_one(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].is_floating_point() and args[0].ndim > 2


def _list_candidates(call: LayerCall) -> list[nn.Module]:
    """The modules inside, outer ones first, that are called once, with a tensor that has a row for each token, and give one."""
    seen: dict[nn.Module, list[bool]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        fits = _takes_one(args, kwargs) and isinstance(output, Tensor) and output.ndim > 2
        seen.setdefault(module, []).append(fits and all(_leads(part, call) for part in (args[0], output)))

    inner = [module for module in call.layer.modules() if module is not call.layer and _is_plain(module)]
    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in inner]
    try:
        call.repeat()
    finally:
        for hook in hooks:
            hook.remove()
    return [module for module in inner if seen.get(module) == [True]]


def _leads(part: Tensor, call: LayerCall) -> bool:
    return tuple(part.movedim(call.axes, (0, 1)).shape[:2]) == call.shape


def _is_plain(module: nn.Module) -> bool:
    """Whether all its weights are plain numbers that lie here: how those that are packed, or spread over processes, are
    multiplied may depend on all rows."""
    parts = [*module.parameters(), *module.buffers()]
    return all(type(part.data) is Tensor and part.dtype.itemsize > 1 and not part.is_meta for part in parts)


def _poison(call: LayerCall, module: nn.Module, places: Probes) -> Tensor:
    """What the layer gives at the places while all other rows are NaN before and behind the module."""

    def spoil(part: Tensor) -> Tensor:
        view = part.movedim(call.axes, (0, 1))
        spoiled = torch.full_like(view, float("nan"))
        rows, positions = places.rows.to(part.device), places.positions.to(part.device)
        spoiled[rows, positions] = view[rows, positions]
        return spoiled.movedim((0, 1), call.axes)

    def pass_spoiled(number: int, original: Callable[..., Any], *args: Any) -> Any:
        return spoil(original(spoil(args[0])))

    with wrap_forwards([module], pass_spoiled):
        return places.pick(call.repeat())


def _is_close(found: Tensor, expected: Tensor) -> bool:
    """NaN anywhere is not."""
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max())
