"""What ablating directions does to a lens and to the model: how much, and whether in the same way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hyperlens.causal.ablation import Ablation, Held, Stage, hold_state, own_lens, read_controls, read_held
from hyperlens.certificate import error_bound
from hyperlens.contrast import estimate_mean, estimate_trend
from hyperlens.encoding import Given
from hyperlens.errors import InputError, ModelError
from hyperlens.lenses import Lens
from hyperlens.models import Model
from hyperlens.readings import read_logits
from hyperlens.resampling import Interval, check_seed
from hyperlens.tasks import Sample
from hyperlens.tracing import Limits

LEAST_LENGTH = 1e-4
"""Share of a direction that must be left beside those before it, or it is taken for one of their span."""


@dataclass(frozen=True, eq=False)
class Responses:
    """What each intervention did to a lens (the stimulus) and to the model (the response), as means over a text's positions.

    The influences are KL(unablated ‖ ablated) in nats, from 0 up. `alignment` is the Aitchison similarity of both changes in
    [−1, 1], NaN where one of them is not above rounding at any position of the text.
    """

    lens_influence: Float[np.ndarray, "direction text"]
    model_influence: Float[np.ndarray, "direction text"]
    alignment: Float[np.ndarray, "direction text"]
    ablation: Ablation
    lens: dict[str, Any]


def measure_influence(
    model: Model,
    samples: str | Sample | Iterable[Given],
    directions: Float[Tensor, "width direction"],
    ablation: Ablation,
    lens: Lens | None = None,
    limits: Limits | None = None,
) -> Float[np.ndarray, "direction text"]:
    """KL(f(h) ‖ f(h with one direction ablated)) in nats, for each direction, as means over the positions read in each text.

    f is what `lens` reads; without a lens it is the model, whose own layers run on from the state. Raises InputError,
    CertificateError where the lens is not exact on the model, ModelError where an ablated state gives logits that are not
    finite, MemoryLimitError.
    """
    with hold_state(model, lens, samples, ablation, limits) as (stage, fitted), torch.no_grad():
        controls, blocks = read_controls(stage, fitted), split_directions(stage, directions, together=False)
        rows = [sum_influence(stage, fitted, controls, block) for block in blocks]
    return torch.stack(rows).cpu().numpy()


def align_responses(
    model: Model,
    lens: Lens,
    samples: str | Sample | Iterable[Given],
    directions: Float[Tensor, "width direction"],
    ablation: Ablation,
    together: bool = False,
    limits: Limits | None = None,
) -> Responses:
    """The same interventions on what a lens reads and on what the model's own layers make of the state.

    One for each direction, or with `together` one for their span. Raises InputError, also for directions of another width and
    for a span of fewer dimensions than directions; CertificateError where the lens is not exact on the model, ModelError where
    an ablated state gives logits that are not finite, MemoryLimitError.
    """
    with hold_state(model, lens, samples, ablation, limits) as (stage, fitted), torch.no_grad():
        lenses = [(one, read_controls(stage, one)) for one in (fitted, own_lens(model, ablation.state))]
        blocks = split_directions(stage, directions, together)
        of_lens, of_model, aligned = torch.stack([_respond(stage, lenses, block) for block in blocks], 1).cpu().numpy()
    return Responses(of_lens, of_model, aligned, ablation, fitted.describe() | {"focal_depths": fitted.focal_depths})


def correlate_influences(responses: Responses, seed: int = 0) -> Interval:
    """Spearman's rho of the influences on the lens and on the model, and its interval over directions. Raises InputError."""
    check_seed(seed)
    return estimate_trend(responses.lens_influence.mean(1), responses.model_influence.mean(1), seed)


def average_alignment(responses: Responses, seed: int = 0) -> Interval:
    """Mean alignment over directions, and its interval over texts; what has none is left out. Raises InputError."""
    check_seed(seed)
    known = ~np.isnan(responses.alignment)
    each = np.where(known, responses.alignment, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return estimate_mean(np.where(known.any(0), each, np.nan), seed)


def compare_changes(
    stimulus: Float[Tensor, "row vocabulary"],
    response: Float[Tensor, "row vocabulary"],
    weights: Float[Tensor, "row vocabulary"],
) -> Float[Tensor, "row"]:
    """Aitchison similarity ⟨s, r⟩ / (‖s‖·‖r‖) of two changes of log-probabilities, in [−1, 1].

    ⟨s, r⟩ = Σ w (s − Σ w s)(r − Σ w r), for weights w that sum to 1: what is added to all tokens alike is no change. As in the
    paper, w is the model's own distribution before the intervention (an early release of the original package took its mean
    with that after it). NaN where a side has no length.
    """
    centred = [side - (weights * side).sum(-1, keepdim=True) for side in (stimulus, response)]
    lengths = [(weights * side * side).sum(-1).sqrt() for side in centred]
    return ((weights * centred[0] * centred[1]).sum(-1) / (lengths[0] * lengths[1])).clamp(-1, 1)


def compare_outputs(stage: Stage, control: Tensor, treated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of unablated and ablated states at some rows, and KL(unablated ‖ ablated) in nats."""
    output = stage.model.splice.head(control)
    logits = stage.model.splice.head(treated)
    return output, logits, read_logits(logits, output.argmax(-1), ("kl_to_output",), output)["kl_to_output"]


def split_directions(stage: Stage, directions: Tensor, together: bool) -> list[Float[Tensor, "width _"]]:
    """What is ablated at once, each as an orthonormal basis. Raises InputError where the directions are none."""
    if directions.ndim != 2 or len(directions) != stage.width or not directions.shape[1]:
        raise InputError(
            f"the directions have the shape {list(directions.shape)}; expected [{stage.width}, count], a column for each"
        )
    given = directions.double().cpu()
    lengths = given.norm(dim=0)
    if not (torch.isfinite(lengths) & (lengths > 0)).all():
        raise InputError("a direction is zero or not finite; give vectors of some length")
    given = given / lengths
    if not together:
        return list(given.split(1, 1))
    vectors, triangle = torch.linalg.qr(given)
    if directions.shape[1] > stage.width or triangle.diagonal().abs().min() < LEAST_LENGTH:
        raise InputError("the directions depend on each other, so that they span less than they are; give independent ones")
    return [vectors]


def chunk_rows(stage: Stage, held: Held) -> Iterator[Tensor]:
    """The probes of a batch, as many at once as logits may be held."""
    yield from torch.arange(len(held.texts), device=held.texts.device).split(stage.logit_rows)


def sum_influence(
    stage: Stage, lens: Lens, controls: Sequence[Tensor], block: Float[Tensor, "width _"]
) -> Float[Tensor, "text"]:
    """The influence of ablating a block of directions, for each text; `controls` are what is left unablated."""
    total = torch.zeros(len(stage.read), dtype=torch.float64, device=stage.read.device)
    for held, control in zip(stage.batches, controls, strict=True):
        treated = read_held(stage, lens, held, block)
        for rows in chunk_rows(stage, held):
            influence = compare_outputs(stage, control[rows], treated[rows])[2]
            total.index_add_(0, held.texts[rows], influence.double())
    return _check_finite(total / stage.read)


def _respond(
    stage: Stage, lenses: Sequence[tuple[Lens, list[Tensor]]], block: Float[Tensor, "width _"]
) -> Float[Tensor, "kind text"]:
    """Influence on the lens, influence on the model and alignment of one intervention, for each text.

    `lenses` are the lens and the model, each with what is left unablated.
    """
    totals = torch.zeros(4, len(stage.read), dtype=torch.float64, device=stage.read.device)
    for number, held in enumerate(stage.batches):
        seen = [(controls[number], read_held(stage, lens, held, block)) for lens, controls in lenses]
        for rows in chunk_rows(stage, held):
            stimulus, response = (compare_outputs(stage, control[rows], treated[rows]) for control, treated in seen)
            similarity = _align(stage, stimulus, response)
            known = ~similarity.isnan()
            values = (stimulus[2], response[2], similarity.nan_to_num(0.0), known)
            totals.index_add_(1, held.texts[rows], torch.stack([value.double() for value in values]))
    _check_finite(totals)
    return torch.stack([totals[0] / stage.read, totals[1] / stage.read, totals[2] / totals[3]])  # 0 / 0 is NaN, as it should


def _align(stage: Stage, stimulus: tuple[Tensor, ...], response: tuple[Tensor, ...]) -> Float[Tensor, "row"]:
    """The alignment of two changes of logits; NaN where one is not above what the certificate takes for rounding."""
    wide = [[side.double() for side in part[:2]] for part in (stimulus, response)]
    changes = [after - before for before, after in wide]
    similarity = compare_changes(changes[0], changes[1], wide[1][0].softmax(-1))
    bound = error_bound(stage.model.splice.dtype)
    for (before, _), change in zip(wide, changes, strict=True):
        spread = change.amax(-1) - change.amin(-1)
        similarity = similarity.masked_fill(spread <= bound * before.abs().amax(-1), torch.nan)
    return similarity


def _check_finite(values: Tensor) -> Tensor:
    """The values, where all are finite. Raises ModelError."""
    if not torch.isfinite(values).all():
        raise ModelError("an ablated state gives NaN or infinite logits; load the model in a wider dtype, or ablate otherwise")
    return values
