"""The loss of a tuned lens and its gradient: KL from the model's output to what the lens reads of every state.

One pass of the model gives all states. Their logits exist for a block of rows at a time: the loss is read from them, its
derivative, softmax(z) − p, written over them, and the model's own read-out differentiated back to the state. The model's own
p is computed once for the tokens of a block and serves all states. `autocasting` lets the model make its products in bfloat16;
what is done to its logits here is computed in float32, from logits and to a derivative that lie in bfloat16.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from hyperlens.lenses import Translators
from hyperlens.lenses.lens import route_stack
from hyperlens.routing import TEMPORARIES
from hyperlens.splice import Inputs, Probes, Splice
from hyperlens.tracing import Limits
from hyperlens.visits import wrap_forwards

BLOCK = 2 * 2**20
"""Bytes of a block of logits: what is computed with its states besides stays near the processor."""

FEWEST = 256
"""Rows of a block below which its matrix products slow down."""

SLICE = 2**20
"""Bytes of logits that stay in the caches of the cores while their loss and its derivative are computed in several steps."""


@dataclass(frozen=True)
class _Part:
    """Tokens of the batch that are read together: what leaves the last layer there; the states of a range of numbers where
    they are to be translated, one row per place; and what leaves the last layer at the tokens where those enter."""

    own: Float[Tensor, "token width"]
    stack: Callable[[range], Float[Tensor, "state place width"]]
    route: Callable[[Float[Tensor, "state place width"]], Float[Tensor, "state token width"]]
    each: int


class _Target(NamedTuple):
    """The model's own distribution at some tokens, and Σ p ln p of each."""

    p: Float[Tensor, "token vocabulary"]
    negentropy: Float[Tensor, "token"]


@contextmanager
def autocasting(splice: Splice, precision: str | None) -> Iterator[None]:
    """Let the model make its products in this precision, as `torch.autocast` chooses them; without one, as it always does.

    That is for calls of this thread, which holds the splice's lock; products outside the model are not changed. A plain
    unembedding is converted once here, and not again for each block of rows; `count_copies` says what that takes.
    """
    if precision is None:
        yield
        return
    dtype, thread = getattr(torch, precision), threading.get_ident()
    plain: list[Any] = [splice.model.get_output_embeddings()] if splice.ends_plainly else []
    copies: list[Any] = [None if part is None else part.detach().to(dtype) for one in plain for part in (one.weight, one.bias)]

    def forward(number: int, own: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if threading.get_ident() != thread:
            return own(*given, **named)
        if number:
            return torch.nn.functional.linear(given[0].to(dtype), *copies)
        with torch.autocast(splice.device.type, dtype, cache_enabled=False):
            return own(*given, **named)

    with wrap_forwards([splice.model, *plain], forward):
        yield


def count_copies(splice: Splice, precision: str, focal_depth: int) -> int:
    """Bytes of the weights that a step holds in this precision at once: the unembedding, and the deepest layers, whose own
    products are differentiated."""
    deepest = splice.anatomy.order[splice.depth - focal_depth :]
    values = sum(weight.numel() for number in deepest for weight in splice.layers[number].parameters())
    return getattr(torch, precision).itemsize * (splice.config.vocab_size * splice.anatomy.width[-1] + values)


def distil_batch(
    splice: Splice,
    translators: Translators,
    inputs: Inputs,
    probes: Probes,
    focal_depth: int,
    limits: Limits,
    share: float | None,
) -> Float[Tensor, "state"]:
    """Mean over the probes of KL(model's output ‖ lens) in nats, one value per state 0 … L − m − 1, in float32.

    With a `share`, that times the gradient of their sum is added to the `grad` of the translators, which are leaves. The
    model's weights collect none. The caller holds the splice's lock and has the network `at_rest`, with gradients if there is
    a share. `limits.memory_mb` bounds what is held beside the model's own pass, its states and the translators.
    """
    count, last = splice.depth - focal_depth, splice.depth
    with torch.no_grad():
        done = splice.run(inputs, record=[*range(count), last], probes=None if focal_depth else probes, read=False)
        # Under autocast some may come out narrower than the model computes; else none is changed here.
        states = {number: state.to(torch.promote_types(state.dtype, splice.dtype)) for number, state in done.states.items()}
        local = Translators(translators.weight[:count], None if translators.bias is None else translators.bias[:count])
        local = local.to(states[last].device, states[last].dtype)
    total = torch.zeros(count, dtype=torch.promote_types(states[last].dtype, torch.float32), device=states[last].device)
    rows = _count_rows(splice, states[last], limits, 2 if focal_depth else 1)
    parts = _split_texts(splice, inputs, probes, states, count, limits) if focal_depth else _split_probes(states, count, rows)
    for part in parts:
        target = lru_cache(maxsize=1)(lambda low, high, own=part.own: _read_target(splice, own[low:high]))
        for first in range(0, count, part.each):
            numbers = range(first, min(first + part.each, count))
            entering, block = part.stack(numbers), slice(numbers.start, numbers.stop)
            translated = _translate(local, block, entering).requires_grad_(share is not None)
            routed = part.route(translated)
            losses, slope = _read_states(splice, routed.detach(), target, rows, share is not None)
            total[block] += losses
            if slope is not None and share is not None:
                if focal_depth:
                    (slope,) = torch.autograd.grad(routed, translated, slope)
                _collect(translators, block, slope.mul_(share / len(probes.rows)), entering)
    return total / len(probes.rows)


def _count_rows(splice: Splice, states: Tensor, limits: Limits, parts: int) -> int:
    """Rows of one block: p lies beside their logits, and a read-out may keep some copies of those."""
    size = 4 * splice.config.vocab_size
    most = limits.share(parts, 6 * size + TEMPORARIES * states.shape[-1] * states.element_size())
    return most if states.device.type == "cuda" else min(most, max(BLOCK // size, FEWEST))


def _split_probes(states: dict[int, Tensor], count: int, rows: int) -> Iterator[_Part]:
    """The probes in groups of as many as one block of logits has rows; several states at once where those are few."""
    tokens = len(states[0])
    for low in range(0, tokens, rows):
        part = slice(low, min(low + rows, tokens))
        yield _Part(
            states[max(states)][part],
            lambda numbers, part=part: torch.stack([states[number][part] for number in numbers]),
            lambda translated: translated,
            max(1, rows // (part.stop - part.start)),
        )


def _split_texts(
    splice: Splice, inputs: Inputs, probes: Probes, states: dict[int, Tensor], count: int, limits: Limits
) -> Iterator[_Part]:
    """The texts in groups, and states at once, of which the deepest layers hold as much as the memory allows."""
    (texts, length), state = inputs.ids.shape, states[0][0, 0]
    most = limits.share(2, TEMPORARIES * (splice.depth - count) * state.numel() * state.element_size())
    rows = max(1, min(texts, most // length))
    for first in range(0, texts, rows):
        part = slice(first, min(first + rows, texts))
        mine = ((probes.rows >= part.start) & (probes.rows < part.stop)).nonzero().squeeze(1)
        inside, given = Probes(probes.rows[mine] - first, probes.positions[mine]), inputs.pick(part)
        shape = (part.stop - part.start, length)

        def stack(numbers: range, part: slice = part) -> Tensor:
            return torch.stack([states[number][part].flatten(0, 1) for number in numbers])

        def route(translated: Tensor, shape: tuple[int, int] = shape, given: Inputs = given, inside: Probes = inside) -> Tensor:
            return route_stack(splice, given, translated.unflatten(1, shape), count, inside)

        if len(mine):
            yield _Part(inside.pick(states[splice.depth][part]), stack, route, max(1, most // (rows * length)))


@torch.no_grad()
def _translate(
    translators: Translators, block: slice, states: Float[Tensor, "state place width"]
) -> Float[Tensor, "state place width"]:
    """The states of numbers `block`, each through its own translator."""
    moved = torch.baddbmm(states, states, translators.weight[block].mT)
    return moved if translators.bias is None else moved.add_(translators.bias[block, None])


@torch.no_grad()
def _collect(
    translators: Translators,
    block: slice,
    slope: Float[Tensor, "state place width"],
    states: Float[Tensor, "state place width"],
) -> None:
    """Add to the translators' gradients what `slope`, the derivative by what they give for `states`, says of them."""
    for tensor in (translators.weight, translators.bias):
        if tensor is not None and tensor.grad is None:
            tensor.grad = torch.zeros_like(tensor)
    assert translators.weight.grad is not None
    translators.weight.grad[block] += torch.bmm(slope.mT, states)
    if translators.bias is not None and translators.bias.grad is not None:
        translators.bias.grad[block] += slope.sum(1, dtype=_wide(slope))


@torch.no_grad()
def _read_target(splice: Splice, own: Float[Tensor, "token width"]) -> _Target:
    """What the model itself predicts. Its softmax sums to 1 more nearly than the exponentials of its logarithm do."""
    logits = splice.head(own)
    p = logits.to(_wide(logits))
    highest, crosses = p.amax(-1), []
    for z in p.tensor_split(max(1, len(p) // max(2, _count_slice(p)))):  # never of one row, which is summed up otherwise
        q = z.softmax(-1)
        crosses.append(_cross(q, z))
        z.copy_(q)
    return _Target(p, torch.cat(crosses) - highest + p.amax(-1).log())


def _read_states(
    splice: Splice,
    left: Float[Tensor, "state token width"],
    target: Callable[[int, int], _Target],
    rows: int,
    slopes: bool,
) -> tuple[Float[Tensor, "state"], Float[Tensor, "state token width"] | None]:
    """The summed loss of states that leave the last layer, and its derivative, in blocks of at most so many rows."""
    count, tokens = left.shape[:2]
    losses = torch.zeros(count, dtype=_wide(left), device=left.device)
    slope = torch.empty_like(left) if slopes else None
    for low in range(0, tokens, rows):
        part = slice(low, min(low + rows, tokens))
        each = max(1, rows // (part.stop - part.start))
        for first in range(0, count, each):
            block = slice(first, first + each)
            found, back = _read_block(splice, left[block, part], target(part.start, part.stop), slopes)
            losses[block] += found
            if slope is not None and back is not None:
                slope[block, part] = back
    return losses, slope


def _read_block(
    splice: Splice, left: Float[Tensor, "state token width"], target: _Target, slopes: bool
) -> tuple[Float[Tensor, "state"], Float[Tensor, "state token width"] | None]:
    """The same for one block, its logits' derivative taken back through the read-out."""
    with torch.set_grad_enabled(slopes):
        entering = left.flatten(0, 1).requires_grad_(slopes)
        logits = splice.head(entering)
        read_out = get_gradient_edge(logits) if slopes else None  # of the logits before they are written over
    slope, each = logits.detach().unflatten(0, left.shape[:2]), _count_slice(target.p)
    given = list(zip(target.p.split(each), target.negentropy.split(each), strict=True))
    losses = torch.zeros(len(slope), dtype=_wide(slope), device=slope.device)
    for state, z in enumerate(slope):
        for part, (p, negentropy) in zip(z.split(each), given, strict=True):
            losses[state] += _differentiate(part, p, negentropy)
    if read_out is None:
        return losses, None
    (back,) = torch.autograd.grad(read_out, entering, slope.flatten(0, 1))
    return losses, back.unflatten(0, left.shape[:2])


@torch.no_grad()
def _differentiate(
    z: Float[Tensor, "token vocabulary"], p: Float[Tensor, "token vocabulary"], negentropy: Float[Tensor, "token"]
) -> Float[Tensor, ""]:
    """Summed loss Σ p ln p − Σ p z + ln Σ exp z of logits, over which its derivative, softmax(z) − p, is written."""
    wide = z.to(_wide(z))
    cross = _cross(p, wide)
    highest = wide.amax(-1)
    q = torch.softmax(wide, -1, out=wide)
    log_total = highest - q.amax(-1).log()
    z.copy_(q.sub_(p))  # which are the same where z is wide
    return (negentropy - cross + log_total).sum()


def _cross(p: Float[Tensor, "token vocabulary"], z: Float[Tensor, "token vocabulary"]) -> Float[Tensor, "token"]:
    """Σ p z; a token that the model excludes, whose p is 0 and whose logit is −∞, adds nothing."""
    cross = torch.linalg.vecdot(p, z)
    return cross if torch.isfinite(cross).all() else torch.linalg.vecdot(p, z.masked_fill(p == 0, 0.0))


def _count_slice(logits: Float[Tensor, "token vocabulary"]) -> int:
    """Rows of logits that are worked on together."""
    return len(logits) if logits.device.type == "cuda" else max(1, SLICE // (4 * logits.shape[-1]))


def _wide(tensor: Tensor) -> torch.dtype:
    """Float32, or what is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)
