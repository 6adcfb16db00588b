"""The answers of one request as they are generated: piece by piece, ended by a stop text, by the model, or by the client."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from hyperlens.monitoring.generation import LiveToken
from hyperlens.serving.desk import Ticket
from hyperlens.serving.jobs import Job
from hyperlens.serving.refusals import Refusal, explain_failure

NOTHING_TOLD = "the server failed, and its own log says why; nothing is wrong with the request"
LOG = logging.getLogger("hyperlens.serving")


@dataclass(frozen=True)
class Piece:
    """What answer number `choice` grows by: a text, with the token that was chosen; the last piece has a reason instead."""

    choice: int
    text: str
    token: LiveToken | None = None
    finish: str | None = None


@dataclass
class StopFinder:
    """Lets text through up to the first of some stop texts, holding back what may become the beginning of one.

    >>> finder = StopFinder(("END",))
    >>> [finder.feed(text) for text in ("one E", "N", "Deer")], finder.found
    (['one ', '', ''], True)
    """

    stops: tuple[str, ...]
    held: str = ""
    found: bool = field(default=False, init=False)

    def feed(self, text: str) -> str:
        """What can be shown by now."""
        if self.found:
            return ""
        whole = self.held + text
        places = [place for place in map(whole.find, self.stops) if place >= 0]
        self.found = bool(places)
        shown = min(places) if places else len(whole) - self._overlap(whole)
        self.held = "" if self.found else whole[shown:]
        return whole[:shown]

    def _overlap(self, text: str) -> int:
        """How much of the end of a text is the beginning of a stop text."""
        sizes = ((stop, size) for stop in self.stops for size in range(1, min(len(stop), len(text) + 1)))
        lengths = (size for stop, size in sizes if text.endswith(stop[:size]))
        return max(lengths, default=0)


def write_answers(ticket: Ticket, note: Callable[[LiveToken, bool, float | None], None]) -> None:
    """Generate what a ticket asks for and post its pieces, or the Refusal in which it ended.

    `note` is called with every token, whether it is read as usual here, and with when the request came at the first of them.
    """
    usual, first = ticket.job.usual, [ticket.came]
    try:
        for choice, ids in enumerate(ids for ids in ticket.job.prompts for _ in range(ticket.job.copies)):
            if not ticket.left.is_set():
                _write_answer(ticket, choice, ids, lambda token: note(token, usual, first.pop() if first else None))
    except Exception as error:  # the thread must live on, whatever a model or a bug of ours raises
        told = explain_failure(error)
        if told is None:
            LOG.exception("a request failed")
        elif told.status == 500:
            LOG.error("a request failed: %s", error)
        ticket.post(told or Refusal(500, NOTHING_TOLD))


def _write_answer(ticket: Ticket, choice: int, ids: Sequence[int], note: Callable[[LiveToken], None]) -> None:
    """Generate one answer."""
    job, sampling = ticket.job, ticket.job.sampling
    finder, chosen = StopFinder(sampling.stop), []

    def take(token: LiveToken) -> None:
        chosen.append(token.token_id)
        note(token)
        ticket.post(Piece(choice, finder.feed(token.text), token))

    with _seeded(sampling.seed, choice):
        job.monitor.generate(
            list(ids), on_token=take, stopped=lambda: finder.found or ticket.left.is_set(), **sampling.describe()
        )
    if not ticket.left.is_set():
        full = len(chosen) == sampling.largest and not finder.found and not _is_end(job, chosen[-1])
        ticket.post(Piece(choice, finder.held, finish="length" if full else "stop"))


def _is_end(job: Job, token: int) -> bool:
    """Whether the model ends its answers with a token."""
    ends = getattr(job.monitor.model.network.generation_config, "eos_token_id", None)
    return token in (ends if isinstance(ends, list) else [ends])


@contextmanager
def _seeded(seed: int | None, choice: int) -> Iterator[None]:
    """Draws of one answer's own: by its request's seed and its number, else by a seed that nobody knows."""
    own = secrets.randbits(63) if seed is None else (seed + choice) % 2**63
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(own)
        yield
