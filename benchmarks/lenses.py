"""Lenses side by side on identical inputs: everything that docs/lenses.md says.

    .venv/bin/python benchmarks/lenses.py [--limit 20] [--repeats 0] [--seed 11] [--only NAME]

The reference model on its graded questions, with the tuned lens that comes with it, and how much of these its training
had seen; the models in `$HYPERLENS_SHARED/models` (default `../shared/models`) on other text of their own and on questions of
gsm8k, with tuned lenses that are trained here on text that each model writes. Writes docs/lenses.json at the end, and puts the
tables between their marks in docs/lenses.md. `--only NAME` measures one of the models and leaves the others as they are there
(all with one limit, or the test of the page fails), `--only tables` none. `--repeats N` measures the time of each row N times:
do so on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lenses_page import DOCS, fill_page
from reference_lens import QUESTIONS, SEED, WAYS
from tuned_lens_kl import write_texts

import hyperlens as hl
from hyperlens.artefact import to_json
from hyperlens.tasks import TaskSpec, draw_task
from hyperlens.tasks.graded import GRADED, LEVELS, VARIANTS
from hyperlens.tasks.graded.graded import Chain, Fragment, GradedTask
from hyperlens.training.lens_recipe import LensRecipe
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
    parser.add_argument("--limit", type=int, default=20, help="questions of each level: of a graded domain, and of gsm8k")
    parser.add_argument("--repeats", type=int, default=0)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--only", choices=["tables", "reference", *TRAINED])
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    wanted = {None: ["reference", *TRAINED], "tables": []}.get(given.only, [given.only])
    file = DOCS / "lenses.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in wanted:
        found |= shorten(measure(name, given.limit, given.seed, given.repeats), DIGITS)
    file.write_text(to_json(found, indent=1) + "\n", encoding="utf-8")
    fill_page(found)


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
    found = evaluate(hl.load_model("reference"), samples, hl.load_lens("reference"), seed, repeats)
    return found | {"limit": limit, "seen": count_seen(limit, seed)}


def measure_trained(name: str, limit: int, seed: int, repeats: int) -> dict[str, Any]:
    """A model with a lens trained on text that it wrote, on other text that it wrote and on text that people wrote."""
    model = replace(hl.load_model(SHARED / "models" / name), name=name)
    written, others = write_texts(model, WRITTEN, HELD_OUT, LENGTH, seed)
    lens = tune_lens(model, [chunk for text in written for chunk in text], RECIPE, LENGTH)
    questions = draw_task(TaskSpec("gsm8k"), limit, seed, str(SHARED / "data")).samples
    texts = {"its own text": others, "gsm8k": [hl.Sample(one.prompt) for one in questions]}
    return {
        f"{name}, {kind}": evaluate(model, samples, lens, seed, repeats) | {"limit": limit} for kind, samples in texts.items()
    }


def count_seen(limit: int, seed: int) -> dict[str, Any]:
    """How much of the questions that are evaluated the training of the reference model's lens had seen.

    By level: the chains that are asked for, and how many of them training asked for, or had as an aside, whose value is not
    told; and how many of the different asides of training are chains that are held out from its questions.
    """
    rng = random.Random(f"lens/{SEED}")
    trained = [
        (task, task.compose(level, rng, VARIANTS[way], held_out=False)[0])
        for task in GRADED.values()
        for level in LEVELS
        for way in WAYS
        for _ in range(QUESTIONS)
    ]
    asked = {(task.name, find_chains(fragments)[-1].cores[-1]) for task, fragments in trained}
    asides = {(task.name, one.start, one.steps): one for task, fragments in trained for one in find_chains(fragments)[:-1]}
    beside = {(name, one.cores[-1]) for (name, *_), one in asides.items()}
    prompts, rows = {spell(fragments) for _, fragments in trained}, []
    for level in LEVELS:
        drawn = [(task.name, part) for task in GRADED.values() for part in compose_drawn(task, limit, seed, level)]
        chains = {(name, find_chains(fragments)[-1].cores[-1]) for name, fragments in drawn}
        same = sum(spell(fragments) in prompts for _, fragments in drawn)
        rows.append([level, len(drawn), len(chains), len(chains & asked), len(chains & beside), same])
    held_out = sum(chain.is_held_out(len(chain.steps)) for chain in asides.values())
    return {"levels": rows, "asides": len(asides), "held_out_asides": held_out}


def compose_drawn(task: GradedTask, limit: int, seed: int, level: int) -> list[list[Fragment]]:
    """The fragments of the questions that `task.samples` draws at a level, found again by their prompts."""
    wanted = {sample.prompt for sample in task.samples(limit, seed, levels=(level,))}
    rng, found = random.Random(f"{task.name}/{VARIANTS['matched']}/{level}/{seed}"), dict[str, list[Fragment]]()
    while len(found) < len(wanted):
        fragments = task.compose(level, rng, VARIANTS["matched"], held_out=True)[0]
        found |= {spell(fragments): fragments}
    if set(found) != wanted:
        raise SystemExit(f"{task.name} draws its questions otherwise than is taken for granted here")
    return list(found.values())


def find_chains(fragments: Sequence[Fragment]) -> list[Chain]:
    """The chains of a question: its aside, where it has one, and what it asks for."""
    return list({id(one.chain): one.chain for one in fragments if one.chain is not None}.values())


def spell(fragments: Sequence[Fragment]) -> str:
    """The prompt of these fragments."""
    return "".join(fragment.text for fragment in fragments)


def evaluate(model: hl.Model, samples: Any, lens: hl.TunedLens, seed: int, repeats: int) -> dict[str, Any]:
    """The logit lens, the tuned lens and HyperLens on the same samples."""
    depths = tuple(depth for depth in DEPTHS if depth < model.layers)
    evaluation = hl.evaluate_lenses(model, samples, [hl.LogitLens(), lens, hl.HyperLens(depths)], seed=seed, repeats=repeats)
    for row in evaluation.rows:
        print(f"{model.name}  {row.name} m = {row.focal_depth}  KL {row.common.kl.value:.3f}  cost {row.cost}", file=sys.stderr)
    return evaluation.describe()


def shorten(value: Any, digits: int) -> Any:
    """The same with numbers of so many digits."""
    match value:
        case float():
            return float(f"{value:.{digits}g}")
        case dict():
            return {key: shorten(item, digits) for key, item in value.items()}
        case list() | tuple():
            return [shorten(item, digits) for item in value]
        case _:
            return value


if __name__ == "__main__":
    main()
