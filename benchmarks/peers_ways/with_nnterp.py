"""nnterp: StandardizedTransformer, its helper `logit_lens`, and its `project_on_vocab` inside a trace."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from shared import NO_WAYS, Run, Setting, Texts, at, confidence, generation_settings, jump_ways, last_places, on_ids
from torch import Tensor

nnterp: Any = import_module("nnterp")
nnsight: Any = import_module("nnsight")
helper: Any = import_module("nnterp.interventions").logit_lens

PACKAGES = ("nnterp", "nnsight")
CANNOT = NO_WAYS


def load(setting: Setting) -> Any:
    """As its documentation says, with its checks."""
    return nnterp.StandardizedTransformer(str(setting.folder), device_map=setting.device, dtype=setting.torch_dtype)


def with_helper(model: Any, given: Any) -> Tensor:
    """Its own logit lens: all probabilities of the last token after each layer, of which the top token's are taken."""
    found = helper(model, given)
    return found.gather(-1, found[:, -1:].argmax(-1, keepdim=True).expand(-1, found.shape[1], -1))[..., 0].T


def last(model: Any, texts: Texts, setting: Setting) -> Run:
    """Texts of equal length."""
    ids = texts.tensor(setting.device)
    return lambda: with_helper(model, ids)


def ragged(model: Any, texts: Texts, setting: Setting) -> Run:
    """Strings, padded as it does by default, on the left."""
    return lambda: with_helper(model, texts.strings)


def read(model: Any, given: Any, places: Tensor | None) -> Tensor:
    """One place of each text at every state with its projection; all places where none is given."""
    pick = (lambda state: state) if places is None else (lambda state: at(state, places))
    with model.trace(given, **({} if places is None else {"logits_to_keep": 1})):
        states = [pick(model.layers_input[0])]
        for layer in range(model.num_layers):
            states.append(pick(model.layers_output[layer]))
        picked = model.logits.argmax(-1) if places is None else model.logits[:, -1].argmax(-1)
        found = nnsight.save([confidence(model.project_on_vocab(state), picked) for state in states])
    return torch.stack(list(found)).flatten(1)


def projected(model: Any, texts: Texts, setting: Setting) -> Run:
    """The last token without the helper."""
    ids = texts.tensor(setting.device)
    return lambda: read(model, ids, last_places(texts, "right", setting.device))


def every(model: Any, texts: Texts, setting: Setting) -> Run:
    """All tokens; the helper reads only the last."""
    ids = texts.tensor(setting.device)
    return lambda: read(model, ids, None)


def read_jump(model: Any, ids: Tensor, depth: int) -> Tensor:
    """A trace for each state, with `skip_layers`: the state in the place of what the first of the deepest layers is given."""
    first = model.num_layers - depth
    with model.trace(ids, logits_to_keep=1):
        states = nnsight.save([model.layers_input[0]])
        for layer in range(first - 1):
            states.append(model.layers_output[layer])
        own = model.logits[:, -1].save()
    chosen = own.argmax(-1)
    rows = []
    for state in states:
        with model.trace(ids, logits_to_keep=1):
            model.skip_layers(0, first - 1, skip_with=state)
            logits = model.logits[:, -1].save()
        rows.append(confidence(logits, chosen))
    return torch.stack([*rows, confidence(own, chosen)])


def generate(model: Any, ids: Tensor, setting: Setting) -> Tensor:
    """Generation with every state of every step read in the step."""
    with model.generate(ids, **generation_settings(setting)) as tracer:
        found = nnsight.save([])
        for _ in tracer.iter[: setting.tokens]:
            states = [model.layers_input[0][:, -1]]
            for layer in range(model.num_layers):
                states.append(model.layers_output[layer][:, -1])
            picked = model.logits[:, -1].argmax(-1)
            found.append(torch.stack([confidence(model.project_on_vocab(state), picked) for state in states]))
    return torch.stack(list(found), 2).flatten(1)


def read_last(model: Any, texts: Texts, side: str, chosen: Tensor, setting: Setting) -> Tensor:
    """Its helper on strings, which it refuses where the padding is on the right."""
    model.tokenizer.padding_side = side
    try:
        return helper(model, texts.strings)[:, -1].gather(-1, chosen[:, None].cpu())[:, 0]
    finally:
        model.tokenizer.padding_side = "left"


def read_default(model: Any, texts: Texts, chosen: Tensor, setting: Setting) -> Tensor:
    """It pads on the left by itself."""
    return helper(model, texts.strings)[:, -1].gather(-1, chosen[:, None].cpu())[:, 0]


WAYS = {"last": last, "last, project_on_vocab": projected, "ragged": ragged, "all": every, "generate": on_ids(generate)}
WAYS |= jump_ways(read_jump)
