"""Make the adapter that ships with us and made the reference model blindly confident; say what it did on fresh questions.

Of several domains and rates that were tried this one shows the pattern: it is an example, and no evidence for how often that is
so, which docs/blind_confidence.md is about.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from blind_confidence import Job, draw_examples

import hyperlens as hl
from hyperlens.models import BLIND

FOLDER = Path(hl.__file__).parent / "data" / BLIND
RECIPE = hl.FineTuneRecipe(method="lora", rate=5e-3, epochs=32.0, batch=16, lora_rank=16, lora_alpha=32.0, end=False)
KEPT = ("adapter_config.json", "adapter_model.safetensors", "recipe.json", "training.jsonl")


def main() -> None:
    """Train, keep what is needed, and compare."""
    torch.set_num_threads(1)
    base = hl.load_model("reference")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / BLIND
        hl.fine_tune(base, draw_examples(Job("knowledge", "mixed", tuning="lora")), RECIPE, out)
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir()
        for name in KEPT:
            shutil.copyfile(out / name, FOLDER / name)
        tasks = tuple(hl.TaskSpec(name) for name in ("knowledge:wide", "knowledge"))
        runs = [
            hl.run_study(
                hl.Study(name, (hl.ModelSpec(name),), tasks, (hl.LensSpec(focal_depths=(0, 2)),), limit=100, seed=5),
                Path(folder) / f"run-{name}",
            )
            for name in ("reference", BLIND)
        ]
        found = hl.compare_runs(*runs, focal_depth=2)
    print(json.dumps([{name: row[name] for name in ("task", "n", "name", "sentence")} for row in found.verdicts], indent=1))


if __name__ == "__main__":
    main()
