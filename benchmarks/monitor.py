"""What following a generation costs, in units of the same generation without a monitor, in one run.

    python benchmarks/monitor.py [--repeats 5] [--threads 2] [--tokens 128] [--prompt 256]

A random Llama of 16 layers, width 512 and a vocabulary of 32,000; each way once with nobody who waits for the tokens, and once
with somebody who is told of each at once. The runs are interleaved; each ratio is that of a monitored generation to the plain
one of the same round, the median over rounds with the least and the largest. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hyperlens as hl

TARGETS = {
    "m = 0, 8 candidates": 1.10,
    "m = 4, every 2nd state, 8 candidates": 1.35,
    "m = 4, all states, whole vocabulary": 1.80,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=512, intermediate_size=1376, num_hidden_layers=16, num_attention_heads=8
    )
    model = hl.load_model(LlamaForCausalLM(config).eval())
    prompt = torch.randint(3, 32_000, (1, given.prompt))
    settings: dict[str, Any] = {"max_new_tokens": given.tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    network: Any = model.network
    network.generation_config.eos_token_id = None
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: network.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    }
    for name, monitor in make_monitors(model).items():
        ways[name] = lambda monitor=monitor: monitor.generate(prompt, **settings)
        ways[f"{name}, each token at once"] = lambda monitor=monitor: monitor.generate(prompt, print_nothing, **settings)
    times = {name: [] for name in ways}
    for _ in range(given.repeats + 1):  # the first round warms up
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - begun)
    plain = times["plain"][1:]
    rows = {}
    for name, taken in times.items():
        ratios = [one / other for one, other in zip(taken[1:], plain, strict=True)]
        rows[name] = {"ratio": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)} | (
            {"target": TARGETS[name]} if name in TARGETS else {}
        )
    print(
        json.dumps(
            {"settings": vars(given), "plain_ms_per_token": 1000 * statistics.median(plain) / given.tokens, "ways": rows},
            indent=1,
        )
    )


def print_nothing(token: hl.LiveToken) -> None:
    """Someone who waits for each token."""


def make_monitors(model: hl.Model) -> dict[str, hl.Monitor]:
    """What is compared: the three ways with a target, and the logit lens over the whole vocabulary."""
    logit, deep = hl.LogitLens(), hl.HyperLens((4,), context="cached")
    return {
        "m = 0, 8 candidates": hl.Monitor(model, logit, candidates=8),
        "m = 0, whole vocabulary": hl.Monitor(model, logit),
        "m = 4, every 2nd state, 8 candidates": hl.Monitor(model, deep, stride=2, candidates=8),
        "m = 4, all states, whole vocabulary": hl.Monitor(model, deep),
    }


if __name__ == "__main__":
    main()
