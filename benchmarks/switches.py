"""What each saving of a reading saves: the same reading with and without it, side by side in one run.

    python benchmarks/switches.py [--repeats 3] [--threads 2] [--texts 16] [--only NAMES]

The Llama of overhead.py, texts of 256 tokens. *narrow*: the last layer at the rows that are read alone; *attention*: of that,
its attention. *short*: one token of each text behind the last layer. *streamed*: logits summed up while they come. *shared*:
what the texts begin with run once. Each reading runs with all savings and with each one switched off, by turns; a ratio is the
time without by the time with, of the same round: the median over rounds with the least and the largest, and the time with all
in plain passes over all texts. All with a heap that keeps what is freed. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from overhead import TIMED, build_llama, draw_prompts, keep_heap, plain_pass, seconds, tell

import hyperlens as hl
from hyperlens.narrowing import Narrow

LIMITS = hl.Limits(progress=False)
COMMON = 192
"""Tokens that the texts of the few-shot readings begin with, of 256."""
SWITCHES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "all": lambda splice: {},
    "narrow": lambda splice: {"narrow": Narrow()},
    "attention": lambda splice: {"narrow": Narrow(splice.narrow.modules)},
    "short": lambda splice: {"short_end": False},
    "streamed": lambda splice: {"end_proved": False},
    "shared": lambda splice: {"prefix_proved": False},
}
"""What is switched off, by its name, as fields of the splice."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--only", nargs="+", help="the readings to measure, by name")
    given = parser.parse_args()
    keep_heap()
    torch.set_num_threads(given.threads)
    network = build_llama(**TIMED)
    model, texts, found = hl.load_model(network), draw_prompts(given.texts, TIMED["vocabulary"]), {}
    for name, reading in list_readings(model, texts).items():
        if not given.only or name in given.only:
            found[name] = compare(model, reading, plain_pass(network, texts), given.repeats)
            tell(f"{name}: {found[name]}")
    print(json.dumps({"settings": vars(given), "readings": found}, indent=1))


def list_readings(model: hl.Model, texts: list[list[int]]) -> dict[str, Callable[[], object]]:
    """What is read: the logit lens at the last and at all tokens, both contexts, one depth and several."""

    def read(lens: hl.Lens, positions: str = "last", some: int | None = None) -> Callable[[], object]:
        return lambda: hl.trace(model, texts[:some], lens, positions, limits=LIMITS)

    alike = [[*texts[0][:COMMON], *text[COMMON:]] for text in texts]
    deep = {f"jump, m = {depth}": read(hl.HyperLens((depth,))) for depth in (1, 2, 4, 8)}
    return {
        "logit lens, last token": read(hl.LogitLens()),
        "logit lens, all tokens of 2 texts": read(hl.LogitLens(), "all", 2),
        "cached, m = 0, 1, 2, 4, 8": read(hl.HyperLens((0, 1, 2, 4, 8), context="cached")),
        "cached, m = 4, all tokens of 2 texts": read(hl.HyperLens((4,), context="cached"), "all", 2),
        "logit lens, last token, 192 of 256 in common": lambda: hl.trace(model, alike, hl.LogitLens(), limits=LIMITS),
        **deep,
    }


def compare(model: hl.Model, reading: Callable[[], object], plain: Callable[[], object], repeats: int) -> dict[str, Any]:
    """The reading with all savings in plain passes, and without each by it with all."""
    rounds: dict[str, list[float]] = {name: [] for name in SWITCHES}
    units = []
    reading()
    for _ in range(repeats):
        units.append(seconds(plain))
        for name, taken in rounds.items():
            with switched_off(model.splice, name):
                taken.append(seconds(reading))
    whole = rounds.pop("all")
    passes = [one / unit for one, unit in zip(whole, units, strict=True)]
    without = {name: [one / other for one, other in zip(taken, whole, strict=True)] for name, taken in rounds.items()}
    return {"passes": _spread(passes)} | {f"without {name}": _spread(ratios) for name, ratios in without.items()}


@contextmanager
def switched_off(splice: Any, name: str) -> Iterator[None]:
    """One saving left out for a while; "all" leaves all in."""
    changed = SWITCHES[name](splice)
    before = {field: getattr(splice, field) for field in changed}
    try:
        vars(splice).update(changed)
        yield
    finally:
        vars(splice).update(before)


def _spread(values: list[float]) -> list[float]:
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


if __name__ == "__main__":
    main()
