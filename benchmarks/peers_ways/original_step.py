"""The training step of the original package, tuned-lens 0.2.0: `Train.execute` as it is, with model and data handed over.

It runs in the package's own environment too, so it must not import hyperlens.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GONE = ("torchdata", "torchdata.dataloader2", "torchdata.datapipes", "wandb")
"""Modules that its training imports, which are gone from torchdata or do nothing for a step."""


def fill_gaps() -> None:
    """Put empty modules in the place of what is gone, so that its training can be imported."""
    for name in GONE:
        module: Any = types.ModuleType(name)
        module.DataLoader2 = object
        sys.modules[name] = module
    for part in ("dataloader2", "datapipes"):
        setattr(sys.modules["torchdata"], part, sys.modules[f"torchdata.{part}"])


def prepare_step(network: Any, lens: Any, ids: Tensor, optimiser: str = "adam", autocast: bool = True) -> Callable[[], None]:
    """One step on a lens of its own, as often as it is called; an optimiser "none" leaves the gradients.

    It calls `autocast` to bfloat16, unless that is taken away.
    """
    fill_gaps()
    loop: Any = import_module("tuned_lens.scripts.train_loop")
    parts: Any = import_module("tuned_lens.scripts.ingredients")
    settings = parts.Optimizer(optimizer=parts.OptimizerOption.SGD if optimiser == "sgd" else parts.OptimizerOption.ADAM)
    chosen = settings.create_optim([part for part in lens.parameters() if part.requires_grad])
    schedule = settings.create_scheduler(chosen, 1000)
    if optimiser == "none":
        chosen = types.SimpleNamespace(step=lambda: None, zero_grad=lambda set_to_none: None)
        schedule = types.SimpleNamespace(step=lambda: None)
    lens.save = lambda folder: None  # it saves at the end of every training; that is no part of a step
    given = {"dataloader": [{"input_ids": ids}], "lens": lens, "opt": chosen, "scheduler": schedule}

    class Step(loop.Train):
        def setup(self) -> Any:
            return loop.State(**given, wandb_id=None, nats_to_bpb=1.0), network, 1

    beside = (parts.Model("given"), parts.Data(), settings, parts.Distributed())
    step = Step(*beside, output=Path(tempfile.gettempdir()), num_steps=1)

    def run() -> None:
        loop.th = torch if autocast else _Plain()
        said = io.StringIO()  # of what it says, and its bar
        with torch.enable_grad(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            step.execute()

    return run


class _Plain:
    """torch, but for `autocast`, which does nothing."""

    autocast = staticmethod(lambda *_, **__: contextlib.nullcontext())

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)
