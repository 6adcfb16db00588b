"""Trains the tuned lens that comes with the reference model, on its graded questions.

`python benchmarks/reference_lens.py` writes src/hyperlens/data/lens and prints the curve, one JSON line per validation. The
text is prompts and answers of all four domains at all levels, matched and plain; what is asked are chains that the reference
model itself could see in training, from two steps on others than studies ask. The asides before them are drawn whatever the
chain: 401 of the 3,808 different ones are held-out chains, without their value. Single steps are so few that both share them.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch

import hyperlens as hl
from hyperlens.artefact import to_json
from hyperlens.lenses.tuned import LENS_FOLDER
from hyperlens.tasks.graded import GRADED, LEVELS, VARIANTS
from hyperlens.training.lens_recipe import LensRecipe
from hyperlens.training.texts import collect_texts, divide_texts
from hyperlens.training.tuning import train_translators

WAYS = ("matched", "plain")
QUESTIONS, SEED = 200, 1


def ask_questions(number: int, seed: int, held_out: bool) -> list[hl.Sample]:
    """`number` questions for each domain, level and variant, drawn from `seed`."""
    rng = random.Random(f"lens/{seed}")
    return [
        hl.Sample(*task.ask(level, rng, VARIANTS[variant], held_out), task=f"{task.name}:{variant}", level=level)
        for task in GRADED.values()
        for level in LEVELS
        for variant in WAYS
        for _ in range(number)
    ]


def ask_unseen(number: int, seed: int) -> list[hl.Sample]:
    """Questions from held-out chains as `ask_questions` draws them, without those of one step that the lens has seen."""
    seen = {sample.prompt for sample in ask_questions(QUESTIONS, SEED, held_out=False)}
    return [sample for sample in ask_questions(number, seed, held_out=True) if sample.prompt not in seen]


def main() -> None:
    """Train, save and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="of each domain, level and variant")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/reference-lens"))
    parser.add_argument("--out", type=Path, default=LENS_FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = hl.load_model("reference")
    recipe = LensRecipe(steps=options.steps, step_tokens=1024, validation_tokens=4096, seed=options.seed)
    questions = ask_questions(options.questions, options.seed, held_out=False)
    source = collect_texts(model, questions, 256, "graded questions that are not held out", "benchmarks/reference_lens.py")
    corpus = divide_texts(source.texts, recipe.validation_share, recipe.validation_tokens, recipe.seed)
    tuning = train_translators(
        model, corpus, recipe, options.checkpoint, lambda row: print(json.dumps(row), flush=True), hl.Limits(1024)
    )
    hl.save_lens(tuning.lens, options.out, tuning.describe([source.describe()]))
    print(to_json({"logit": tuning.logit, "tuned": tuning.tuned}))


if __name__ == "__main__":
    main()
