"""The cells of a study with one of its models: texts encoded and batched as the run will do it, counted, and summed up."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hyperlens.artefact import is_artefact, read_document
from hyperlens.configuration import context_length
from hyperlens.encoding import Encoded
from hyperlens.errors import InputError
from hyperlens.lenses import HyperLens, Lens, Origin, Translators, TunedLens
from hyperlens.models.loading import check_device
from hyperlens.routing import TEMPORARIES
from hyperlens.runs.measure import CALIBRATION_SAMPLES, _encode, _positions
from hyperlens.runs.plan.counting import count_batch, count_generation, count_prefix, count_proof
from hyperlens.runs.plan.estimates import CellPlan, ModelPlan, Number, Rates, Work
from hyperlens.runs.plan.frames import BYTES_OF_WEIGHT, SIGNS_OF_A_TOKEN, Frame, frame_model, name_device
from hyperlens.runs.plan.timing import calibrate_model
from hyperlens.runs.spec import TRAINED, LensSpec, ModelSpec, Study
from hyperlens.runs.store import LARGEST_SHARD, SHARDS_OF_A_CELL, SMALLEST_SHARD
from hyperlens.tasks import Drawn, Sample, letter_options
from hyperlens.tracing import Limits
from hyperlens.tracing.batches import Job, fed_tokens, make_batches
from hyperlens.tracing.prefixes import group_texts
from hyperlens.tracing.traces import _calibration_texts

COUNTED_SAMPLES = 2000
"""Most samples of a task that are made into tokens; of more, so many are drawn by the study's seed and stand for all."""


def plan_model(study: Study, spec: ModelSpec, drawn: Sequence[Drawn], calibrate: bool) -> tuple[ModelPlan, list[CellPlan]]:
    """What the study will take of one model. Raises InputError and ModelError where it can read nothing of it."""
    frame = frame_model(study, spec)
    depths = [choose_depths(_focus(study, lens, spec), frame.layers) for lens in study.lenses]
    device, absent = _find_device(spec)
    texts = [_encode_task(study, frame, one) for one in drawn]
    lengths = [len(fed_tokens(text)) for one in texts for text in one.encoded]
    if not lengths:
        raise InputError(f"none of the samples can be read by {spec.name}; see the study's tasks")
    rates, timed_on = None, ""
    if calibrate and not absent:
        generated = any(one.read == "generated" for one in drawn)
        rates, timed_on = calibrate_model(frame, study, device, round(sum(lengths) / len(lengths)), generated)
    cells = []
    for lens, chosen in zip(study.lenses, depths, strict=True):
        for number, task in enumerate(texts):
            cells.append(_plan_cell(study, frame, lens, chosen, study.tasks[number].name, drawn[number], task, rates))
    work = sum((_count_choice(study, frame, lens, texts) for lens in study.lenses if lens.chosen), Work())
    plan = _plan_memory(study, spec, frame, depths, device, max(lengths))
    return replace(
        plan,
        choosing_flops=work.flops,
        choosing_seconds=None if rates is None else rates.seconds(work),
        layer_flops_per_second=None if rates is None or not rates.layer_flop else 1 / rates.layer_flop,
        timed_on=timed_on,
        note="; ".join([*frame.notes, *absent, *_find_missing(study, spec)]),
    ), cells


def list_candidates(layers: int) -> tuple[int, ...]:
    """The focal depths from which "auto" and "sweep" choose: 0, 1, 2, 4, 8 … up to layers − 4."""
    return (0, *(2**power for power in range(layers.bit_length()) if 2**power <= layers - 4))


def choose_depths(lens: LensSpec, layers: int) -> tuple[int, ...]:
    """The focal depths that a lens will read. Of "auto", which reads one beside 0, the candidate whose routing costs most.

    Raises InputError for a depth that the model has not.
    """
    candidates = list_candidates(layers)
    if lens.focal_depths == "sweep":
        return candidates
    if lens.focal_depths == "auto":
        return tuple(sorted({0, max(candidates, key=lambda depth: depth * (layers - depth))}))

    return HyperLens(lens.focal_depths, lens.context, lens.between).check_depths(layers)


def _focus(study: Study, lens: LensSpec, model: ModelSpec) -> LensSpec:
    """The table of a lens with the focal depth that it was trained for as a number; 0 where it is not here, or does not say."""
    if lens.focal_depths != TRAINED:
        return lens
    folder = Path(study.locate_lens(lens, model))
    origin = read_document(folder).get("origin", {}) if is_artefact(folder) else {}
    return replace(lens, focal_depths=(origin.get("focal_depth", 0),))


def _find_missing(study: Study, model: ModelSpec) -> list[str]:
    """What to say of tuned lenses whose folders are not here."""
    folders = [study.locate_lens(lens, model) for lens in study.lenses if lens.kind == "tuned"]
    folders = [folder for folder in folders if folder != ModelSpec.source]  # the lens that comes with us
    return [f"{folder} is not here: its lens is counted all the same" for folder in folders if not Path(folder).is_dir()]


@dataclass(frozen=True)
class _Texts:
    """The texts of a task as one model takes them, `share` of which were counted, and the seconds that each took to encode."""

    encoded: list[Encoded]
    skipped: Number
    counted: int
    share: Number
    seconds: Number
    samples: int


def _find_device(spec: ModelSpec) -> tuple[str, list[str]]:
    """Where a model will be, and what to say where that is not here."""
    device = name_device(spec)
    try:
        check_device(device)
    except InputError:
        return device, [f"{device} is not here: no time was measured"]
    return device, []


def _encode_task(study: Study, frame: Frame, drawn: Drawn) -> _Texts:
    """The samples of a task as the run will encode them, or a drawn part of them; generated answers at their longest."""
    began = time.perf_counter()
    total = len(drawn.samples)
    numbers = range(total)
    if total > COUNTED_SAMPLES:
        numbers = sorted(random.Random(study.seed).sample(numbers, COUNTED_SAMPLES))
    samples = [replace(drawn.samples[number], images=()) for number in numbers]
    task = {"read": drawn.read, "max_new_tokens": drawn.max_new_tokens}
    if frame.model.tokenizer is None:
        encoded = [one for sample in samples if (one := _guess(study, frame, drawn, sample)) is not None]
    else:
        encoded = [one for _, one in _encode(frame.model, task, samples, range(len(samples)), study.too_long)[0]]
    if drawn.read == "generated":
        encoded = [_lengthen(frame, text, drawn.max_new_tokens or 32) for text in encoded]
    share = len(samples) / total if total else 1.0
    seconds = (time.perf_counter() - began) / max(1, len(samples))
    return _Texts(encoded, (len(samples) - len(encoded)) / share, len(samples), share, seconds, total)


def _guess(study: Study, frame: Frame, drawn: Drawn, sample: Sample) -> Encoded | None:
    """A text of the length that its characters make likely; None where it would be skipped."""
    sample = letter_options(sample) if drawn.read == "options" else replace(sample, options=())
    positions = _positions({"read": drawn.read}, sample)
    signs = len(sample.prompt) + sum(len(part) for shot in sample.shots for part in shot)
    prompt, target = math.ceil(signs / SIGNS_OF_A_TOKEN), math.ceil(len(sample.target or "") / SIGNS_OF_A_TOKEN)
    length = prompt + (target if positions == "answer" else 0)
    places = tuple(range(prompt - 1, length - 1)) if positions == "answer" else (length - 1,)
    context = context_length(frame.config)
    if context is not None and length > context:
        if study.too_long == "skip":
            return None
        places, length = tuple(max(0, place - (length - context)) for place in places), context
    return Encoded(sample, (0,) * length, places[:1] if sample.options else places)


def _lengthen(frame: Frame, text: Encoded, room: int) -> Encoded:
    """The text with the longest answer that may be written, read at the positions that predict it."""
    context, length = context_length(frame.config), len(text.ids)
    more = room if context is None else max(1, min(room, context - length))
    return replace(text, ids=(*text.ids, *[0] * more), positions=tuple(range(length - 1, length + more - 1)))


def _plan_cell(
    study: Study,
    frame: Frame,
    lens: LensSpec,
    depths: tuple[int, ...],
    name: str,
    drawn: Drawn,
    texts: _Texts,
    rates: Rates | None,
) -> CellPlan:
    began, job, work, batches = time.perf_counter(), _make_job(study, frame, lens, depths), Work(), 0
    for shard in _shards(study, texts):
        computed, cut = _count_texts(job, frame, shard)
        work, batches = work + computed, batches + cut
    if drawn.read == "generated":
        for text in texts.encoded:
            work += count_generation(frame, len(text.positions), text.positions[0] + 1)
    seconds = None
    if rates is not None:
        batching = (time.perf_counter() - began) * len(texts.encoded) / max(1, texts.counted)
        seconds = (rates.seconds(work) + batching + texts.seconds * texts.counted) / texts.share
    tokens, probes = (
        sum(map(len, part)) for part in zip(*((fed_tokens(one), one.positions) for one in texts.encoded), strict=True)
    )
    each = len({"probability", *lens.readings}) + 2 * lens.top_k
    remarks = [f"{texts.counted} of {texts.samples} samples were counted"] if texts.share < 1 else []
    remarks += ["answers at their longest"] if drawn.read == "generated" else []
    remarks += ["at most: the focal depth is chosen in the run"] if lens.focal_depths == "auto" else []
    return CellPlan(
        frame.model.name,
        lens.name,
        name,
        lens.context,
        depths,
        list_candidates(frame.layers) if lens.chosen else (),
        texts.samples,
        round(texts.skipped),
        texts.counted,
        round(tokens / texts.share),
        round(probes / texts.share),
        round(batches / texts.share),
        work.scale(1 / texts.share),
        round(probes * len(depths) * each * (frame.layers + 1) * 4 / texts.share),
        seconds,
        "; ".join(remarks),
    )


def _make_job(study: Study, frame: Frame, lens: LensSpec, depths: tuple[int, ...]) -> Job:
    """How the run will read a batch."""
    names = tuple(dict.fromkeys(("probability", *lens.readings)))
    known = frame.model.tokenizer is not None  # else texts have a length, but no tokens
    limits = Limits(study.memory_mb, study.batch_tokens, progress=False, share_prefixes=known)
    return Job(frame.model, _make_lens(frame, lens, depths), depths, names, "output", limits)


def _make_lens(frame: Frame, lens: LensSpec, depths: tuple[int, ...]) -> Lens:
    """The lens, without its translators' values."""
    if lens.kind != "tuned":
        return HyperLens(depths, lens.context, lens.between)
    with torch.device("meta"):
        translators = Translators.identity(frame.layers, frame.model.splice.anatomy.width[0])
    return TunedLens(depths, lens.context, lens.between, translators=translators, origin=Origin(frame.model.name))


def _shards(study: Study, texts: _Texts) -> Iterator[list[Encoded]]:
    """The texts as the run will share them out: long ones first, so many to a shard."""
    usual = min(max(math.ceil(texts.samples / SHARDS_OF_A_CELL), SMALLEST_SHARD), LARGEST_SHARD)
    size = study.shard_samples or usual

    def signs(text: Encoded) -> int:
        return len(text.sample.prompt) + len(text.sample.target or "")

    ordered = sorted(texts.encoded, key=signs, reverse=True)
    for first in range(0, len(ordered), size):
        yield ordered[first : first + size]


def _count_texts(job: Job, frame: Frame, texts: list[Encoded]) -> tuple[Work, int]:
    """What reading texts in one trace computes, and in how many batches."""
    order = sorted(range(len(texts)), key=lambda number: -len(fed_tokens(texts[number])))
    work, batches, proved = count_proof(job, frame, texts), 0, False
    for group in group_texts(job, texts, order):
        if group.shared:
            work += count_prefix(frame, group.shared, len(fed_tokens(texts[group.numbers[0]])), proved)
            proved = True
        for batch in make_batches(job, texts, group.numbers, group.shared):
            work, batches = work + count_batch(job, frame, [texts[number] for number in batch], group.shared), batches + 1
    return work, batches


def _count_choice(study: Study, frame: Frame, lens: LensSpec, texts: Sequence[_Texts]) -> Work:
    """Choosing the focal depth: all candidates at a few positions of samples from all tasks."""
    each = -(-CALIBRATION_SAMPLES // len(texts))
    few = [one for task in texts for one in task.encoded[:: max(1, len(task.encoded) // each)][:each]]
    few = [replace(one, option_ids=()) for one in few]
    job = _make_job(study, frame, lens, list_candidates(frame.layers))
    chosen = _calibration_texts(frame.model, few)
    return _count_texts(job, frame, chosen)[0]


def _plan_memory(
    study: Study, spec: ModelSpec, frame: Frame, depths: Sequence[tuple[int, ...]], device: str, longest: int
) -> ModelPlan:
    """What the devices of one replica hold, for the lens that needs most."""
    spread = int(spec.gpus) or torch.cuda.device_count() if spec.device_map == "auto" else 1
    devices = max(1, spread, spec.tensor_parallel)
    weights = frame.largest_layer_bytes if spec.device_map == "disk" else -(-frame.weights_bytes // devices)
    found, width = [], frame.model.splice.anatomy.width[0]
    vocabulary, tuned = frame.head // max(1, width), sum(lens.kind == "tuned" for lens in study.lenses)
    translators = tuned * frame.layers * width * (width + 1) * frame.model.splice.anatomy.dtype.itemsize
    for lens, chosen in zip(study.lenses, depths, strict=True):
        job = _make_job(study, frame, lens, chosen)
        tokens = max(longest, job.batch_tokens)
        routes = bool(max(chosen) or lens.between)
        recorded = frame.layers - min(chosen) + 2 if routes and lens.context == "jump" else 1
        cached = sum(frame.kept[frame.layers - max(chosen) :]) if lens.context == "cached" else 0.0
        itemsize = frame.model.splice.anatomy.dtype.itemsize
        terms = {
            "weights_bytes": weights,
            "translators_bytes": translators,
            "forward_bytes": tokens
            * max(TEMPORARIES * job.width, 3 * itemsize * getattr(frame.config, "intermediate_size", 0)),
            "cache_bytes": -(-round(tokens * cached * itemsize) // devices),
            "states_bytes": tokens * recorded * job.width,
            "routed_bytes": max(longest, min(job.stack_tokens, tokens * frame.layers)) * TEMPORARIES * job.width * routes,
            "logits_bytes": 4 * 4 * vocabulary * min(job.logit_rows, tokens * frame.layers),
            "budget_bytes": study.memory_mb * 2**20,
        }
        bounded = terms["states_bytes"] + terms["routed_bytes"] + terms["logits_bytes"]
        total = sum(terms[name] for name in ("weights_bytes", "translators_bytes", "forward_bytes", "cache_bytes"))
        found.append((total + max(terms["budget_bytes"], bounded), terms))
    memory, terms = max(found, key=lambda one: one[0])
    there = _find_memory(device)
    return ModelPlan(
        spec.name,
        type(frame.model.network).__name__,
        frame.layers,
        frame.model.splice.anatomy.width[0],
        vocabulary,
        frame.parameters,
        frame.active_parameters,
        spec.dtype if spec.dtype in BYTES_OF_WEIGHT else str(frame.model.splice.anatomy.dtype).removeprefix("torch."),
        device,
        devices,
        **terms,
        memory_bytes=memory,
        largest_memory=max(terms, key=lambda name: terms[name]).removesuffix("_bytes"),
        device_bytes=there,
        fits=None if there is None else memory <= there,
    )


def _find_memory(device: str) -> int | None:
    """All memory of a device, if it can be told."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory if torch.cuda.is_available() else None
    if device == "cpu" and hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= os.sysconf_names.keys():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
