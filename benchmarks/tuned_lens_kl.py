"""Does a trained lens read every inner state better than the logit lens, on text that it was not trained on?

`python benchmarks/tuned_lens_kl.py --shared ../shared` writes docs/tuned_lens_kl.json, fills the tables of docs/tuned-lens.md,
and exits with 1 where the answer is no. The lens of the reference model is the one that comes with it, read on questions from
chains that are held out; those of the small models are trained here, by Muon and by AdamW, on texts that the models write
themselves, and read on texts written from another seed. KL in nats, from the output to the lens, mean over all tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from findings_page import fill_tables, tabulate
from reference_lens import ask_unseen
from studies_page import list_fields, read_classes

import hyperlens as hl
from hyperlens.training import lens_recipe
from hyperlens.training.lens_recipe import LensRecipe
from hyperlens.training.texts import Text, count_tokens, divide_texts, generate_source
from hyperlens.training.tuning import train_translators

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, RESULTS = DOCS / "tuned-lens.md", DOCS / "tuned_lens_kl.json"
RECIPES = {name: LensRecipe(name, step_tokens=1024, validation_tokens=2048) for name in ("muon", "adamw")}
LENGTH = 128
SMALL = ("stories260K", "bitllama_3M")


def measure_kl(model: hl.Model, texts: list[Any], lens: hl.Lens) -> list[float]:
    """KL from the output to the lens of each state 0 … L − 1, mean over all tokens."""
    trajectory = hl.trace(model, texts, lens, "all", readings=["kl_to_output"])
    return trajectory.to_numpy("kl_to_output")[:, 0, :-1].mean(0).tolist()


def measure_reference(questions: int) -> dict[str, Any]:
    """The lens that comes with the reference model, on held-out questions."""
    model = hl.load_model("reference")
    texts = [sample.prompt + sample.target for sample in ask_unseen(questions, 99)]
    tuned = measure_kl(model, texts, hl.load_lens("reference"))
    return {"texts": len(texts), "logit": measure_kl(model, texts, hl.LogitLens()), "shipped": tuned}


def measure_small(folder: Path, texts: int, steps: int) -> dict[str, Any]:
    """Lenses trained on what a model writes, on other texts that it writes."""
    model = hl.load_model(folder)
    written, held = write_texts(model, texts, texts // 8, LENGTH, 0)
    found: dict[str, Any] = {"texts": len(held), "logit": measure_kl(model, held, hl.LogitLens())}
    for name, recipe in RECIPES.items():
        corpus = divide_texts(written, recipe.validation_share, recipe.validation_tokens, recipe.seed)
        began = time.monotonic()
        lens = train_translators(model, corpus, replace(recipe, steps=steps), limits=hl.Limits(1024)).lens
        found |= {name: measure_kl(model, held, lens), f"{name}_seconds": round(time.monotonic() - began)}
        found["trained_on"] = {"tokens": count_tokens(corpus.training), "steps": steps}
    return found


def write_texts(model: hl.Model, number: int, others: int, length: int, seed: int) -> tuple[tuple[Text, ...], list[list[int]]]:
    """Texts that a model writes for its lens to be trained on, and those that it writes from the next seed which are no part
    of them."""
    written, held = (generate_source(model, *wanted).texts for wanted in ((number, length, seed), (others, length, seed + 1)))
    seen = {chunk for text in written for chunk in text}
    return written, [list(chunk) for text in held for chunk in text if chunk not in seen]


def make_tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables of the page: one per model, and the fields of a recipe."""
    tables = {}
    for model, found in results.items():
        lenses = [name for name in ("logit", "shipped", *RECIPES) if name in found]
        rows = [[str(state), *(f"{found[name][state]:.3f}" for name in lenses)] for state in range(len(found["logit"]))]
        tables[f"kl of {model}"] = tabulate(["state", *(f"{name} lens" if name == "logit" else name for name in lenses)], rows)
    (fields,) = (node for node in read_classes(lens_recipe) if node.name == "LensRecipe")
    rows = [[f"`{name}`", default, meaning] for name, default, meaning in list_fields(fields)]
    return {**tables, "recipe": tabulate(["field", "default", "meaning"], rows)}


def find_worse(results: dict[str, Any]) -> list[str]:
    """The states that a trained lens does not read better than the logit lens."""
    return [
        f"{model}: {name} reads state {state} no better ({tuned:.4g}, logit lens {logit:.4g})"
        for model, found in results.items()
        for name in ("shipped", *RECIPES)
        for state, (logit, tuned) in enumerate(zip(found["logit"], found.get(name, ()), strict=False))
        if tuned >= logit
    ]


def main() -> None:
    """Measure, write, and say whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--questions", type=int, default=10, help="of each domain, level and variant")
    parser.add_argument("--texts", type=int, default=400, help="that each small model writes to be trained on")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--models", nargs="*", default=("reference", *SMALL), help="of which the results are made anew")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        place = options.shared / "models" / name
        found = measure_small(place, options.texts, options.steps) if name in SMALL else measure_reference(options.questions)
        results = {**(json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}), name: found}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    fill_tables(PAGE, make_tables(results))
    print(json.dumps(results))
    sys.exit("\n".join(find_worse(results)) or 0)


if __name__ == "__main__":
    main()
