"""tuned-lens 0.2.0: its LogitLens on the hidden states, its PredictionTrajectory, and its own training step."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from original_step import prepare_step
from shared import Run, Setting, Texts, at, confidence, last_places, load_network
from torch import Tensor
from with_plain import every, last, run_padded, spoken

lenses: Any = import_module("tuned_lens.nn.lenses")

PACKAGES = ("tuned-lens",)
WITHOUT = "it reads states through norm and head, or trained translators; it had `extra_layers` until version 0.0.5"
NO_DEFAULT = "whoever runs the model pads; its own class takes one text"
CANNOT = {"jump": WITHOUT, "cached": WITHOUT}


def load(setting: Setting) -> Any:
    """The model with its logit lens, which holds a copy of norm and head, hung onto it."""
    network = load_network(setting)
    network.lens = lenses.LogitLens.from_model(network)
    return network


def project(network: Any, states: Tensor, number: int) -> Tensor:
    """Its lens; transformers has normed the last state already, which it has its own logits for."""
    last = number == network.config.num_hidden_layers
    return network.lm_head(states) if last else network.lens(states, number)


def trajectory(network: Any, texts: Texts, setting: Setting) -> Run:
    """Its class for the reading of a text, text by text, which keeps the whole vocabulary of every state."""
    kind: Any = import_module("tuned_lens.plotting").PredictionTrajectory

    def run() -> Tensor:
        rows = []
        for row in texts.ids:
            found = torch.from_numpy(kind.from_lens_and_model(network.lens, network, row).log_probs)
            chosen = found[-1].argmax(-1)
            rows.append(found.gather(-1, chosen[None, :, None].expand(len(found), -1, 1))[..., 0].exp())
        return torch.cat(rows, 1)

    return run


def train(network: Any, texts: Texts, setting: Setting, autocast: bool = True) -> Run:
    """Its own training step."""
    del network.lens  # its step counts the model's parameters
    lens = lenses.TunedLens.from_model(network).to(setting.device)
    network.lens = lenses.LogitLens.from_model(network)
    return prepare_step(network, lens, texts.tensor(setting.device), autocast=autocast)


def read_last(network: Any, texts: Texts, side: str, chosen: Tensor, setting: Setting) -> Tensor:
    """Its lens on what leaves the last layer; the batch is padded, masked and placed by its user, as it takes states only."""
    found: list[Tensor] = []
    hook = network.model.layers[-1].register_forward_hook(lambda layer, given, made: found.append(made))
    try:
        run_padded(network, texts, side, setting)
    finally:
        hook.remove()
    places = last_places(texts, side, setting.device)
    return confidence(network.lens(at(found[0], places), network.config.num_hidden_layers), chosen)


WAYS = {
    "last": last(project),
    "ragged": last(project),
    "all": every(project),
    "all, PredictionTrajectory": trajectory,
    "generate": spoken(project),
    "train": partial(train, autocast=False),
    "train bfloat16": train,
}
