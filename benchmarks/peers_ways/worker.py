"""One peer in a process of its own: it answers each line of JSON on its input with a line of JSON on its output.

`{"do": "load", ...}` loads the model, `{"do": "run", "row": ..., "texts": ...}` runs a way once and says how long it took,
`{"do": "peak", ...}` says how much memory it took, `{"do": "check", ...}` reads the last token of texts, and
`{"do": "finish"}` ends. What goes wrong is an answer too.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from shared import Run, Setting, Texts, load_network
from torch import Tensor

SPREAD = 16
"""Tokens whose readings are told, evenly spread."""


class Host:
    """The peer, once it is loaded, and the ways that were made ready."""

    def __init__(self, name: str):
        self.peer: Any = import_module(f"with_{name}")
        self.setting: Setting
        self.loaded: Any = None
        self.ready: dict[tuple[str, str], Run] = {}

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """What a message asks for."""
        return getattr(self, f"do_{message.pop('do')}")(**message)

    def do_load(self, folder: str, device: str, dtype: str, tokens: int, threads: int, plain: bool) -> dict[str, Any]:
        """Load the model as the peer does, or, with `plain`, as transformers does."""
        torch.set_num_threads(threads)
        self.setting, self.ready = Setting(Path(folder), device, dtype, tokens), {}
        began = time.perf_counter()
        self.loaded = load_network(self.setting) if plain else self.peer.load(self.setting)
        names = (*self.peer.PACKAGES, "torch", "transformers")
        return {
            "seconds": time.perf_counter() - began,
            "versions": {name: version(name) for name in names},
            "ways": list(self.peer.WAYS),
            "cannot": self.peer.CANNOT,
        }

    def do_run(self, row: str, texts: str, values: bool = False) -> dict[str, Any]:
        """Run one way once; with `values`, say what it read of a few tokens."""
        if (row, texts) not in self.ready:
            self.ready[row, texts] = self.peer.WAYS[row](self.loaded, self.setting.texts(texts), self.setting)
        gc.collect()
        synchronise(self.setting.device)
        began = time.perf_counter()
        found = self.ready[row, texts]()
        synchronise(self.setting.device)
        taken = time.perf_counter() - began
        return {"seconds": taken, "values": spread(found) if values and found is not None else None}

    def do_peak(self, row: str, texts: str) -> dict[str, Any]:
        """Memory of this process at its highest while one way runs, the package and the model with it. What lies in files that
        are mapped is left out: how much of it is resident is not what a way needs."""
        ways = import_module("with_plain").WAYS if row == "forward" else self.peer.WAYS
        run = ways[row](self.loaded, self.setting.texts(texts), self.setting)
        gc.collect()
        if self.setting.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            run()
            return {"mb": torch.cuda.max_memory_allocated() / 2**20}
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak, VmHWM, back to what is resident now
        run()
        return {"mb": resident_mb("VmHWM") - resident_mb("RssFile")}

    def do_check(self, texts: dict[str, Any], chosen: list[int], side: str | None) -> dict[str, Any]:
        """The probability that the last read-out of each text gives its chosen token; of one batch where a side is given."""
        given = Texts(**texts)
        if side == "default":
            if not hasattr(self.peer, "read_default"):
                return {"failed": self.peer.NO_DEFAULT}
            picked = torch.tensor(chosen, device=self.setting.device)
            return {"values": self.peer.read_default(self.loaded, given, picked, self.setting).tolist()}
        batches = [given] if side else [Texts([row], [string]) for row, string in zip(given.ids, given.strings, strict=True)]
        found, place = [], 0
        for batch in batches:
            picked = torch.tensor(chosen[place : place + len(batch.ids)], device=self.setting.device)
            found += self.peer.read_last(self.loaded, batch, side or "left", picked, self.setting).tolist()
            place += len(batch.ids)
        return {"values": found}

    def do_describe(self) -> dict[str, Any]:
        """Nothing; loading has said it all."""
        return {"described": True}

    def do_finish(self) -> dict[str, Any]:
        """End."""
        return {"finished": True}


def spread(found: Tensor) -> list[list[float]]:
    """The readings of a few tokens, `[state][token]`."""
    places = torch.linspace(0, found.shape[1] - 1, min(found.shape[1], SPREAD)).long()
    return found.float().cpu()[:, places].tolist()


def explain(error: Exception) -> str:
    """What an error says in one line; the last where it brings the traceback of another."""
    lines = str(error).strip().split("\n")
    return lines[-1 if lines[0].startswith("Traceback") else 0][:300]


def synchronise(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def resident_mb(line: str) -> float:
    """One line of the kernel's account of this process, in MB of 2^20 bytes."""
    fields = dict(part.split(":", 1) for part in Path("/proc/self/status").read_text().splitlines())
    return int(fields[line].split()[0]) / 1024


def main() -> None:
    """Answer until told to end. Whatever else is printed goes to the error stream."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    host = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            host = host or Host(sys.argv[1])
            with torch.no_grad():
                answer = host.answer(message)
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {explain(error)}"}
        print(json.dumps(answer), file=answers, flush=True)
        if "finished" in answer:
            return


if __name__ == "__main__":
    main()
