"""What the C library keeps of the memory that a process has freed; glibc alone is asked, others do without.

Blocks above glibc's threshold, 128 KiB at first, are given back to the system when they are freed, and each page of the next
one is fetched and cleared anew: docs/cost.md has what that costs a pass.
"""

from __future__ import annotations

import ctypes
import sys

LARGEST = 2**25 - 2**16
"""Bytes just below the highest threshold that glibc comes to by itself, 32 MiB."""


def keep_blocks() -> None:
    """Let the heap keep freed blocks of up to 32 MiB (and up to twice that at its end) for the next ones, as glibc itself does
    once such a block was freed; what was chosen in the environment stands. For a process that is ours."""
    bytearray(LARGEST)


def give_back() -> None:
    """Return to the system what lies free in the heap."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
