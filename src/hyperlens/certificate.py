"""The proof that a lens reads the model that was loaded: equality, liveness, chain, causality, in each attention context.

Equality alone can pass on a wrong lens: where nothing of ours takes effect the output trivially equals the model's. So the
routed path must also change the output when its state is changed, by as much as if the whole model ran; and the layers in
between must lead from one recorded state to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hyperlens.configuration import context_length, special_tokens
from hyperlens.errors import LOAD_ADVICE, CertificateError, HyperLensError, MemoryLimitError, first_sentence, is_memory_error
from hyperlens.narrowing import Narrow
from hyperlens.routing import CACHED_FORMS, CachedForm, route_cached, route_jump, run_recalling
from hyperlens.splice import WAYS, Inputs, Pass, Prefix, Probes, Splice, Way, at_rest

CONTEXTS = ("jump", "cached")
PADDING_SIDES = ("right", "left")

ALIVE = 10
"""How many times the bound a perturbed state changes the output at least."""

LONGEST_PROMPT = 1032
"""Tokens of the longest prompt at load. Wider windows are proved inside the run, on the texts that reach over them."""

NARROW_TOKENS = 8
"""Tokens of the texts on which the last layer is tried for what only rows which are read need to pass."""

FORBIDDEN = -1e30
"""Logits below are those of tokens that the model never writes, such as the pieces of an image."""

READ_OUT = ": its output depends on more than the state that leaves the last layer"
"""What it means where a state that was never moved is read otherwise than by the model."""


@dataclass(frozen=True)
class Certificate:
    """What was proved of one model: in which `way` and `contexts` its lens is exact, and to what relative error.

    `way` is how slices run, `cached_form` how `cached` does (None where it is not exact; texts with images are replayed),
    `paddings` the sides on which texts of a batch may be padded (else only texts of one length are batched).
    `max_error` is the largest max|Δlogits| / max|logits| (states for the chain) over the checks that passed; `reason` says
    why a context, a padding, or the whole model, is refused; `tokens` is the length of the prompt on which it was proved.
    """

    architecture: str
    layers: int
    certified: bool
    way: Way | None
    contexts: tuple[str, ...]
    max_error: float | None
    reason: str | None
    tokens: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    cached_form: CachedForm | None = None
    paddings: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """What `hyperlens check` shows, ready for JSON."""
        shown = ("architecture", "layers", "certified", "way", "contexts", "max_error", "reason", "cached_form", "paddings")
        values = {name: getattr(self, name) for name in shown}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def require(self, context: str) -> None:
        """Raise CertificateError where the lens is not exact in `context`."""
        if not self.certified:
            raise CertificateError(f"{self.architecture} is refused: {self.reason}")
        if context not in self.contexts:
            raise CertificateError(
                f'context "{context}" is not exact on {self.architecture} ({self.reason}); use --context {self.contexts[0]}'
            )


class _Failed(Exception):
    """A check that did not hold, in words."""


def error_bound(dtype: torch.dtype) -> float:
    """The largest relative error that passes: 1e-5 in float32 and wider, 2e-2 in 16 bit."""
    return 1e-5 if torch.finfo(dtype).bits >= 32 else 2e-2


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max|found − expected| / max|expected|; infinite where anything is not finite or the shapes differ.

    Values below `FORBIDDEN` (or near the least of a dtype), which would dwarf all others, have to be in the same places in
    both, and are left out.
    """
    if found.shape != expected.shape:
        return math.inf
    if not found.numel():
        return 0.0
    least = max(FORBIDDEN, torch.finfo(expected.dtype).min / 2)
    found, expected = found.float(), expected.float().to(found.device)
    if expected.amin() < least:
        forbidden = expected < least
        if not torch.equal(found < least, forbidden):
            return math.inf
        found, expected = found[~forbidden], expected[~forbidden]
    error = ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
    return error if math.isfinite(error) else math.inf


def certify(splice: Splice) -> Certificate:
    """Prove `splice` in both contexts, in each by the cheapest way that holds; leaves `splice.way` at the one of `jump`, and in
    `narrow`, `short_end`, `end_proved` and `prefix_proved` of the splice what it was proved with."""
    prover, reason = _Prover(splice), None
    with splice.lock, at_rest(splice.model):
        narrow = prover.find_narrow()
        splice.short_end = prover.attempt(prover.try_short_end, "short end") is None
        for way, splice.narrow in product(WAYS, narrow.weaker):
            splice.way = way
            if (reason := prover.attempt(prover.prove_jump, "jump")) is None:
                prover.attempt(prover.prove_end, "end")
                paddings, unpadded = prover.prove_paddings()
                form, refused = prover.choose_cached(ragged="right" in paddings)
                if form == "rows":
                    prove = partial(prover.prove_prefix, "right" in paddings)
                    splice.prefix_proved = prover.attempt(prove, "prefix") is None
                return prover.passed(way, form, paddings, [*refused, *unpadded])
        if reason and " differs by " in reason and (unsteady := prover.attempt(prover.prove_steady, "steady")):
            reason = f"{reason}; {unsteady}"
    name = type(splice.model).__name__
    return Certificate(name, splice.depth, False, None, (), None, reason, prover.length)


class _Prover:
    """The checks on one model: a long prompt, and a ragged pair of it and a part of it."""

    def __init__(self, splice: Splice) -> None:
        self.splice = splice
        self.bound = error_bound(splice.dtype)
        self.errors: dict[str, float] = {}
        self.length = _prompt_length(splice)
        self.random = torch.Generator().manual_seed(0)
        self.vocabulary = splice.embedding.shape[0]
        texts = torch.randint(self.vocabulary, (2, self.length), generator=self.random)
        special = torch.tensor(sorted(special_tokens(splice.config)), dtype=torch.long)
        self.texts = torch.where(torch.isin(texts, special), splice.filler, texts).to(splice.device)
        self.short = max(1, 2 * self.length // 3)

    def attempt(self, prove: Callable[[], None], context: str) -> str | None:
        """None where the proof holds, else why not. The model's own code may raise anything; its words become the reason."""
        try:
            prove()
        except (_Failed, HyperLensError) as failure:
            reason = str(failure)
        except Exception as error:
            if is_memory_error(error):
                raise MemoryLimitError(LOAD_ADVICE) from None
            reason = f"the model raised {type(error).__name__}: {first_sentence(error)}"
        else:
            return None
        self.errors = {name: value for name, value in self.errors.items() if not name.startswith(context)}
        return reason

    def find_narrow(self) -> Narrow:
        """What of the last layer only rows that are read seem to need; nothing where it cannot be tried."""
        found: list[Narrow] = []
        self.attempt(lambda: found.append(self.splice.find_narrow(self.texts[:, :NARROW_TOKENS])), "narrow")
        return found[0] if found else Narrow()

    def try_short_end(self) -> None:
        """Whether what comes behind the last layer runs where it hands on fewer tokens than came in; nothing of it is read."""
        self.splice.short_end = True
        self.splice.run(Inputs(self.texts), record=[self.splice.depth], read=False)

    def prove_end(self) -> None:
        """Whether logits may be summed up while they come: leaves `splice.end_proved`."""
        states = self.splice.run(Inputs(self.texts[:1]), record=[0]).states[0][0]
        self.splice.end_proved = self.splice.check_end(states)

    def prove_paddings(self) -> tuple[tuple[str, ...], list[str]]:
        """The sides on which ragged texts may be padded, and why not on the others."""
        sides, refusals = [], []
        for side in PADDING_SIDES:
            name = f"padded on the {side}"
            refusal = self.attempt(partial(self.prove_ragged, side, name), name)
            sides += [side] if refusal is None else []
            refusals += [] if refusal is None else [refusal]
        return tuple(sides), refusals

    def choose_cached(self, ragged: bool) -> tuple[CachedForm | None, list[str]]:
        """The cheapest form of `cached` that holds; where none does, why."""
        refusals = []
        for form in CACHED_FORMS:
            refusal = self.attempt(partial(self.prove_cached, form, ragged), "cached")
            if refusal is None:
                return form, []
            refusals.append(refusal)
        return None, [f"cached is not exact: {'; '.join(dict.fromkeys(refusals))}"]

    def passed(self, way: Way, form: CachedForm | None, paddings: tuple[str, ...], refusals: list[str]) -> Certificate:
        contexts, reason = CONTEXTS if form else CONTEXTS[:1], "; ".join(refusals) or None
        worst, name, errors = max(self.errors.values()), type(self.splice.model).__name__, dict(self.errors)
        return Certificate(name, self.splice.depth, True, way, contexts, worst, reason, self.length, errors, form, paddings)

    def prove_steady(self) -> None:
        """The model itself is not too coarse to be proved: a text alone and the same in a batch give the same logits."""
        alone, batch = (self.own_logits(self.texts[:1].repeat(rows, 1))[:1] for rows in (1, 3))
        if (error := relative_error(batch, alone)) > self.bound:
            raise _Failed(
                f"its own logits for a text differ by {error:.2g} when the text is in a batch, which no lens can be better than"
            )

    def check(self, name: str, found: Tensor, expected: Tensor, hint: str = "") -> None:
        """One comparison; raises where it is not within the bound, with a hint at what that means."""
        error = relative_error(found, expected)
        self.errors[name] = max(error, self.errors.get(name, 0.0))
        if not error <= self.bound:
            raise _Failed(f"{name} differs by {error:.2g} of the largest value, more than {self.bound:.0e}{hint}")

    def alive(self, name: str, found: Tensor, unperturbed: Tensor) -> None:
        """A perturbed state must show in the output."""
        if not relative_error(found, unperturbed) > ALIVE * self.bound:
            raise _Failed(f"{name}: the output does not follow a perturbed state, so that the lens is not at work")

    def depths(self) -> list[int]:
        depth = self.splice.depth
        return sorted({0, 1, math.ceil(depth / 2), depth})

    def own_logits(self, ids: Tensor) -> Tensor:
        """The model's own logits of the last token, nothing of ours in its way."""
        return self.splice.model(input_ids=ids, use_cache=False).logits[:, -1]

    def prove_jump(self) -> None:
        splice, last = self.splice, self.splice.depth
        inputs, ends = Inputs(self.texts[:1]), _probes([self.length - 1], splice)
        own = self.own_logits(inputs.ids)
        whole = splice.run(inputs, record=range(last + 1))
        _check_finite(whole, own)
        self._prove_causality(inputs, whole)
        for m in self.depths():
            start = last - m
            changed = self._perturb(whole.states[start])
            # Foreign states beside the model's own: a stack that is mixed up does not pass.
            stack = torch.stack([whole.states[0], whole.states[start], changed])
            routed = route_jump(splice, inputs, stack, start, ends)
            self.check(f"jump equality at m = {m}", splice.head(routed[1]), own, "" if m else READ_OUT)
            self.alive(f"jump liveness at m = {m}", splice.head(routed[2]), own)
            for row in (0, 2):
                with splice.going("hook"):
                    hooked = splice.run(inputs, stack[row], start, record=[last]).states[last]  # all rows, in all layers
                self.check(f"jump liveness at m = {m}", splice.head(routed[row]), splice.head(ends.pick(hooked)))
            for below in sorted({0, start // 2}) if start else []:
                chained = splice.run(inputs, whole.states[below], below, start, record=[start]).states[start]
                self.check(f"jump chain {below} to {start}", chained, whole.states[start])

    def _prove_causality(self, inputs: Inputs, whole: Pass) -> None:
        """The last token must not change what earlier ones are: else this is an encoder."""
        if self.length == 1:
            return
        other = inputs.ids.clone()
        other[:, -1] = torch.where(other[:, -1] == self.splice.filler, self.vocabulary - 1, self.splice.filler)
        last = self.splice.depth
        found = self.splice.run(Inputs(other), record=[last]).states[last]
        if relative_error(found[:, :-1], whole.states[last][:, :-1]) > self.bound:
            raise _Failed("earlier tokens see later ones, as in an encoder; HyperLens reads models in which none does")

    def prove_ragged(self, side: str, name: str) -> None:
        """Two texts of different length in one batch, padded on one side, give what each gives alone."""
        splice, last = self.splice, self.splice.depth
        alone = torch.cat([self.own_logits(self.texts[:1]), self.own_logits(self.texts[1:, : self.short])])
        inputs, shift = self._ragged(side)
        ends = Probes(*(torch.tensor(part, device=splice.device) for part in ([0, 1], [self.length - 1, shift - 1])))
        for m in self.depths():
            states = splice.run(inputs, record=[last - m]).states[last - m]
            routed = route_jump(splice, inputs, states[None], last - m, ends)[0]
            self.check(f"{name}, equality at m = {m}", splice.head(routed), alone)

    def _ragged(self, side: str) -> tuple[Inputs, int]:
        """The pair as one batch, and where its second text ends."""
        inputs, _ = pad_texts([self.texts[0], self.texts[1, : self.short]], side, self.splice.filler)
        return inputs, self.short if side == "right" else self.length

    def prove_cached(self, form: CachedForm, ragged: bool) -> None:
        splice, last = self.splice, self.splice.depth
        inputs = self._ragged("right")[0] if ragged else Inputs(self.texts)
        places = [[0, self.length - 1], [0, self.length // 2], [1, self.short - 1], [1, 0]]
        probes = Probes(*torch.tensor(places, device=splice.device).T)
        done, recall = run_recalling(splice, inputs, range(last + 1), probes, last, form)
        whole = splice.run(inputs, record=range(last + 1)).states
        own = splice.head(probes.pick(whole[last]))
        self.check("cached equality of the pass that fills the cache", splice.head(done.states[last]), own)
        for m in self.depths()[1:]:
            start = last - m
            changed = self._perturb(done.states[start])
            rows = torch.stack([*(done.states[state] for state in range(start + 1)), changed])
            routed = route_cached(splice, inputs, rows, start, probes, recall)
            self.check(f"cached equality at m = {m}", splice.head(routed[start]), own)
            self.alive(f"cached liveness at m = {m}", splice.head(routed[-1]), own)
            for row in sorted({0, len(rows) - 1}):
                expected = self._replaced_one_by_one(inputs, whole[start], rows[row], start, probes)
                self.check(f"cached liveness at m = {m}", splice.head(routed[row]), splice.head(expected))

    def prove_prefix(self, ragged: bool) -> None:
        """Two texts behind what both begin with give what they give alone, and so do their routed states."""
        splice, last, shared = self.splice, self.splice.depth, self.short // 2
        if not shared:
            raise _Failed("its context is too short to be run in two parts")
        texts = [self.texts[0], torch.cat([self.texts[0, :shared], self.texts[1, shared : self.short if ragged else None]])]
        alone = torch.cat([self.own_logits(text[None]) for text in texts])
        behind, whole = (pad_behind(texts, "right", splice.filler, one) for one in (splice.run_prefix(texts[0][:shared]), None))
        ends = [torch.tensor(part, device=splice.device) for part in ([0, 1], [len(text) - 1 for text in texts])]
        here, there = Probes(ends[0], ends[1] - shared), Probes(*ends)
        done, recall = run_recalling(splice, behind[0], range(last + 1), here, last, "rows")
        _, expected = run_recalling(splice, whole[0], [], there, last, "rows")
        self.check("prefix equality", splice.head(done.states[last]), alone)
        for m in self.depths()[1:]:
            rows = torch.stack([done.states[0], self._perturb(done.states[last - m])])
            found = route_cached(splice, behind[0], rows, last - m, here, recall)
            wanted = route_cached(splice, whole[0], rows, last - m, there, expected)
            self.check(f"prefix, cached at m = {m}", splice.head(found.flatten(0, 1)), splice.head(wanted.flatten(0, 1)))

    def _replaced_one_by_one(self, inputs: Inputs, states: Tensor, given: Tensor, start: int, probes: Probes) -> Tensor:
        """What leaves the last layer at each probe when all layers run and that one position's state is replaced."""
        last, results = self.splice.depth, []
        with self.splice.going("hook"):
            for row, position, state in zip(probes.rows.tolist(), probes.positions.tolist(), given, strict=True):
                replaced = states.clone()
                replaced[row, position] = state
                results.append(self.splice.run(inputs, replaced, start, record=[last]).states[last][row, position])
        return torch.stack(results)

    def _perturb(self, states: Tensor) -> Tensor:
        """Much of it: what a single token does to the logits can be less than the rounding of 16 bit lets show."""
        noise = torch.randn(states.shape, generator=self.random).to(states.device)
        return states + (16 * noise * states.float().std()).to(states.dtype)


def check_jump(splice: Splice, inputs: Inputs, probes: Probes, depths: Collection[int]) -> float:
    """Relative error of D_m(h_{L−m}) against the model's own logits at the probes of one batch, the largest over `depths`."""
    last = splice.depth
    states = splice.run(inputs, record={last, *(last - m for m in depths)}, ends=probes, read=False).states
    return compare_jump(splice, inputs, states, probes.pick(states[last]), probes, depths)


def compare_jump(
    splice: Splice,
    inputs: Inputs,
    states: Mapping[int, Float[Tensor, "row token *width"]],
    own: Float[Tensor, "probe *width"],
    probes: Probes,
    depths: Collection[int],
) -> float:
    """The same with the states of a pass that was made: those at which the depths begin, and what left the last layer."""
    last = splice.depth
    routed = [route_jump(splice, inputs, states[last - m][None], last - m, probes)[0] for m in depths if m]
    expected, *found = splice.head(torch.cat([own, *routed])).split(len(own))
    return max((relative_error(logits, expected) for logits in found), default=0.0)


def pad_texts(texts: list[Tensor], side: str, filler: int) -> tuple[Inputs, list[int]]:
    """Texts of token ids as one batch, and at which column each begins. Only left padding needs a mask."""
    longest = max(len(text) for text in texts)
    starts = [longest - len(text) if side == "left" else 0 for text in texts]
    ids = torch.full((len(texts), longest), filler, device=texts[0].device)
    for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
        ids[row, start : start + len(text)] = text
    if not any(starts):
        return Inputs(ids), starts
    offsets = torch.tensor(starts, device=ids.device)[:, None]
    places = torch.arange(longest, device=ids.device) - offsets
    return Inputs(ids, (places >= 0).long(), places.clamp_min(0)), starts


def pad_behind(texts: list[Tensor], side: str, filler: int, prefix: Prefix | None) -> tuple[Inputs, list[int]]:
    """The same behind a prefix that all of them begin with, only padded on the right: columns are counted from its end."""
    if prefix is None:
        return pad_texts(texts, side, filler)
    inputs, starts = pad_texts([text[prefix.length :] for text in texts], "right", filler)
    return replace(inputs, prefix=prefix), [start - prefix.length for start in starts]


def _check_finite(whole: Pass, own: Tensor) -> None:
    """Name the first layer whose output is not finite."""
    for number, state in sorted(whole.states.items()):
        if not torch.isfinite(state).all():
            where = "the embedding" if number == 0 else f"layer {number}"
            raise _Failed(f"{where} gives NaN or infinite values; load it in a wider --dtype, or mend its weights")
    if not torch.isfinite(own).all():
        raise _Failed("its logits are NaN or infinite though all layers are finite; load it in a wider --dtype")


def _prompt_length(splice: Splice) -> int:
    """Longer than every window that fits, within the model's context."""
    windows = [splice.window(number) or 0 for number in range(splice.depth)]
    context = context_length(splice.config) or LONGEST_PROMPT
    fitting = [window for window in windows if window + 8 <= LONGEST_PROMPT]
    return min(max(24, max(fitting, default=0) + 8), context)


def _probes(positions: list[int], splice: Splice) -> Probes:
    places = torch.tensor(positions, device=splice.device)
    return Probes(torch.zeros_like(places), places)
