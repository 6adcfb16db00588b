"""TransformerLens: TransformerBridge, `run_with_cache` with the residual hooks alone, and its `logit_lens`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from shared import NO_WAYS, Run, Setting, Texts, confidence, jump_ways, last_places, on_ids
from torch import Tensor

Bridge: Any = import_module("transformer_lens.model_bridge").TransformerBridge

PACKAGES = ("transformer-lens",)
CANNOT = NO_WAYS


def load(setting: Setting) -> Any:
    """As its documentation says; attention is always `eager` with it, since hooks are to see its weights."""
    return Bridge.boot_transformers(str(setting.folder), device=setting.device, dtype=setting.torch_dtype)


def names(bridge: Any) -> list[str]:
    """The hooks that its logit lens asks for: what enters each layer, and what leaves the last."""
    layers = bridge.cfg.n_layers
    return [*(f"blocks.{layer}.hook_resid_pre" for layer in range(layers)), f"blocks.{layers - 1}.hook_resid_post"]


def last(bridge: Any, texts: Texts, setting: Setting) -> Run:
    """The last token of texts of equal length, alone kept."""
    ids, hooks = texts.tensor(setting.device), names(bridge)

    def run() -> Tensor:
        logits, cache = bridge.run_with_cache(ids, names_filter=hooks, pos_slice=-1, logits_to_keep=1)
        chosen = logits[:, -1:].argmax(-1)
        return cache.logit_lens(positions=None, targets=chosen, return_type="probs").values[:, :, 0, 0]

    return run


def every(bridge: Any, texts: Texts, setting: Setting) -> Run:
    """All tokens."""
    ids, hooks = texts.tensor(setting.device), names(bridge)

    def run() -> Tensor:
        logits, cache = bridge.run_with_cache(ids, names_filter=hooks)
        chosen = logits.argmax(-1)
        del logits
        return cache.logit_lens(positions=None, targets=chosen, return_type="probs").values.flatten(1)

    return run


def ragged(bridge: Any, texts: Texts, setting: Setting) -> Run:
    """Texts of different length as strings, padded by its tokenizer on the left, so that each ends at the last place."""
    hooks = names(bridge)

    def run() -> Tensor:
        logits, cache = bridge.run_with_cache(
            texts.strings, names_filter=hooks, pos_slice=-1, padding_side="left", prepend_bos=False, logits_to_keep=1
        )
        chosen = logits[:, -1:].argmax(-1)
        return cache.logit_lens(positions=None, targets=chosen, return_type="probs").values[:, :, 0, 0]

    return run


def read_jump(bridge: Any, ids: Tensor, depth: int) -> Tensor:
    """Its forward pass resumed from the first of the deepest layers on each state; the layers before it run for nothing."""
    hooks, first = names(bridge), bridge.cfg.n_layers - depth
    logits, cache = bridge.run_with_cache(ids, names_filter=hooks, logits_to_keep=1)
    own, chosen = logits[:, -1], logits[:, -1].argmax(-1)
    states = (cache[hook] for hook in hooks[:first])
    rows = [confidence(bridge(state, start_at_layer=first, logits_to_keep=1)[:, -1], chosen) for state in states]
    return torch.stack([*rows, confidence(own, chosen)])


def generate(bridge: Any, ids: Tensor, setting: Setting) -> Tensor:
    """Its generation with its cache of all steps, then its logit lens on the steps."""
    quiet = {"do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}
    made, cache = bridge.generate(ids, setting.tokens, return_cache=True, names_filter=names(bridge), **quiet)
    start = ids.shape[1]
    said = made[:, start:]
    found = cache.logit_lens(positions=(start - 1, start - 1 + setting.tokens), targets=said, return_type="probs")
    return found.values.flatten(1)


def read_last(bridge: Any, texts: Texts, side: str, chosen: Tensor, setting: Setting) -> Tensor:
    """Strings, padded by its tokenizer, read where the text ends. Says so where its tokens are not ours."""
    begins = texts.ids[0][0] == bridge.tokenizer.bos_token_id  # it takes it away otherwise
    tokens = bridge.to_tokens(texts.strings, prepend_bos=begins, padding_side=side)
    places = last_places(texts, side, setting.device)
    ours = torch.tensor([row[-1] for row in texts.ids])
    if tokens.shape[1] != max(map(len, texts.ids)) or (tokens[torch.arange(len(places)), places].cpu() != ours).any():
        raise ValueError("its tokenizer gives other tokens")
    given = {"padding_side": side, "prepend_bos": begins}
    _, cache = bridge.run_with_cache(texts.strings, names_filter=names(bridge), **given)
    targets = torch.zeros_like(tokens)
    targets[torch.arange(len(places)), places] = chosen
    values = cache.logit_lens(positions=None, targets=targets, return_type="probs").values[-1, :, :, 0]
    return values[torch.arange(len(places)), places]


def read_default(bridge: Any, texts: Texts, chosen: Tensor, setting: Setting) -> Tensor:
    """Strings, padded on the side and read at the place that it takes where neither is said."""
    begins = texts.ids[0][0] == bridge.tokenizer.bos_token_id
    _, cache = bridge.run_with_cache(texts.strings, names_filter=names(bridge), prepend_bos=begins)
    return cache.logit_lens(targets=chosen, return_type="probs").values[-1, :, 0]


WAYS = {"last": last, "ragged": ragged, "all": every, "generate": on_ids(generate)}
WAYS |= jump_ways(read_jump)
