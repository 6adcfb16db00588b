"""One model at work on the shards of a run: loaded, proved, its focal depths chosen, each shard read and saved."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hyperlens.configuration import context_length
from hyperlens.encoding import Encoded, encode_sample
from hyperlens.errors import ArtefactError, ChangedModelError, HyperLensError, InputError, MemoryLimitError, ModelError
from hyperlens.lenses import HyperLens, Lens, TunedLens, open_lens
from hyperlens.lenses.tuned import name_dtype
from hyperlens.models import Model, load_model
from hyperlens.models.adapters import name_adapters, set_aside
from hyperlens.models.fingerprint import fingerprint_model
from hyperlens.runs.spec import TRAINED, LensSpec, ModelSpec, Study
from hyperlens.runs.store import Shard, Store, stamp_sources
from hyperlens.runs.summary import tabulate_samples
from hyperlens.tasks import Sample, grade_answer, letter_options
from hyperlens.tasks.spec import HARNESS
from hyperlens.tracing import Limits, resolve_depth, trace_encoded
from hyperlens.trajectory import Trajectory

CALIBRATION_SAMPLES = 64
SMALLEST_BATCH = 256
"""Tokens below which a batch that does not fit is not made smaller."""
FROM_TASK = ("text", "prompt", "target")
"""Columns of a trajectory's samples that a run keeps once, with the task."""

Skips = list[dict[str, Any]]


@dataclass(frozen=True)
class Reader:
    """A model of a study that is ready to read its shards, and its lenses with their focal depths; None for one that does not
    fit the model."""

    store: Store
    number: int
    model: Model
    lenses: tuple[Lens | None, ...]


def open_reader(store: Store, number: int, given: Model | None = None) -> Reader:
    """Load model `number` of the study (or take the one `given`), prove it, and choose its focal depths once per run.

    A lens that does not fit it is put down as refused, so that the others can read. Raises ModelError where it is not the
    model with which the run began, or a lens is another one, and what is wrong with the lenses where none fits.
    """
    spec, study = store.study.models[number], store.study
    model = given or load_spec(spec, study)
    known = store.model(number) or {}
    begun = "fingerprint" in known
    if begun:
        _check_same(store, f'model "{spec.name}"', known["fingerprint"], model.fingerprint)
    settled = [_settle_lens(store, number, model, lens, known.get("lenses", {}).get(lens.name)) for lens in study.lenses]
    _check_any(study.lenses, [found for found, _ in settled])
    documents = {lens.name: document for lens, (_, document) in zip(study.lenses, settled, strict=True)}
    kept = (
        {name: value for name, value in known.items() if name != "refused"} if begun else _describe_model(store, number, model)
    )
    document = kept | {"lenses": documents}
    if not begun:
        store.add_model(number, document, keep=not known)
        known = store.model(number) or {}
        _check_same(store, f'model "{spec.name}"', known["fingerprint"], model.fingerprint)
    elif document != known:
        store.add_model(number, document)
        known = document
    lenses = (
        _focus(found, known["lenses"][lens.name]) if isinstance(found, Lens) else None
        for lens, (found, _) in zip(study.lenses, settled, strict=True)
    )
    return Reader(store, number, model, tuple(lenses))


def load_spec(spec: ModelSpec, study: Study) -> Model:
    """The model of a table of the study."""
    return load_model(
        study.locate_model(spec.source),
        None,
        spec.dtype,
        spec.device or None,
        spec.device_map or None,
        spec.revision or None,
        spec.trust_remote_code,
    )


def describe_kin(model: Model) -> dict[str, Any]:
    """What tells whether one model was made of another: layers, fingerprint, dtype and, where an adapter is at work, the
    fingerprint of its `base`."""
    return {
        "layers": model.layers,
        "fingerprint": model.fingerprint,
        **_describe_base(model),
        "dtype": name_dtype(model),
    }


def make_lens(spec: LensSpec, folder: str = "") -> Lens:
    """The lens of a table; a tuned one from its folder, the table's path by default. Raises InputError and ArtefactError."""
    name = Path(folder or spec.path) if spec.kind == "tuned" else spec.kind
    depths = None if spec.focal_depths == TRAINED else spec.focal_depths
    return open_lens(name, depths, spec.context, spec.between, spec.transfer)


def measure_shard(reader: Reader, shard: Shard, samples: Sequence[Sample]) -> None:
    """Read a shard, whose task has these `samples`, and save it. A batch that memory does not suffice for is made smaller, and
    the ledger says so. Of a lens that does not fit the model nothing is read."""
    store, began = reader.store, time.perf_counter()
    task, lens = store.tasks[shard.cell.task], reader.lenses[shard.cell.lens]
    if lens is None:
        return
    encoded, skipped = _encode(reader.model, task, samples, shard.samples, store.study.too_long)
    entry: dict[str, Any] = {"skipped": skipped, "cut": sum(one.cut > 0 for _, one in encoded)}
    tables: dict[str, pa.Table] = {}
    if encoded:
        numbers = [number for number, _ in encoded]
        trajectory, batch_tokens = _read(reader, shard, lens, [one for _, one in encoded])
        scores = _score(reader, shard, [samples[number] for number in numbers], trajectory)
        tables = _label(reader, shard, trajectory, numbers, scores)
        entry |= {"batch_tokens": batch_tokens, "largest_error": trajectory.manifest["largest_error_in_run"]}
        entry["manifest"] = {name: value for name, value in trajectory.manifest.items() if name != "top_tokens"}
    entry |= {"seconds": time.perf_counter() - began, "host": platform.node(), "process": os.getpid()}
    store.add_shard(shard, tables, entry)


def refuse_model(store: Store, number: int, error: HyperLensError) -> None:
    """Keep why a model could not be measured, so that the others can."""
    store.add_model(number, {"name": store.study.models[number].name, **(store.model(number) or {}), "refused": str(error)})


def _check_same(store: Store, what: str, known: str | None, found: str | None) -> None:
    """Raises ChangedModelError where a fingerprint is not the one with which the run began."""
    if known != found:
        raise ChangedModelError(
            f"{what} is not the one with which the run in {store.folder} began (its weights or configuration changed); choose "
            "another folder with --out, or begin anew with --restart"
        )


def _check_any(specs: Sequence[LensSpec], found: Sequence[Lens | HyperLensError]) -> None:
    """Raises why no lens fits: the first one's error, with its name where there are others."""
    errors = [one for one in found if isinstance(one, HyperLensError)]
    if len(errors) < len(found):
        return
    more = f" (none of the {len(errors)} lenses fits)" if len(errors) > 1 else ""
    raise errors[0] if not more else type(errors[0])(f'lens "{specs[0].name}": {errors[0]}{more}')


def _settle_lens(
    store: Store, number: int, model: Model, spec: LensSpec, known: dict[str, Any] | None
) -> tuple[Lens | HyperLensError, dict[str, Any]]:
    """A lens of the study for a model, and what the run keeps of it; why it does not fit, where it does not.

    Raises ChangedModelError where it is not the one of which the run has `known`.
    """
    try:
        model.certificate.require(spec.context)
        lens = make_lens(spec, store.study.locate_lens(spec, store.study.models[number])).fit_to(model)
        kept = known if known and "focal_depths" in known else _describe_lens(store, model, spec, lens)
    except (InputError, ArtefactError, ModelError) as error:
        return error, {**(known or {}), "refused": str(error)}
    found = lens.fingerprint if isinstance(lens, TunedLens) else None
    _check_same(store, f'lens "{spec.name}"', kept.get("fingerprint"), found)
    return lens, {name: value for name, value in kept.items() if name != "refused"}


def _describe_lens(store: Store, model: Model, spec: LensSpec, lens: Lens) -> dict[str, Any]:
    """The focal depths of a lens and how they were chosen, and what sets it apart from a plain HyperLens."""
    study, plain = store.study, HyperLens().describe()
    encoded = _calibrate(store, model) if spec.chosen else []
    chosen, auto = resolve_depth(model, encoded, lens, Limits(study.memory_mb, study.batch_tokens))
    depths = list(chosen.check_depths(model.layers))
    apart = {name: value for name, value in lens.describe().items() if value != plain.get(name)}
    return {"focal_depths": depths, "auto": auto, "context": lens.context} | apart


def _focus(lens: Lens, document: dict[str, Any]) -> Lens | None:
    """The lens at the focal depths that the run chose for the model; None where it did not."""
    if "focal_depths" not in document:
        return None
    depths = tuple(document["focal_depths"])
    return lens if lens.focal_depths == depths else replace(lens, focal_depths=depths)


def _describe_model(store: Store, number: int, model: Model) -> dict[str, Any]:
    """What a model is."""
    spec = store.study.models[number]
    return {
        "name": spec.name,
        "source": spec.source,
        "architecture": type(model.network).__name__,
        "parameters": sum(part.numel() for part in model.network.parameters()),
        **describe_kin(model),
        "device": str(model.splice.device),
        "certificate": model.certificate.describe(),
        "lenses": {},
        "files": stamp_sources(store.study, number),
    }


def _describe_base(model: Model) -> dict[str, str]:
    """Where an adapter is at work, the fingerprint of the base that it was put on; nothing where it cannot be taken off."""
    if not name_adapters(model.network):
        return {}
    try:
        with model.splice.lock, set_aside(model.network, model.name):
            return {"base": fingerprint_model(model.network)}
    except ModelError:
        return {}


def _calibrate(store: Store, model: Model) -> list[Encoded]:
    """Samples evenly from all tasks, read in the open vocabulary, to choose focal depths by. Raises InputError where the model
    can read none."""
    each, found, left = -(-CALIBRATION_SAMPLES // len(store.tasks)), [], []
    for number, task in enumerate(store.tasks):
        samples = store.samples(number)
        spread = np.unique(np.linspace(0, len(samples) - 1, min(each, len(samples))).round().astype(int)).tolist()
        plain = {**task, "read": "target"}
        encoded, skipped = _encode(model, plain, [replace(one, options=()) for one in samples], spread, store.study.too_long)
        found, left = found + [one for _, one in encoded], left + skipped
    if not found:
        raise InputError(f"none of the samples that were tried can be read by this model; of the first, {left[0]['reason']}")
    return found


def _encode(
    model: Model, task: dict[str, Any], samples: Sequence[Sample], numbers: Sequence[int], too_long: str
) -> tuple[list[tuple[int, Encoded]], Skips]:
    """The samples as token ids, by their number in the task, and those that the model cannot read, with the reason."""
    encoded, skipped = [], []
    room = task["max_new_tokens"] if task["read"] == "generated" else 0
    context = context_length(model.splice.config)
    for number in numbers:
        sample = letter_options(samples[number]) if task["read"] == "options" else replace(samples[number], options=())
        try:
            one = encode_sample(sample, model, _positions(task, sample), "the text", room if too_long == "truncate" else None)
            if context is not None and len(one.ids) + room > context:
                raise InputError(f"the text has {len(one.ids)} tokens, which leaves no room for {room} more in {context}")
        except InputError as error:
            skipped.append({"sample": number, "id": samples[number].id, "reason": str(error)})
        else:
            encoded.append((number, one))
    return encoded, skipped


def _positions(task: dict[str, Any], sample: Sample) -> str:
    if task["read"] == "generated":
        return "generated"
    return "answer" if sample.target is not None else "last"


def _read(reader: Reader, shard: Shard, lens: Lens, encoded: Sequence[Encoded]) -> tuple[Trajectory, int]:
    """The trajectory of a shard, and the tokens of a batch with which memory sufficed."""
    study, task = reader.store.study, reader.store.tasks[shard.cell.task]
    positions = _positions(task, encoded[0].sample)
    reference = "generated" if positions == "generated" else "output"
    wanted = study.lenses[shard.cell.lens]
    batch_tokens = study.batch_tokens
    while True:
        limits = Limits(
            study.memory_mb,
            batch_tokens,
            max_new_tokens=task["max_new_tokens"] or 32,
            top_k=wanted.top_k,
            stop=tuple(task["stop"]),
            progress=False,
        )
        try:
            return trace_encoded(reader.model, encoded, lens, positions, reference, wanted.readings, limits), batch_tokens
        except MemoryLimitError:
            if batch_tokens // 2 < SMALLEST_BATCH:
                raise
            batch_tokens //= 2


def _score(reader: Reader, shard: Shard, samples: Sequence[Sample], trajectory: Trajectory) -> dict[str, Any]:
    """Columns that say how good the answers are, where the trajectory does not know: `correct`, and a harness's own scores."""
    task, spec = reader.store.tasks[shard.cell.task], reader.store.study.tasks[shard.cell.task]
    said = list(trajectory.samples["generated"]) if task["read"] == "generated" else None
    if spec.name.startswith(HARNESS):
        from hyperlens.runs.harness import score_samples

        return score_samples(reader.model, spec, samples, said, reader.store.study.root)
    if said is None:
        return {}
    return {"correct": [grade_answer(spec.name, answer, sample) for answer, sample in zip(said, samples, strict=True)]}


def _label(
    reader: Reader, shard: Shard, trajectory: Trajectory, numbers: Sequence[int], scores: dict[str, Any]
) -> dict[str, pa.Table]:
    """The shard's tables: samples by their number in the task, with the names of the cell and what was measured of each."""
    study, cell = reader.store.study, shard.cell
    names = {"model": study.models[cell.model].name, "lens": study.lenses[cell.lens].name}
    tokens = trajectory.to_tables()["tokens"]
    owners = np.array(numbers)[tokens["sample"].to_numpy()]
    task = np.array(trajectory.samples["task"], dtype=object)[tokens["sample"].to_numpy()]
    tokens = tokens.set_column(tokens.column_names.index("sample"), "sample", pa.array(owners))
    for name, values in {"task": task, **{name: [text] * len(tokens) for name, text in names.items()}}.items():
        tokens = tokens.add_column(0, name, pa.array(values, pa.string()))
    frame = tabulate_samples(trajectory).drop(columns=[*FROM_TASK])
    frame = frame.assign(sample=numbers, spec=study.tasks[cell.task].name, **names, **scores)
    frame = frame.astype({"level": "Int64", "correct": "boolean", "generated": "string"})
    first = [*names, "task", "spec", "sample", "id"]
    frame = frame[[*first, *(column for column in frame.columns if column not in first)]]
    return {"tokens": tokens, "samples": pa.Table.from_pandas(frame, preserve_index=False), **_spell_tokens(trajectory)}


def _spell_tokens(trajectory: Trajectory) -> dict[str, pa.Table]:
    """The texts of the top tokens by their ids, where any were kept: beside the ledger, which is read whole and often."""
    if "top_tokens" not in trajectory.manifest:
        return {}
    spelled = trajectory.manifest["top_tokens"]
    ids = pa.array([int(token) for token in spelled], pa.int32())
    return {"spelling": pa.table({"token_id": ids, "token_text": pa.array(spelled.values(), pa.string())})}
