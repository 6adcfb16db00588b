"""trace(model, samples, lens) -> Trajectory; the only place where the two halves meet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from hyperlens import effort
from hyperlens.configuration import context_length, image_tokens
from hyperlens.encoding import REFERENCES, Encoded, Given, check_length, encode_samples
from hyperlens.errors import InputError
from hyperlens.lenses import Lens, open_lens
from hyperlens.models import Model
from hyperlens.readings import read_state_cosine
from hyperlens.splice import at_rest
from hyperlens.tasks import Sample, letter_options
from hyperlens.tracing.batches import Gauge, Job, cut_beside, fed_tokens, spread_positions
from hyperlens.tracing.exits import ExitClassifier
from hyperlens.tracing.labels import cut_answer, label_table
from hyperlens.tracing.limits import Limits, explain_memory
from hyperlens.tracing.reading import explain_images, read_texts
from hyperlens.trajectory import EXIT_READING, Trajectory, check_readings

CALIBRATION_POSITIONS = 64
STOP_TOKENS = 64
"""Last tokens in which the end of an answer is looked for."""


def trace(
    model: Model,
    samples: str | Sample | Mapping[str, Tensor] | Iterable[Given],
    lens: Lens | str | os.PathLike[str] | None = None,
    positions: str | None = None,
    reference: str | None = None,
    readings: Sequence[str | ExitClassifier] = ("probability",),
    limits: Limits | None = None,
) -> Trajectory:
    """Read `samples` through `lens`: a confidence trajectory for each position that is read.

    A sample is a text, a Sample, token ids, or what a processor made of a text with images. `positions` are "last" (default),
    "answer" (default where every sample has a target), "all", or "generated", the tokens of a greedy answer. `reference` y is
    the model's own "output" (default), the "target" (default for "answer") or the "generated" token (default for
    "generated"). `readings` are names of `hyperlens.trajectory.READINGS` and `STATE_READINGS`, or an ExitClassifier, which
    gives `exit_probability`; `probability` is always read. With answer options, all readings of a distribution are of that
    over the options alone. A lens may be given by its name, "hyper" (default: HyperLens with its focal depth
    chosen by resolution) or "logit", or by a tuned lens's folder. Raises InputError, ArtefactError for a lens that cannot be
    read, CertificateError where a state that must be the model's own output is not, ModelError for NaN or infinite logits,
    and MemoryLimitError.
    """
    lens, limits = lens if isinstance(lens, Lens) else open_lens(lens or "hyper"), limits or Limits()
    check_readings(name for name in readings if isinstance(name, str))
    listed = [samples] if isinstance(samples, str | Sample | Mapping) else list(samples)
    listed = [_letter_one(sample, limits) for sample in listed]
    positions = positions or _default_positions(listed)
    model.certificate.require(lens.context)
    if isinstance(lens.focal_depths, tuple):
        lens.check_depths(model.layers)
    return trace_encoded(model, encode_samples(listed, model, positions), lens, positions, reference, readings, limits)


def trace_encoded(
    model: Model,
    encoded: Sequence[Encoded],
    lens: Lens,
    positions: str,
    reference: str | None,
    readings: Sequence[str | ExitClassifier],
    limits: Limits,
) -> Trajectory:
    """What `trace` gives, of texts that are token ids already."""
    exits = _find_classifier(model, readings)
    names = tuple(dict.fromkeys(("probability", *(one if isinstance(one, str) else EXIT_READING for one in readings))))
    gauges: dict[str, Gauge] = {"state_cosine": read_state_cosine} | ({EXIT_READING: exits.read} if exits else {})
    lens = lens.fit_to(model)
    with model.splice.lock, at_rest(model.network), explain_memory(limits):
        if positions == "generated":
            encoded = generate_answers(model, encoded, limits)
        reference = _check_reference(reference, positions)
        lens, sweep = resolve_depth(model, encoded, lens, limits)
        wanted = {name: gauge for name, gauge in gauges.items() if name in names}
        job = Job(model, lens, lens.check_depths(model.layers), names, reference, limits, gauges=wanted)
        table = read_texts(job, encoded)
    trajectory = label_table(job, encoded, table, positions, sweep)
    if exits is None:
        return trajectory
    return replace(trajectory, manifest={**trajectory.manifest, "exit_classifier": exits.describe()})


def _find_classifier(model: Model, readings: Sequence[str | ExitClassifier]) -> ExitClassifier | None:
    """The exit classifier among the readings, if there is one, ready to read the model. Raises InputError."""
    found = [one for one in readings if isinstance(one, ExitClassifier)]
    if len(found) > 1:
        raise InputError("there are two exit classifiers among the readings; give one of them")
    return found[0].fit_to(model) if found else None


def resolve_depth(model: Model, encoded: Sequence[Encoded], lens: Lens, limits: Limits) -> tuple[Lens, dict[str, Any] | None]:
    """`lens` with its focal depth chosen where it is "auto" or "sweep", and the calibration that chose it.

    Candidates 0, 1, 2, 4, 8 … up to layers − 4; the largest mean resolution over 64 positions of the texts wins and is read
    beside the logit lens. Where the logit lens itself wins, the best deeper focus is read beside it, so that there is
    something to compare. "sweep" reads all candidates. Positions whose trajectory is flat are skipped and counted.
    """
    if not isinstance(lens.focal_depths, str):
        return lens, None
    candidates = [0, *(2**power for power in range(model.layers.bit_length()) if 2**power <= model.layers - 4)]
    calibration = _calibration_texts(model, encoded)
    job = Job(model, replace(lens, focal_depths=tuple(candidates)), tuple(candidates), ("probability",), "output", limits)
    with model.splice.lock, at_rest(model.network), explain_memory(limits):
        confidence = read_texts(job, calibration).readings["probability"]
    sweep = {}
    for number, depth in enumerate(candidates):
        resolution = effort.measure_resolution(confidence[:, number, : model.layers - depth + 1].astype(np.float64))
        known = resolution[~np.isnan(resolution)]
        sweep[depth] = {"resolution": float(known.mean()) if len(known) else None, "flat": len(resolution) - len(known)}
    ranked = sorted(candidates, key=lambda depth: (-(sweep[depth]["resolution"] or 0.0), depth))
    beside = sorted({0, ranked[0]} if ranked[0] else ranked[:2])
    chosen = {"chosen": ranked[0], "beside": beside, "positions": len(confidence), "candidates": sweep}
    return replace(lens, focal_depths=tuple(candidates if lens.focal_depths == "sweep" else beside)), chosen


def _readable(model: Model, text: Encoded) -> list[int]:
    """All positions of a text but the pieces of an image."""
    pieces = image_tokens(model.network.config) if text.beside else set()
    return [place for place, token in enumerate(fed_tokens(text)) if token not in pieces]


def _calibration_texts(model: Model, encoded: Sequence[Encoded]) -> list[Encoded]:
    """`CALIBRATION_POSITIONS` of the positions that are read, evenly spread; of all positions where those are too few."""
    if sum(len(text.positions) for text in encoded) < CALIBRATION_POSITIONS and not encoded[0].option_ids:
        encoded = [replace(text, positions=tuple(_readable(model, text))) for text in encoded]
    return spread_positions(encoded, CALIBRATION_POSITIONS)


def generate_answers(model: Model, encoded: Sequence[Encoded], limits: Limits) -> list[Encoded]:
    """Each text followed by the model's own greedy answer, read at the positions that predict its tokens."""
    end = model.network.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    context = context_length(model.splice.config)
    result = []
    for number, text in enumerate(encoded, 1):
        room = limits.max_new_tokens if context is None else min(limits.max_new_tokens, context - len(text.ids))
        if room < 1:
            raise InputError(f"text {number} fills the model's context of {context} tokens; shorten it, so that it can go on")
        made = _continue_greedily(model, text, room, end, limits)
        cut = next((place + 1 for place in range(len(text.ids), len(made)) if made[place] in ends), len(made))
        cut = _find_stop(model, made[:cut], len(text.ids), limits.stop)
        whole = replace(_lengthened(text, tuple(made[:cut])), positions=tuple(range(len(text.ids) - 1, cut - 1)))
        result.append(check_length(whole, context, f"text {number}"))
    return result


class Stops(transformers.StoppingCriteria):
    """Ends an answer once one of the texts `stop` stands in it. (transformers' own needs to know how a vocabulary spells.)"""

    def __init__(self, tokenizer: Any, prompt: int, stop: Sequence[str]):
        self.tokenizer, self.prompt, self.stop = tokenizer, prompt, stop

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        first = max(self.prompt, input_ids.shape[1] - STOP_TOKENS)
        said = [self.tokenizer.decode(ids[first:].tolist()) for ids in input_ids]
        return torch.tensor([any(mark in text for mark in self.stop) for text in said], device=input_ids.device)


def _find_stop(model: Model, made: list[int], prompt: int, stop: Sequence[str]) -> int:
    """Where an answer ends that begins at token `prompt` of `made`: before the first token that is wholly behind the first of
    the texts `stop`, but for one token. A token may hold both the end of the answer and what stops it."""
    if not stop or model.tokenizer is None:
        return len(made)
    end = len(cut_answer(str(model.tokenizer.decode(made[prompt:])), stop))
    before = (len(str(model.tokenizer.decode(made[prompt:place]))) for place in range(prompt, len(made)))
    return prompt + max(1, next((place for place, length in enumerate(before) if place and length >= end), len(made) - prompt))


def _lengthened(text: Encoded, ids: tuple[int, ...]) -> Encoded:
    """The text with more tokens, none of which is a piece of an image."""
    return replace(text, ids=ids, beside=cut_beside(text, len(ids)))


def _continue_greedily(model: Model, text: Encoded, room: int, end: int | list[int] | None, limits: Limits) -> list[int]:
    """The text's tokens and what the model's top tokens add. Its own settings, such as a penalty on repetition, are set aside
    meanwhile, since transformers mixes them into any that it is given."""
    network: Any = model.network
    given, own = torch.tensor([text.ids], device=model.splice.device), network.generation_config
    beside = {name: part.to(given.device) for name, part in text.beside.items()}
    stops = transformers.StoppingCriteriaList([Stops(model.tokenizer, len(text.ids), limits.stop)] if limits.stop else [])
    settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=room, eos_token_id=end, pad_token_id=0)
    try:
        network.generation_config = settings
        with explain_images(model) if beside else nullcontext():
            made = network.generate(
                given, attention_mask=torch.ones_like(given), generation_config=settings, stopping_criteria=stops, **beside
            )
        return made[0].tolist()
    finally:
        network.generation_config = own


def _letter_one(sample: Any, limits: Limits) -> Any:
    return letter_options(sample) if limits.letter and isinstance(sample, Sample) and sample.options else sample


def _default_positions(samples: Sequence[Any]) -> str:
    targeted = samples and all(isinstance(sample, Sample) and sample.target is not None for sample in samples)
    return "answer" if targeted else "last"


def _check_reference(reference: str | None, positions: str) -> str:
    """The reference that goes with the positions, or the one asked for if they have it."""
    usual = {"answer": "target", "generated": "generated"}
    chosen = reference or usual.get(positions, "output")
    if chosen not in REFERENCES:
        raise InputError(f'"{chosen}" is not a reference; choose from {", ".join(REFERENCES)}')
    if (chosen, positions) in {("target", other) for other in ("last", "all", "generated")} or (
        chosen == "generated" and positions != "generated"
    ):
        raise InputError(f'reference "{chosen}" is not there at positions "{positions}"; choose output')
    return chosen
