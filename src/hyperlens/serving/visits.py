"""A request from its arrival to its end: read, queued, answered whole or in a stream, and counted once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hyperlens.serving.answers import Answer
from hyperlens.serving.clerk import Clerk
from hyperlens.serving.desk import Desk, Ticket
from hyperlens.serving.jobs import Job, read_job
from hyperlens.serving.metrics import Metrics
from hyperlens.serving.refusals import Refusal
from hyperlens.serving.service import Service
from hyperlens.serving.spans import record_span
from hyperlens.serving.writing import Piece
from hyperlens.web import spell_event, spell_json

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class House:
    """What all requests of a server share."""

    service: Service
    desk: Desk
    metrics: Metrics
    clerk: Clerk
    tracer: Any = None

    def close(self) -> None:
        """Begin the end: no more requests, and the one that is answered has the service's grace."""
        self.desk.close(self.service.grace)


class JSON(Response):
    """A document as strict JSON: what is not a number is null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return spell_json(content)


class Stream(StreamingResponse):
    """A stream that says when its client leaves, and when it is over, however it ended."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str], left: Callable[[], None], over: Callable[[], None]) -> None:
        super().__init__(content)
        self.left, self.over = left, over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:  # so say servers of a later ASGI
            self.left()
        finally:
            self.over()

    async def listen_for_disconnect(self, receive: Receive) -> None:
        """Wait until the client leaves."""
        await super().listen_for_disconnect(receive)
        self.left()


@dataclass(eq=False)
class Visit:
    """One request for answers."""

    house: House
    request: Request
    chat: bool
    began: int = field(default_factory=time.time_ns)
    outcome: str | None = None
    left: bool = False
    failure: Refusal | None = None
    ticket: Ticket | None = None
    answer: Answer | None = None

    async def respond(self) -> Response:
        """The answer, or the beginning of its stream. Raises Refusal."""
        streaming = False
        try:
            body = await self.request.body()
            async with self._watched():
                ticket = await self._enter(body)
                event = await ticket.events.get()
                if not (ticket.job.stream and isinstance(event, Piece)):
                    return await self._gather(ticket, event)
            streaming = True
            return Stream(self._stream(ticket, event), self._leave, self._end)
        except Refusal as refusal:
            self._fail(refusal)
            raise
        except ClientDisconnect:
            self._leave()
            raise
        finally:
            if not streaming:
                self._end()

    async def _enter(self, body: bytes) -> Ticket:
        """Read the request and take a place for it. Raises Refusal, and ClientDisconnect where nobody waits for it any more."""
        house = self.house
        job = await house.clerk.read(lambda: self._read(body))
        if job is None or self.left:
            raise ClientDisconnect
        self.ticket = house.desk.submit(job)
        house.metrics.note_prompts(job.prompt_tokens)
        self.answer = Answer(job, house.service)
        return self.ticket

    def _read(self, body: bytes) -> Job | None:
        """What the request asks for; None where its client left before its turn."""
        return None if self.left else read_job(body, self.chat, self.house.service)

    def _leave(self) -> None:
        """Give the place up: the client left."""
        self.left = True
        if self.ticket is not None:
            self.house.desk.leave(self.ticket)

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """For the time of the block, the place is given up as soon as the client leaves."""

        async def watch() -> None:
            while (await self.request.receive())["type"] != "http.disconnect":
                pass
            self._leave()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()

    async def _gather(self, ticket: Ticket, event: Any) -> Response:
        """All events from this one on, as one answer; nobody reads it where the client left."""
        answer = self.answer
        assert answer is not None
        while event is not None:
            if isinstance(event, Refusal):
                raise event
            answer.add(event)
            event = await ticket.events.get()
        if not answer.finished:
            raise ClientDisconnect
        content = await self.house.clerk.write(lambda: spell_json(answer.whole()))
        self.outcome = "answered"
        return Response(content, media_type=JSON.media_type)

    async def _stream(self, ticket: Ticket, event: Any) -> AsyncIterator[str]:
        """All events from this one on, as they come."""
        assert self.answer is not None
        for chunk in self.answer.opening():
            yield spell_event(chunk)
        while event is not None:
            if isinstance(event, Refusal):
                self._fail(event)
                yield spell_event({"error": event.describe()})
                return
            self.answer.add(event)
            yield spell_event(self.answer.chunk(event))
            event = await ticket.events.get()
        for chunk in self.answer.closing():
            yield spell_event(chunk)
        self.outcome = "answered"
        yield DONE

    def _fail(self, refusal: Refusal) -> None:
        self.failure, self.outcome = refusal, "failed" if refusal.status == 500 else "refused"

    def _end(self) -> None:
        """Give the place back, and count the request."""
        house, answer = self.house, self.answer
        self.outcome = self.outcome or ("left" if self.left else "failed")
        if self.ticket is not None:
            house.desk.leave(self.ticket)
        house.metrics.note_end(self.outcome)
        if house.tracer is not None:
            name = "chat" if self.chat else "text_completion"
            failure = None if self.failure is None else str(self.failure.code or self.failure.status)
            record_span(house.tracer, name, self.request.headers, self.began, self._describe(name), failure)
        if house.service.log is not None and answer is not None:
            texts = [choice.text for choice in answer.choices]
            house.service.log({"prompts": list(answer.job.texts), "answers": texts, "outcome": self.outcome})

    def _describe(self, name: str) -> dict[str, Any]:
        """What a span says of the request: counts and means."""
        said = {
            "gen_ai.operation.name": name,
            "gen_ai.request.model": self.house.service.name,
            "hyperlens.outcome": self.outcome,
        }
        if self.answer is None:
            return said
        usage, read = self.answer.usage(), self.answer.summary()
        means = {f"hyperlens.{key}": value for key, value in read["summary"].items() if key != "tokens"}
        counts = {"gen_ai.usage.input_tokens": usage["prompt_tokens"], "gen_ai.usage.output_tokens": usage["completion_tokens"]}
        return said | counts | means | {"hyperlens.focal_depth": read["focal_depth"]}
