"""How well a base's tuned lens reads its fine-tuned model: KL to the output on held-out text, beside the model's own lens.

Each model is fine-tuned for a while on text of another kind than it knows; lenses of the base and of the fine-tuned model are
trained on the same text. Prints JSON, keeps it in docs/transfer.json, and fills the table of docs/tuned-lens.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from findings_page import fill_tables, tabulate

import hyperlens as hl
from hyperlens.tasks import TaskSpec, draw_task
from hyperlens.tracing import Limits
from hyperlens.training.lens_recipe import LensRecipe
from hyperlens.training.texts import cut_text
from hyperlens.training.tuning import tune_lens

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("HYPERLENS_SHARED", ROOT.parent / "shared"))
PAGE, RESULTS = ROOT / "docs" / "tuned-lens.md", ROOT / "docs" / "transfer.json"
LENGTH, HELD = 128, 100
CASES = {"reference": "mathematics:reworded", "stories260K": "gsm8k", "bitllama_3M": "gsm8k"}
"""Each model, and the task whose text it is fine-tuned on."""


def main() -> None:
    """Every model that is here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="steps of fine-tuning, of 16 chunks each")
    parser.add_argument("--rate", type=float, default=3e-4, help="its learning rate")
    options = parser.parse_args()
    rows = []
    for name, task in CASES.items():
        source = name if name == "reference" else str(SHARED / "models" / name)
        if name != "reference" and not Path(source).is_dir():
            print(f"{source} is not there; it is part of the shared material")
            continue
        rows.append({"model": name, "text": task, **compare_lenses(source, task, options.steps, options.rate)})
        print(json.dumps(rows[-1], indent=1), flush=True)
    found = {"steps": options.steps, "rate": options.rate, "held_out": HELD, "models": rows}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    fill_tables(PAGE, make_tables(found))


def make_tables(found: dict[str, Any]) -> dict[str, str]:
    """The table of the page: KL in nats of each lens on each model, before and after fine-tuning."""
    head = ["model", "fine-tuned on", "its loss there", "before: logit", "its own lens"]
    head += ["after: logit", "the base's lens", "its own lens"]
    rows = []
    for row in found["models"]:
        loss = f"{row['loss']['before']:.2f} → {row['loss']['after']:.2f}"
        rows.append([row["model"], row["text"], loss, *row["base"].values(), *row["fine-tuned"].values()])
    return {"transfer": tabulate(head, rows)}


def compare_lenses(source: str, task: str, steps: int, rate: float) -> dict[str, Any]:
    """Mean KL in nats over the states before the last, on text that neither the model nor a lens was trained on."""
    base = hl.load_model(source)
    samples = list(draw_task(TaskSpec(task), 200 if task != "gsm8k" else 600, 7, str(SHARED / "data")).samples)
    random.Random(0).shuffle(samples)
    texts = [sample.prompt + (sample.target or "") for sample in samples]
    held, train = texts[:HELD], texts[HELD:]
    changed = copy.deepcopy(base.network)
    losses = fine_tune(changed, [chunk for text in train for chunk in cut_text(base, text, LENGTH, "a text")], steps, rate)
    tuned = hl.load_model(changed, base.tokenizer)
    recipe = LensRecipe(steps=300, step_tokens=1024)
    lenses = {name: tune_lens(model, train, recipe, LENGTH) for name, model in (("base", base), ("tuned", tuned))}
    transferred = hl.TunedLens(translators=lenses["base"].translators, origin=lenses["base"].origin, transfer=True)
    return {
        "loss": {"before": losses[0], "after": losses[1]},
        "base": {"logit": read_kl(base, held, hl.LogitLens()), "own lens": read_kl(base, held, lenses["base"])},
        "fine-tuned": {
            "logit": read_kl(tuned, held, hl.LogitLens()),
            "base's lens": read_kl(tuned, held, transferred),
            "own lens": read_kl(tuned, held, lenses["tuned"]),
        },
    }


def fine_tune(network: Any, chunks: Sequence[tuple[int, ...]], steps: int, rate: float) -> tuple[float, float]:
    """Plain training on the next token; gives the mean loss of the first and of the last twenty steps."""
    torch.manual_seed(0)
    draw, losses = random.Random(0), []
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(steps):
        rows = [draw.choice(chunks) for _ in range(16)]
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        labels = torch.tensor([[*row, *[-100] * (longest - len(row))] for row in rows])
        loss = network(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return float(np.mean(losses[:20])), float(np.mean(losses[-20:]))


def read_kl(model: hl.Model, texts: Sequence[str], lens: hl.Lens) -> float:
    """Mean over tokens and the states before the last."""
    read = hl.trace(model, texts, lens, "all", readings=("kl_to_output",), limits=Limits(progress=False))
    return round(float(read.to_numpy("kl_to_output")[:, 0, : model.layers].mean()), 4)


if __name__ == "__main__":
    main()
