"""Texts that begin alike, as few-shot prompts do: what they have in common is run once, and each text behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

import torch

from hyperlens.certificate import error_bound, relative_error
from hyperlens.configuration import rotary_boundary
from hyperlens.encoding import Encoded
from hyperlens.splice import Inputs, Prefix
from hyperlens.tracing.batches import ENOUGH, Job, fed_tokens

BRANCHINGS = 16
"""How often texts that begin alike are looked at for parts of them that have more in common."""


@dataclass(frozen=True)
class Group:
    """Texts, by their numbers, and how many `shared` tokens all of them begin with that are worth to be run once."""

    numbers: tuple[int, ...]
    shared: int = 0

    @property
    def saved(self) -> int:
        """Tokens that need not be run."""
        return (len(self.numbers) - 1) * self.shared


def share_texts(
    job: Job, encoded: Sequence[Encoded], order: Sequence[int]
) -> Iterator[tuple[Sequence[int], Prefix | None, float]]:
    """The groups in which texts are read, each in the `order` given, with what all of it begin with, run already; and the
    relative error of that on the first such text. Where it is larger than the bound, that text and all after it are read whole.
    """
    splice, error = job.model.splice, None
    groups = group_texts(job, encoded, order)
    for place, group in enumerate(groups):
        prefix = None
        if group.shared:
            ids = torch.tensor(fed_tokens(encoded[group.numbers[0]]), device=splice.device)
            prefix = splice.run_prefix(ids[: group.shared])
            if error is None and not (error := _compare(job, ids, prefix)) <= error_bound(splice.dtype):
                left = {number for group in groups[place:] for number in group.numbers}
                yield [number for number in order if number in left], None, 0.0
                return
        yield group.numbers, prefix, error or 0.0


def group_texts(job: Job, encoded: Sequence[Encoded], order: Sequence[int]) -> list[Group]:
    """All texts in groups, those with the longest texts first; within each they stay in the `order` given."""
    if not may_share(job):
        return [Group(tuple(order))]
    most = job.limits.share(8, job.model.layers * job.kept_width)  # two are held while one follows the other
    limits = {number: min(most, *encoded[number].positions) for number in order if not encoded[number].beside}
    found = _divide({number: encoded[number].ids[:limit] for number, limit in limits.items()}, sorted(limits), BRANCHINGS)
    rank = {number: place for place, number in enumerate(order)}
    shared = [
        Group(tuple(sorted(group.numbers, key=rank.__getitem__)), group.shared) for group in found if group.saved >= ENOUGH
    ]
    taken = {number for group in shared for number in group.numbers}
    alone = Group(tuple(number for number in order if number not in taken))
    return sorted([*shared, *([alone] if alone.numbers else [])], key=lambda group: rank[group.numbers[0]])


def may_share(job: Job) -> bool:
    """Whether a text may be run in two parts: in `jump` no state has gone through the deepest layers before."""
    routed = max(job.depths) > 0 or bool(job.lens.between)
    wanted = job.limits.share_prefixes and job.limits.padding_side == "right"
    proved = job.model.splice.prefix_proved and rotary_boundary(job.model.splice.config) is None
    return wanted and proved and not (routed and job.lens.context == "jump")


def _divide(heads: dict[int, tuple[int, ...]], numbers: Sequence[int], left: int) -> list[Group]:
    """The texts with these beginnings in one group, or in several, by their next token, where that saves more."""
    texts = sorted(numbers, key=heads.__getitem__)
    if not texts:
        return []
    first, last = heads[texts[0]], heads[texts[-1]]
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    whole = Group(tuple(texts), shared)
    if not left or len(texts) < 2 or len(first) == shared == len(last):
        return [whole]
    parts = (list(part) for _, part in groupby(texts, key=lambda number: heads[number][shared : shared + 1]))
    divided = [group for part in parts for group in (_divide(heads, part, left - 1) if len(part) > 1 else [Group(tuple(part))])]
    return divided if sum(group.saved for group in divided) > whole.saved else [whole]


def _compare(job: Job, ids: torch.Tensor, prefix: Prefix) -> float:
    """Relative error of a text behind its prefix against the same text run whole."""
    splice, behind = job.model.splice, ids[prefix.length :]
    whole = splice.own_logits(Inputs(ids[None]), [len(ids) - 1])
    return relative_error(splice.own_logits(Inputs(behind[None], prefix=prefix), [len(behind) - 1]), whole)
