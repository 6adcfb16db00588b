"""How long a training step of the original package and one of ours take, beside the least that such a step must compute.

`python benchmarks/tuned_lens_speed.py` needs no original: it prints how long our steps take with autocast to bfloat16 and
without, and how well the lenses read that are trained either way.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import mean, median
from typing import Any

import torch
from original_lens import BATCH, LENGTH, SHARED, TRAINED, Original, draw_ids, prepare_ours
from overhead import build_llama
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from tuned_lens_kl import measure_kl, write_texts

import hyperlens as hl
from hyperlens.lenses import Translators
from hyperlens.training.texts import divide_texts
from hyperlens.training.tuning import train_translators

RATED = 8
"""How often a product is timed to find the rate of products; the fastest counts."""
ROWS = 256
"""Rows of the products whose rate is that of read-outs."""
AUTOCAST = "ours with autocast"
RECIPE = hl.LensRecipe(step_tokens=1024, validation_tokens=2048)


def main() -> None:
    """Print our steps and our lenses with autocast beside those without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the interleaved timings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="*", help="first words of the models; all of them by default")
    parser.add_argument("--texts", type=int, default=200, help="that each trained model writes for its lens; 0 for no lenses")
    parser.add_argument("--steps", type=int, default=150, help="of the training of each lens")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    steps = time_steps(None, given.repeats, given.models) if given.repeats else {}
    lenses = compare_lenses(given.texts, given.steps, given.models) if given.texts else {}
    print(json.dumps({"steps": steps, "lenses": lenses}, indent=1))


def timed_models() -> Iterator[tuple[str, Callable[[], PreTrainedModel]]]:
    """The trained models that are there, and one whose vocabulary is that of real ones."""
    for name in TRAINED:
        if (SHARED / name).is_dir():
            yield name, lambda name=name: AutoModelForCausalLM.from_pretrained(SHARED / name).eval()
    yield "llama 16 x 512, 32000 tokens", lambda: build_llama(16, 512, 32_000)


def time_steps(original: Original | None, repeats: int, names: list[str] | None) -> dict[str, Any]:
    """One optimiser step of each side that is there on the same batch, by turns, for each model in both precisions."""
    found = {}
    for name, build in timed_models():
        if names and name.split()[0] not in names:
            continue
        network = build().requires_grad_(False)
        ids = draw_ids(network, BATCH, LENGTH)
        found[name] = {"float32": time_model(original, network, ids, repeats, plain=True)}
        found[name]["bfloat16"] = time_model(original, network.bfloat16(), ids, repeats, plain=False)
    return found


def time_model(original: Original | None, network: PreTrainedModel, ids: Tensor, repeats: int, plain: bool) -> dict[str, Any]:
    """The steps of one model in the precision it is in; with `plain`, that of each side with its autocast and without."""

    def prepare(autocast: str | None) -> Callable[[], None]:
        translators = Translators.identity(model.layers, network.config.hidden_size)
        return prepare_ours(model, translators, ids, "adam", autocast)

    def forward() -> None:
        with torch.no_grad():
            network(input_ids=ids)

    model = hl.load_model(network)
    actions = {"forward": forward}
    if original is not None:
        for name in ("original", "original without autocast")[: 1 + plain]:
            lens = original.make_lens(network)
            actions[name] = original.prepare_step(network, lens, ids, "adam", autocast=name == "original")
    actions |= {"ours": prepare(None)} | ({AUTOCAST: prepare("bfloat16")} if plain else {})
    rounds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(repeats + 1):
        for name, action in actions.items():
            taken = measure_seconds(action)
            if number:  # the first warms up
                rounds[name].append(taken)
        if number:
            tell(f"{network.config.hidden_size}, {network.dtype}: {', '.join(f'{k} {v[-1]:.3f} s' for k, v in rounds.items())}")
    return report_rounds(rounds, measure_products(network, ids.numel()), ids.numel())


def report_rounds(rounds: dict[str, list[float]], products: dict[str, float], tokens: int) -> dict[str, Any]:
    """Medians over the rounds, how many times the floor they are, and how many times as fast ours are, round by round.

    The floor is the model's own forward pass as it runs, and the products that each step must add. How many times the floor
    the original is, is also the most that a ratio could be; with autocast products are cheaper, and there is no such floor.
    """
    forward = median(rounds["forward"])
    floor = forward + products["seconds"]
    report: dict[str, Any] = {"forward_seconds": forward, "floor_seconds": floor, "products": products}
    for name in list(rounds)[1:]:
        taken = median(rounds[name])
        report[name] = {"seconds": taken, "tokens_per_second": tokens / taken, "times_the_floor": taken / floor}
        if name not in ("ours", AUTOCAST):
            ratio, spread = compare_rounds(rounds[name], rounds["ours"])
            report[name] |= {"ours_is_faster_by": ratio, "spread": spread}
        if name != AUTOCAST and AUTOCAST in rounds:
            ratio, spread = compare_rounds(rounds[name], rounds[AUTOCAST])
            report[name] |= {"autocast_is_faster_by": ratio, "autocast_spread": spread}
    return shorten(report)


def compare_rounds(theirs: list[float], ours: list[float]) -> tuple[float, list[float]]:
    """How many times as fast ours is: the median of the rounds, the smallest and the largest."""
    ratios = sorted(their / own for their, own in zip(theirs, ours, strict=True))
    return median(ratios), [ratios[0], ratios[-1]]


def measure_products(network: PreTrainedModel, tokens: int) -> dict[str, float]:
    """The floating point operations that any step adds to the model's own pass, and the seconds that they take as products.

    For each state and token the translator forth and its gradient (4 d²), and the read-out forth and back (4 d V), at the
    rate of products of these shapes, measured here, in the model's precision.
    """
    width, vocabulary, states = (getattr(network.config, name) for name in ("hidden_size", "vocab_size", "num_hidden_layers"))
    translating, reading = 4 * width * width * states * tokens, 4 * width * vocabulary * states * tokens
    matrix, logits = torch.randn(vocabulary, width).to(network.dtype), torch.randn(ROWS, vocabulary).to(network.dtype)
    inner, state = torch.randn(width, width).to(network.dtype), torch.randn(tokens, width).to(network.dtype)
    some = state[:ROWS]
    wide_seconds = fastest(lambda: some @ matrix.mT) + fastest(lambda: logits @ matrix)
    wide_rate = 2 * (len(some) + ROWS) * width * vocabulary / wide_seconds
    narrow_rate = 2 * tokens * width * width / fastest(lambda: state @ inner)
    return {
        "translators_gflop": translating / 1e9,
        "reading_gflop": reading / 1e9,
        "reading_gflop_per_second": wide_rate / 1e9,
        "translators_gflop_per_second": narrow_rate / 1e9,
        "seconds": reading / wide_rate + translating / narrow_rate,
    }


def fastest(action: Callable[[], object]) -> float:
    """The least that an action takes of several times."""
    return min(measure_seconds(action) for _ in range(RATED))


def measure_seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def shorten(value: Any) -> Any:
    """The same with numbers of four digits."""
    match value:
        case float():
            return float(f"{value:.4g}")
        case dict():
            return {key: shorten(item) for key, item in value.items()}
        case list():
            return [shorten(item) for item in value]
        case _:
            return value


def compare_lenses(texts: int, steps: int, names: list[str] | None) -> dict[str, Any]:
    """KL in nats of lenses that are trained with autocast and without, and without from another seed: what chance does.

    Mean over all tokens of other texts that the model writes, and over the states.
    """
    found = {}
    for name in (name for name in TRAINED if (SHARED / name).is_dir() and (not names or name in names)):
        model = hl.load_model(SHARED / name)
        written, held = write_texts(model, texts, max(1, texts // 4), LENGTH, 0)
        corpus = divide_texts(written, RECIPE.validation_share, RECIPE.validation_tokens, RECIPE.seed)
        found[name] = {"logit": round(mean(measure_kl(model, held, hl.LogitLens())), 5)}
        for kind, changes in {"plain": {}, "autocast": {"autocast": "bfloat16"}, "another seed": {"seed": 1}}.items():
            lens = train_translators(model, corpus, replace(RECIPE, steps=steps, **changes), limits=hl.Limits(1024)).lens
            found[name][kind] = round(mean(measure_kl(model, held, lens)), 5)
            tell(f"{name}, {kind}: {found[name][kind]}")
    return found


def tell(text: str) -> None:
    """Say how far the measurement is, beside its result."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
