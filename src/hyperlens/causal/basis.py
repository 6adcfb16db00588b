"""Causal basis extraction (Belrose et al. 2023, arXiv 2303.08112): the orthogonal directions whose loss changes a lens most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hyperlens.causal.ablation import Ablation, Stage, check_count, decompose, hold_state, read_controls, read_held
from hyperlens.causal.responses import LEAST_LENGTH, chunk_rows, compare_outputs, sum_influence
from hyperlens.encoding import Given
from hyperlens.errors import ModelError
from hyperlens.lenses import Lens
from hyperlens.models import Model
from hyperlens.tasks import Sample
from hyperlens.tracing import Limits
from hyperlens.tracing.reading import show_progress

STARTS = 6
"""Principal components, less what was found before, of which the most influential is where each search begins."""
ITERATIONS = 30
"""Most steps of one search."""
TOLERANCE = 1e-3
"""A search ends where a step adds less than this share of the influence that it began with."""


@dataclass(frozen=True, eq=False)
class CausalBasis:
    """Orthonormal directions of a state, float32, and their influences on a lens in nats, the largest first.

    Each influence, from 0 up, is that of ablating its direction alone, as mean over the positions read in a text, then over
    texts.
    """

    vectors: Float[Tensor, "width direction"]
    influences: Float[np.ndarray, "direction"]
    ablation: Ablation
    lens: dict[str, Any]
    model: str


def extract_causal_basis(
    model: Model,
    lens: Lens,
    samples: str | Sample | Iterable[Given],
    ablation: Ablation,
    count: int = 10,
    limits: Limits | None = None,
) -> CausalBasis:
    """The `count` directions whose ablation changes most what `lens` reads, found one by one, each orthogonal to those before.

    v_i = argmax KL(f(h) ‖ f(h with v ablated)) over unit vectors v ⟂ v_1 … v_{i−1}, the mean over texts of the mean over the
    positions that are read; f is the lens at its focal depth. Each search is L-BFGS from the most influential of a few
    principal components, and finds a local maximum; the directions are then put in order. It departs from the original
    package, which begins with singular vectors of the unembedding (of no meaning to a lens that routes), draws new donors
    at each step of "resample", and lets a long text count more. Beside what `limits` bounds, the state of all texts is held.
    `count` goes from 1 to the width. Raises InputError, CertificateError where the lens is not exact on the model, ModelError
    where an ablated state gives logits that are not finite, MemoryLimitError.
    """
    with hold_state(model, lens, samples, ablation, limits) as (stage, fitted):
        check_count(count, stage.width)
        controls, components = read_controls(stage, fitted), decompose(stage)
        found, influences = torch.zeros(stage.width, 0, dtype=torch.float64), []
        with show_progress(limits or Limits(), "extracting directions", count) as advance:
            for _ in range(count):
                starts = _choose_starts(*components, found)
                vector, influence = _search(stage, fitted, controls, starts, found)
                found, influences = torch.cat([found, vector[:, None]], 1), [*influences, influence]
                advance(1)
    order = np.argsort(-np.array(influences), kind="stable")
    described = fitted.describe() | {"focal_depths": fitted.focal_depths}
    return CausalBasis(found[:, order.copy()].float(), np.array(influences)[order], ablation, described, model.fingerprint)


def _search(
    stage: Stage, lens: Lens, controls: Sequence[Tensor], starts: Sequence[Tensor], found: Float[Tensor, "width _"]
) -> tuple[Float[Tensor, "width"], float]:
    """The best direction that a search finds beside those found before, and its influence."""
    with torch.no_grad():
        values = [float(sum_influence(stage, lens, controls, start[:, None]).mean()) for start in starts]
    best = int(np.argmax(values))
    known = (starts[best], values[best])
    point = starts[best].clone().requires_grad_()
    scale = max(values[best], torch.finfo(torch.float32).tiny)

    def descend() -> Tensor:
        nonlocal known
        inside = _project(point.detach(), found)
        unit = inside / inside.norm()
        value, gradient = differentiate(stage, lens, controls, unit)
        if value > known[1]:
            known = (unit, value)
        point.grad = -_project(gradient - unit * (unit @ gradient), found) / inside.norm() / scale
        return torch.tensor(-value / scale, dtype=torch.float64)

    climb = torch.optim.LBFGS(
        [point], max_iter=ITERATIONS, tolerance_grad=TOLERANCE, tolerance_change=TOLERANCE, line_search_fn="strong_wolfe"
    )
    climb.step(descend)
    return known


def _choose_starts(
    components: Float[Tensor, "width width"], covariance: Float[Tensor, "width width"], found: Float[Tensor, "width _"]
) -> list[Float[Tensor, "width"]]:
    """What the principal components have beside the directions found before, as unit vectors: those of most variance."""
    inside = _project(components[:, : found.shape[1] + STARTS], found)
    inside = inside[:, inside.norm(dim=0) > LEAST_LENGTH]  # less is mostly rounding
    inside = inside / inside.norm(dim=0)
    order = torch.einsum("wd,wx,xd->d", inside, covariance, inside).argsort(descending=True)
    return [inside[:, number] for number in order[:STARTS]]


def _project(vectors: Tensor, found: Tensor) -> Tensor:
    """What vectors have beside the directions found before."""
    return vectors - found @ (found.T @ vectors)


def differentiate(
    stage: Stage, lens: Lens, controls: Sequence[Tensor], direction: Float[Tensor, "width"]
) -> tuple[float, Float[Tensor, "width"]]:
    """The influence of ablating one direction on a lens, the mean over texts, and its derivative by the direction.

    The logits of a few rows at a time are made, differentiated and let go.
    """
    shares = 1 / (stage.read.double() * len(stage.read))
    total, gradient = 0.0, torch.zeros_like(direction)
    for held, control in zip(stage.batches, controls, strict=True):
        moved = direction.clone().requires_grad_()
        left, back = read_held(stage, lens, held, moved[:, None]), []
        for rows in chunk_rows(stage, held):
            part = left[rows].detach().requires_grad_()
            influence = (compare_outputs(stage, control[rows], part)[2] * shares[held.texts[rows]]).sum()
            back.append(torch.autograd.grad(influence, part)[0])
            total += influence.item()
        gradient += torch.autograd.grad(left, moved, torch.cat(back))[0]
    if not (np.isfinite(total) and torch.isfinite(gradient).all()):
        raise ModelError("an ablated state gives NaN or infinite logits; load the model in a wider dtype, or ablate otherwise")
    return total, gradient
