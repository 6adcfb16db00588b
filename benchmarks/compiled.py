"""What compiling the layers would save: a plain pass with each layer compiled, by one as it is written; printed as JSON.

    python benchmarks/compiled.py [--repeats 7] [--device cpu] [--dtype float32]

The Llama of overhead.py, eight texts of 256 tokens, by turns in one run. HyperLens runs compiled layers as they were written:
nothing that is put around a layer takes effect in compiled code. This is what that costs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from overhead import TIMED, build_llama, draw_prompts, keep_heap, plain_pass, seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    keep_heap()
    network = build_llama(**TIMED).to(given.device, getattr(torch, given.dtype))
    with torch.device(given.device):
        plain = plain_pass(network, draw_prompts(8, TIMED["vocabulary"]))
    layers: Any = network.model.layers
    written = [layer.forward for layer in layers]
    compiled = [torch.compile(forward, dynamic=True) for forward in written]

    def run(forwards: list[Callable[..., Any]]) -> float:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward
        return seconds(lambda: (plain(), torch.accelerator.is_available() and torch.accelerator.synchronize()))

    first = run(compiled)
    pairs = [(run(compiled), run(written)) for _ in range(given.repeats + 1)][1:]
    ratios = sorted(one / other for one, other in pairs)
    print(
        json.dumps(
            {
                "settings": vars(given),
                "compiled / written": [round(number, 3) for number in (median(ratios), ratios[0], ratios[-1])],
                "seconds": [round(median(column), 3) for column in zip(*pairs, strict=True)],
                "first call": round(first, 1),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
