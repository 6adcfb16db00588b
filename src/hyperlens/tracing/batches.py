"""Which texts are run together: similar lengths, little padding, bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyperlens.certificate import pad_behind
from hyperlens.configuration import attention_widths, rotary_boundary
from hyperlens.encoding import Encoded
from hyperlens.lenses import Lens
from hyperlens.models import Model
from hyperlens.readings import FROM_SUM
from hyperlens.routing import TEMPORARIES
from hyperlens.splice import Inputs, Prefix, Probes
from hyperlens.tracing.limits import Limits

ENOUGH = 512
"""Tokens with which a call is worth its weights: more texts only join them for little padding."""
NEAR = 2**24
"""Bytes of the widest that a layer makes of a call's tokens on a processor, taken to be four states: larger blocks leave its
caches, and go back to the system to come again as new pages."""
PADDING = 1 / 8
"""Of a batch with enough tokens, the most that may be padding."""


@dataclass(frozen=True)
class Seen:
    """Logits as they pass: those of the states from number `first` on at one focal depth, of some probes, beside the model's
    own; and the token that follows each probe in its text."""

    depth: int
    first: int
    logits: Float[Tensor, "state probe vocabulary"]
    output: Float[Tensor, "probe vocabulary"]
    following: Int[Tensor, "probe"]


Gauge = Callable[[Callable[[int], Tensor], int], Tensor]
"""What reads the residual states themselves: given how to pick one by its number, and the layers, `[probe, state, ...]`."""


@dataclass(frozen=True)
class Job:
    """What is read of every batch, and how; `watch` sees all logits of the open vocabulary before they are gone. `gauges`
    read, by name, the residual states as the model left them."""

    model: Model
    lens: Lens
    depths: tuple[int, ...]
    names: tuple[str, ...]
    reference: str
    limits: Limits
    watch: Callable[[Seen], None] | None = None
    gauges: Mapping[str, Gauge] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Bytes of one residual state."""
        splice = self.model.splice
        return math.prod(splice.anatomy.width) * torch.finfo(splice.dtype).bits // 8

    @property
    def logit_rows(self) -> int:
        """Rows of logits that are held at once; their readings take a few times as much.

        A sixth of the default memory is above 32 MiB. Smaller blocks are kept by glibc's heap, whose holes aligned requests
        cannot use again before version 2.38: it grew by 2 GB over the 256 tokens of one text.
        """
        return self.limits.share(6, 4 * self.model.splice.config.vocab_size)

    @property
    def streams(self) -> bool:
        """Whether logits are summed up while they come: nothing that is asked for needs those of a row at once."""
        whole = self.limits.top_k or self.watch is not None
        return self.model.splice.ends_plainly and not whole and set(self.names) <= FROM_SUM

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, so that the recorded states of all of them fit."""
        whole = max(self.depths) or self.lens.between or self.gauges
        states = self.model.layers - (0 if self.gauges else min(self.depths)) + 3 if whole else 1
        return min(self.near_tokens, self.limits.share(2, states * self.width))

    @property
    def stack_tokens(self) -> int:
        """Tokens that go through the deepest layers at once: twice as many at m = 1, where most are but keys."""
        keys = 2 if max(self.depths) == 1 and not self.lens.between else 1
        fitting = self.limits.share(4, TEMPORARIES * self.width // keys)
        return min(self.limits.batch_tokens, keys * self.near_tokens, fitting)

    @property
    def near_tokens(self) -> int:
        """Tokens of any call: on a processor not more than stay near it."""
        near = max(ENOUGH, NEAR // (4 * self.width)) if self.model.splice.device.type == "cpu" else self.limits.batch_tokens
        return min(self.limits.batch_tokens, near)

    def weigh_kept(self, tokens: int) -> int:
        """As how many tokens of a batch the keys and values of so many earlier tokens weigh: those of the layer that runs, and
        in "cached" of the deepest ones."""
        deepest = max(self.depths) if self.lens.context == "cached" else 0
        layers = 1 + (self.model.layers if deepest and self.model.splice.way == "hook" else deepest)
        return math.ceil(tokens * layers * self.kept_width / (TEMPORARIES * self.width))

    @property
    def kept_width(self) -> int:
        """Bytes of the keys and values that one layer keeps of a token."""
        splice = self.model.splice
        return round(attention_widths(splice.config)[1] * torch.finfo(splice.dtype).bits / 8) or 2 * self.width


def fed_tokens(text: Encoded) -> tuple[int, ...]:
    """The tokens that the model has to see: up to the last position that is read."""
    return text.ids[: text.positions[-1] + 1]


def spread_positions(encoded: Sequence[Encoded], most: int) -> list[Encoded]:
    """The texts with at most so many of their positions, evenly spread over all of them; texts without any are left out."""
    places = [(number, place) for number, text in enumerate(encoded) for place in text.positions]
    spread = np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)
    chosen: dict[int, list[int]] = {}
    for number, place in (places[index] for index in dict.fromkeys(spread.tolist())):
        chosen.setdefault(number, []).append(place)
    return [replace(encoded[number], positions=tuple(mine)) for number, mine in chosen.items()]


def make_batches(job: Job, encoded: Sequence[Encoded], order: Sequence[int], before: int = 0) -> Iterator[list[int]]:
    """Texts of similar length together, as many as `batch_tokens` allows; once there are `ENOUGH` tokens in a batch, none that
    would make more than `PADDING` of it padding. With so many tokens `before`, which all of them begin with and which were run
    already, those that follow count, and what is kept of the others.

    Of one length, where padding is not exact or a longer text would change the rotary angles of the others. A text with an
    image stands alone, as does one whose own memory is kept for steps of generation.
    """
    stepped = job.lens.context == "cached" and job.model.certificate.cached_form == "steps"
    padded = job.limits.padding_side in job.model.certificate.paddings
    boundary, most = rotary_boundary(job.model.splice.config), job.batch_tokens
    batch, real, kept = [], 0, job.weigh_kept(before)
    for number in order:
        mine, longest = (len(fed_tokens(encoded[one])) - before for one in (number, (batch or [number])[0]))
        mixed = padded and (boundary is None or longest <= boundary)
        whole = longest * (len(batch) + 1)
        sparse = longest * len(batch) >= ENOUGH and whole - real - mine > PADDING * whole
        fits = whole + kept * (len(batch) + 1) <= most and not sparse and (mixed or longest == mine)
        alone = batch and (stepped or encoded[number].beside or encoded[batch[0]].beside)
        if batch and (alone or not fits):
            yield batch
            batch, real = [], 0
        batch.append(number)
        real += mine
    yield batch


def prepare_batch(job: Job, texts: Sequence[Encoded], prefix: Prefix | None = None) -> tuple[Inputs, Probes]:
    """The padded batch, behind a prefix if there is one, and the places in it that are read."""
    device = job.model.splice.device
    fed = [torch.tensor(fed_tokens(text), device=device) for text in texts]
    inputs, starts = pad_behind(fed, job.limits.padding_side, job.model.splice.filler, prefix)
    rows = [row for row, text in enumerate(texts) for _ in text.positions]
    columns = [start + place for text, start in zip(texts, starts, strict=True) for place in text.positions]
    probes = Probes(torch.tensor(rows, device=device), torch.tensor(columns, device=device))
    beside = {name: part.to(device) for name, part in cut_beside(texts[0], len(fed_tokens(texts[0]))).items()}
    return replace(inputs, beside=beside), probes


def cut_beside(text: Encoded, length: int) -> dict[str, Tensor]:
    """What comes beside the tokens of a text, its maps of them cut or continued to `length`.

    As generation continues them: a number per token by zeros, which stand for words; more per token, as what each may see of
    the images, by those of the last one.
    """

    def fit(part: Tensor) -> Tensor:
        if part.is_floating_point() or part.shape[:2] != (1, len(text.ids)):
            return part
        more = max(0, length - len(text.ids))
        filled = part.new_zeros(1, more) if part.ndim == 2 else part[:, -1:].expand(-1, more, *part.shape[2:])
        return torch.cat([part[:, :length], filled], 1)

    return {name: fit(part) for name, part in text.beside.items()}
