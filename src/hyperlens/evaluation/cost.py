"""What a lens costs in forward passes: by arithmetic, and measured beside a plain pass in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch

from hyperlens.encoding import Encoded
from hyperlens.evaluation.evaluation import Cost
from hyperlens.lenses import Lens, TunedLens
from hyperlens.models import Model
from hyperlens.tracing import Limits
from hyperlens.tracing.batches import Job, fed_tokens, make_batches, prepare_batch
from hyperlens.tracing.reading import read_texts


def estimate_cost(model: Model, lens: Lens, depth: int, texts: Sequence[Encoded], limits: Limits, repeats: int) -> Cost:
    """What reading all tokens of the texts at one focal depth costs; its time is measured `repeats` times."""
    states = model.layers - depth
    translators = states if isinstance(lens, TunedLens) else 0
    measured = _measure(model, lens, depth, texts, limits, repeats)
    return Cost(count_passes(model, lens, depth, texts), states + 1, translators, measured)


def count_passes(model: Model, lens: Lens, depth: int, texts: Sequence[Encoded]) -> float:
    """Layers × tokens that a lens at one focal depth runs, by those of a plain pass over the tokens that it reads.

    In `jump` 1 + (L − m)·m/L, and a layer for each state that passes one in between. `cached` routes one state more, which
    proves the others; its steps build the model's memory of each text, which is a pass more, and its replay runs the text
    before each place again. Where the model's way is not the bypass, each routed state runs all layers. The checks on the
    longest text are not counted.
    """
    layers, splice = model.layers, model.splice
    each = depth if splice.way == "bypass" else layers
    lengths = [len(fed_tokens(text)) for text in texts]
    tokens, states = sum(lengths), layers - depth
    if not depth or not states:
        routed = 0
    elif lens.context == "jump":
        routed = states * each * tokens
    else:
        form = model.certificate.cached_form
        visited = sum(length * (length + 1) // 2 for length in lengths) if form == "replay" else tokens
        routed = (states + 1) * each * visited + (layers * tokens if form != "rows" else 0)
    between = sum(layer for layer in lens.between if layer <= states) * tokens
    between *= 1 if splice.way == "bypass" else layers
    return 1 + (routed + between) / (layers * tokens)


def replace_depths(lens: Lens, depths: tuple[int, ...]) -> Lens:
    """The lens at other focal depths, where it has a choice of them."""
    return lens if lens.focal_depths == depths else replace(lens, focal_depths=depths)


def _measure(model: Model, lens: Lens, depth: int, texts: Sequence[Encoded], limits: Limits, repeats: int) -> float | None:
    """Seconds of reading a confidence of every state, by those of a plain pass of the same batches just before: the median of
    `repeats`, with all that is proved on the way."""
    quiet = replace(limits, progress=False)
    job = Job(model, replace_depths(lens, (depth,)), (depth,), ("probability",), "output", quiet)
    ratios = []
    for _ in range(repeats):
        plain = _clock(lambda: _run_plain(job, texts), model.splice.device)
        ratios.append(_clock(lambda: read_texts(job, texts), model.splice.device) / plain)
    return median(ratios) if ratios else None


def _run_plain(job: Job, texts: Sequence[Encoded]) -> None:
    """The model's own forward pass of each batch, with the logits of the last column."""
    order = sorted(range(len(texts)), key=lambda number: -len(fed_tokens(texts[number])))
    for numbers in make_batches(job, texts, order):
        inputs, _ = prepare_batch(job, [texts[number] for number in numbers])
        job.model.splice.own_logits(inputs, [inputs.ids.shape[1] - 1])


def _clock(action: Callable[[], object], device: torch.device) -> float:
    """Seconds that an action takes, with all that it left running on its device."""
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
