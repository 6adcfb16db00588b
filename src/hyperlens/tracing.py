"""trace(model, samples, lens) -> Trajectory: batched, in bounded memory; the only place where the two halves meet."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import transformers
import xarray as xr
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from hyperlens import effort
from hyperlens.certificate import check_jump, error_bound, pad_texts, relative_error
from hyperlens.encoding import Encoded, Positions, Reference, check_length, encode_samples, letter_options
from hyperlens.errors import CertificateError, InputError, MemoryLimitError, ModelError
from hyperlens.lenses import HyperLens, Lens
from hyperlens.lenses.lens import route_batch
from hyperlens.models import Model
from hyperlens.readings import check_readings, needs_output, read_logits
from hyperlens.splice import Inputs, Probes, at_rest
from hyperlens.tasks.sample import Sample
from hyperlens.trajectory import Trajectory

CALIBRATION_POSITIONS = 64
_TEMPORARIES = 24
"""Numbers per token and width that a layer may hold at once: its inputs, projections and feed-forward block."""


@dataclass(frozen=True)
class Limits:
    """What a trace may use, and a few choices that seldom change.

    `memory_mb` bounds what is held above the model's own forward pass of one batch; `batch_tokens` the tokens of a batch
    (one text may be longer); `padding_side` where ragged batches are padded; `max_new_tokens` and `top_k` what is generated
    and how many top tokens are kept per state; `letter` whether answer options are lettered; `progress` whether long work
    shows a bar (on a terminal only).
    """

    memory_mb: int = 256
    batch_tokens: int = 4096
    padding_side: Literal["right", "left"] = "right"
    max_new_tokens: int = 32
    top_k: int = 0
    letter: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("memory_mb", "batch_tokens", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 1 up")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; give 0 for none, or a number of tokens")
        if self.padding_side not in ("right", "left"):
            raise InputError(f'"{self.padding_side}" is not a side to pad; choose right or left')

    def share(self, parts: int, each: int) -> int:
        """How many things of `each` bytes fit into one of `parts` equal parts of the memory; at least one."""
        return max(1, self.memory_mb * 2**20 // parts // max(1, each))


def trace(
    model: Model,
    samples: str | Sample | Iterable[str | Sample | Sequence[int]],
    lens: Lens | None = None,
    positions: Positions | None = None,
    reference: Reference | None = None,
    readings: Sequence[str] = ("probability",),
    limits: Limits | None = None,
) -> Trajectory:
    """Read `samples` through `lens`: a confidence trajectory for each position that is read.

    `positions` are "last" (default), "answer" (default where every sample has a target), "all", or "generated", the tokens of
    a greedy answer. `reference` y is the model's own "output" (default), the "target" (default for "answer") or the
    "generated" token (default for "generated"). `readings` are names of `hyperlens.readings.READINGS`; `probability` is always
    read. With answer options, all readings are of the distribution over the options alone. The lens default is HyperLens
    with its focal depth chosen by resolution. Raises InputError, CertificateError where a state that must be the model's
    own output is not, ModelError for NaN or infinite logits, and MemoryLimitError.
    """
    lens, limits = lens or HyperLens(), limits or Limits()
    check_readings(readings)
    names = tuple(dict.fromkeys(("probability", *readings)))
    listed = [samples] if isinstance(samples, str | Sample) else list(samples)
    listed = [_lettered(sample, limits) for sample in listed]
    positions = positions or _default_positions(listed)
    model.certificate.require(lens.context)
    if isinstance(lens.focal_depths, tuple):
        lens.check_depths(model.layers)
    encoded = encode_samples(listed, model.tokenizer, positions, context_length(model))
    with at_rest(model.network), _memory_errors(limits):
        if positions == "generated":
            encoded = _generate(model, encoded, limits)
        reference = _check_reference(reference, positions)
        lens, sweep = resolve_depth(model, encoded, lens, limits)
        job = _Job(model, lens, lens.check_depths(model.layers), names, reference, limits)
        table = _read_texts(job, encoded)
    return _label(job, encoded, table, positions, sweep)


def resolve_depth(model: Model, encoded: Sequence[Encoded], lens: Lens, limits: Limits) -> tuple[Lens, dict[str, Any] | None]:
    """`lens` with its focal depth chosen where it is "auto", and the sweep that chose it.

    Candidates 0, 1, 2, 4, 8 … up to layers − 4; the largest mean resolution over 64 positions of the texts wins and is read
    beside the logit lens. Positions whose trajectory is flat are skipped and counted.
    """
    if lens.focal_depths != "auto":
        return lens, None
    candidates = [0, *(2**power for power in range(model.layers.bit_length()) if 2**power <= model.layers - 4)]
    calibration = _calibration_texts(encoded)
    job = _Job(model, replace(lens, focal_depths=tuple(candidates)), tuple(candidates), ("probability",), "output", limits)
    confidence = _read_texts(job, calibration).readings["probability"]
    sweep = {}
    for number, depth in enumerate(candidates):
        resolution = effort.measure_resolution(confidence[:, number, : model.layers - depth + 1].astype(np.float64))
        known = resolution[~np.isnan(resolution)]
        sweep[depth] = {"resolution": float(known.mean()) if len(known) else None, "flat": len(resolution) - len(known)}
    best = max(candidates, key=lambda depth: (sweep[depth]["resolution"] or 0.0, -depth))
    return replace(lens, focal_depths=(0, best)), {"chosen": best, "positions": len(confidence), "candidates": sweep}


def context_length(model: Model) -> int | None:
    """How many tokens the model's context holds; None where its configuration names no limit."""
    return getattr(model.splice.config, "max_position_embeddings", None)


@dataclass(frozen=True)
class _Job:
    """What is read of every batch, and how."""

    model: Model
    lens: Lens
    depths: tuple[int, ...]
    names: tuple[str, ...]
    reference: Reference
    limits: Limits

    @property
    def width(self) -> int:
        """Bytes of one residual state."""
        config, size = self.model.splice.config, torch.finfo(self.model.splice.dtype).bits // 8
        return config.hidden_size * size

    @property
    def logit_rows(self) -> int:
        """Rows of logits that are held at once; their readings take a few times as much."""
        return self.limits.share(8, 4 * self.model.splice.config.vocab_size)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, so that the recorded states of all of them fit."""
        states = self.model.layers + 2 if max(self.depths) else 1
        return min(self.limits.batch_tokens, self.limits.share(2, states * self.width))

    @property
    def stack_tokens(self) -> int:
        """Tokens that go through the deepest layers at once."""
        return self.limits.share(4, _TEMPORARIES * self.width)


@dataclass
class _Table:
    """What was read, one row per probe: readings float32 `[probe, depth, state]`, and the labels of the probe."""

    owners: np.ndarray
    positions: np.ndarray
    readings: dict[str, np.ndarray]
    output_ids: np.ndarray
    output_probability: np.ndarray
    reference_ids: np.ndarray
    error: float


def _read_texts(job: _Job, encoded: Sequence[Encoded]) -> _Table:
    """All texts, longest first, so that what does not fit shows at once; rows come back in the order of the texts."""
    order = sorted(range(len(encoded)), key=lambda number: -len(_fed(encoded[number])))
    error = _prove_longest(job, encoded[order[0]])
    tables = []
    with _progress(job, len(encoded)) as advance:
        for numbers in _batches(job, encoded, order):
            tables.append(_read_batch(job, encoded, numbers))
            advance(len(numbers))
    return _join(tables, error)


def _fed(text: Encoded) -> tuple[int, ...]:
    """The tokens that the model has to see: up to the last position that is read."""
    return text.ids[: text.positions[-1] + 1]


def _batches(job: _Job, encoded: Sequence[Encoded], order: Sequence[int]) -> Iterator[list[int]]:
    """Texts of similar length together, as many as `batch_tokens` allows."""
    batch: list[int] = []
    for number in order:
        longest = len(_fed(encoded[batch[0]])) if batch else 0
        if batch and longest * (len(batch) + 1) > job.batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    yield batch


def _prepare_batch(job: _Job, texts: Sequence[Encoded]) -> tuple[Inputs, Probes]:
    """The padded batch, and the places in it that are read."""
    device = job.model.splice.device
    fed = [torch.tensor(_fed(text), device=device) for text in texts]
    inputs, starts = pad_texts(fed, job.limits.padding_side, job.model.splice.filler)
    rows = [row for row, text in enumerate(texts) for _ in text.positions]
    columns = [start + place for text, start in zip(texts, starts, strict=True) for place in text.positions]
    return inputs, Probes(torch.tensor(rows, device=device), torch.tensor(columns, device=device))


def _prove_longest(job: _Job, text: Encoded) -> float:
    """In the `jump` context: that the routed path gives the model's own output on the longest text."""
    if not max(job.depths) or job.lens.context != "jump":
        return 0.0
    inputs, probes = _prepare_batch(job, [replace(text, positions=text.positions[-1:])])
    return _check_error(job, check_jump(job.model.splice, inputs, probes, job.depths), "the longest text")


def _check_error(job: _Job, error: float, where: str) -> float:
    if not error <= (bound := error_bound(job.model.splice.dtype)):
        raise CertificateError(
            f"on {where} the lens differs from the model's own output by {error:.2g} of its largest logit, more than "
            f"{bound:.0e}, so that nothing was read; trace shorter texts, or report this model"
        )
    return error


def _read_batch(job: _Job, encoded: Sequence[Encoded], numbers: Sequence[int]) -> _Table:
    """Run one batch once, route its states, and read them."""
    texts = [encoded[number] for number in numbers]
    splice = job.model.splice
    inputs, probes = _prepare_batch(job, texts)
    routed = route_batch(job.lens, splice, inputs, probes, job.depths, job.stack_tokens)
    following = torch.tensor([token for text in texts for token in text.following()], device=splice.device)
    options = [list(text.option_ids) for text in texts for _ in text.positions]
    owned = _read_own(job, routed.own, following, torch.tensor(options, device=splice.device).long(), inputs, numbers)
    ends = (probes.positions == inputs.ids.shape[1] - 1).nonzero().squeeze(1)
    own_ends = torch.cat([splice.head(routed.own[part]) for part in ends.split(job.logit_rows)])
    error = _check_error(job, relative_error(own_ends, routed.logits[probes.rows[ends]]), "a batch")
    layers = job.model.layers
    shape = (len(probes.rows), len(job.depths), layers + 1)
    kept = {name: values[:, None, None].expand(*shape, *values.shape[1:]).clone() for name, values in owned.readings.items()}
    for number, (depth, states) in enumerate(routed.by_depth):
        found, off = _read_states(job, states, routed.own, owned, layers - depth)
        error = max(error, _check_error(job, off, f"a batch at focal depth {depth}"))
        for name, values in found.items():
            kept[name][:, number, : layers - depth] = values.transpose(0, 1)
    owners = [number for number, text in zip(numbers, texts, strict=True) for _ in text.positions]
    places = [place for text in texts for place in text.positions]
    arrays = {name: values.cpu().numpy() for name, values in kept.items()}
    labels = (owned.output.cpu().numpy(), owned.output_probability.cpu().numpy(), owned.reference_ids.cpu().numpy())
    return _Table(np.array(owners), np.array(places), arrays, *labels, error)


@dataclass
class _Own:
    """The model's own reading at each probe: its top token, the reference, and what each state is compared with."""

    readings: dict[str, Tensor]
    output: Int[Tensor, "probe"]
    output_probability: Float[Tensor, "probe"]
    reference: Int[Tensor, "probe"]
    reference_ids: Int[Tensor, "probe"]
    options: Int[Tensor, "probe option"]


def _read_own(job: _Job, own: Tensor, following: Tensor, options: Tensor, inputs: Inputs, numbers: Sequence[int]) -> _Own:
    """Read the state that left the last layer. Raises ModelError where its logits are not finite."""
    parts = []
    for chosen in torch.arange(len(own), device=own.device).split(job.logit_rows):
        logits = job.model.splice.head(own[chosen])
        if not torch.isfinite(logits).all():
            _refuse_infinite(job, inputs, numbers)
        output = logits.argmax(-1)
        top = read_logits(logits, output, ("probability",))["probability"]
        among = options[chosen] if options.numel() else None
        if among is not None:
            logits = logits.gather(-1, among)
        reference = _reference(job, logits, following[chosen], among)
        readings = _read_rows(job, logits, reference, logits)
        ids = reference if among is None else among.gather(-1, reference[:, None]).squeeze(-1)
        parts.append((readings, output, top, reference, ids))
    readings = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    return _Own(readings, *(torch.cat([part[number] for part in parts]) for number in range(1, 5)), options)


def _reference(job: _Job, logits: Tensor, following: Tensor, among: Tensor | None) -> Tensor:
    """The reference of each row, as an index into its logits: the model's own best, or the token that follows."""
    if job.reference == "output":
        return logits.argmax(-1)
    if among is None:
        return following
    hits = among == following[:, None]
    if not hits.any(-1).all():
        raise InputError("a target is none of the answer options; give one of them as the target, or leave it away")
    return hits.long().argmax(-1)


def _read_rows(job: _Job, logits: Tensor, reference: Tensor, output: Tensor | None) -> dict[str, Tensor]:
    """The readings of rows of logits, and their top tokens where those were asked for."""
    readings = read_logits(logits, reference, job.names, output)
    if job.limits.top_k:
        values, tokens = logits.float().log_softmax(-1).topk(min(job.limits.top_k, logits.shape[-1]), -1)
        readings |= {"top_ids": tokens.int(), "top_probabilities": values.exp()}
    return readings


def _read_states(job: _Job, states: Tensor, own: Tensor, owned: _Own, count: int) -> tuple[dict[str, Tensor], float]:
    """Read routed `states[state, probe]`, the first `count` of which are kept, in chunks of rows.

    A further state is one that must be the model's own; gives the largest error that it shows.
    """
    splice, error = job.model.splice, 0.0
    kept: dict[str, list[Tensor]] = {}
    every = max(1, job.logit_rows // max(1, len(states)))
    for chosen in torch.arange(states.shape[1], device=states.device).split(every):
        output = splice.head(own[chosen]) if len(states) > count or needs_output(job.names) else None
        columns: dict[str, list[Tensor]] = {}
        for first in range(0, len(states), job.logit_rows):
            part = states[first : first + job.logit_rows, chosen]
            logits = splice.head(part.flatten(0, 1)).unflatten(0, part.shape[:2])
            if first + len(part) > count:
                assert output is not None
                error = max(error, relative_error(logits[-1], output))
                logits = logits[:-1]
            if not len(logits):
                continue
            among = owned.options[chosen] if owned.options.numel() else None
            wanted = logits if among is None else logits.gather(-1, among.expand(len(logits), -1, -1))
            compared = output if among is None or output is None else output.gather(-1, among)
            for name, values in _read_rows(job, wanted, owned.reference[chosen].expand(len(logits), -1), compared).items():
                columns.setdefault(name, []).append(values)
        for name, values in columns.items():
            kept.setdefault(name, []).append(torch.cat(values))
    return {name: torch.cat(values, 1) for name, values in kept.items()}, error


def _refuse_infinite(job: _Job, inputs: Inputs, numbers: Sequence[int]) -> None:
    """Say which layer is the first to give NaN or infinite values."""
    layers = job.model.layers
    states = job.model.splice.run(inputs, record=range(layers + 1)).states
    broken = next((number for number, state in sorted(states.items()) if not torch.isfinite(state).all()), None)
    where = "only in the read-out" if broken is None else f"first after layer {broken}" if broken else "from the embedding on"
    texts = ", ".join(str(number + 1) for number in sorted(numbers)[:5])
    raise ModelError(
        f"{job.model.name} gives NaN or infinite logits ({where}; among texts {texts}); load it in a wider --dtype"
    )


def _join(tables: Sequence[_Table], error: float) -> _Table:
    """The batches as one table, its rows in the order of the texts and of the positions in them."""
    owners = np.concatenate([table.owners for table in tables])
    positions = np.concatenate([table.positions for table in tables])
    order = np.lexsort((positions, owners))

    def gathered(pick: Callable[[_Table], np.ndarray]) -> np.ndarray:
        return np.concatenate([pick(table) for table in tables])[order]

    return _Table(
        owners[order],
        positions[order],
        {name: gathered(lambda table, name=name: table.readings[name]) for name in tables[0].readings},
        gathered(lambda table: table.output_ids),
        gathered(lambda table: table.output_probability),
        gathered(lambda table: table.reference_ids),
        max(error, *(table.error for table in tables)),
    )


def _label(
    job: _Job, encoded: Sequence[Encoded], table: _Table, positions: Positions, sweep: dict[str, Any] | None
) -> Trajectory:
    """The table with its labels, as a Trajectory."""
    spell = _speller(job.model)
    here = np.array([encoded[owner].ids[place] for owner, place in zip(table.owners, table.positions, strict=True)])
    labels: dict[str, Any] = {"sample": table.owners, "position": table.positions}
    for name, ids in {"token": here, "output": table.output_ids, "reference": table.reference_ids}.items():
        labels |= {f"{name}_id": ids, f"{name}_text": np.array([spell(token) for token in ids.tolist()], dtype=object)}
    labels["output_probability"] = table.output_probability
    dims = ("token", "focal_depth", "state", "top")
    data = xr.Dataset(
        {name: (dims[: values.ndim], values) for name, values in table.readings.items()},
        coords={name: (("token",), values) for name, values in labels.items()}
        | {"focal_depth": list(job.depths), "state": np.arange(job.model.layers + 1)},
    )
    return Trajectory(data, _describe_samples(encoded, table), _describe(job, encoded, table, positions, sweep))


def _describe_samples(encoded: Sequence[Encoded], table: _Table) -> pd.DataFrame:
    """One row per text; `correct` says whether every answer token was the model's own top token (None without a target)."""
    rows = []
    for number, text in enumerate(encoded):
        mine = table.owners == number
        following = np.array(text.following())
        asked = text.sample.target is not None and (following >= 0).all()
        right = bool((table.output_ids[mine] == following).all()) if asked else None
        if text.option_ids and asked:
            right = bool((table.reference_ids[mine] == following).all())
        sample = text.sample
        rows.append(
            {
                "text": sample.prompt if sample.target is None else sample.prompt + sample.target,
                "prompt": sample.prompt,
                "target": sample.target,
                "task": sample.task,
                "level": sample.level,
                "id": sample.id or str(number),
                "tokens": len(text.ids),
                "read": len(text.positions),
                "correct": right,
            }
        )
    frame = pd.DataFrame(rows)
    return frame.astype({"level": "Int64", "correct": "boolean", "target": "string"})


def _describe(
    job: _Job, encoded: Sequence[Encoded], table: _Table, positions: Positions, sweep: dict[str, Any] | None
) -> dict[str, Any]:
    """The manifest: everything that decides what was read."""
    model, splice, options = job.model, job.model.splice, len(encoded[0].option_ids)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": model.name,
            "architecture": type(model.network).__name__,
            "layers": model.layers,
            "fingerprint": model.fingerprint,
            "dtype": str(splice.dtype).removeprefix("torch."),
            "device": str(splice.device),
            "certificate": asdict(model.certificate),
        },
        "lens": {"name": job.lens.name, "focal_depths": list(job.depths), "context": job.lens.context, "auto": sweep},
        "positions": positions,
        "reference": job.reference,
        "readings": list(job.names),
        "options": options,
        "guess": 1 / options if options else 0.0,
        "smallest": 0.0 if job.reference == "output" else effort.SMALLEST_GIVEN,
        "limits": asdict(job.limits),
        "largest_error_in_run": table.error,
        "definitions": DEFINITIONS,
        "versions": {name: version(name) for name in ("hyperlens", "torch", "transformers", "numpy")}
        | {"python": platform.python_version()},
    }


DEFINITIONS = {
    "routed": "D_m(h_l) = head(F_L ... F_{s+1}(h_l)), s = max(l, L - m)",
    "effort": "mean over l < L - m of 1 - clip((c_l - guess)/(c_L - guess), 0, 1), c = probability of the reference",
    "onset": "first state with progress >= 0.1",
    "commit": "first state from which progress stays >= 0.9",
}


def _speller(model: Model) -> Callable[[int], str]:
    """A token id as text; its raw name where it has no text of its own, its number where there is no tokenizer."""
    known: dict[int, str] = {-1: ""}

    def spell(token: int) -> str:
        if token not in known:
            if model.tokenizer is None:
                known[token] = str(token)
            else:
                raw = model.tokenizer.convert_ids_to_tokens(token)
                known[token] = model.tokenizer.decode([token]) or str(raw)
        return known[token]

    return spell


def _lettered(sample: Any, limits: Limits) -> Any:
    return letter_options(sample) if limits.letter and isinstance(sample, Sample) and sample.options else sample


def _default_positions(samples: Sequence[Any]) -> Positions:
    targeted = samples and all(isinstance(sample, Sample) and sample.target is not None for sample in samples)
    return "answer" if targeted else "last"


def _check_reference(reference: Reference | None, positions: Positions) -> Reference:
    """The reference that goes with the positions, or the one asked for if they have it."""
    usual: dict[str, Reference] = {"answer": "target", "generated": "generated"}
    chosen = reference or usual.get(positions, "output")
    if chosen not in ("output", "target", "generated"):
        raise InputError(f'"{chosen}" is not a reference; choose from output, target, generated')
    if chosen == "target" and positions != "answer" or chosen == "generated" and positions != "generated":
        raise InputError(f'reference "{chosen}" is not there at positions "{positions}"; choose output')
    return chosen


def _calibration_texts(encoded: Sequence[Encoded]) -> list[Encoded]:
    """`CALIBRATION_POSITIONS` of the positions that are read, evenly spread; of all positions where those are too few."""
    places = [(number, place) for number, text in enumerate(encoded) for place in text.positions]
    if len(places) < CALIBRATION_POSITIONS:
        places = [(number, place) for number, text in enumerate(encoded) for place in range(len(_fed(text)))]
    spread = np.linspace(0, len(places) - 1, min(CALIBRATION_POSITIONS, len(places))).round().astype(int)
    chosen: dict[int, list[int]] = {}
    for number, place in (places[index] for index in dict.fromkeys(spread.tolist())):
        chosen.setdefault(number, []).append(place)
    return [replace(encoded[number], positions=tuple(mine)) for number, mine in chosen.items()]


def _generate(model: Model, encoded: Sequence[Encoded], limits: Limits) -> list[Encoded]:
    """Each text followed by the model's own greedy answer, read at the positions that predict its tokens."""
    end = model.network.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    context = context_length(model)
    result = []
    for number, text in enumerate(encoded, 1):
        room = limits.max_new_tokens if context is None else min(limits.max_new_tokens, context - len(text.ids))
        if room < 1:
            raise InputError(f"text {number} fills the model's context of {context} tokens; shorten it, so that it can go on")
        ids = torch.tensor([text.ids], device=model.splice.device)
        settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=room, eos_token_id=end, pad_token_id=0)
        made = model.network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0].tolist()
        cut = next((place + 1 for place in range(len(text.ids), len(made)) if made[place] in ends), len(made))
        whole = replace(text, ids=tuple(made[:cut]), positions=tuple(range(len(text.ids) - 1, cut - 1)))
        result.append(check_length(whole, context, f"text {number}"))
    return result


@contextmanager
def _progress(job: _Job, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal's error stream; nothing where that is no terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not (job.limits.progress and console.is_terminal), transient=True) as bar:
        task = bar.add_task("reading texts", total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _memory_errors(limits: Limits) -> Iterator[None]:
    """Say what to lower where memory did not suffice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("out of memory|not enough memory|allocate memory", str(error)):
            raise
        raise MemoryLimitError(
            f"memory did not suffice with batch_tokens {limits.batch_tokens} and memory_mb {limits.memory_mb}; lower them "
            "(--batch-tokens), shorten the texts, or load the model in 16 bit"
        ) from None
