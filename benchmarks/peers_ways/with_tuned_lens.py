"""tuned-lens 0.2.0: its LogitLens on the hidden states, its PredictionTrajectory, and its own training step."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import types
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
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


class NoAutocast:
    """torch, but for `autocast`, which does nothing."""

    autocast = staticmethod(lambda *_, **__: contextlib.nullcontext())

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def train(network: Any, texts: Texts, setting: Setting, autocast: bool = True) -> Run:
    """Its own training step, `Train.execute`, with what is gone from torchdata left empty and model and data handed over.

    It calls `autocast` to bfloat16, unless that is taken away.
    """
    for name in ("torchdata", "torchdata.dataloader2", "torchdata.datapipes", "wandb"):
        module: Any = types.ModuleType(name)
        module.DataLoader2 = object
        sys.modules[name] = module
    for part in ("dataloader2", "datapipes"):
        setattr(sys.modules["torchdata"], part, sys.modules[f"torchdata.{part}"])
    os.environ["TQDM_DISABLE"] = "1"
    loop: Any = import_module("tuned_lens.scripts.train_loop")
    parts: Any = import_module("tuned_lens.scripts.ingredients")
    del network.lens  # its step counts the model's parameters
    lens = lenses.TunedLens.from_model(network).to(setting.device)
    network.lens = lenses.LogitLens.from_model(network)
    settings = parts.Optimizer(optimizer=parts.OptimizerOption.ADAM)
    chosen = settings.create_optim([part for part in lens.parameters() if part.requires_grad])
    lens.save = lambda folder: None  # it saves at the end of every training; that is no part of a step
    data = [{"input_ids": texts.tensor(setting.device)}]
    given = {"dataloader": data, "lens": lens, "opt": chosen, "scheduler": settings.create_scheduler(chosen, 1000)}

    class Step(loop.Train):
        def setup(self) -> Any:
            return loop.State(**given, wandb_id=None, nats_to_bpb=1.0), network, 1

    beside = (parts.Model("given"), parts.Data(), settings, parts.Distributed())
    step = Step(*beside, output=Path(tempfile.gettempdir()), num_steps=1)

    def run() -> None:
        loop.th = torch if autocast else NoAutocast()
        with torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()):
            step.execute()

    return run


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
    "train": train,
    "train, without autocast": partial(train, autocast=False),
}
