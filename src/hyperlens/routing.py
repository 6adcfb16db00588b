"""D_m(h_l): a state of any depth routed through the model's deepest m layers, in two attention contexts.

`jump` lets the states of all positions at one depth enter the deepest layers together. `cached` lets only the probed
positions jump; each attends to the keys and values that the model itself computed for the positions before it, and to
its own. Both give the state that leaves the last layer; `Splice.head` reads it.

`cached` has three forms, each dearer than the one before. "rows": the states of a position are query rows of one call, behind
masks of our own that show each the positions before it; one call serves all positions of a text. "steps": they are the
rows of a batch that takes one ordinary step of generation on the model's own memory of the text, so that whatever the
model does with it holds (biases of position, recurrent states, windows of its own); a call of single tokens for each
position. "replay": the text's own states enter the deepest layers with the one at the position replaced; no memory is
needed, and each position costs what `jump` costs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from hyperlens.configuration import rotary_boundary
from hyperlens.memory import Memory
from hyperlens.splice import Inputs, Pass, Probes, Splice

CachedForm = Literal["rows", "steps", "replay"]
CACHED_FORMS: tuple[CachedForm, ...] = ("rows", "steps", "replay")

QUERY_ROWS = 512
"""Most query rows of one `cached` pass: their mask and their attention to each other grow with the square of it."""

TEMPORARIES = 24
"""States' worth of memory that a token takes on its way through a layer."""

LONGEST_WALK = 8
"""Tokens that are stepped over one by one from one probe to the next; beyond, the text is run afresh up to there."""


def route_jump(
    splice: Splice, inputs: Inputs, states: Float[Tensor, "state row token *width"], start: int, probes: Probes
) -> Float[Tensor, "state probe *width"]:
    """Pass each of the stacked `states` through the layers after `start`, all positions together, in one call."""
    count, rows = states.shape[:2]
    stacked = probes.repeat(count, rows)
    done = splice.run(inputs.repeat(count), states.flatten(0, 1), start, record=[splice.depth], probes=stacked, read=False)
    return done.states[splice.depth].unflatten(0, (count, -1))


@dataclass(frozen=True)
class Recall:
    """What `cached` passes see of one batch: for "rows" the keys and values of a pass over it, for "steps" the memory of each
    text up to its first probe (None where that is the first token)."""

    form: CachedForm
    cache: Cache | None = None
    texts: Sequence[Memory | None] = ()


def run_recalling(
    splice: Splice, inputs: Inputs, record: Collection[int], probes: Probes, deepest: int, form: CachedForm
) -> tuple[Pass, Recall]:
    """Run the batch once for `cached` passes through at most the `deepest` layers: its states at the probes, and the recall."""
    form = "replay" if _is_whole(splice, inputs) else form
    memory = Memory(splice.new_cache(deepest, inputs.prefix)) if form == "rows" else None
    done = splice.run(inputs, record=record, probes=probes, memory=memory)
    if memory is not None:
        return done, Recall(form, memory.cache)
    if form == "replay":
        return done, Recall(form)
    return done, Recall(
        form, texts=[_remember(splice, ids[: min(places, default=0)]) for ids, places, _ in _texts(inputs, probes)]
    )


def route_cached(
    splice: Splice,
    inputs: Inputs,
    states: Float[Tensor, "state probe *width"],
    start: int,
    probes: Probes,
    recall: Recall,
    batch_tokens: int = 4096,
) -> Float[Tensor, "state probe *width"]:
    """Pass each probe's `states` through the layers after `start`, beside the model's own keys and values.

    `inputs` and `probes` are those of the pass that made `recall`. `batch_tokens` bounds the tokens of all the copies of a
    text, or of its memory, that are held at once.
    """
    if recall.cache is not None:
        return _route_rows(splice, inputs, states, start, probes, recall.cache)
    parts = []
    for number, (ids, places, mine) in enumerate(_texts(inputs, probes)):
        if not mine:
            continue
        if recall.form == "steps":
            found = _route_steps(splice, ids, states[:, mine], start, places, recall.texts[number], batch_tokens)
        else:
            text = replace(inputs, ids=ids[None], mask=None, positions=None)
            found = _route_replay(splice, text, states[:, mine], start, places, batch_tokens)
        parts.append((torch.tensor(mine, device=found.device), found))
    return join_probes(parts)


def join_probes(
    parts: Sequence[tuple[Int[Tensor, "_"], Float[Tensor, "state _ *width"]]],
) -> Float[Tensor, "state probe *width"]:
    """The states of some probes each, with the numbers of those, as the states of all probes in their order."""
    order = torch.cat([numbers for numbers, _ in parts]).argsort()
    return torch.cat([states for _, states in parts], 1)[:, order]


def _route_rows(
    splice: Splice, inputs: Inputs, states: Float[Tensor, "state probe *width"], start: int, probes: Probes, cache: Cache
) -> Float[Tensor, "state probe *width"]:
    """The states of one probe, and the probes of one text, as query rows of one pass: each sees the cached positions before
    its own, and itself."""
    parts = []
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
        left = done.states[splice.depth].unflatten(1, (len(states), -1))
        parts.append((chosen, left[rows, :, slots].transpose(0, 1)))
    return join_probes(parts)


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
    queries, keys = places.shape[1], torch.arange(inputs.before + inputs.ids.shape[1], device=places.device)
    among = places + inputs.before
    before = keys < among[:, :, None]
    if inputs.mask is not None:
        before = before & inputs.mask[:, None].bool()
    itself = torch.eye(queries, dtype=torch.bool, device=places.device).expand(len(places), -1, -1)

    def additive(window: int | None, length: int) -> Tensor:
        seen = before if window is None else before & (keys > among[:, :, None] - window)
        hidden = ~torch.cat([seen[..., len(keys) - length :], itself], -1)[:, None]
        return torch.zeros(hidden.shape, dtype=splice.dtype, device=places.device).masked_fill_(
            hidden, torch.finfo(splice.dtype).min
        )

    running = range(start if splice.way == "bypass" else 0, splice.depth)
    # A layer with a window may keep the last tokens alone; one without keys of its own sees those of a layer of its kind.
    kept: list[Any] = cache.layers
    lengths = {splice.window(number): length for number in running if (length := kept[number].get_seq_length())}
    views = {number: (splice.window(number), lengths.get(splice.window(number), len(keys))) for number in running}
    by_view = {view: additive(*view) for view in set(views.values())}
    own = among if inputs.positions is None else inputs.positions.gather(1, places)
    masks = {number: by_view[view] for number, view in views.items() if view[0] is not None}
    full = next((mask for (window, _), mask in by_view.items() if window is None), next(iter(by_view.values())))
    return Inputs(inputs.ids.gather(1, places), full, own), Memory(cache, masks)


def _is_whole(splice: Splice, inputs: Inputs) -> bool:
    """Whether a text must not be cut: its tokens stand for an image, or its length decides its rotary angles."""
    boundary = rotary_boundary(splice.config)
    return bool(inputs.beside) or (boundary is not None and inputs.ids.shape[1] > boundary)


def _texts(inputs: Inputs, probes: Probes) -> Iterator[tuple[Int[Tensor, "token"], list[int], list[int]]]:
    """Each row of the batch without its padding: its tokens, the places probed in it, in order, and which probes they are."""
    for row in range(len(inputs.ids)):
        kept = torch.ones_like(inputs.ids[row]) if inputs.mask is None else inputs.mask[row]
        first = int(kept.argmax())
        mine = (probes.rows == row).nonzero().squeeze(1)
        mine = mine[probes.positions[mine].argsort()]
        yield inputs.ids[row, first:], (probes.positions[mine] - first).tolist(), mine.tolist()


def _remember(splice: Splice, ids: Int[Tensor, "token"], memory: Memory | None = None, done: int = 0) -> Memory | None:
    """The model's own memory of a text, or of `memory` of its first `done` tokens and what follows; None of nothing."""
    return splice.remember(_place(ids[None], done), memory) if len(ids) else memory


def _place(ids: Int[Tensor, "row token"], first: int) -> Inputs:
    """Tokens that stand in a text from place `first` on; said to the model, which may count from an earlier text's image."""
    places = torch.arange(first, first + ids.shape[1], device=ids.device)
    return Inputs(ids, positions=places.expand(len(ids), -1))


def _route_steps(
    splice: Splice,
    ids: Int[Tensor, "token"],
    states: Float[Tensor, "state probe *width"],
    start: int,
    places: Sequence[int],
    begun: Memory | None,
    batch_tokens: int,
) -> Float[Tensor, "state probe *width"]:
    """The states at each of the places of one text as the rows of a batch that takes one step of generation."""
    memory, done, routed = begun.spread(1) if begun is not None else None, places[0], []
    for place, given in zip(places, states.unbind(1), strict=True):
        memory, done = _advance(splice, ids, memory, done, place), place
        parts = given.split(_rows_of_step(splice, given, start, memory, batch_tokens))
        routed.append(torch.cat([_step(splice, ids[place], place, part, start, memory) for part in parts]))
    return torch.stack(routed, 1)


def _rows_of_step(splice: Splice, states: Tensor, start: int, memory: Memory | None, batch_tokens: int) -> int:
    """How many rows one step may have, each with a copy of the memory (and one more while it is made)."""
    state = states[0].numel() * states.element_size()
    kept = 0 if memory is None else 2 * memory.count_bytes(_shared(splice, start))
    return max(1, batch_tokens * TEMPORARIES * state // (TEMPORARIES * state + kept))


def _shared(splice: Splice, start: int) -> int:
    """How many of the first layers a slice from `start` on leaves alone."""
    return start if splice.way == "bypass" else 0


def _step(
    splice: Splice, token: Int[Tensor, ""], place: int, states: Float[Tensor, "state *width"], start: int, memory: Memory | None
) -> Float[Tensor, "state *width"]:
    """What leaves the last layer where `token` comes next, at `place`, and each of `states` replaces its own before `start`."""
    spread = None if memory is None else memory.spread(len(states), _shared(splice, start))
    step = _place(token.expand(len(states), 1), place)
    done = splice.run(step, states[:, None], start, record=[splice.depth], memory=spread, read=False)
    return done.states[splice.depth][:, 0]


def _advance(splice: Splice, ids: Int[Tensor, "token"], memory: Memory | None, done: int, place: int) -> Memory | None:
    """The memory of the first `done` tokens brought to `place`."""
    if memory is None or place - done > LONGEST_WALK:
        return _remember(splice, ids[:place])
    for token in range(done, place):
        memory = _remember(splice, ids[token : token + 1], memory, token)
    return memory


def _route_replay(
    splice: Splice,
    text: Inputs,
    states: Float[Tensor, "state probe *width"],
    start: int,
    places: Sequence[int],
    batch_tokens: int,
) -> Float[Tensor, "state probe *width"]:
    """Each state in its place among the text's own before layer `start`, all of which enter the layers after it.

    What comes after the place is left away where it cannot matter.
    """
    own = splice.run(text, record=[start], read=False).states[start]
    routed = []
    for place, given in zip(places, states.unbind(1), strict=True):
        end = Probes(*torch.tensor([[0], [place]], device=splice.device))
        length = text.ids.shape[1] if _is_whole(splice, text) else place + 1
        done = []
        for part in given.split(max(1, batch_tokens // length) if text.blind or not text.beside else 1):
            stack = own[:, :length].repeat(len(part), *[1] * (own.ndim - 1))
            stack[:, place] = part
            short = replace(text, ids=text.ids[:, :length])
            done.append(route_jump(splice, short, stack[:, None], start, end)[:, 0])
        routed.append(torch.cat(done))
    return torch.stack(routed, 1)
