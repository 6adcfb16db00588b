"""What the C library keeps of freed memory, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
from hyperlens.heap import give_back, keep_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

if "keep" in sys.argv:
    keep_blocks()
before = resident()
block = bytearray(30 * 2**20)
block[::4096] = b"1" * len(block[::4096])
full = resident()
del block
freed = resident()
give_back()
print(full - before, freed - before, resident() - before)
"""


def _grow(*arguments: str) -> tuple[int, ...]:
    heap = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True, env=heap)
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is not glibc, whose heap is asked")
def test_a_freed_block_is_kept_where_that_was_chosen_and_given_back_when_asked() -> None:
    full, freed, _ = _grow()
    assert full >= 29 and freed <= 5
    full, freed, after = _grow("keep")
    assert full >= 29 and freed >= 25 and after <= 5
