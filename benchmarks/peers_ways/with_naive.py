"""HyperLens as a reader of its definition would write it: for each state a loop over the deepest layers, then the head.

Layer by layer with the model's own submodules, for texts of equal length. `cached` takes, for each
state, one decoding step on a copy of the keys and values that the model left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from shared import Run, Setting, Texts, confidence, load_network
from torch import Tensor
from transformers.masking_utils import create_causal_mask

PACKAGES: tuple[str, ...] = ()
OTHER = "the naive loop is about deeper focus; its logit lens is the plain loop"
CANNOT = {row: OTHER for row in ("last", "ragged", "all", "generate", "train")}
SWEEP = (0, 1, 2, 4, 8)


def load(setting: Setting) -> Any:
    """The model itself."""
    return load_network(setting)


def run_layers(network: Any, state: Tensor, first: int, places: Tensor, cache: Any) -> Tensor:
    """The last logits after the layers from `first` on."""
    core = network.model
    mask = create_causal_mask(network.config, state, None, cache, places)
    turned = core.rotary_emb(state, position_ids=places)
    beside = {"attention_mask": mask, "position_ids": places, "position_embeddings": turned}
    for layer in core.layers[first:]:
        state = layer(state, past_key_values=cache, use_cache=cache is not None, **beside)
    return network.lm_head(core.norm(state[:, -1]))


def read_jump(network: Any, ids: Tensor, depth: int) -> Tensor:
    """All positions of one state after the other go through the deepest layers."""
    found = network(ids, use_cache=False, output_hidden_states=True, logits_to_keep=1)
    own, chosen = found.logits[:, -1], found.logits[:, -1].argmax(-1)
    first = network.config.num_hidden_layers - depth
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    rows = [
        confidence(run_layers(network, state, first, places, None) if depth else read_state(network, state[:, -1:]), chosen)
        for state in found.hidden_states[:first]
    ]
    return torch.stack([*rows, confidence(own, chosen)])


def read_state(network: Any, state: Tensor) -> Tensor:
    """Focal depth 0."""
    return network.lm_head(network.model.norm(state[:, -1]))


def read_cached(network: Any, ids: Tensor, depth: int) -> Tensor:
    """The last position of each state takes a step of its own on a copy of the model's keys and values."""
    found = network(ids, use_cache=True, output_hidden_states=True, logits_to_keep=1)
    own, chosen = found.logits[:, -1], found.logits[:, -1].argmax(-1)
    first, length = network.config.num_hidden_layers - depth, ids.shape[1]
    kept = found.past_key_values
    kept.crop(-1)  # without the last position
    places = torch.full((1, 1), length - 1, device=ids.device)
    rows = []
    for state in found.hidden_states[:first]:
        probed = state[:, -1:]
        routed = run_layers(network, probed, first, places, copy.deepcopy(kept)) if depth else read_state(network, probed)
        rows.append(confidence(routed, chosen))
    return torch.stack([*rows, confidence(own, chosen)])


def way(read: Callable[[Any, Tensor, int], Tensor], depths: tuple[int, ...]) -> Callable[[Any, Texts, Setting], Run]:
    """One reading for each depth, one after the other."""

    def prepare(network: Any, texts: Texts, setting: Setting) -> Run:
        ids = texts.tensor(setting.device)
        fitting = [depth for depth in depths if depth <= network.config.num_hidden_layers]
        return lambda: torch.cat([read(network, ids, depth) for depth in fitting])

    return prepare


WAYS = {
    f"{context} {depth}": way(read, (depth,))
    for context, read in (("jump", read_jump), ("cached", read_cached))
    for depth in SWEEP[1:]
}
WAYS |= {"jump sweep": way(read_jump, SWEEP), "cached sweep": way(read_cached, SWEEP)}


def read_last(network: Any, texts: Texts, side: str, chosen: Tensor, setting: Setting) -> Tensor:
    """Not asked for: the loop is for texts of equal length."""
    raise NotImplementedError("the naive loop is for texts of equal length")
