"""evaluate_lenses(model, samples, lenses) -> Evaluation: all lenses read the same encoded texts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from hyperlens.artefact import list_versions
from hyperlens.encoding import Encoded, Given, encode_samples
from hyperlens.errors import InputError
from hyperlens.evaluation.cost import estimate_cost, replace_depths
from hyperlens.evaluation.evaluation import DEFINITIONS, Evaluation, Row
from hyperlens.evaluation.rows import Read, describe_output, join_parts, make_row, measure_states
from hyperlens.evaluation.sums import Sums, group_depths
from hyperlens.lenses import HyperLens, Lens, LogitLens
from hyperlens.models import Model
from hyperlens.resampling import check_seed
from hyperlens.splice import at_rest
from hyperlens.tasks import Sample, letter_options
from hyperlens.tracing import Limits, resolve_depth
from hyperlens.tracing.batches import Job
from hyperlens.tracing.labels import label_table
from hyperlens.tracing.limits import explain_memory
from hyperlens.tracing.reading import read_texts

USUAL_DEPTHS = (1, 2, 4, 8)
READINGS = ("probability", "kl_to_output", "rank")


@dataclass(frozen=True)
class Texts:
    """What all lenses read: the parts of texts, at which places of each an answer is predicted, and the text of each part."""

    parts: tuple[Encoded, ...]
    answers: tuple[tuple[int, ...], ...]
    owners: np.ndarray


def evaluate_lenses(
    model: Model,
    samples: str | Sample | Mapping[str, Tensor] | Iterable[Given],
    lenses: Lens | Mapping[str, Lens] | Sequence[Lens] | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    repeats: int = 0,
    owners: Sequence[int] | None = None,
) -> Evaluation:
    """Read the same `samples` through each of `lenses`: one row per lens and focal depth.

    KL, bias and next-token loss are over all tokens that have a next one, each with the same weight. Ω, resolution and
    prediction depth are over the tokens that predict the targets where every sample has one (over all tokens otherwise), with
    respect to the model's own top token; where samples have levels, how Ω follows them, task by task. Options are lettered, but
    read is the open vocabulary. `lenses` may be named; by default they are the logit lens, and HyperLens at m = 1, 2, 4, 8.
    Intervals draw texts again, from `seed`; `owners` numbers the text that each sample is a part of, where it is no text of its
    own. The time of each row is measured `repeats` times. Raises InputError, CertificateError, ModelError and MemoryLimitError.

    After Belrose et al. 2023 (arXiv 2303.08112): the original package's evaluation, which was read, averages KL and loss over
    all tokens too, in bits per byte, and keeps the mean distributions of which the bias is made; that the paper's bias is their
    KL is from memory. Here all is in nats per token.
    """
    limits = limits or Limits()
    check_seed(seed)
    if repeats < 0:
        raise InputError(f"repeats is {repeats}; give 0 to measure no time, or how often it is to be measured")
    texts = _encode(model, samples, owners, limits)
    with model.splice.lock, at_rest(model.network), explain_memory(limits):
        fitted = {name: _fit_lens(model, lens, texts, limits) for name, lens in _name_lenses(model, lenses).items()}
        common = model.layers - max(lens.check_depths(model.layers)[-1] for lens in fitted.values())
        rows, by_state, output = [], [], {}
        for name, read, depth in _read_lenses(model, fitted, texts, limits):
            output = output or describe_output(read)
            by_state.append(measure_states(read, depth, seed))
            cost = estimate_cost(model, read.lens, depth, texts.parts, limits, repeats)
            rows.append(make_row(name, read, depth, by_state[-1], common, cost, seed))
    manifest = _write_manifest(model, texts, limits) | {"output": output, "common_states": common, "seed": seed}
    return Evaluation(tuple(rows), _stack_states(rows, by_state), manifest)


def list_depths(model: Model) -> tuple[int, ...]:
    """The usual focal depths, 1, 2, 4 and 8, as far as they leave the model a state to read."""
    return tuple(depth for depth in USUAL_DEPTHS if depth < model.layers)


def _encode(model: Model, samples: Any, owners: Sequence[int] | None, limits: Limits) -> Texts:
    """The texts, to be read at all tokens that have a next one; and at which of them Ω is read. Raises InputError."""
    given = [samples] if isinstance(samples, str | Sample | Mapping) else list(samples)
    if owners is not None and len(owners) != len(given):
        raise InputError(f"{len(owners)} owners were given for {len(given)} samples; give one for each, or none")
    listed = [_open(sample, limits) for sample in given]
    targeted = all(isinstance(sample, Sample) and sample.target is not None for sample in listed)
    encoded = encode_samples(listed, model, "answer" if targeted else "all")
    for number, text in enumerate(encoded, 1):
        if text.beside:
            raise InputError(f"text {number} has an image, whose pieces no lens predicts; evaluate lenses on texts alone")
        if len(text.ids) < 2:
            raise InputError(f"text {number} is a single token, which has no next one; give longer texts")
    return Texts(
        tuple(replace(text, positions=tuple(range(len(text.ids) - 1))) for text in encoded),
        tuple(tuple(place for place in text.positions if place + 1 < len(text.ids)) for text in encoded),
        np.arange(len(encoded)) if owners is None else np.asarray(owners),
    )


def _open(sample: Given, limits: Limits) -> Given:
    """The sample with its options listed in its prompt, and no others than the whole vocabulary to answer with."""
    if not isinstance(sample, Sample) or not sample.options:
        return sample
    return replace(letter_options(sample) if limits.letter else sample, options=())


def _name_lenses(model: Model, lenses: Lens | Mapping[str, Lens] | Sequence[Lens] | None) -> dict[str, Lens]:
    """The lenses by name: of their kind, numbered where there are several."""
    if isinstance(lenses, Mapping):
        named = dict(lenses)
    else:
        listed = _usual_lenses(model) if lenses is None else [lenses] if isinstance(lenses, Lens) else list(lenses)
        kinds, named = Counter(lens.name for lens in listed), {}
        for lens in listed:
            number = sum(one.partition(" ")[0] == lens.name for one in named) + 1
            named[lens.name if kinds[lens.name] == 1 else f"{lens.name} {number}"] = lens
    if not named:
        raise InputError("there is no lens to evaluate; give at least one, or leave them away for the usual ones")
    return named


def _usual_lenses(model: Model) -> list[Lens]:
    """The logit lens, and HyperLens at the usual focal depths."""
    usual = list_depths(model)
    return [LogitLens(), *([HyperLens(usual)] if usual else [])]


def _fit_lens(model: Model, lens: Lens, texts: Texts, limits: Limits) -> Lens:
    """The lens, ready to read the model, its focal depths chosen. Raises InputError where one leaves nothing to read."""
    model.certificate.require(lens.context)
    fitted, _ = resolve_depth(model, texts.parts, lens.fit_to(model), limits)
    if fitted.check_depths(model.layers)[-1] == model.layers:
        raise InputError(
            f"focal depth {model.layers} of {model.layers} layers reads every state as the model's own output; give one below"
        )
    return fitted


def _read_lenses(model: Model, lenses: Mapping[str, Lens], texts: Texts, limits: Limits) -> Iterator[tuple[str, Read, int]]:
    """Each row's name, the pass that it is read from, and its focal depth."""
    for name, lens in lenses.items():
        for read in _read_lens(model, lens, texts, limits):
            for depth in read.trajectory.focal_depths:
                yield name, read, depth


def _read_lens(model: Model, lens: Lens, texts: Texts, limits: Limits) -> Iterator[Read]:
    """Read the texts at the focal depths of the lens, as many in one pass as their sums leave memory for."""
    groups, left = group_depths(model, lens.check_depths(model.layers), limits)
    asked = [np.isin(text.positions, places) for text, places in zip(texts.parts, texts.answers, strict=True)]
    following = np.array([token for text in texts.parts for token in text.following()])
    for depths in groups:
        sums = Sums(depths[0])
        job = Job(model, replace_depths(lens, depths), depths, READINGS, "output", left, sums.add)
        trajectory = label_table(job, texts.parts, read_texts(job, texts.parts), "all", None)
        yield Read(job.lens, join_parts(trajectory, texts.owners), following, np.concatenate(asked), sums)


def _stack_states(rows: Sequence[Row], by_state: Sequence[Mapping[str, np.ndarray]]) -> xr.Dataset:
    """The values by state of all rows, labelled."""
    coordinates = {
        "lens": ("row", [row.name for row in rows]),
        "focal_depth": ("row", [row.focal_depth for row in rows]),
        "state": np.arange(len(by_state[0]["kl"])),
    }
    stacked = {name: (("row", "state"), np.stack([states[name] for states in by_state])) for name in by_state[0]}
    return xr.Dataset(stacked, coords=coordinates)


def _write_manifest(model: Model, texts: Texts, limits: Limits) -> dict[str, Any]:
    """Everything that decides what was read."""
    digest = hashlib.sha256()
    for text, places in zip(texts.parts, texts.answers, strict=True):
        digest.update(f"{text.ids} {text.positions} {places}\n".encode())
    return {
        "kind": "evaluation of lenses",
        "model": {
            "name": model.name,
            "layers": model.layers,
            "fingerprint": model.fingerprint,
            "dtype": str(model.splice.dtype).removeprefix("torch."),
            "device": str(model.splice.device),
        },
        "inputs": {
            "sha256": digest.hexdigest(),
            "texts": len(np.unique(texts.owners)),
            "parts": len(texts.parts),
            "tokens": sum(len(text.positions) for text in texts.parts),
            "answer_tokens": sum(map(len, texts.answers)),
        },
        "limits": asdict(limits),
        "definitions": DEFINITIONS,
        "versions": list_versions("hyperlens", "torch", "transformers", "numpy"),
    }
