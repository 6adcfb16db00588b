"""Which of a model's modules are its decoder layers, in what order they run, and what passes between them.

Learned by watching two plain calls: no name of a family and no entry of a configuration says it as surely. What is never
called (a vision tower on a text), called out of line, or called again and again (a looped model) shows by itself.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hyperlens.configuration import context_length, plain_token, text_config
from hyperlens.errors import ModelError, first_sentence, is_memory_error

_SIZES = ((2, 5), (3, 7))
"""Rows and tokens of the two calls; an axis of a state that goes from 2 to 3 counts rows, one from 5 to 7 tokens."""


@dataclass(frozen=True)
class Anatomy:
    """The decoder layers of a model, and the shape of the states between them.

    `order` has, for each call of a layer in one pass, which of `layers` it is of: one call each in most models, several in
    one that loops. `axes` are those of rows and tokens in a state, `width` its other sizes, `dtype` its precision. `returns`
    says of each call whether it gives a tensor (None), or which kind of sequence, of how many.
    """

    layers: tuple[nn.Module, ...]
    order: tuple[int, ...]
    axes: tuple[int, int]
    width: tuple[int, ...]
    dtype: torch.dtype
    returns: tuple[tuple[type, int] | None, ...]


@dataclass(frozen=True)
class _Call:
    """One call of a module: the state that it was given, and what it returned."""

    module: nn.Module
    given: Tensor
    returned: Any


def study_anatomy(model: PreTrainedModel) -> Anatomy:
    """Watch two plain calls of `model`. Raises ModelError where no list of layers hands one state on to the next."""
    first, second = (_choose(model, _watch(model, *sizes)) for sizes in _call_sizes(model))
    name = type(model).__name__
    if [call.module for call in first] != [call.module for call in second]:
        raise ModelError(f"{name} runs other layers on another text; HyperLens reads models whose layers run in a fixed order")
    layers = tuple(dict.fromkeys(call.module for call in first))
    shapes = {(tuple(one.given.shape), tuple(other.given.shape)) for one, other in zip(first, second, strict=True)}
    if len(shapes) > 1:
        raise ModelError(f"the states of {name} change their shape from layer to layer; HyperLens reads one residual stream")
    axes = _find_axes(name, *shapes.pop(), _call_sizes(model))
    width = tuple(size for axis, size in enumerate(first[0].given.shape) if axis not in axes)
    order = tuple(layers.index(call.module) for call in first)
    return Anatomy(layers, order, axes, width, first[0].given.dtype, tuple(_kind(call.returned) for call in first))


def call_parameters(model: PreTrainedModel) -> set[str]:
    """The names that the model's forward accepts, seen through wrappers such as adapters."""
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    return set(inspect.signature(type(unwrap()).forward).parameters)


def token_embedding(model: PreTrainedModel) -> nn.Embedding:
    """The module that turns token ids into states. Raises ModelError where there is not exactly one."""
    embedding: Any = model.get_input_embeddings()
    if not isinstance(getattr(embedding, "weight", None), Tensor):
        raise ModelError(f"{type(model).__name__} has no one embedding of token ids; HyperLens reads models of one text")
    return embedding


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids have to be: the device of the embedding."""
    embedding = token_embedding(model)
    if embedding.weight.device.type == "meta":  # offloaded by accelerate, whose hook knows where it computes
        hook: Any = getattr(embedding, "_hf_hook", None)
        return torch.device(hook.execution_device)
    return embedding.weight.device


def eager() -> AbstractContextManager[Any]:
    """Let what was compiled run as it was written: nothing that is put around a layer takes effect in compiled code."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def given_state(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, Tensor]:
    """The state among what a layer is called with, and the name that it is passed by, if by name.

    Raises ModelError where there is none.
    """
    if args and isinstance(args[0], Tensor):
        return None, args[0]
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            return name, value
    raise ModelError("a decoder layer was called without a state; HyperLens reads layers that take and give one tensor")


def returned_state(output: Any) -> Any:
    """The state that a layer gives: what it returns, or the first of it."""
    return output[0] if isinstance(output, tuple | list) else output


def _call_sizes(model: PreTrainedModel) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and tokens of the two calls, within the model's context."""
    limit = context_length(text_config(model)) or max(tokens for _, tokens in _SIZES)
    (rows, tokens), (more_rows, more_tokens) = _SIZES
    return (rows, min(tokens, limit)), (more_rows, min(more_tokens, limit))


def _watch(model: PreTrainedModel, rows: int, tokens: int) -> list[_Call]:
    """Call the model on a text that means nothing; every call of an item of a list of modules, outermost items only."""
    calls: list[_Call] = []
    given: dict[nn.Module, Tensor] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            given[module] = given_state(args, kwargs)[1]
        except ModelError:
            given.pop(module, None)

    def after(module: nn.Module, _: Any, returned: Any) -> None:
        if module in given and isinstance(returned_state(returned), Tensor):
            calls.append(_Call(module, given[module], returned))

    ids = torch.full((rows, tokens), plain_token(text_config(model)), device=input_device(model))
    known = call_parameters(model)
    options = {name: value for name, value in {"use_cache": False, "return_dict": True}.items() if name in known}
    with torch.no_grad(), eager(), ExitStack() as stack:
        for module in _listed(model):
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        try:
            model(input_ids=ids, **options)
        except Exception as error:
            if is_memory_error(error):
                raise
            raise ModelError(
                f"{type(model).__name__} does not run on a plain text (it raised {type(error).__name__}: "
                f"{first_sentence(error)}); HyperLens reads models that take token ids alone"
            ) from None
    return calls


def _listed(model: PreTrainedModel) -> list[nn.Module]:
    """The items of all lists of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(dict.fromkeys(item for one in lists for item in one))


def _choose(model: PreTrainedModel, calls: list[_Call]) -> list[_Call]:
    """Of all calls those of the decoder layers: as many as the configuration counts, else those with most parameters.

    Calls are of one kind where the lists that hold their modules hold the same classes. Raises ModelError.
    """
    inner = {id(part) for call in calls for part in call.module.modules() if part is not call.module}
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    kinds = {item: frozenset(type(each) for each in one) for one in reversed(lists) for item in one}
    groups: dict[Any, list[_Call]] = {}
    for call in calls:
        if id(call.module) not in inner:
            groups.setdefault(kinds[call.module], []).append(call)
    if not groups:
        raise ModelError(
            f"{type(model).__name__} has no list of decoder layers that runs on a text; HyperLens reads decoder-only models "
            "whose layers are a ModuleList"
        )
    count = getattr(text_config(model), "num_hidden_layers", None)

    def weight(group: list[_Call]) -> tuple[bool, int]:
        modules = {call.module for call in group}
        return len(group) == count, sum(part.numel() for module in modules for part in module.parameters())

    return max(groups.values(), key=weight)


def _find_axes(name: str, one: tuple[int, ...], other: tuple[int, ...], sizes: Any) -> tuple[int, int]:
    """Which axes of a state count rows and tokens."""
    (rows, tokens), (more_rows, more_tokens) = sizes
    pairs = list(zip(one, other, strict=True))
    row = next((axis for axis, pair in enumerate(pairs) if pair == (rows, more_rows)), None)
    token = next((axis for axis, pair in enumerate(pairs) if axis != row and pair == (tokens, more_tokens)), None)
    if row is None or token is None:
        raise ModelError(
            f"the states of {name} are {list(one)} for {rows} rows of {tokens} tokens; HyperLens reads models that keep one "
            "state for each token"
        )
    return row, token


def _kind(returned: Any) -> tuple[type, int] | None:
    return (type(returned), len(returned)) if isinstance(returned, tuple | list) else None
