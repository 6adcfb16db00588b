"""From the steps of a generation to its tokens: states routed, read, and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyperlens import effort
from hyperlens.certificate import relative_error
from hyperlens.errors import CertificateError, ModelError
from hyperlens.lenses import Lens
from hyperlens.models import Model
from hyperlens.monitoring.generation.following import Step, join_seen
from hyperlens.readings import all_finite, read_logits
from hyperlens.routing import Recall, route_cached
from hyperlens.splice import Inputs, Probes
from hyperlens.tracing import Limits

UNREADABLE = "{} gives NaN or infinite logits while it generates; load it in a wider --dtype"


@dataclass(frozen=True)
class Measured:
    """What was read of some tokens: the confidence at each state, and the model's own; top tokens by state if asked for."""

    rows: np.ndarray
    positions: np.ndarray
    chosen: np.ndarray
    confidence: Float[np.ndarray, "probe state"]
    output_ids: np.ndarray
    output_probability: Float[np.ndarray, "probe"]
    top_ids: Int[np.ndarray, "probe state top"]
    top_probabilities: Float[np.ndarray, "probe state top"]
    error: float

    def measure(self, guess: float) -> dict[str, np.ndarray]:
        """Effort, onset, commit (as places among the states) and volatility of each token."""
        confidence = self.confidence.astype(np.float64)
        progress = effort.measure_progress(confidence, guess, effort.SMALLEST_GIVEN)
        return {
            "effort": effort.measure_effort(confidence, guess, effort.SMALLEST_GIVEN),
            "onset": effort.find_onset(progress),
            "commit": effort.find_commit(progress),
            "volatility": effort.measure_volatility(confidence),
        }


@dataclass(frozen=True)
class Reader:
    """How steps are read: through which lens and focal depth, every how many states, among which tokens, and how exactly."""

    model: Model
    lens: Lens
    depth: int
    stride: int
    candidates: int | None
    top_k: int
    limits: Limits
    bound: float

    @cached_property
    def states(self) -> tuple[int, ...]:
        """The numbers of the states that are read, ascending, the last L − m."""
        return (*range(0, self.last, self.stride), self.last)

    @property
    def guess(self) -> float:
        """What guessing among the candidates is right by."""
        return 1 / self.candidates if self.candidates else 0.0

    @property
    def last(self) -> int:
        """The state L − m, whose routed output must be the model's own."""
        return self.model.layers - self.depth

    def read(self, steps: Sequence[Step]) -> Measured:
        """Read all open texts of the steps, which follow each other. Raises CertificateError and ModelError."""
        open_rows = [step.open.nonzero().squeeze(1) for step in steps]
        columns = [step.ids.shape[1] - 1 for step in steps]
        probes = Probes(
            torch.cat(open_rows),
            torch.cat([rows.new_full((len(rows),), column) for rows, column in zip(open_rows, columns, strict=True)]),
        )

        def gather(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat([part[rows.to(part.device)] for part, rows in zip(parts, open_rows, strict=True)])

        rows = [self.lens.prepare(state, gather([step.states[state] for step in steps])) for state in self.states[:-1]]
        stack = torch.stack([*rows, gather([step.states[self.last] for step in steps])])
        if self.depth:
            stack = self._route(steps, stack, probes)
        own, chosen = gather([step.logits for step in steps]), gather([step.chosen for step in steps])
        return self._read(stack, own.to(stack.device), chosen.to(stack.device), steps[-1], probes)

    def _route(self, steps: Sequence[Step], stack: Tensor, probes: Probes) -> Float[Tensor, "state probe *width"]:
        """The states through the deepest layers, beside what the model itself saw there."""
        splice, step = self.model.splice, steps[-1]
        positions = None if step.mask is None else (step.mask.cumsum(-1) - 1).clamp_min(0)
        inputs = Inputs(step.ids, step.mask, positions)
        if self.model.certificate.cached_form == "steps":
            memory = step.memory
            if memory is None and step.ids.shape[1] > 1:
                memory = splice.remember(Inputs(step.ids[:, :-1]))
            recall = Recall("steps", texts=[memory])
        else:
            recall = Recall("rows", join_seen(steps, splice.depth))
        return route_cached(splice, inputs, stack, self.last, probes, recall, self.limits.batch_tokens)

    def _read(self, stack: Tensor, own: Tensor, chosen: Tensor, step: Step, probes: Probes) -> Measured:
        """Confidence of the chosen tokens in blocks of bounded size."""
        if not all_finite(own):
            raise ModelError(UNREADABLE.format(self.model.name))
        among = self._choose_candidates(own, chosen)
        width = own.shape[-1] if among is None else among.shape[-1]
        each = max(1, self.limits.share(6, 4 * width) // len(stack))
        parts: list[Any] = [
            self._read_block(stack[:, part], own[part], chosen[part], None if among is None else among[part])
            for part in torch.arange(len(chosen), device=stack.device).split(each)
        ]
        joined = [torch.cat([part[number] for part in parts]).cpu().numpy() for number in range(3)]
        top = own.argmax(-1)
        certainty = read_logits(own, top, ("probability",))["probability"]
        rows, positions, ids, top, certainty = (
            part.cpu().numpy() for part in (probes.rows, probes.positions, chosen, top, certainty)
        )
        error = max(part[3] for part in parts)
        return Measured(rows, positions, ids, joined[0], top, certainty, joined[1], joined[2], error)

    def _choose_candidates(self, own: Tensor, chosen: Tensor) -> Int[Tensor, "probe candidate"] | None:
        """The model's own top tokens, the chosen one in the place of the last where it is not among them."""
        if self.candidates is None:
            return None
        among = own.topk(min(self.candidates, own.shape[-1]), -1).indices
        missing = ~(among == chosen[:, None]).any(-1)
        among[missing, -1] = chosen[missing]
        return among

    def _read_block(
        self, stack: Tensor, own: Tensor, chosen: Tensor, among: Tensor | None
    ) -> tuple[Float[Tensor, "probe state"], Int[Tensor, "probe state top"], Float[Tensor, "probe state top"], float]:
        """Confidence and top tokens of some probes, and how far the routed output is from the model's own."""
        count = len(stack)
        tokens = None if among is None else among.repeat(count, 1)
        logits = self.model.splice.head(stack.flatten(0, 1), tokens).unflatten(0, (count, -1)).float()
        if not all_finite(logits):
            raise ModelError(f"{self.model.name} gives NaN or infinite logits for routed states; choose a smaller focal depth")
        own = own.float()
        output = own if among is None else own.gather(-1, among)
        error = relative_error(logits[-1] if among is None else own.scatter(-1, among, logits[-1]), own)
        if not error <= self.bound:
            raise CertificateError(
                f"the lens differs from the model's own output by {error:.2g} of its largest logit, more than "
                f"{self.bound:.0e}, so that nothing was read; choose focal depth 0, or report this model"
            )
        reference = chosen if among is None else (among == chosen[:, None]).long().argmax(-1)
        logits = torch.cat([logits[:-1], output[None]])
        confidence = read_logits(logits, reference.expand(count, -1), ("probability",))["probability"].T
        shares, ids = logits.log_softmax(-1).topk(self.top_k, -1) if self.top_k else (logits[..., :0], logits[..., :0].long())
        return confidence, ids.transpose(0, 1), shares.exp().transpose(0, 1), error
