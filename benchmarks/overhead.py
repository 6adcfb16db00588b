"""What reading costs: time in plain forward passes, memory in MB above one; printed as one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hyperlens.lenses import HyperLens, Lens, LogitLens
from hyperlens.models import Model, load_model
from hyperlens.tracing import Limits, trace

TIMED = {"layers": 16, "width": 512, "vocabulary": 32_000}
WEIGHED = {"layers": 24, "width": 1024, "vocabulary": 128_000}
PROMPTS, TOKENS = 16, 256
SWEEP = (0, 1, 2, 4, 8)
LIMITS = Limits(batch_tokens=PROMPTS * TOKENS, progress=False)
KEPT_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""What lets glibc keep freed memory. Left to itself it gives some of it back, as what ran before in the process has it, and a
plain pass then takes up to half as long again, fetching pages; nobody is to be charged for that, or praised."""
ALL = 2
"""Prompts of the reading of all tokens."""
TARGETS = {"logit": 1.05, "logit all": 1.15, "cached_sweep": 1.3, "jump / floor": 1.1, "memory last": 30, "memory all": 250}


def main() -> None:
    """Measure all of it, or one peak where this script has called itself in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the interleaved timings; jump has two fewer")
    parser.add_argument("--skip", choices=("time", "memory"), help="leave one half out; its numbers are null")
    parser.add_argument("--only", nargs="+", help="these alone: logit, cached_sweep, 'jump 1'; of peaks logit, cached, jump")
    parser.add_argument("--weighings", type=int, default=1, help="processes for each peak, of which the median counts")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each timed prompt; all prompts together have 4096")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="1 is steadier where others compute too")
    parser.add_argument("--peak", nargs=2, metavar=("CONTEXT", "POSITIONS"), help=argparse.SUPPRESS)
    choices = parser.parse_args()
    torch.set_num_threads(choices.threads)
    if choices.peak:
        print(json.dumps(weigh_here(*choices.peak)))
        return
    keep_heap()
    timings = {} if choices.skip == "time" else time_readings(choices.repeats, choices.only, choices.tokens)
    peaks = {} if choices.skip == "memory" else weigh_readings(choices.only, choices.weighings)
    print(json.dumps(report(timings, peaks), indent=2))


def keep_heap() -> None:
    """Begin this script again with a heap that keeps what is freed, unless it has one."""
    if not KEPT_HEAP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEPT_HEAP)


def usual_heap() -> dict[str, str]:
    """An environment in which the heap does what it does by itself."""
    return {name: value for name, value in os.environ.items() if name not in KEPT_HEAP}


def report(timings: dict[str, list[dict[str, float]]], peaks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The medians of the ratios, and peaks above that of the plain pass; all that they come from stays under `details`."""
    ratios = {name: round(median(run["ratio"] for run in runs), 3) for name, runs in timings.items()}
    depths = {name.removeprefix("jump "): ratio for name, ratio in ratios.items() if name.startswith("jump ")}
    forward = peaks.get("forward", {}).get("peak_mb", 0.0)
    above = {name: round(peak["peak_mb"] - forward, 1) for name, peak in peaks.items() if name != "forward"}
    return {
        "logit": ratios.get("logit"),
        "logit_floor": floor(0),
        "logit_all": ratios.get("logit all"),
        "cached_sweep": ratios.get("cached_sweep"),
        "jump": {depth: {"ratio": ratio, "floor": floor(int(depth))} for depth, ratio in depths.items()},
        "memory_mb": above | ({"states of jump": held_states()} if above else {}),
        "details": {
            "targets": TARGETS,
            "timings": timings,
            "peaks": peaks,
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("hyperlens", "torch", "transformers")},
        },
    }


def build_llama(layers: int, width: int, vocabulary: int) -> LlamaForCausalLM:
    """A random Llama of the usual proportions: heads of 64, a feed-forward block of 43/16 of the width."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=43 * width // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=8 * TOKENS,
        dtype="float32",
    )
    return LlamaForCausalLM(config).eval()


def draw_prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Random token ids, none of them 0, the usual padding token."""
    return torch.randint(1, vocabulary, (count, TOKENS), generator=torch.Generator().manual_seed(1)).tolist()


def floor(depth: int) -> float:
    """The arithmetic of `jump` at the last tokens, in plain passes: one; L − m states through m of L layers; the read-outs.

    At depth 0 that of the logit lens. Of the last layer all rows need keys and values alone: two of the weights' products, as
    wide as the model.
    """
    layers, width, rows = TIMED["layers"], TIMED["width"], PROMPTS * TOKENS
    weights, states = 4 * width**2 + 3 * width * (43 * width // 16), layers - depth
    one, last = 2 * weights * rows + 4 * width * TOKENS * rows, 4 * width**2 * rows
    read = 2 * width * TIMED["vocabulary"] * PROMPTS
    routed = (depth - 1) * one + last if depth else 0
    return round(((layers - 1) * one + last + states * (routed + read) + read) / (layers * one + read), 3)


def time_readings(repeats: int, only: list[str] | None, tokens: int) -> dict[str, list[dict[str, float]]]:
    """Each reading between two plain passes, by whose mean it is divided; one list of runs for each reading."""
    model = load_model(build_llama(**TIMED))
    prompts = torch.tensor(draw_prompts(PROMPTS, TIMED["vocabulary"])).reshape(-1, tokens).tolist()
    lenses: dict[str, Lens] = {"logit": LogitLens(), "cached_sweep": HyperLens(SWEEP, "cached")}
    lenses |= {f"jump {depth}": HyperLens((depth,), "jump") for depth in SWEEP[1:]}
    lenses = {name: lens for name, lens in lenses.items() if only is None or name in only}
    plain = plain_pass(model.network, prompts)
    timings: dict[str, list[dict[str, float]]] = {name: [] for name in lenses}
    if only is None or "logit all" in only:
        timings["logit all"] = time_all(model, prompts[: ALL * TOKENS // tokens], repeats)
    plain()
    trace(model, prompts, LogitLens(), "last", limits=LIMITS)
    before = seconds(plain)
    for repeat in range(repeats):
        for name, lens in lenses.items():
            if name.startswith("jump") and repeat >= max(1, repeats - 2):
                continue
            reading = seconds(lambda lens=lens: trace(model, prompts, lens, "last", limits=LIMITS))
            after = seconds(plain)
            unit = (before + after) / 2
            timings[name].append({"ratio": round(reading / unit, 4), "seconds": round(reading, 3), "plain": round(unit, 3)})
            tell(f"{name}: {timings[name][-1]}")
            before = after
    return timings


def time_all(model: Model, prompts: list[list[int]], repeats: int) -> list[dict[str, float]]:
    """The logit lens on all tokens, by two plain passes around it, each with the products of its read-outs: L + 1 states."""
    plain, weight = plain_pass(model.network, prompts), model.network.get_output_embeddings().weight.detach()
    rows = torch.randn(sum(map(len, prompts)), weight.shape[1])
    out = torch.empty(len(rows), len(weight))

    def unit() -> None:
        plain()
        for _ in range(model.layers + 1):
            torch.mm(rows, weight.T, out=out)

    def read() -> object:
        return trace(model, prompts, LogitLens(), "all", limits=LIMITS)

    unit(), read()
    before, runs = seconds(unit), []
    for _ in range(repeats):
        reading, after = seconds(read), seconds(unit)
        mean = (before + after) / 2
        runs.append({"ratio": round(reading / mean, 4), "seconds": round(reading, 3), "plain": round(mean, 3)})
        tell(f"logit all: {runs[-1]}")
        before = after
    return runs


def plain_pass(network: LlamaForCausalLM, prompts: list[list[int]]) -> Callable[[], object]:
    """The unit of all ratios: the model called once on all prompts, as one would call it for its last logits."""
    ids = torch.tensor(prompts)

    def run() -> object:
        with torch.no_grad():
            return network(ids, logits_to_keep=1, use_cache=False)

    return run


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def tell(line: str) -> None:
    """How far it is, on the error stream; the output holds the JSON alone."""
    print(line, file=sys.stderr)


def weigh_readings(only: list[str] | None, weighings: int) -> dict[str, dict[str, Any]]:
    """Peaks of the plain pass and of the readings, in fresh processes: medians, as what the heap does differs by some 20 MB."""
    ways = [(context, positions) for context in ("logit", "cached", "jump") for positions in ("last", "all")]
    cases = [("forward", "last"), *(way for way in ways if only is None or way[0] in only)]
    found = {}
    for case in cases:
        peaks = sorted((weigh_apart(*case) for _ in range(weighings)), key=lambda peak: peak["peak_mb"])
        name = "forward" if case[0] == "forward" else " ".join(case)
        found[name] = peaks[len(peaks) // 2] | {"all_mb": [peak["peak_mb"] for peak in peaks]}
    return found


def weigh_apart(context: str, positions: str) -> dict[str, float]:
    """What `weigh_here` gives in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--peak", context, positions]
    peak = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=usual_heap()).stdout)
    tell(f"{context} {positions}: {peak}")
    return peak


def weigh_here(context: str, positions: str) -> dict[str, float]:
    """Peak resident MB of this process while it runs a plain pass ("forward"), the logit lens, or it and m = 4 in `context`.

    The peak is reset after the model is built and proved, whose own peak would hide it. Only the reading's process proves
    it, so that what the proof leaves behind counts as ours.
    """
    network, prompts = build_llama(**WEIGHED), draw_prompts(1, WEIGHED["vocabulary"])
    plain = plain_pass(network, prompts)
    plain()
    if context == "forward":
        return peak_of(plain)
    model = load_model(network)
    lens = LogitLens() if context == "logit" else HyperLens((0, 4), context)
    return peak_of(lambda: trace(model, prompts, lens, positions, limits=LIMITS))


def held_states() -> float:
    """MB of what `jump` cannot do without: every state of every token, until all are routed."""
    return round((WEIGHED["layers"] + 1) * TOKENS * WEIGHED["width"] * 4 / 2**20, 1)


def peak_of(run: Callable[[], object]) -> dict[str, float]:
    """Resident MB of this process before a call, and at its highest during it. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak, VmHWM, back to what is resident now
    before = resident_mb("VmRSS")
    run()
    return {"before_mb": before, "peak_mb": resident_mb("VmHWM")}


def resident_mb(line: str) -> float:
    """One line of the kernel's account of this process, in MB of 2^20 bytes."""
    fields = dict(part.split(":", 1) for part in Path("/proc/self/status").read_text().splitlines())
    return round(int(fields[line].split()[0]) / 1024, 1)


if __name__ == "__main__":
    main()
