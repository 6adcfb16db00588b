"""How the confidence answers to an infinitesimal piece of the model's own next step: the directional gain of METHOD §6."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from hyperlens.encoding import Given, encode_samples
from hyperlens.errors import InputError
from hyperlens.lenses import HyperLens
from hyperlens.lenses.lens import route_stack
from hyperlens.models import Model
from hyperlens.splice import Inputs, Probes, at_rest
from hyperlens.tracing.batches import Job, make_batches, prepare_batch
from hyperlens.tracing.limits import Limits, explain_memory
from hyperlens.tracing.reading import prove_image, prove_longest


def differentiate_steps(
    model: Model, samples: Iterable[Given], focal_depths: tuple[int, ...], limits: Limits | None = None
) -> xr.DataArray:
    """Derivative of the confidence along the next step, at the last token of each prompt, in the context `jump`.

    For each focal depth m and state l < L − m: d/dε p(y) of D_m(h_l + ε (h_{l+1} − h_l)) at ε = 0, the states of all positions
    moving together; y is the model's own top token. Float64 `[sample, focal_depth, state]`, NaN from state L − m on, unit 1
    (probability per whole step). `hyperlens.effort.measure_directional_gain` compares depths. Raises InputError.
    """
    lens, limits = HyperLens(focal_depths), limits or Limits()
    depths = lens.check_depths(model.layers)
    if depths[-1] >= model.layers:
        raise InputError(f"at focal depth {depths[-1]} of {model.layers} layers no state is left to move; give a smaller one")
    model.certificate.require("jump")
    encoded = encode_samples(samples, model, "last")
    job = Job(model, lens, depths, ("probability",), "output", limits)
    slopes = np.full((len(encoded), len(depths), model.layers), np.nan)
    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number].ids))
    with model.splice.lock, at_rest(model.network, gradients=True), explain_memory(limits):
        with torch.no_grad():
            prove_longest(job, encoded[order[0]], order[0])
        for numbers in make_batches(job, encoded, order):
            inputs, probes = prepare_batch(job, [encoded[number] for number in numbers])
            if inputs.beside:
                with torch.no_grad():
                    inputs, _ = prove_image(job, inputs, probes, numbers[0])
            states, reference = _run_plainly(job, inputs, probes)
            for place, depth in enumerate(depths):
                count = model.layers - depth
                slopes[numbers, place, :count] = (
                    _differentiate(job, inputs, probes, states[: count + 1], reference).cpu().numpy()
                )
    coordinates = {"focal_depth": list(depths), "state": np.arange(model.layers)}
    return xr.DataArray(slopes, dims=("sample", "focal_depth", "state"), coords=coordinates)


def _run_plainly(job: Job, inputs: Inputs, probes: Probes) -> tuple[Tensor, Tensor]:
    """All states `[state, row, token, width]` of the model's own pass, and its top token at each probe."""
    splice = job.model.splice
    with torch.no_grad():
        states = splice.run(inputs, record=range(splice.depth + 1), read=False).states
        return torch.stack([states[number] for number in range(splice.depth + 1)]), splice.head(
            probes.pick(states[splice.depth])
        ).argmax(-1)


def _differentiate(job: Job, inputs: Inputs, probes: Probes, states: Tensor, reference: Tensor) -> Tensor:
    """The derivatives `[row, state]` at all but the last of `states`, which are routed through the layers after it.

    One backward pass serves as many states as are routed together: no row's confidence depends on another row's states.
    """
    splice, count = job.model.splice, len(states) - 1
    each = max(1, job.stack_tokens // (4 * inputs.ids.numel()))
    slopes = []
    for first in range(0, count, each):
        start = states[first : min(first + each, count)].clone().requires_grad_()
        routed = route_stack(splice, inputs, start, count, probes)
        chosen = reference.expand(len(start), -1).flatten()
        logits = splice.head(routed.flatten(0, 1))
        probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        confidence = probability.gather(-1, chosen[:, None])
        (gradient,) = torch.autograd.grad(confidence.sum(), start)
        step = states[first + 1 : first + 1 + len(start)] - start.detach()
        slopes.append((gradient.double() * step.double()).flatten(2).sum(-1))
    return torch.cat(slopes).T
