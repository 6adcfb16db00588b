"""A state of some texts, held once; directions taken out of it; and what a lens, or the model itself, then makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyperlens.encoding import Encoded, Given, encode_samples
from hyperlens.errors import InputError
from hyperlens.lenses import HyperLens, Lens
from hyperlens.lenses.lens import pass_between, route_stack
from hyperlens.models import Model
from hyperlens.resampling import check_seed
from hyperlens.routing import TEMPORARIES
from hyperlens.splice import Inputs, Probes, at_rest
from hyperlens.tasks import Sample
from hyperlens.tracing import Limits
from hyperlens.tracing.batches import Job, make_batches, prepare_batch
from hyperlens.tracing.limits import explain_memory
from hyperlens.tracing.reading import prove_longest

KINDS = ("mean", "resample", "zero")
POSITIONS = ("all", "last", "answer")


@dataclass(frozen=True)
class Ablation:
    """What is done to state number `state` at all positions: its share along a direction gives way to another.

    `state` goes from 0, the embeddings, to L. By `kind` its share gives way to the "mean" share over the positions that are
    read (default), the share of another of them, drawn once from `seed` in [0, 2³²) ("resample"), or none ("zero").
    `positions` are those at which outputs are read and compared: "all" (default), "last" or "answer". The kinds are those of
    the original package's code. Raises InputError for another kind, positions or seed.
    """

    state: int
    kind: str = "mean"
    positions: str = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("kind", KINDS), ("positions", POSITIONS)):
            if getattr(self, name) not in choices:
                raise InputError(f'"{getattr(self, name)}" is no {name} of an ablation; choose from {", ".join(choices)}')
        check_seed(self.seed)


@dataclass(frozen=True)
class Held:
    """One batch: its state, the state whose shares replace those of directions, and the number of each probe's text."""

    inputs: Inputs
    probes: Probes
    texts: Int[Tensor, "probe"]
    hidden: Float[Tensor, "row token width"]
    target: Float[Tensor, "#row #token width"]


@dataclass(frozen=True)
class Stage:
    """The state of all texts, `read[text]` positions of which are read, and what they may use."""

    model: Model
    ablation: Ablation
    batches: tuple[Held, ...]
    read: Int[Tensor, "text"]
    logit_rows: int

    @property
    def width(self) -> int:
        """Values of one state."""
        return self.batches[0].hidden.shape[-1]

    def gather(self) -> Float[Tensor, "probe width"]:
        """The state at all positions that are read."""
        return torch.cat([held.probes.pick(held.hidden) for held in self.batches])


def own_lens(model: Model, state: int) -> Lens:
    """The lens that routes a state, from 0 to L, through all layers after it, and so is the model itself."""
    return HyperLens((model.layers - state,))


@contextmanager
def hold_state(
    model: Model, lens: Lens | None, samples: str | Sample | Iterable[Given], ablation: Ablation, limits: Limits | None
) -> Iterator[tuple[Stage, Lens]]:
    """The state of the samples' texts, and the lens that fits the model (the model itself where there is none); meanwhile the
    model is at rest. The batches are small enough for gradients through the lens. Raises InputError, CertificateError where the
    lens is not exact on the model, ModelError where its logits are not finite, MemoryLimitError."""
    limits, listed = limits or Limits(), [samples] if isinstance(samples, str | Sample) else list(samples)
    check_state(model, ablation.state)
    lens = own_lens(model, ablation.state) if lens is None else lens.fit_to(model)
    depth = check_lens(model, lens, ablation.state)
    model.certificate.require("jump")
    encoded = encode_samples(listed, model, ablation.positions)
    check_texts(encoded, ablation)
    width, passed = Job(model, lens, (depth,), (), "output", limits).width, 1 + depth + len(lens.between)
    tokens = min(limits.batch_tokens, limits.share(4, TEMPORARIES * width * passed))
    job = Job(model, lens, (depth,), (), "output", replace(limits, batch_tokens=tokens))
    with model.splice.lock, at_rest(model.network, gradients=True), explain_memory(limits):
        with torch.no_grad():
            stage = _hold(job, encoded, ablation)
        yield stage, lens


def check_state(model: Model, state: int) -> None:
    """Raises InputError where the model has no such state, or states that are no vectors."""
    if not 0 <= state <= model.layers:
        raise InputError(f"there is no state {state}; {model.name} has the states 0 to {model.layers}")
    if len(own := model.splice.anatomy.width) != 1:
        raise InputError(f"each state of {model.name} is a matrix of {list(own)} values; the causal check ablates vectors")


def check_lens(model: Model, lens: Lens, state: int) -> int:
    """The one focal depth of a lens that reads the state. Raises InputError where it has more, or could change nothing."""
    if lens.context != "jump":
        raise InputError(
            f'the causal check ablates all positions together; give the lens the context jump, not "{lens.context}"'
        )
    depth, *others = lens.check_depths(model.layers)
    if others:
        raise InputError(f"the lens has the focal depths {[depth, *others]}; the causal check reads one at a time, so give one")
    if state > (count := model.layers - depth):
        raise InputError(
            f"state {state} at focal depth {depth} is the model's own output, since nothing is left to skip; give a state "
            f"up to {count}, or a smaller focal depth"
        )
    return depth


def check_texts(encoded: Sequence[Encoded], ablation: Ablation) -> None:
    """Raises InputError where texts have images, or a share has no other to be replaced by."""
    if any(one.beside for one in encoded):
        raise InputError("the causal check reads texts alone; leave samples with images away")
    if (read := sum(len(one.positions) for one in encoded)) < 2 and ablation.kind != "zero":
        raise InputError(f"{read} position is read, which has nothing to be replaced by; give more texts, or the kind zero")


def _hold(job: Job, encoded: Sequence[Encoded], ablation: Ablation) -> Stage:
    """Run each batch up to the state, and set what replaces its shares once all are held."""
    splice, state = job.model.splice, ablation.state
    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number].ids))
    prove_longest(job, encoded[order[0]], order[0])
    batches, parts = [], []
    for numbers in make_batches(job, encoded, order):
        texts = [encoded[number] for number in numbers]
        inputs, probes = prepare_batch(job, texts)
        hidden = splice.run(inputs, record=[state], read=False).states[state]
        owners = torch.tensor([number for number, text in zip(numbers, texts, strict=True) for _ in text.positions])
        batches.append(Held(inputs, probes, owners.to(splice.device), hidden, hidden[:1, :1]))
        parts.append(texts)
    read = torch.tensor([len(text.positions) for text in encoded], device=splice.device)
    stage = Stage(job.model, ablation, tuple(batches), read, max(1, job.logit_rows // 4))
    return replace(stage, batches=tuple(_set_targets(stage, parts)))


def _set_targets(stage: Stage, parts: Sequence[Sequence[Encoded]]) -> Iterator[Held]:
    """Each batch with what its state's shares are replaced by."""
    read, before = stage.gather(), 0
    mean = read.double().mean(0)[None, None] if stage.ablation.kind == "mean" else read.new_zeros(1, 1, stage.width)
    for held, texts in zip(stage.batches, parts, strict=True):
        if stage.ablation.kind != "resample":
            yield replace(held, target=mean.to(held.hidden.dtype))
            continue
        counts, target = [len(text.positions) for text in texts], held.hidden.clone()
        each = zip(texts, held.texts.split(counts), held.probes.positions.split(counts), strict=True)
        for row, (text, numbers, columns) in enumerate(each):
            drawn = _draw_donors(text, int(numbers[0]), before, len(read), stage.ablation.seed)
            start = int(columns[0]) - text.positions[0]
            target[row, start : start + len(drawn)] = read[drawn.to(read.device)]
            before += len(text.positions)
        yield replace(held, target=target)


def _draw_donors(text: Encoded, number: int, before: int, count: int, seed: int) -> Int[Tensor, "token"]:
    """For each token of a text one of all `count` positions that are read, never itself; `before` of them come before it.

    Drawn for each text from the seed and its number, so that the batches do not matter.
    """
    length = text.positions[-1] + 1
    itself = torch.full((length,), count)
    itself[torch.tensor(text.positions)] = torch.arange(before, before + len(text.positions))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    drawn = torch.randint(count - 1, (length,), generator=generator)
    return drawn + (drawn >= itself).long()


def ablate(
    hidden: Float[Tensor, "row token width"],
    target: Float[Tensor, "#row #token width"],
    directions: Float[Tensor, "width direction"],
) -> Float[Tensor, "row token width"]:
    """h + V Vᵀ(t − h): the state with its share along the span of orthonormal directions replaced by that of `target`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    vectors = directions.to(hidden.device, wide)
    share = (target.to(wide) - hidden.to(wide)) @ vectors
    return (hidden.to(wide) + share @ vectors.T).to(hidden.dtype)


def read_held(
    stage: Stage, lens: Lens, held: Held, directions: Float[Tensor, "width direction"] | None = None
) -> Float[Tensor, "probe width"]:
    """What a lens makes leave the last layer at the probes of one batch, with or without directions ablated."""
    splice, state = stage.model.splice, stage.ablation.state
    count = splice.depth - lens.check_depths(splice.depth)[0]
    hidden = held.hidden if directions is None else ablate(held.hidden, held.target, directions)
    stack = (lens.prepare(state, hidden) if state < count else hidden)[None]
    stack = pass_between(lens, splice, held.inputs, stack, state, count)
    return route_stack(splice, held.inputs, stack, count, held.probes)[0]


def read_controls(stage: Stage, lens: Lens) -> list[Float[Tensor, "probe width"]]:
    """What a lens makes leave the last layer at the probes of each batch, with nothing ablated."""
    with torch.no_grad():
        return [read_held(stage, lens, held) for held in stage.batches]


def draw_directions(width: int, count: int, seed: int = 0) -> Float[Tensor, "width direction"]:
    """Random orthonormal directions, uniform over all such. Raises InputError for more than the width has, or a
    seed out of range."""
    check_count(count, width)
    check_seed(seed)
    drawn = torch.randn(width, count, generator=torch.Generator().manual_seed(seed))
    vectors, triangle = torch.linalg.qr(drawn)
    return vectors * triangle.diagonal().sign()


def find_components(
    model: Model, samples: str | Sample | Iterable[Given], ablation: Ablation, count: int, limits: Limits | None = None
) -> Float[Tensor, "width direction"]:
    """The first `count` principal components of the state at the positions that are read, orthonormal, from 1 to its width.

    Raises InputError, CertificateError where the lens is not exact on the model, MemoryLimitError.
    """
    with hold_state(model, None, samples, ablation, limits) as (stage, _), torch.no_grad():
        check_count(count, stage.width)
        return decompose(stage)[0][:, :count].float()


def decompose(stage: Stage) -> tuple[Float[Tensor, "width width"], Float[Tensor, "width width"]]:
    """All principal components of the state at the positions that are read, the largest first, and its covariance."""
    read = stage.gather().double().cpu()
    covariance = (read - read.mean(0)).T @ (read - read.mean(0)) / len(read)
    return torch.linalg.eigh(covariance)[1].flip(1), covariance


def check_count(count: int, width: int) -> None:
    """Raises InputError where there are not so many orthogonal directions."""
    if not 1 <= count <= width:
        raise InputError(f"{count} directions were asked for; a state of width {width} has 1 to {width} orthogonal ones")
