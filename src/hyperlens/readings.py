"""Logits to confidence readings: one number for each row of logits, never a vocabulary axis in the result."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

_FROM_OUTPUT = {"kl_to_output", "js_to_output"}
FROM_SUM = {"probability", "log_probability"}
"""Readings for which the reference's own logit and the sum over all are enough."""
BLOCK, LARGE_BLOCK = (2048, 512), (4096, 8192)
"""Rows and columns of a block of logits that stays near a processor while it is summed up, and of one for an accelerator."""


def needs_output(names: Collection[str]) -> bool:
    """Whether any of these readings compares with the model's own distribution."""
    return not _FROM_OUTPUT.isdisjoint(names)


def read_logits(
    logits: Float[Tensor, "*row vocabulary"],
    reference: Int[Tensor, "*row"],
    names: Collection[str],
    output: Float[Tensor, "*#row vocabulary"] | None = None,
) -> dict[str, Float[Tensor, "*row"]]:
    """The readings `names` of each row of `logits`, with respect to its `reference` token y; z the logits, p = softmax(z).

    probability p(y) and log_probability ln p(y) (nats); margin z(y) − max over v≠y of z(v) (logits; positive exactly when y
    is the only top token); top_probability max p; gap p(1st) − p(2nd); entropy −Σ p ln p (nats); rank, the number of tokens
    with a larger logit; kl_to_output KL(p_output ‖ p) and js_to_output, the Jensen-Shannon divergence, at most ln 2 (nats),
    for which `output` gives the model's own logits; decision_margin p(y) − max over v≠y of p(v). Computed in float32, or what
    is wider. Differentiable, but for the rank. Readings of the state itself, which logits do not show, are passed over.
    """
    logits = _wide(logits)
    chosen = logits.gather(-1, reference[..., None]).squeeze(-1)
    log_total = sum_logits(logits)
    top = (
        logits.topk(min(2, logits.shape[-1]), -1)
        if {"margin", "decision_margin", "top_probability", "gap"} & set(names)
        else None
    )
    result = {}
    for name in names:
        match name:
            case "probability":
                result[name] = (chosen - log_total).exp()
            case "log_probability":
                result[name] = chosen - log_total
            case "margin":
                result[name] = chosen - _rival(top, reference)
            case "decision_margin":
                result[name] = (chosen - log_total).exp() - (_rival(top, reference) - log_total).exp()
            case "top_probability":
                assert top is not None
                result[name] = (top.values[..., 0] - log_total).exp()
            case "gap":
                assert top is not None
                result[name] = (top.values[..., 0] - log_total).exp() - (top.values[..., -1] - log_total).exp()
            case "entropy":
                result[name] = _entropy(logits - log_total[..., None])
            case "rank":
                result[name] = (logits > chosen[..., None]).sum(-1).float()
            case "kl_to_output":
                result[name] = _kl(_log_output(output), logits - log_total[..., None])
            case "js_to_output":
                result[name] = _js(_log_output(output), logits - log_total[..., None])
    return result


def sum_logits(logits: Float[Tensor, "*row vocabulary"]) -> Float[Tensor, "*row"]:
    """ln Σ exp z of each row, by blocks of the vocabulary."""
    blocks = logits.split(_choose_block(logits)[1], -1)
    return torch.stack([block.logsumexp(-1) for block in blocks], -1).logsumexp(-1)


def stream_probabilities(
    given: Float[Tensor, "row width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, "vocabulary"] | None,
    reference: Int[Tensor, "row"],
) -> Float[Tensor, "row"]:
    """ln p(y) of each row as a matrix product gives it, by blocks of rows and vocabulary: no row's logits are ever whole.

    What is taken away before the exponentials is the token's own logit, so that no block is searched for the largest one, which
    only matters where the sum overflows: there it is found, and taken away instead. Not differentiable.
    """
    parts = []
    for rows, wanted in zip(given.split(most := _choose_block(given)[0]), reference.split(most), strict=True):
        own = (rows[:, None] @ weight[wanted][:, :, None])[:, 0, 0]
        found = _read_blocks(rows, weight, bias, wanted, _wide(own if bias is None else own + bias[wanted]))
        if len(far := found.isneginf().nonzero().squeeze(1)):
            top = torch.stack([block.amax(-1) for block in _stream_blocks(rows[far], weight, bias)]).amax(0)
            found[far] = _read_blocks(rows[far], weight, bias, wanted[far], top)
        parts.append(found)
    return torch.cat(parts)


def _read_blocks(
    rows: Tensor, weight: Tensor, bias: Tensor | None, wanted: Int[Tensor, "row"], level: Float[Tensor, "row"]
) -> Float[Tensor, "row"]:
    """z(y) − level − ln Σ exp(z − level) of each row, −∞ where the sum overflows.

    z(y) is the one that is summed up: another product of the same numbers may be rounded otherwise, and p(y) be above 1.
    """
    sums, own, first = [], torch.zeros_like(level), 0
    for block in _stream_blocks(rows, weight, bias):
        above, place = block.sub_(level[:, None]), wanted - first
        inside = (place >= 0) & (place < block.shape[1])
        own = torch.where(inside, above.gather(1, place.clamp(0, block.shape[1] - 1)[:, None]).squeeze(1), own)
        sums.append(above.exp_().sum(-1))
        first += block.shape[1]
    return own - torch.stack(sums).sum(0).log()


def _stream_blocks(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[Float[Tensor, "row column"]]:
    """The logits by blocks of the vocabulary, to be spent before the next one comes: all of them pass through the same memory,
    since glibc's heap does not give holes of their size back."""
    columns = _choose_block(rows)[1]
    products, wide = rows.new_empty(len(rows) * columns), None
    for first in range(0, len(weight), columns):
        block = weight[first : first + columns]
        found = torch.mm(rows, block.T, out=products[: len(rows) * len(block)].view(len(rows), len(block)))
        if bias is not None:
            found += bias[first : first + columns]
        if found.dtype != _widest(found):
            wide = torch.empty_like(products, dtype=_widest(found)) if wide is None else wide
            found = wide[: found.numel()].view_as(found).copy_(found)
        yield found


def _choose_block(values: Tensor) -> tuple[int, int]:
    return BLOCK if values.device.type == "cpu" else LARGE_BLOCK


def all_finite(logits: Float[Tensor, "*row vocabulary"]) -> bool:
    """Whether all logits are finite; by their extremes, since a mask of them would take blocks that the heap does not give
    back, and the sum of those of forbidden tokens overflows."""
    return bool(torch.isfinite(logits.amin(-1)).all() and torch.isfinite(logits.amax(-1)).all())


def _rival(top: Any, reference: Int[Tensor, "*row"]) -> Float[Tensor, "*row"]:
    """The largest logit of another token than the reference, of the two at the top."""
    assert top is not None
    return torch.where(top.indices[..., 0] == reference, top.values[..., -1], top.values[..., 0])


def _log_output(output: Tensor | None) -> Tensor:
    assert output is not None, "readings against the output need the output's logits"
    return _wide(output).log_softmax(-1)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(_widest(logits))


def _widest(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _entropy(log_p: Float[Tensor, "*row vocabulary"]) -> Float[Tensor, "*row"]:
    return torch.special.entr(log_p.exp()).sum(-1)


def _kl(log_p: Float[Tensor, "*#row vocabulary"], log_q: Float[Tensor, "*row vocabulary"]) -> Float[Tensor, "*row"]:
    """KL(p ‖ q); a token that p excludes adds nothing, whatever q says of it."""
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p.isneginf(), 0.0, terms).sum(-1).clamp_min(0.0)


def _js(log_p: Float[Tensor, "*#row vocabulary"], log_q: Float[Tensor, "*row vocabulary"]) -> Float[Tensor, "*row"]:
    """Jensen-Shannon divergence: the entropy of the mixture less the mean of the entropies."""
    middle = torch.special.entr((log_p.exp() + log_q.exp()) / 2).sum(-1)
    return (middle - (_entropy(log_p) + _entropy(log_q)) / 2).clamp_min(0.0)


def read_state_cosine(pick: Callable[[int], Tensor], layers: int) -> Float[Tensor, "probe state"]:
    """Cosine of each residual state 1 … L with the one before it, in [−1, 1]; NaN at state 0, which has none.

    `pick` gives a state by its number, `[probe, *width]`. Computed in float32, two states at a time. A state of several vectors
    counts as one long vector. Source: the hidden-state saturation of CALM (Schuster et al. 2022, arXiv 2207.07061).
    """
    before = pick(0).float().flatten(1)
    columns = [torch.full_like(before[:, 0], float("nan"))]
    for number in range(1, layers + 1):
        state = pick(number).float().flatten(1)
        columns.append(torch.nn.functional.cosine_similarity(before, state, dim=-1).clamp(-1.0, 1.0))
        before = state
    return torch.stack(columns, 1)
