"""What was read or made last, kept for another time within a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

MOST_BYTES = 2**28
MOST_THINGS = 256


class Shelf:
    """Things by their keys, the last ones used, of `most` bytes in all; each is made once, however many ask at a time."""

    def __init__(self, most: int = MOST_BYTES):
        self.most = most
        self._things: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._weights: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any], weigh: Callable[[Any], int] = lambda thing: 0) -> Any:
        """The thing of a key, made where it is not there; `weigh` gives its bytes. What fails is tried again."""
        with self._lock:
            mine = key not in self._things
            future = self._things.setdefault(key, Future())
            self._things.move_to_end(key)
        if mine:
            try:
                thing = make()
            except BaseException as error:
                self._drop(key)
                future.set_exception(error)
            else:
                future.set_result(thing)
                self._keep(key, weigh(thing))
        return future.result()

    def forget(self, is_old: Callable[[Any], bool]) -> None:
        """Keep nothing any more whose key is old."""
        with self._lock:
            for key in [key for key in self._things if is_old(key)]:
                del self._things[key]
                self._weights.pop(key, None)

    @property
    def bytes(self) -> int:
        """How much is kept."""
        return sum(self._weights.values())

    def _keep(self, key: Hashable, weight: int) -> None:
        with self._lock:
            if key not in self._things:
                return
            self._weights[key] = weight
            while len(self._things) > MOST_THINGS or sum(self._weights.values()) > self.most:
                oldest, _ = self._things.popitem(last=False)
                self._weights.pop(oldest, None)

    def _drop(self, key: Hashable) -> None:
        with self._lock:
            self._things.pop(key, None)
            self._weights.pop(key, None)
