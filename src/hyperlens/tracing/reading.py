"""Texts read in batches: each run once, its states routed, and proved on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from hyperlens.certificate import check_jump, error_bound, relative_error
from hyperlens.encoding import Encoded
from hyperlens.errors import CertificateError, HyperLensError, InputError, ModelError, first_sentence, is_memory_error
from hyperlens.lenses.lens import Routed, route_batch
from hyperlens.models import Model
from hyperlens.readings import all_finite, needs_output, read_logits, stream_probabilities
from hyperlens.splice import Inputs, Prefix, Probes
from hyperlens.tracing.batches import Job, Seen, fed_tokens, make_batches, prepare_batch
from hyperlens.tracing.limits import Limits
from hyperlens.tracing.prefixes import share_texts

LONGEST = "the longest text"


@dataclass
class Table:
    """What was read, one row per probe: readings float32 `[probe, depth, state]`, and the labels of the probe."""

    owners: np.ndarray
    positions: np.ndarray
    readings: dict[str, np.ndarray]
    output_ids: np.ndarray
    output_probability: np.ndarray
    reference_ids: np.ndarray
    best_ids: np.ndarray
    error: float


def read_texts(job: Job, encoded: Sequence[Encoded]) -> Table:
    """All texts, longest first, so that what does not fit shows at once; rows come back in the order of the texts."""
    order = sorted(range(len(encoded)), key=lambda number: -len(fed_tokens(encoded[number])))
    longest = next((number for number in order if not encoded[number].beside), None)
    tables = []
    with show_progress(job.limits, "reading texts", len(encoded)) as advance:
        for together, prefix, error in share_texts(job, encoded, order):
            for numbers in make_batches(job, encoded, together, 0 if prefix is None else prefix.length):
                tables.append(_read_batch(job, encoded, numbers, longest, prefix))
                tables[-1].error = max(tables[-1].error, error)
                advance(len(numbers))
    return _join(tables)


@contextmanager
def explain_images(model: Model) -> Iterator[None]:
    """Say in one sentence that a model does not take a text with its image. Raises InputError."""
    try:
        yield
    except HyperLensError:
        raise
    except Exception as error:  # each model has its own way to find that image and text do not fit
        if is_memory_error(error):
            raise
        raise InputError(
            f"{model.name} does not take a text with its image ({first_sentence(error)}); give what its own processor makes"
        ) from None


def prove_longest(job: Job, text: Encoded, number: int) -> None:
    """In the `jump` context: that the routed path gives the model's own output on the longest text, in a call of its own."""
    splice = job.model.splice
    if not max(job.depths) or job.lens.context != "jump" or text.beside:
        return
    inputs, probes = prepare_batch(job, [replace(text, positions=text.positions[-1:])])
    error = check_jump(splice, inputs, probes, job.depths)
    if not error <= error_bound(splice.dtype) and not torch.isfinite(splice.run(inputs).logits).all():
        _refuse_infinite(job, inputs, [number])
    _check_error(job, error, LONGEST)


def prove_image(job: Job, inputs: Inputs, probes: Probes, number: int) -> tuple[Inputs, float]:
    """A text with an image as it is to be routed: shown the pixels again only where it must be; and the error of that.

    Proved at every focal depth and the probes (as many of them, evenly spread, as logits may be held at once), and the
    model's own output against a call with nothing of ours in its way. Raises InputError where the model cannot take the text
    with its image, ModelError where its logits are not finite.
    """
    splice, depths = job.model.splice, sorted({0, *job.depths})
    last, most = len(probes.rows) - 1, max(1, job.logit_rows // (1 + len(depths)))
    spread = torch.linspace(0, last, min(last + 1, most)).round().long().to(probes.rows.device)
    probes = Probes(probes.rows[spread], probes.positions[spread])
    with explain_images(job.model):
        plain = splice.own_logits(inputs, probes.positions.tolist())[0]
    if not all_finite(plain):
        _refuse_infinite(job, inputs, [number])
    error = relative_error(splice.head(splice.run(inputs, record=[splice.depth], probes=probes).states[splice.depth]), plain)
    _check_error(job, error, "a text with an image")
    blind = replace(inputs, blind=True)
    unseen = check_jump(splice, blind, probes, depths)
    if unseen <= error_bound(splice.dtype):
        return blind, max(error, unseen)
    return inputs, max(error, _check_error(job, check_jump(splice, inputs, probes, depths), "a text with an image"))


def _check_error(job: Job, error: float, where: str) -> float:
    if not error <= (bound := error_bound(job.model.splice.dtype)):
        raise CertificateError(
            f"on {where} the lens differs from the model's own output by {error:.2g} of its largest logit, more than "
            f"{bound:.0e}, so that nothing was read; trace shorter texts, or report this model"
        )
    return error


def _read_batch(
    job: Job, encoded: Sequence[Encoded], numbers: Sequence[int], longest: int | None, prefix: Prefix | None
) -> Table:
    """Run one batch once, route its states, and read them. In `jump` the `longest` text of all is proved in its batch."""
    texts = [encoded[number] for number in numbers]
    splice = job.model.splice
    inputs, probes = prepare_batch(job, texts, prefix)
    inputs, seen = prove_image(job, inputs, probes, numbers[0]) if inputs.beside else (inputs, 0.0)
    form = job.model.certificate.cached_form or "rows"
    routed = route_batch(job.lens, splice, inputs, probes, job.depths, job.stack_tokens, form, bool(job.gauges))
    following = torch.tensor([token for text in texts for token in text.following()], device=splice.device)
    options = [list(text.option_ids) for text in texts for _ in text.positions]
    owned = _read_own(job, routed, probes, following, torch.tensor(options, device=splice.device).long(), inputs, numbers)
    error = max(seen, _check_error(job, owned.error, "a batch"))
    if longest in numbers:
        error = max(error, _check_error(job, routed.prove(numbers.index(longest)), LONGEST))
    layers = job.model.layers
    shape = (len(probes.rows), len(job.depths), layers + 1)
    kept = {name: values[:, None, None].expand(*shape, *values.shape[1:]).clone() for name, values in owned.readings.items()}
    for name, gauge in job.gauges.items():
        values = gauge(routed.pick, layers)[:, None]
        kept[name] = values.expand(*shape, *values.shape[3:]).clone()
    ends_of: dict[int, Tensor] = {}
    for number, (depth, states) in enumerate(routed.by_depth):
        if len(states) > (count := layers - depth):
            ends_of[depth] = states[count]
        for name, values in _read_states(job, states[:count], routed.own, owned).items():
            kept[name][:, number, :count] = values.transpose(0, 1)
    error = max(error, _compare_ends(job, ends_of, routed.own))
    owners = [number for number, text in zip(numbers, texts, strict=True) for _ in text.positions]
    places = [place for text in texts for place in text.positions]
    arrays = {name: values.cpu().numpy() for name, values in kept.items()}
    labels = (owned.output, owned.output_probability, owned.reference_ids, owned.best_ids)
    output, certainty, reference, best = (values.cpu().numpy() for values in labels)
    return Table(np.array(owners), np.array(places), arrays, output, certainty, reference, best, error)


@dataclass
class _Own:
    """The model's own reading at each probe: its top token, the reference, what each state is compared with, and `best_ids`,
    its top token among the answer options (of all tokens where there are none). `error` is how far its logits are from those
    that the pass gave, in the last column."""

    error: float
    readings: dict[str, Tensor]
    output: Int[Tensor, "probe"]
    output_probability: Float[Tensor, "probe"]
    reference: Int[Tensor, "probe"]
    reference_ids: Int[Tensor, "probe"]
    best_ids: Int[Tensor, "probe"]
    options: Int[Tensor, "probe option"]
    following: Int[Tensor, "probe"]


def _read_own(
    job: Job, routed: Routed, probes: Probes, following: Tensor, options: Tensor, inputs: Inputs, numbers: Sequence[int]
) -> _Own:
    """Read the state that left the last layer. Raises ModelError where its logits are not finite."""
    parts, error, ends = [], 0.0, probes.positions == inputs.ids.shape[1] - 1
    for chosen in torch.arange(len(routed.own), device=routed.own.device).split(job.logit_rows):
        logits = job.model.splice.head(routed.own[chosen])
        if not all_finite(logits):
            _refuse_infinite(job, inputs, numbers)
        if len(compared := ends[chosen].nonzero().squeeze(1)):
            found = logits if len(compared) == len(logits) else logits[compared]
            error = max(error, relative_error(found, routed.logits[probes.rows[chosen[compared]]]))
        output = logits.argmax(-1)
        top = read_logits(logits, output, ("probability",))["probability"]
        among = options[chosen] if options.numel() else None
        if among is not None:
            logits = logits.gather(-1, among)
        reference = _reference(job, logits, following[chosen], among)
        readings = _read_rows(job, logits, reference, logits, among)
        best = logits.argmax(-1)
        ids = reference if among is None else among.gather(-1, reference[:, None]).squeeze(-1)
        best = best if among is None else among.gather(-1, best[:, None]).squeeze(-1)
        parts.append((readings, output, top, reference, ids, best))
    readings = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    output, certainty, reference, ids, best = (torch.cat([part[number] for part in parts]) for number in range(1, 6))
    return _Own(error, readings, output, certainty, reference, ids, best, options, following)


def _reference(job: Job, logits: Tensor, following: Tensor, among: Tensor | None) -> Tensor:
    """The reference of each row, as an index into its logits: the model's own best, or the token that follows."""
    if job.reference == "output":
        return logits.argmax(-1)
    if among is None:
        return following
    hits = among == following[:, None]
    if not hits.any(-1).all():
        raise InputError("a target is none of the answer options; give one of them as the target, or leave it away")
    return hits.long().argmax(-1)


def _read_rows(job: Job, logits: Tensor, reference: Tensor, output: Tensor | None, among: Tensor | None) -> dict[str, Tensor]:
    """The readings of rows of logits (of the options `among` which they are), and their top tokens if those were asked for."""
    readings = read_logits(logits, reference, job.names, output)
    if job.limits.top_k:
        values, tokens = logits.float().log_softmax(-1).topk(min(job.limits.top_k, logits.shape[-1]), -1)
        tokens = tokens if among is None else among.expand(*logits.shape[:-1], -1).gather(-1, tokens)
        readings |= {"top_ids": tokens.int(), "top_probabilities": values.exp()}
    return readings


def _read_states(job: Job, states: Tensor, own: Tensor, owned: _Own) -> dict[str, Tensor]:
    """Read routed `states[state, probe]` in chunks of rows."""
    splice, kept = job.model.splice, {}
    if not len(states):
        return {}
    if job.streams and not owned.options.numel():
        return _stream_states(job, states, owned)
    compares = needs_output(job.names) or job.watch is not None
    for chosen in torch.arange(states.shape[1], device=states.device).split(max(1, job.logit_rows // len(states))):
        output = splice.head(own[chosen]) if compares else None
        columns: dict[str, list[Tensor]] = {}
        for first in range(0, len(states), job.logit_rows):
            part = states[first : first + job.logit_rows, chosen]
            logits = splice.head(part.flatten(0, 1)).unflatten(0, part.shape[:2])
            _check_finite(job, all_finite(logits), len(states))
            if job.watch is not None:
                assert output is not None
                job.watch(Seen(job.model.layers - len(states), first, logits, output, owned.following[chosen]))
            among = owned.options[chosen] if owned.options.numel() else None
            wanted = logits if among is None else logits.gather(-1, among.expand(len(logits), -1, -1))
            compared = output if among is None or output is None else output.gather(-1, among)
            reference = owned.reference[chosen].expand(len(logits), -1)
            for name, values in _read_rows(job, wanted, reference, compared, among).items():
                columns.setdefault(name, []).append(values)
        for name, values in columns.items():
            kept.setdefault(name, []).append(torch.cat(values))
    return {name: torch.cat(values, 1) for name, values in kept.items()}


def _compare_ends(job: Job, ends: Mapping[int, Tensor], own: Tensor) -> float:
    """The largest error of the states, by focal depth, that must be read as the model's own is; all depths in one read-out."""
    error, splice = 0.0, job.model.splice
    for chosen in torch.arange(len(own), device=own.device).split(max(1, job.logit_rows // (len(ends) + 1))) if ends else ():
        found, *rows = splice.head(torch.cat([part[chosen] for part in (own, *ends.values())])).split(len(chosen))
        for depth, logits in zip(ends, rows, strict=True):
            error = max(error, _check_error(job, relative_error(logits, found), f"a batch at focal depth {depth}"))
    return error


def _stream_states(job: Job, states: Tensor, owned: _Own) -> dict[str, Tensor]:
    """Readings of routed `states[state, probe]` for which no row's logits have to be whole."""
    rows, reference = states.flatten(0, 1), owned.reference.repeat(len(states))
    parts = [
        job.model.splice.read_plainly(part, partial(stream_probabilities, reference=wanted))
        for part, wanted in zip(rows.split(job.stack_tokens), reference.split(job.stack_tokens), strict=True)
    ]
    found = torch.cat(parts).unflatten(0, states.shape[:2])
    _check_finite(job, bool(torch.isfinite(found).all()), len(states))
    return {name: found.exp() if name == "probability" else found for name in job.names}


def _check_finite(job: Job, finite: bool, count: int) -> None:
    """Raises ModelError where routed states, of which `count` are kept, do not give finite logits."""
    if not finite:
        raise ModelError(
            f"{job.model.name} gives NaN or infinite logits for states that were routed through its deepest "
            f"{job.model.layers - count} layers; load it in a wider --dtype, or choose a smaller --focal-depth"
        )


def _refuse_infinite(job: Job, inputs: Inputs, numbers: Sequence[int]) -> NoReturn:
    """Say which layer is the first to give NaN or infinite values."""
    layers = job.model.layers
    states = job.model.splice.run(inputs, record=range(layers + 1)).states
    broken = next((number for number, state in sorted(states.items()) if not torch.isfinite(state).all()), None)
    where = "only in the read-out" if broken is None else f"first after layer {broken}" if broken else "from the embedding on"
    texts = ", ".join(str(number + 1) for number in sorted(numbers)[:5])
    raise ModelError(
        f"{job.model.name} gives NaN or infinite logits ({where}; among texts {texts}); load it in a wider --dtype"
    )


def _join(tables: Sequence[Table]) -> Table:
    """The batches as one table, its rows in the order of the texts and of the positions in them."""
    owners = np.concatenate([table.owners for table in tables])
    positions = np.concatenate([table.positions for table in tables])
    order = np.lexsort((positions, owners))

    def gathered(pick: Callable[[Table], np.ndarray]) -> np.ndarray:
        return np.concatenate([pick(table) for table in tables])[order]

    return Table(
        owners[order],
        positions[order],
        {name: gathered(lambda table, name=name: table.readings[name]) for name in tables[0].readings},
        gathered(lambda table: table.output_ids),
        gathered(lambda table: table.output_probability),
        gathered(lambda table: table.reference_ids),
        gathered(lambda table: table.best_ids),
        max(table.error for table in tables),
    )


@contextmanager
def show_progress(limits: Limits, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal's error stream; nothing where that is no terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not (limits.progress and console.is_terminal), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
