"""The early-exit classifier of CALM: from a residual state, how likely the lens's top token there is already the final one.

Source: Schuster et al. 2022, "Confident Adaptive Language Modeling" (arXiv 2207.07061), its third confidence, and the authors'
code in google-research/t5x, contrib/calm.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hyperlens.artefact import read_document, write_artefact
from hyperlens.encoding import Given, encode_samples
from hyperlens.errors import ArtefactError, InputError
from hyperlens.lenses import LogitLens, Origin
from hyperlens.models import Model
from hyperlens.splice import at_rest
from hyperlens.tracing.batches import Job, spread_positions
from hyperlens.tracing.limits import Limits, explain_memory
from hyperlens.tracing.reading import read_texts

TENSORS = "exit.safetensors"
PLACES = ("all", "answer", "last")
RIDGE = 1e-4
"""Weight of ½|w|² over standardised states beside the loss: without it, separable states would have no best classifier."""


@dataclass(frozen=True, eq=False)
class ExitClassifier:
    """One linear classifier for the states of all layers: σ(w·h + b). Given to `trace` as a reading, it gives
    `exit_probability`. `origin` names the model that it was fitted to, `training` how."""

    weight: Float[Tensor, "width"] = field(repr=False)
    bias: float
    origin: Origin
    training: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and the bias."""
        return hashlib.sha256(_tensors(self)["weight"].numpy().tobytes() + repr(self.bias).encode()).hexdigest()

    def fit_to(self, model: Model) -> ExitClassifier:
        """This classifier where the model's states are. Raises InputError where it was fitted to another model."""
        if self.origin.fingerprint != model.fingerprint:
            raise InputError(
                f"the exit classifier was fitted to {self.origin.model} ({str(self.origin.fingerprint)[:12]}…); {model.name} "
                f"is {model.fingerprint[:12]}…; fit one to this model with fit_exit_classifier"
            )
        return replace(self, weight=self.weight.to(model.splice.device))

    def read(self, pick: Callable[[int], Tensor], layers: int) -> Float[Tensor, "probe state"]:
        """Its probability at the states 1 … L, in float32; NaN at state 0, which no layer has left."""
        columns = [pick(number).float().flatten(1) @ self.weight + self.bias for number in range(1, layers + 1)]
        return torch.stack([torch.full_like(columns[0], float("nan")), *(column.sigmoid() for column in columns)], 1)

    def describe(self) -> dict[str, Any]:
        """What results keep of it."""
        return {"fingerprint": self.fingerprint, "origin": asdict(self.origin)}


def fit_exit_classifier(
    model: Model, samples: str | Iterable[Given], positions: str = "all", most: int = 2000, limits: Limits | None = None
) -> ExitClassifier:
    """Fit CALM's early-exit classifier to `model` on some texts: deterministic, in one pass over them.

    At most `most` of the positions ("all", "answer" or "last"), evenly spread, and fewer where their states would take more
    than a quarter of the memory. Label of a state 1 … L − 1: whether the logit lens's top token there is the model's own (a
    tie counts). Loss, as in the authors' code: cross-entropy, the two labels weighted alike within each layer, averaged over
    layers; layers where all labels are the same add nothing. Ours: raw residual states, a ridge of 1e-4 over standardised
    ones, L-BFGS. Raises InputError where there is nothing to learn.
    """
    limits = limits or Limits()
    if positions not in PLACES:
        raise InputError(f'an exit classifier is not fitted at positions "{positions}"; choose from {", ".join(PLACES)}')
    if most < 1:
        raise InputError(f"an exit classifier was asked for from {most} positions; give a number from 1 up")
    listed: list[Given] = [samples] if isinstance(samples, str) else [*samples]
    states, agrees = _gather_states(model, listed, positions, most, limits)
    weight, bias, loss = _fit_logistic(states, agrees)
    share = agrees.double().mean(0).tolist()
    training = {"positions": len(states), "where": positions, "agreement": share, "loss": loss, "ridge": RIDGE}
    return ExitClassifier(weight.float(), bias, Origin(model.name, model.fingerprint), training)


def save_exit_classifier(classifier: ExitClassifier, folder: str | os.PathLike[str]) -> Path:
    """Write it as a folder of json and safetensors. Raises ArtefactError."""
    manifest = {"kind": "exit classifier", **classifier.describe(), "bias": classifier.bias, "training": classifier.training}
    return write_artefact(folder, manifest, {}, files={TENSORS: save(_tensors(classifier))})


def load_exit_classifier(folder: str | os.PathLike[str]) -> ExitClassifier:
    """Read what `save_exit_classifier` wrote. Raises ArtefactError where it is something else, or damaged."""
    place, manifest = Path(folder), read_document(folder)
    if manifest.get("kind") != "exit classifier":
        raise ArtefactError(f"{place} holds no exit classifier but a {manifest.get('kind')}; choose another folder")
    try:
        weight = load_file(place / TENSORS)["weight"]
        read = ExitClassifier(weight, manifest["bias"], Origin(**manifest["origin"]), manifest["training"])
        whole = read.fingerprint == manifest["fingerprint"]
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ArtefactError(f"{place} holds a damaged exit classifier ({error}); put back a copy, or fit it again") from None
    if not whole:
        raise ArtefactError(f"{place} holds other weights than its manifest says; put back a copy, or fit it again")
    return read


def _tensors(classifier: ExitClassifier) -> dict[str, Tensor]:
    return {"weight": classifier.weight.detach().cpu().float().contiguous()}


def _gather_states(
    model: Model, samples: list[Given], positions: str, most: int, limits: Limits
) -> tuple[Float[Tensor, "probe layer width"], Bool[Tensor, "probe layer"]]:
    """The states 1 … L − 1 at some positions of the texts, and whether the logit lens's top token there is the model's own."""
    if model.layers < 2:
        raise InputError(f"{model.name} has one layer, so that there is no exit before its last; choose a deeper model")
    encoded = [replace(text, option_ids=()) for text in encode_samples(samples, model, positions)]
    width = torch.Size(model.splice.anatomy.width).numel()
    chosen = spread_positions(encoded, min(most, limits.share(4, 12 * (model.layers + 1) * width)))

    def keep(pick: Callable[[int], Tensor], layers: int) -> Tensor:
        return torch.stack([pick(number).float().flatten(1) for number in range(layers + 1)], 1)

    job = Job(model, LogitLens(), (0,), ("rank",), "output", limits, gauges={"states": keep})
    with model.splice.lock, at_rest(model.network), explain_memory(limits):
        readings = read_texts(job, chosen).readings
    states, rank = (torch.from_numpy(readings[name][:, 0, 1 : model.layers]) for name in ("states", "rank"))
    return states, rank == 0


def _fit_logistic(
    states: Float[Tensor, "probe layer width"], agrees: Bool[Tensor, "probe layer"]
) -> tuple[Float[Tensor, "width"], float, float]:
    """Weights, bias and loss of the classifier, by L-BFGS in float64."""
    label = agrees.double()
    share = label.mean(0)
    mixed = (share > 0) & (share < 1)
    if not mixed.any():
        which = "never" if not agrees.any() else "always" if agrees.all() else "at each layer always or never"
        raise InputError(
            f"the logit lens's top token is {which} the model's own at these {len(agrees)} positions, so that there is nothing "
            "to learn; give more texts"
        )
    flat = states.double().flatten(0, 1)
    centre, scale = flat.mean(0), flat.std(0, correction=0).clamp_min(1e-12)
    points, label = ((flat - centre) / scale).unflatten(0, agrees.shape)[:, mixed], label[:, mixed]
    balance = torch.where(label == 1, 1 - share[mixed], share[mixed])
    weight, bias = (torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in (points.shape[-1], 1))
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def lose() -> Tensor:
        optimiser.zero_grad()
        each = torch.nn.functional.binary_cross_entropy_with_logits(points @ weight + bias, label, balance)
        loss = each + RIDGE / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(lose)
    found = (weight / scale).detach()
    return found, float(bias.detach() - found @ centre), float(lose().detach())
