"""nnsight: a trace that calls the model's own norm and head out of order, as its first page shows."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from shared import NO_WAYS, Run, Setting, Texts, at, confidence, generation_settings, jump_ways, last_places, on_ids
from torch import Tensor

nnsight: Any = import_module("nnsight")

PACKAGES = ("nnsight",)
CANNOT = NO_WAYS


def load(setting: Setting) -> Any:
    """As its documentation says."""
    placed: dict[str, Any] = {"dtype": setting.torch_dtype}
    if setting.device != "cpu":  # there it needs accelerate
        placed["device_map"] = setting.device
    return nnsight.TransformersModel(str(setting.folder), task="text-generation", dispatch=True, **placed)


def read(model: Any, given: Any, places: Tensor | None, chosen: Tensor | None) -> Tensor:
    """One place of each text at every state; all places where none is given."""
    layers = model.model.layers
    pick = (lambda state: state) if places is None else (lambda state: at(state, places))
    with model.trace(given, **({} if places is None else {"logits_to_keep": 1})):
        states = [pick(layers[0].input)]
        for layer in layers:
            states.append(pick(layer.output))
        picked = model.output.logits.argmax(-1) if chosen is None else chosen
        picked = picked if places is None or chosen is not None else picked[:, -1]
        found = nnsight.save([confidence(model.lm_head(model.model.norm(state)), picked) for state in states])
    return torch.stack(found).flatten(1)


def last(model: Any, texts: Texts, setting: Setting) -> Run:
    """The last token of texts of equal length."""
    ids = texts.tensor(setting.device)
    return lambda: read(model, ids, last_places(texts, "right", setting.device), None)


def ragged(model: Any, texts: Texts, setting: Setting) -> Run:
    """Strings, padded as it does by default, on the left."""
    return lambda: read(model, texts.strings, last_places(texts, "left", setting.device), None)


def every(model: Any, texts: Texts, setting: Setting) -> Run:
    """All tokens."""
    ids = texts.tensor(setting.device)
    return lambda: read(model, ids, None, None)


def read_jump(model: Any, ids: Tensor, depth: int) -> Tensor:
    """A trace for each state, in which the layers before the deepest are skipped with it."""
    layers = model.model.layers
    first = len(layers) - depth
    with model.trace(ids, logits_to_keep=1):
        states = nnsight.save([layers[0].input])
        for layer in range(first - 1):
            states.append(layers[layer].output)
        own = model.output.logits[:, -1].save()
    chosen = own.argmax(-1)
    rows = []
    for state in states:
        with model.trace(ids, logits_to_keep=1):
            for layer in range(first):
                layers[layer].skip(state)
            logits = model.output.logits[:, -1].save()
        rows.append(confidence(logits, chosen))
    return torch.stack([*rows, confidence(own, chosen)])


def generate(model: Any, ids: Tensor, setting: Setting) -> Tensor:
    """Generation with every state of every step read in the step."""
    layers = model.model.layers
    with model.generate(ids, **generation_settings(setting)) as tracer:
        found = nnsight.save([])
        for _ in tracer.iter[: setting.tokens]:
            states = [layers[0].input[:, -1]]
            for layer in layers:
                states.append(layer.output[:, -1])
            picked = model.output.logits[:, -1].argmax(-1)
            found.append(torch.stack([confidence(model.lm_head(model.model.norm(state)), picked) for state in states]))
    return torch.stack(list(found), 2).flatten(1)


def read_last(model: Any, texts: Texts, side: str, chosen: Tensor, setting: Setting) -> Tensor:
    """Strings, padded by its tokenizer, read where the text ends."""
    model.tokenizer.padding_side = side
    try:
        return read(model, texts.strings, last_places(texts, side, setting.device), chosen)[-1]
    finally:
        model.tokenizer.padding_side = "left"


def read_default(model: Any, texts: Texts, chosen: Tensor, setting: Setting) -> Tensor:
    """It pads on the left by itself."""
    return read_last(model, texts, "left", chosen, setting)


WAYS = {"last": last, "ragged": ragged, "all": every, "generate": on_ids(generate)}
WAYS |= jump_ways(read_jump)
