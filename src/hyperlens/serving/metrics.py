"""What Prometheus may know of a server: numbers, and no label that a client wrote."""

from __future__ import annotations

import math
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hyperlens.monitoring.generation import LiveToken
from hyperlens.serving.answers import is_early
from hyperlens.serving.desk import Desk
from hyperlens.serving.service import Service

TWENTIETHS = tuple(step / 20 for step in range(1, 21))
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OUTCOMES = ("answered", "refused", "left", "failed")
"""How a request ends: with its answer; without one, by its own fault or for want of room; its client left; by an error."""


class Metrics:
    """The numbers of one server, in a registry of their own, with the label `model`: the one that is served.

    What was read of tokens has the server's own focal depth and candidates as labels too, and of requests that chose others
    it is left out, since efforts read in two ways are not to be put together.
    """

    def __init__(self, service: Service, desk: Desk) -> None:
        self._registry = CollectorRegistry()
        who = {"model": service.name}
        how = who | {"focal_depth": str(service.focal_depth), "candidates": str(service.candidates or "all")}
        self._effort = self._histogram("effort", "Effort of each token, where it is defined", TWENTIETHS, how)
        self._confidence = self._histogram("confidence", "The model's own confidence in each token", TWENTIETHS, how)
        self._early = self._counter("early_tokens", "Tokens that were committed in the first half of the states", how)
        self._first = self._histogram("first_token_seconds", "From a request's arrival to its first token", SECONDS, who)
        self._tokens = self._counter("tokens", "Tokens that were generated", who)
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of the prompts of accepted requests", who)
        ended = Counter("hyperlens_requests", "Requests, by how they ended", (*who, "outcome"), registry=self._registry)
        self._requests = {outcome: ended.labels(**who, outcome=outcome) for outcome in OUTCOMES}
        self._gauge("queue_length", "Requests that wait", who).set_function(lambda: desk.waiting)
        self._gauge("running", "Requests that are being answered", who).set_function(lambda: desk.running)

    def note_token(self, token: LiveToken, usual: bool, came: float | None) -> None:
        """Count a token, read as is `usual` here or not; with when its request came, in seconds of `perf_counter`, it is the
        first."""
        self._tokens.inc()
        if usual:
            self._confidence.observe(float(token.confidence[-1]))
        if usual and not math.isnan(token.effort):
            self._effort.observe(token.effort)
            self._early.inc(is_early(token))
        if came is not None:
            self._first.observe(time.perf_counter() - came)

    def note_prompts(self, tokens: int) -> None:
        """Count the prompts of a request that got a place."""
        self._prompt_tokens.inc(tokens)

    def note_end(self, outcome: str) -> None:
        """Count a request, by one of OUTCOMES."""
        self._requests[outcome].inc()

    def write(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: dict[str, str]) -> Histogram:
        kind = Histogram(f"hyperlens_{name}", text, tuple(labels), buckets=buckets, registry=self._registry)
        return kind.labels(**labels)

    def _counter(self, name: str, text: str, labels: dict[str, str]) -> Counter:
        return Counter(f"hyperlens_{name}", text, tuple(labels), registry=self._registry).labels(**labels)

    def _gauge(self, name: str, text: str, labels: dict[str, str]) -> Gauge:
        return Gauge(f"hyperlens_{name}", text, tuple(labels), registry=self._registry).labels(**labels)
