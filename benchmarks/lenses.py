"""Lenses side by side, on identical inputs that none of them was trained on: everything that docs/lenses.md says.

    .venv/bin/python benchmarks/lenses.py [--limit 50] [--repeats 0] [--seed 11] [--only NAME]

The reference model on its graded questions, with the tuned lens that comes with it; the models in `$HYPERLENS_SHARED/models`
(default `../shared/models`) on other text of their own and on questions of gsm8k, with tuned lenses that are trained here on
text that each model writes. Writes docs/lenses.json, and puts the tables between their marks in docs/lenses.md. `--only NAME`
measures one of the models and leaves the others as they are there, `--only tables` none. `--repeats N` measures the time of
each row N times: do so on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lenses_page import DOCS, fill_page

import hyperlens as hl
from hyperlens.artefact import to_json
from hyperlens.tasks import GRADED, TaskSpec, draw_task
from hyperlens.training.lens_recipe import LensRecipe
from hyperlens.training.texts import generate_source
from hyperlens.training.tuning import tune_lens

SHARED = Path(os.environ.get("HYPERLENS_SHARED", DOCS.parent.parent / "shared"))
DEPTHS = (1, 2, 4, 8)
TRAINED = ("stories260K", "bitllama_3M")
WRITTEN, HELD_OUT, LENGTH = 400, 60, 128
"""Texts that a model writes for its lens to be trained on, and others to evaluate it on; most tokens of each."""
RECIPE = LensRecipe("muon", steps=200, step_tokens=2048)
DIGITS = 6


def main() -> None:
    """Measure, write, fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=50, help="graded questions per domain and level, and questions of gsm8k")
    parser.add_argument("--repeats", type=int, default=0)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--only", choices=["tables", "reference", *TRAINED])
    given = parser.parse_args()
    file = DOCS / "lenses.json"
    if given.only is None:
        file.unlink(missing_ok=True)
    if given.only != "tables":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        for name in [given.only] if given.only else ["reference", *TRAINED]:
            measured = shorten(measure(name, given.limit, given.seed, given.repeats))
            before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            file.write_text(to_json(before | measured, indent=1) + "\n", encoding="utf-8")
    fill_page(json.loads(file.read_text(encoding="utf-8")))


def measure(name: str, limit: int, seed: int, repeats: int) -> dict[str, Any]:
    """The evaluations of one model by their names."""
    if name == "reference":
        return {name: measure_reference(limit, seed, repeats)}
    if (SHARED / "models" / name).is_dir():
        return measure_trained(name, limit, seed, repeats)
    print(f"{name} is not in {SHARED / 'models'} and is left out", file=sys.stderr)
    return {}


def measure_reference(limit: int, seed: int, repeats: int) -> dict[str, Any]:
    """The reference model on graded questions of all four domains, drawn from another seed than those of its training."""
    samples = [sample for task in GRADED for sample in draw_task(TaskSpec(task), limit, seed).samples]
    return evaluate(hl.load_model("reference"), samples, hl.load_lens("reference"), seed, repeats)


def measure_trained(name: str, limit: int, seed: int, repeats: int) -> dict[str, Any]:
    """A model with a lens trained on text that it wrote, on other text that it wrote and on text that people wrote."""
    model = hl.load_model(SHARED / "models" / name)
    lens = tune_lens(model, write(model, WRITTEN, seed), RECIPE, LENGTH)
    questions = draw_task(TaskSpec("gsm8k"), limit, seed, str(SHARED / "data")).samples
    texts = {"its own text": write(model, HELD_OUT, seed + 1), "gsm8k": [hl.Sample(one.prompt) for one in questions]}
    return {f"{name}, {kind}": evaluate(model, samples, lens, seed, repeats) for kind, samples in texts.items()}


def write(model: hl.Model, number: int, seed: int) -> list[tuple[int, ...]]:
    """Texts that the model writes, without those that are too short to be read."""
    source = generate_source(model, number, LENGTH, seed)
    return [chunk for text in source.texts for chunk in text if len(chunk) > 1]


def evaluate(model: hl.Model, samples: Any, lens: hl.TunedLens, seed: int, repeats: int) -> dict[str, Any]:
    """The logit lens, the tuned lens and HyperLens on the same samples."""
    depths = tuple(depth for depth in DEPTHS if depth < model.layers)
    evaluation = hl.evaluate_lenses(model, samples, [hl.LogitLens(), lens, hl.HyperLens(depths)], seed=seed, repeats=repeats)
    for row in evaluation.rows:
        print(f"{model.name}  {row.name} m = {row.focal_depth}  KL {row.common.kl.value:.3f}  cost {row.cost}", file=sys.stderr)
    return evaluation.describe()


def shorten(value: Any) -> Any:
    """The same with numbers of `DIGITS` digits."""
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}")
        case dict():
            return {key: shorten(item) for key, item in value.items()}
        case list() | tuple():
            return [shorten(item) for item in value]
        case _:
            return value


if __name__ == "__main__":
    main()
