"""HyperLens: `trace`, `Monitor`, and the training step of `tune_lens`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shared import Run, Setting, Texts, generation_settings, load_network
from torch import Tensor

import hyperlens as hl
import hyperlens.lenses
import hyperlens.tracing  # what a public name would import on its first use, before memory is looked at

PACKAGES: tuple[str, ...] = ("hyperlens",)
CANNOT: dict[str, str] = {}
SWEEP = (0, 1, 2, 4, 8)
LIMITS = hl.Limits(progress=False)


def load(setting: Setting) -> hl.Model:
    """The model, proved."""
    return hl.load_model(load_network(setting))


def read(model: hl.Model, texts: Texts, lens: hl.Lens, positions: str) -> Tensor:
    """All focal depths of the lens, one below the other: `[state, token]`."""
    found = hl.trace(model, texts.ids, lens, positions, limits=LIMITS)
    return torch.cat([torch.tensor(found.confidence(depth)).T for depth in found.focal_depths])


def way(build: Callable[[hl.Model], hl.Lens], positions: str = "last") -> Callable[[hl.Model, Texts, Setting], Run]:
    """A trace with the lens that is built for a model."""

    def prepare(model: hl.Model, texts: Texts, setting: Setting) -> Run:
        lens = build(model)
        return lambda: read(model, texts, lens, positions)

    return prepare


def deep(depths: tuple[int, ...], context: Any) -> Callable[[hl.Model], hl.Lens]:
    """The lens of these focal depths, as far as the model has layers."""
    return lambda model: hl.HyperLens(tuple(depth for depth in depths if depth <= model.layers), context=context)


def generate(model: hl.Model, texts: Texts, setting: Setting) -> Run:
    """A monitored generation; confidence is kept with each token."""
    ids, monitor = texts.tensor(setting.device), hl.Monitor(model, hl.LogitLens())
    settings = generation_settings(setting)

    def run() -> Tensor:
        made = monitor.generate(ids, **settings)
        return torch.tensor(made.trajectory().confidence(0)).T

    return run


def train(model: hl.Model, texts: Texts, setting: Setting, autocast: str | None = None) -> Run:
    """One step of training a tuned lens on all tokens."""
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    from original_lens import prepare_ours

    from hyperlens.lenses import Translators

    translators = Translators.identity(model.layers, model.network.config.hidden_size)
    moved = Translators(*(part.to(setting.device) for part in (translators.weight, translators.bias) if part is not None))
    step = prepare_ours(model, moved, texts.tensor(setting.device), "adam", autocast)

    def run() -> None:
        with torch.enable_grad():
            step()

    return run


def read_last(model: hl.Model, texts: Texts, side: str, chosen: Tensor, setting: Setting) -> Tensor:
    """The last state of a trace padded on this side, whose top tokens must be those of each text alone."""
    limits = hl.Limits(padding_side=side, progress=False)
    found = hl.trace(model, texts.ids, hl.LogitLens(), "last", limits=limits)
    top = torch.tensor(found.data["output_id"].values, device=chosen.device)
    if not bool((top == chosen).all()):
        raise ValueError("the top tokens are not those of the model alone")
    return torch.tensor(found.confidence(0)[:, -1])


def read_default(model: hl.Model, texts: Texts, chosen: Tensor, setting: Setting) -> Tensor:
    """It pads on the right by itself."""
    return read_last(model, texts, "right", chosen, setting)


WAYS = {
    "last": way(lambda model: hl.LogitLens()),
    "ragged": way(lambda model: hl.LogitLens()),
    "all": way(lambda model: hl.LogitLens(), "all"),
    "generate": generate,
    "train": train,
    "train bfloat16": partial(train, autocast="bfloat16"),
}
WAYS |= {f"{context} {depth}": way(deep((depth,), context)) for context in ("jump", "cached") for depth in SWEEP[1:]}
WAYS |= {f"{context} sweep": way(deep(SWEEP, context)) for context in ("jump", "cached")}
