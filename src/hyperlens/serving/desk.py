"""Where requests wait: a bounded queue before the one thread that generates, and the way back from it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hyperlens.serving.jobs import Job
from hyperlens.serving.refusals import Refusal

LONGEST_ADVICE = 60
"""Seconds that a client is told to wait at most before it asks again."""
ENDING = "the server is ending; ask again when it is back"


@dataclass(eq=False)
class Ticket:
    """A request at the desk. Its `events` come in order; None is the last, an error the one before it.

    The thread that generates looks at `left` after every token.
    """

    job: Job
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    left: threading.Event = field(default_factory=threading.Event)
    reason: Refusal | None = None
    came: float = field(default_factory=time.perf_counter)
    timer: asyncio.TimerHandle | None = None

    def post(self, event: Any) -> None:
        """Hand an event over, from any thread; a loop that has ended waits for none."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    def end(self, reason: Refusal | None = None) -> None:
        """Have the answer end with the next token: with a reason, or because nobody waits for it."""
        self.reason = self.reason or reason
        self.left.set()


class Desk:
    """Takes requests in their order to one thread, which calls `write` with each. `places` of them may wait, for `wait` s each.

    All but `write` runs in the server's event loop.
    """

    def __init__(self, write: Callable[[Ticket], None], places: int, wait: float) -> None:
        self._write, self._places, self._wait = write, places, wait
        self._queue: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._running: Ticket | None = None
        self._closed = False
        self._seconds = 1.0  # that the last request took
        self._thread = threading.Thread(target=self._work, name="hyperlens-generation", daemon=True)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """1 while a request is being answered, else 0."""
        return int(self._running is not None)

    def open(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> Ticket:
        """A place in the queue. Raises Refusal where there is none."""
        ticket = Ticket(job, asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                raise Refusal(503, ENDING)
            if len(self._queue) >= self._places:
                seconds = min(LONGEST_ADVICE, math.ceil(self._seconds * (len(self._queue) + 1)))
                sentence = f"{len(self._queue)} requests wait, which is the most; ask again in {seconds} seconds"
                raise Refusal(429, sentence, retry_after=seconds)
            self._queue.append(ticket)
            self._changed.notify()
        ticket.timer = ticket.loop.call_later(self._wait, self._expire, ticket)
        return ticket

    def leave(self, ticket: Ticket, reason: Refusal | None = None) -> None:
        """Give a place up, wherever the request is by now; once it is answered, that does nothing."""
        if ticket.timer is not None:
            ticket.timer.cancel()
        with self._changed:
            queued = ticket in self._queue
            if queued:
                self._queue.remove(ticket)
        ticket.end(reason)
        if queued:
            _finish(ticket)

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests and send home those that wait; the one that is answered has `grace` seconds."""
        with self._changed:
            self._closed, queued = True, list(self._queue)
            self._changed.notify()
        for ticket in queued:
            self.leave(ticket, Refusal(503, ENDING))
        running = self._running
        if running is not None:
            running.loop.call_later(grace, running.end, Refusal(503, ENDING))

    def join(self) -> None:
        """Wait until the thread has ended, after `close`."""
        running = self._running
        if running is not None:
            running.end(Refusal(503, ENDING))
        self._thread.join()

    def _expire(self, ticket: Ticket) -> None:
        if ticket in self._queue:
            sentence = f"the request waited for {self._wait:g} seconds, which is the most; ask again later"
            self.leave(ticket, Refusal(503, sentence, retry_after=min(LONGEST_ADVICE, math.ceil(self._wait))))

    def _work(self) -> None:
        while (ticket := self._take()) is not None:
            began = time.perf_counter()
            self._write(ticket)
            self._seconds, self._running = time.perf_counter() - began, None
            _finish(ticket)
            del ticket  # nothing of a request outlives it while the thread waits for the next

    def _take(self) -> Ticket | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            self._running = self._queue.popleft() if self._queue else None
            return self._running


def _finish(ticket: Ticket) -> None:
    if ticket.reason is not None:
        ticket.post(ticket.reason)
    ticket.post(None)
