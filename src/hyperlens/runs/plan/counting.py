"""What reading a batch computes, counted from its shape as the study's own code cuts it up."""

from __future__ import annotations

from collections.abc import Sequence

from hyperlens.encoding import Encoded
from hyperlens.lenses import TunedLens
from hyperlens.readings import needs_output
from hyperlens.routing import QUERY_ROWS
from hyperlens.runs.plan.estimates import Work
from hyperlens.runs.plan.frames import Frame
from hyperlens.tracing.batches import Job, fed_tokens


def count_batch(job: Job, frame: Frame, batch: Sequence[Encoded], before: int = 0) -> Work:
    """What reading one batch computes: its own pass, but for so many tokens `before` that were run already, its states routed
    at each focal depth, and their read-out."""
    lengths, probes = [len(fed_tokens(text)) for text in batch], [len(text.positions) for text in batch]
    rows, longest = len(batch), max(lengths)
    ends, total = lengths.count(longest), sum(probes)
    work = _count_call(frame, rows, longest - before, keys=longest, read=total + rows - ends) + _count_read_out(frame, rows, 0)
    work += _count_read_out(frame, total, -(-total // job.logit_rows))
    for depth in job.depths:
        states = frame.layers - depth
        routed, whole = bool(depth and job.lens.context == "cached"), bool(depth or job.lens.between)
        if routed:
            work += _count_cached(job, frame, batch, rows, longest, depth)
        elif whole and states:
            work += _count_jump(job, frame, probes, longest, depth)
        work += _count_translators(job, frame, states, rows * longest if whole and not routed else total)
        work += _count_states(job, frame, states, total)
    compared = 1 + sum(map(bool, job.depths)) if job.lens.context == "cached" and any(job.depths) else 0
    chunks = -(-total // max(1, job.logit_rows // max(1, compared)))
    return work + _count_read_out(frame, compared * total, chunks if compared else 0)


def _count_translators(job: Job, frame: Frame, states: int, tokens: int) -> Work:
    """The translators of a tuned lens at one focal depth: in `jump` all tokens pass them where they are routed at all."""
    if not isinstance(job.lens, TunedLens):
        return Work()
    width = frame.model.splice.anatomy.width[0]
    return Work(routed_flops=2.0 * states * tokens * width * width)


def _count_call(
    frame: Frame,
    rows: int,
    tokens: int,
    start: int | None = None,
    keys: int = 0,
    calls: int = 1,
    read: int | None = None,
) -> Work:
    """One call on `rows` texts (or so many calls in which they go), whole or through the layers after `start`; so many tokens
    are `read` of it, or all that leave the last layer."""
    flops = frame.count_pass(rows, tokens, keys or tokens, start or 0, read)
    kind = {"ordinary_flops": flops} if start is None else {"routed_flops": flops}
    return Work(**kind, calls=calls, call_tokens=rows * tokens, layer_calls=calls * (frame.layers - (start or 0)))


def _count_read_out(frame: Frame, rows: int, read_outs: int) -> Work:
    return Work(readout_flops=2.0 * frame.head * rows, read_outs=read_outs)


def _count_states(job: Job, frame: Frame, states: int, probes: int) -> Work:
    """The read-out of all states at one focal depth, and of the model's own where they are compared with it."""
    if not states:
        return Work()
    chunks = -(-probes // max(1, job.logit_rows // states))
    work = _count_read_out(frame, states * probes, chunks * -(-states // job.logit_rows))
    return work + (_count_read_out(frame, probes, chunks) if needs_output(job.names) else Work())


def _count_jump(job: Job, frame: Frame, probes: Sequence[int], tokens: int, depth: int) -> Work:
    """States 0 … L − m − 1 of every token through the layers in between and the m deepest, as many at once as memory allows."""
    rows, states = len(probes), frame.layers - depth
    together = max(1, min(rows, job.stack_tokens // tokens))
    each, parts, work = max(1, job.stack_tokens // (together * tokens)), -(-rows // together), Work()
    for part in (probes[first : first + together] for first in range(0, rows, together) if depth):
        calls, read = -(-states // each), sum(part) * states
        work += _count_call(frame, len(part) * states, tokens, states, calls=calls, read=read)
    for layer in (layer for layer in job.lens.between if layer <= states):
        flops = frame.count_pass(rows * layer, tokens, tokens, layer - 1) - frame.count_pass(
            rows * layer, tokens, tokens, layer
        )
        calls = parts * -(-layer // each)
        work += Work(routed_flops=flops, calls=calls, call_tokens=rows * layer * tokens, layer_calls=calls)
    return work


def _count_cached(job: Job, frame: Frame, batch: Sequence[Encoded], rows: int, tokens: int, depth: int) -> Work:
    """States 0 … L − m of the probes through the m deepest layers, in the form of `cached` that the model takes."""
    states, start, form = frame.layers - depth + 1, frame.layers - depth, job.model.certificate.cached_form
    if form == "rows":
        most, each = max(len(text.positions) for text in batch), max(1, QUERY_ROWS // states)
        slots = [min(each, most - first) * states for first in range(0, most, each)]
        return sum((_count_call(frame, rows, queries, start, tokens + queries) for queries in slots), Work())
    work = Work()
    for text in batch:
        if form == "steps":
            work += _count_call(frame, 1, max(1, text.positions[0]))
            for place in text.positions:
                work += _count_call(frame, states, 1, start, place + 1) + _count_call(frame, 1, 1, 0, place + 1)
        else:
            work += _count_call(frame, 1, tokens)
            for place in text.positions:
                together = max(1, job.stack_tokens // (place + 1))
                work += _count_call(frame, states, place + 1, start, calls=-(-states // together), read=states)
    return work


def count_proof(job: Job, frame: Frame, texts: Sequence[Encoded]) -> Work:
    """What each shard proves: in `jump`, one state of its longest text at each focal depth, and all rows of its last layer."""
    if job.lens.context != "jump" or not max(job.depths):
        return Work()
    longest = max(len(fed_tokens(text)) for text in texts)
    depths = [depth for depth in job.depths if depth]
    routed = (_count_call(frame, 1, longest, frame.layers - depth, read=1) for depth in depths)
    proved = _count_call(frame, 1, longest, frame.layers - 1) + _count_read_out(frame, 1 + len(depths), 1)
    return sum(routed, proved)


def count_prefix(frame: Frame, shared: int, longest: int, proved: bool) -> Work:
    """Running what several texts begin with, once; and the longest of them whole and in two parts, unless that was `proved`."""
    work = _count_call(frame, 1, shared, read=1)
    if proved:
        return work
    whole = _count_call(frame, 1, longest) + _count_call(frame, 1, longest - shared, keys=longest)
    return work + whole + _count_read_out(frame, 2, 2)


def count_generation(frame: Frame, answer: int, prompt: int) -> Work:
    """Writing an answer: the prompt at once, then a token at a time."""
    flops = frame.count_pass(1, prompt, prompt) + 2.0 * frame.head * answer
    flops += frame.count_pass(1, answer - 1, prompt + answer / 2)
    return Work(generation_flops=flops, calls=1, call_tokens=prompt, layer_calls=answer * frame.layers, steps=answer)
