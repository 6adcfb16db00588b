"""What a trace may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hyperlens.errors import InputError, MemoryLimitError, is_memory_error


@dataclass(frozen=True)
class Limits:
    """What a trace may use, and a few choices that seldom change.

    `memory_mb` bounds what is held above the model's own forward pass of one batch; `batch_tokens` the tokens of a batch
    (one text may be longer; on a processor batches are smaller, which is faster there); `padding_side` where ragged batches
    are padded; `max_new_tokens` and `top_k` what is generated and how many top tokens are kept per state; `stop` the texts
    before which a generated answer ends; `letter` whether answer options are lettered; `progress` whether long work shows a
    bar (on a terminal only); `share_prefixes` whether what several texts begin with is run once, where that is proved to be
    the same.
    """

    memory_mb: int = 256
    batch_tokens: int = 4096
    padding_side: str = "right"
    max_new_tokens: int = 32
    top_k: int = 0
    stop: tuple[str, ...] = ()
    letter: bool = True
    progress: bool = True
    share_prefixes: bool = True

    def __post_init__(self) -> None:
        for name in ("memory_mb", "batch_tokens", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 1 up")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; give 0 for none, or a number of tokens")
        if self.padding_side not in ("right", "left"):
            raise InputError(f'"{self.padding_side}" is not a side to pad; choose right or left')

    def share(self, parts: int, each: int) -> int:
        """How many things of `each` bytes fit into one of `parts` equal parts of the memory; at least one."""
        return max(1, self.memory_mb * 2**20 // parts // max(1, each))


@contextmanager
def explain_memory(limits: Limits) -> Iterator[None]:
    """Say what to lower where memory did not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        raise MemoryLimitError(
            f"memory did not suffice with batch_tokens {limits.batch_tokens} and memory_mb {limits.memory_mb}; lower them "
            "(--batch-tokens), shorten the texts, or load the model in 16 bit"
        ) from None
