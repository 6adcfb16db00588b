"""The last layer at the rows that are read alone: which of its modules only these rows need to pass.

What is read at a position comes through its own row of the last layer; other rows matter to it by what they are attended to,
their keys and values, and by nothing behind that. Which modules these are is found by trying, whatever the family calls them:
a module is *narrow* where the outcome at some rows stays what it is though all others are NaN, both on the way into the module
and out of it. NaN spreads to whatever is computed from it, so that what stays finite and equal was not. Attention itself is no
module; where a layer leaves it to torch's own function, what a query finds is its own affair by what that function is, and
the queries of other rows are left out of the call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from hyperlens.anatomy import returned_state
from hyperlens.visits import Probes, wrap_forwards

CLOSE, CLOSE_16 = 1e-4, 2e-2
"""How far, as a share of the largest value, rounding may take a row that was computed beside fewer others; and in 16 bit."""


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


@dataclass(frozen=True)
class Narrow:
    """What of a layer only rows that are read need: some of its `modules`, and the queries of its `attention`."""

    modules: tuple[nn.Module, ...] = ()
    attention: bool = False

    def __bool__(self) -> bool:
        return bool(self.modules) or self.attention

    @property
    def weaker(self) -> tuple[Narrow, ...]:
        """This, and what is left of it where it does not hold: without attention, without anything."""
        return tuple(dict.fromkeys((self, Narrow(self.modules), Narrow())))


def find_narrow(call: LayerCall) -> Narrow:
    """What of a layer other rows need not pass. May raise anything that the layer's own code raises."""
    rows, tokens = call.shape
    places = Probes(torch.arange(rows), tokens - 1 - torch.arange(rows) % tokens)
    expected, modules = places.pick(call.repeat()), []
    for module in _list_candidates(call):
        inside = any(module is part for one in modules for part in one.modules())
        if not inside and _is_close(_poison(call, module, places), expected):
            modules.append(module)
    with FewQueries(places, call.shape, others=float("nan")) as few:
        alone = places.pick(call.repeat())
    return Narrow(tuple(modules), few.calls > 0 and _is_close(alone, expected))


@contextmanager
def narrowed(narrow: Narrow, places: Probes, axes: tuple[int, int], shape: tuple[int, int]) -> Iterator[None]:
    """Let only the states at `places` of `shape` (rows and tokens) pass what is narrow; what comes of the others is 0."""

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

    with wrap_forwards(narrow.modules, pass_some), FewQueries(places, shape) if narrow.attention else nullcontext():
        yield


class FewQueries(TorchFunctionMode):
    """Inside, torch's attention over `shape` (rows and tokens) computes the queries at `places` alone, and gives `others` for
    the rest. `calls` counts how often."""

    def __init__(self, places: Probes, shape: tuple[int, int], others: float = 0.0) -> None:
        super().__init__()
        self.places, self.shape, self.others, self.calls = places, shape, others, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        attend = self._attend if func is scaled_dot_product_attention else func
        return attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **more: Any,
    ) -> Tensor:
        given = (query, key, value)
        plain = all(type(part) is Tensor and part.ndim == 4 for part in given)
        masked = is_causal and not self._ends
        slow = masked and bool(more.get("enable_gqa")) and query.device.type == "cuda"  # its kernels for that take no mask
        if not plain or slow or (query.shape[0], query.shape[2]) != self.shape or key.shape[0] != len(query):
            return scaled_dot_product_attention(*given, attn_mask, dropout_p, is_causal, **more)
        self.calls += 1
        texts, columns = (part.to(query.device) for part in self._lined_up)
        if masked:
            attn_mask = torch.arange(key.shape[2], device=query.device) <= columns[:, None, :, None]
        elif attn_mask is not None and attn_mask.shape[-2] == self.shape[1] > 1:
            attn_mask = attn_mask[(None,) * (4 - attn_mask.ndim)].expand(len(query), -1, -1, -1)
            attn_mask = attn_mask.transpose(1, 2)[texts, columns].transpose(1, 2)
        few = query.transpose(1, 2)[texts, columns].transpose(1, 2)
        found = scaled_dot_product_attention(few, key, value, attn_mask, dropout_p, **more).transpose(1, 2)
        whole = found.new_full((*self.shape, *found.shape[2:]), self.others)
        whole[texts, columns] = found
        return whole.transpose(1, 2)

    @cached_property
    def _lined_up(self) -> tuple[Tensor, Tensor]:
        """The places as `[row, place]`, as many for each row: where there are fewer, the last token again."""
        (rows, tokens), places = self.shape, self.places
        hits = torch.zeros(rows, tokens, dtype=torch.bool, device=places.rows.device)
        hits[places.rows, places.positions] = True
        most = int(hits.sum(1).max())
        columns = torch.where(hits, torch.arange(tokens, device=hits.device), tokens - 1).sort(1).values[:, :most]
        return torch.arange(rows, device=hits.device)[:, None], columns

    @cached_property
    def _ends(self) -> bool:
        """Whether all places are at the ends of their rows, where a query sees all keys."""
        return bool((self._lined_up[1] == self.shape[1] - 1).all())


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
    close = CLOSE if expected.dtype.itemsize > 2 else CLOSE_16
    return bool((found - expected).abs().max() <= close * expected.abs().max())
