"""What is done beside the event loop, so that it is free for others meanwhile: reading requests, and writing whole answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hyperlens.serving.jobs import Job
from hyperlens.serving.refusals import Refusal


class Clerk:
    """Reads requests in one thread, one after the other, and writes answers in another. `places` requests may be with it."""

    def __init__(self, places: int) -> None:
        self._places, self._reading = places, 0
        self._reader, self._writer = (ThreadPoolExecutor(1, f"hyperlens-{task}") for task in ("reading", "writing"))

    @property
    def reading(self) -> int:
        """How many requests are being read, or wait for it."""
        return self._reading

    async def read(self, work: Callable[[], Job | None]) -> Job | None:
        """What `work` reads, in its turn. Raises Refusal where too many wait for theirs."""
        if self._reading >= self._places:
            sentence = f"{self._reading} requests are being read, which is the most; ask again in a second"
            raise Refusal(429, sentence, retry_after=1)
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, work)
        finally:
            self._reading -= 1

    async def write(self, work: Callable[[], bytes]) -> bytes:
        """What `work` writes."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    def close(self) -> None:
        """End both threads, once nobody waits for them."""
        for thread in (self._reader, self._writer):
            thread.shutdown(cancel_futures=True)
