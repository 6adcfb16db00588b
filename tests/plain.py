"""The same readings by PyTorch's own hooks, nothing of ours in their way: the slow references of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hyperlens.anatomy import study_anatomy


def model_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The model's own logits of all columns."""
    with torch.no_grad():
        return model(input_ids=ids).logits


def layer_states(model: PreTrainedModel, ids: Tensor) -> list[Tensor]:
    """What enters each layer, and what leaves the last."""
    layers, states = study_anatomy(model).layers, {}
    with ExitStack() as stack, torch.no_grad():
        for number, layer in enumerate(layers):
            stack.enter_context(_input_of(layer, lambda hidden, number=number: states.setdefault(number, hidden)))
        stack.enter_context(_output_of(layers[-1], lambda hidden: states.setdefault(len(layers), hidden)))
        model(input_ids=ids)
    return [states[number] for number in range(len(layers) + 1)]


def run_replaced(model: PreTrainedModel, ids: Tensor, start: int, states: Tensor) -> Tensor:
    """What leaves the last layer where `states` replace what enters layer `start` (from 0); all layers run."""
    layers, left = study_anatomy(model).layers, []
    with torch.no_grad(), _input_of(layers[start], lambda _: states), _output_of(layers[-1], left.append):
        model(input_ids=ids)
    return left[0]


def replace_one(model: PreTrainedModel, ids: Tensor, start: int, position: int, given: Tensor) -> Tensor:
    """What leaves the last layer at `position` of one text where only its own state there is replaced, for each `given`."""
    own = layer_states(model, ids[None])[start]
    replaced = own.repeat(len(given), *[1] * (own.ndim - 1))
    replaced[:, position] = given
    return run_replaced(model, ids.expand(len(given), -1), start, replaced)[:, position]


@contextmanager
def _input_of(layer: torch.nn.Module, take: Any) -> Iterator[None]:
    """Let `take` see, and replace if it gives another, the state that enters a layer."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (take(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": take(kwargs["hidden_states"])}

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _output_of(layer: torch.nn.Module, take: Any) -> Iterator[None]:
    """Let `take` see the state that leaves a layer."""

    def hook(_: Any, args: Any, output: Any) -> None:
        take(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
