"""D_m(h_l): a state of any depth routed through the model's deepest m layers, in two attention contexts.

`jump` lets the states of all positions at one depth enter the deepest layers together. `cached` lets only the probed
positions jump; each attends to the keys and values that the model itself computed for the positions before it, and to
its own. Both give the state that leaves the last layer; `Splice.head` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from hyperlens.splice import Inputs, Memory, Probes, Splice

QUERY_ROWS = 512
"""Most query rows of one `cached` pass: their mask and their attention to each other grow with the square of it."""


def route_jump(
    splice: Splice, inputs: Inputs, states: Float[Tensor, "state row token *width"], start: int, probes: Probes
) -> Float[Tensor, "state probe *width"]:
    """Pass each of the stacked `states` through the layers after `start`, all positions together, in one call."""
    count, rows = states.shape[:2]
    stacked = probes.repeat(count, rows)
    done = splice.run(inputs.repeat(count), states.flatten(0, 1), start, record=[splice.depth], probes=stacked, read=False)
    return done.states[splice.depth].unflatten(0, (count, -1))


def route_cached(
    splice: Splice,
    inputs: Inputs,
    states: Float[Tensor, "state probe *width"],
    start: int,
    probes: Probes,
    cache: Cache,
) -> Float[Tensor, "state probe *width"]:
    """Pass each probe's `states` through the layers after `start`, beside the model's own keys and values in `cache`.

    The states of one probe, and the probes of one text, are query rows of one pass: each sees the cached positions before
    its own, and itself. `inputs` are those of the pass that filled the cache.
    """
    routed = torch.empty_like(states)
    for chosen in _query_chunks(probes, len(states)):
        rows, slots = _line_up(probes.rows[chosen], len(inputs.ids))
        part = states[:, chosen]
        queries = part.new_zeros(len(inputs.ids), len(states), int(slots.max()) + 1, *part.shape[2:])
        queries[rows, :, slots] = part.transpose(0, 1)
        places = torch.zeros(queries.shape[0], queries.shape[2], dtype=torch.long, device=splice.device)
        places[rows, slots] = probes.positions[chosen]
        places = places.repeat(1, len(states))
        call, memory = _query_call(splice, inputs, places, start, cache)
        done = splice.run(call, queries.flatten(1, 2), start, record=[splice.depth], memory=memory, read=False)
        routed[:, chosen] = done.states[splice.depth].unflatten(1, (len(states), -1))[rows, :, slots].transpose(0, 1)
    return routed


def _query_chunks(probes: Probes, states: int) -> Iterator[Int[Tensor, "chosen"]]:
    """The probes in groups that give no text more than `QUERY_ROWS` query rows."""
    each = max(1, QUERY_ROWS // states)
    ranks = _line_up(probes.rows, int(probes.rows.max()) + 1)[1]
    for first in range(0, int(ranks.max()) + 1, each):
        yield ((ranks >= first) & (ranks < first + each)).nonzero().squeeze(1)


def _line_up(rows: Int[Tensor, "probe"], count: int) -> tuple[Int[Tensor, "probe"], Int[Tensor, "probe"]]:
    """Each probe's row, and how many probes of the same row come before it."""
    hits = torch.nn.functional.one_hot(rows, count).cumsum(0)
    return rows, hits.gather(1, rows[:, None]).squeeze(1) - 1


def _query_call(
    splice: Splice, inputs: Inputs, places: Int[Tensor, "row query"], start: int, cache: Cache
) -> tuple[Inputs, Memory]:
    """The inputs whose tokens are the query rows at `places`, and what each layer lets them see."""
    queries, keys = places.shape[1], torch.arange(inputs.ids.shape[1], device=places.device)
    before = keys < places[:, :, None]
    if inputs.mask is not None:
        before = before & inputs.mask[:, None].bool()
    itself = torch.eye(queries, dtype=torch.bool, device=places.device).expand(len(places), -1, -1)

    def additive(window: int | None) -> Tensor:
        seen = before if window is None else before & (keys > places[:, :, None] - window)
        hidden = ~torch.cat([seen, itself], -1)[:, None]
        return torch.zeros(hidden.shape, dtype=splice.dtype, device=places.device).masked_fill_(
            hidden, torch.finfo(splice.dtype).min
        )

    windows = {number: splice.window(number) for number in range(start, splice.depth)}
    by_width = {width: additive(width) for width in set(windows.values())}
    own = places if inputs.positions is None else inputs.positions.gather(1, places)
    masks = {number: by_width[width] for number, width in windows.items() if width is not None}
    full = by_width[None] if None in by_width else next(iter(by_width.values()))
    return Inputs(torch.full_like(places, splice.filler), full, own), Memory(cache, masks)
