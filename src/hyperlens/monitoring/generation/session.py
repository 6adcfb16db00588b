"""One generation while it runs: each step is read where `generate` asks whether to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from hyperlens.lenses import Lens
from hyperlens.monitoring.generation.following import Calls, Step, keep_last
from hyperlens.monitoring.generation.generated import Generated
from hyperlens.monitoring.generation.reading import Measured, Reader
from hyperlens.monitoring.generation.settings import Batch, Settings, make_criteria
from hyperlens.monitoring.generation.spelling import Spelling
from hyperlens.monitoring.generation.token import LiveToken
from hyperlens.tracing.batches import Job
from hyperlens.tracing.labels import make_speller, write_manifest

OnToken = Callable[[LiveToken], Any]


class Session(transformers.StoppingCriteria):
    """One generation: takes each step where generation asks whether to stop, reads it, and tells its tokens."""

    calls: Calls

    def __init__(
        self,
        reader: Reader,
        together: int,
        batch: Batch,
        settings: Settings,
        longest: int,
        on_token: OnToken | None,
        stopped: Callable[[], bool] | None,
    ) -> None:
        self.reader, self.model, self.settings, self.longest = reader, reader.model, settings, longest
        self.encoded, self.width = [text for text in batch.encoded for _ in range(settings.rows)], batch.width
        self.on_token, self.stopped = on_token, stopped
        self.together = 1 if reader.depth and self.model.certificate.cached_form == "steps" else together
        self.spell = make_speller(self.model)
        self.spellings = [Spelling(self.model.tokenizer, list(text.ids)) for text in self.encoded]
        self.criteria = make_criteria(self.model, settings, batch.width)
        if any(hasattr(one, "eos_token_id") for one in self.criteria):
            self.eos_token_id = None  # generation looks for the name, to pad what has ended
        self.ends = torch.tensor(settings.ends, dtype=torch.long, device=self.model.splice.device)
        self.open = torch.ones(len(self.encoded), dtype=torch.bool, device=self.model.splice.device)
        self.lengths = [longest] * len(self.encoded)
        self.pending: list[Step] = []
        self.tokens: list[LiveToken] = []
        self.made = 0
        self.error = 0.0

    def __call__(self, input_ids: Any, scores: Any, **given: Any) -> Any:
        """Which texts end here: those that any of the other criteria, or who watches, ends."""
        if not self.open.any():  # some devices hear that all have ended a call later
            return ~self.open
        self.made += 1
        done = self.criteria(input_ids, scores, **given) if len(self.criteria) else torch.zeros_like(self.open)
        chosen = input_ids[:, -1]
        step = self.calls.take(input_ids[:, :-1], chosen, self.open.clone())
        self.pending.append(keep_last(step) if self.pending else step)
        self._close(done | torch.isin(chosen, self.ends.to(chosen.device)))
        if len(self.pending) >= self.together or not self.open.any() or self.made >= self.longest:
            self.flush()
        with self.calls.following.aside():
            if self.stopped is not None and self.stopped():
                self._close(torch.ones_like(self.open))
        return done | ~self.open

    def _close(self, ended: Tensor) -> None:
        """Texts that end with the latest token get no more."""
        for row in (self.open & ended).nonzero().flatten().tolist():
            self.lengths[row] = self.made
        self.open = self.open & ~ended

    def flush(self) -> None:
        """Read what is pending, and tell its tokens."""
        steps, self.pending = self.pending, []
        if steps:
            with self.calls.following.aside(), torch.no_grad():
                measured = self.reader.read(steps)
                self.error = max(self.error, measured.error)
                for token in self._make_tokens(measured, steps):
                    self.tokens.append(token)
                    if self.on_token is not None:
                        self.on_token(token)

    def finish(self, output: Any, lens: Lens, sweep: dict[str, Any] | None) -> Generated:
        """All that was made, with its manifest."""
        made = output if isinstance(output, Tensor) else output.sequences
        encoded = []
        for row, (text, ids) in enumerate(zip(self.encoded, made.tolist(), strict=True)):
            count, length = sum(token.row == row for token in self.tokens), len(text.ids)
            places = tuple(range(length - 1, length - 1 + count))
            encoded.append(replace(text, ids=text.ids + tuple(ids[self.width : self.width + count]), positions=places))
        limits = replace(self.reader.limits, max_new_tokens=self.longest)
        job = Job(self.model, lens, (self.reader.depth,), ("probability",), "generated", limits)
        manifest = write_manifest(job, encoded, self.error, "generated", sweep) | self._describe()
        texts = tuple("".join(token.text for token in self.tokens if token.row == row) for row in range(len(encoded)))
        return Generated(output, made, texts, tuple(self.tokens), manifest, tuple(encoded), job)

    def _describe(self) -> dict[str, Any]:
        """What a manifest says of the monitor and of how tokens were chosen."""
        reader = self.reader
        watched = {"stride": reader.stride, "states": list(reader.states), "candidates": reader.candidates}
        chosen = {"options": reader.candidates, "guess": reader.guess} if reader.candidates else {}
        stop = {"stop_strings": list(self.settings.stop)} if self.settings.stop else {}
        generation = self.settings.describe() | {"max_new_tokens": self.longest} | stop
        return chosen | {"monitor": watched | {"together": self.together}, "generation": generation}

    def _make_tokens(self, measured: Measured, steps: Sequence[Step]) -> Iterator[LiveToken]:
        """The tokens of the steps, each with what was measured of it."""
        states, values = self.reader.states, measured.measure(self.reader.guess)
        first = self.made - len(steps)
        columns = {step.ids.shape[1] - 1: first + number for number, step in enumerate(steps)}
        for place in range(len(measured.rows)):
            row, chosen = int(measured.rows[place]), int(measured.chosen[place])
            index = columns[int(measured.positions[place])]
            tops = zip(measured.top_ids[place].tolist(), measured.top_probabilities[place].tolist(), strict=True)
            yield LiveToken(
                row,
                index,
                len(self.encoded[row].ids) - 1 + index,
                chosen,
                self.spellings[row].add(chosen, index + 1 == self.lengths[row]),
                states,
                measured.confidence[place],
                float(values["effort"][place]),
                _state_at(states, values["onset"][place]),
                _state_at(states, values["commit"][place]),
                float(values["volatility"][place]),
                int(measured.output_ids[place]),
                float(measured.output_probability[place]),
                tuple(tuple((self.spell(token), share) for token, share in zip(*top, strict=True)) for top in tops if top[0]),
            )


def _state_at(states: Sequence[int], place: float) -> int | None:
    return None if np.isnan(place) else states[int(place)]
