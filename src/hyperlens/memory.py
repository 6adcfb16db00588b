"""What a model keeps of the tokens that it has seen: its own memory of a text, copied row by row, and one that only keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


@dataclass(frozen=True)
class Memory:
    """What a call sees besides its own tokens: keys, values or recurrent states of earlier ones, as the model keeps them.

    `name` is what the model's forward calls it; `masks` are those of the layers that see only a part of it.
    """

    cache: Any
    masks: Mapping[int, Float[Tensor, "row 1 token key"]] = field(default_factory=dict)
    name: str = "past_key_values"

    def count_bytes(self, start: int = 0) -> int:
        """How much of it `spread` copies for each row."""
        return _count_bytes(self.cache.layers[start:] if isinstance(self.cache, Cache) else self.cache)

    def spread(self, rows: int, start: int = 0) -> Memory:
        """A copy of the memory of one text for `rows` copies of it, so that a call which adds to it leaves this one as it is.

        Layers before `start`, which that call is to bypass, stay shared.
        """
        if not isinstance(self.cache, Cache):
            return replace(self, cache=_spread(self.cache, rows))
        spread = copy.copy(self.cache)
        spread.layers = [*self.cache.layers[:start], *copy.deepcopy(self.cache.layers[start:])]
        for layer in spread.layers[start:]:
            layer.reorder_cache(cast(torch.LongTensor, torch.zeros(rows, dtype=torch.long)))
        return replace(self, cache=spread)

    def keep(self, start: int = 0) -> Memory:
        """The memory as it is now, whatever is added to this one later; of layers before `start` only its length counts."""
        kept = self.spread(1, start)
        if isinstance(self.cache, Cache):
            kept.cache.layers[:start] = [copy.copy(layer) for layer in self.cache.layers[:start]]
        return kept


@contextmanager
def witness_updates(cache: Cache, numbers: Iterable[int]) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """What the tokens of the latest call saw in these layers of a memory, their own keys and values last: by reference.

    A layer with a window keeps less for the next call than its tokens saw; here it is all there.
    """
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    layers: dict[int, Any] = {number: cache.layers[number] for number in numbers}

    def update(number: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen[number] = original(*args, **kwargs)
        return seen[number]

    try:
        for number, layer in layers.items():
            layer.update = partial(update, number, layer.update)
        yield seen
    finally:
        for layer in layers.values():
            layer.__dict__.pop("update", None)


class KeptLayer(CacheLayerMixin):
    """One layer's keys and values as its own pass made them: kept by reference, seen by later passes, never added to.

    Its own pass may come behind that of a text which all its rows begin with: `before` has that one's layer.
    """

    is_sliding = False

    def __init__(self, keep: bool, before: KeptLayer | None = None) -> None:
        super().__init__()
        self.keep, self.before = keep, before

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)
        if self.before is not None and self.before.keys is not None and self.before.values is not None:
            parts = zip((self.before.keys, self.before.values), (key_states, value_states), strict=True)
            key_states, value_states = (torch.cat([old.expand(len(new), -1, -1, -1), new], -2) for old, new in parts)
        if self.keep:
            self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        if self.keys is None and self.before is not None:
            return self.before.get_seq_length()
        return 0 if self.keys is None else self.keys.shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


def _count_bytes(value: Any) -> int:
    """The bytes of all tensors in a structure."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else vars(value).values() if hasattr(value, "__dict__") else value
    return sum(map(_count_bytes, parts)) if isinstance(parts, Iterable) and not isinstance(parts, str) else 0


def _spread(value: Any, rows: int) -> Any:
    """Each tensor of a structure, the first axis of which counts one text, for `rows` copies of the text."""
    if isinstance(value, Tensor):
        return value.repeat_interleave(rows, 0) if value.ndim and len(value) == 1 else value.clone()
    if isinstance(value, list | tuple):
        return type(value)(_spread(each, rows) for each in value)
    if isinstance(value, dict):
        return {key: _spread(each, rows) for key, each in value.items()}
    if hasattr(value, "__dict__") and not isinstance(value, torch.dtype | type):
        spread = copy.copy(value)
        vars(spread).update({name: _spread(each, rows) for name, each in vars(value).items()})
        return spread
    return value
