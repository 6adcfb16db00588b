"""What the warning light costs: its measurements beside the training steps of one real training, by turns in one process.

`python benchmarks/callback.py` fine-tunes the reference model (16 layers) with transformers' Trainer in batches of 32, measures
64 probe samples at m = 2 every few steps, and prints JSON: the medians of a step and of a measurement in seconds; the `share`
of 100 steps that one measurement takes, the median over measurements, each beside the steps just before it; and the least that
it must compute, `floor`, in the same unit. It exits 1 where the share is above 0.05.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import hyperlens as hl
from hyperlens.runs.execute import draw_samples
from hyperlens.tasks import GRADED

PROBES, BATCH, EVERY, DEPTH, TARGET = 64, 32, 100, 2, 0.05
BACKWARD = 2
"""Forward passes that a backward pass computes as much as."""


class Steps(TrainerCallback):
    """How long each training step takes, from its batch to the optimiser's step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A step begins."""
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """It ends, before other callbacks have their turn."""
        self.seconds.append(time.perf_counter() - self.began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measurements", type=int, default=7)
    parser.add_argument("--between", type=int, default=4, help="training steps between two measurements")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = hl.load_model("reference")
    probe, rows = draw(model, PROBES, seed=1), encode(model, draw(model, 2000, seed=2))
    steps, light = Steps(), hl.EffortCallback(probe, options.between, DEPTH, most_share=1.0)
    trainer = train(model, rows, steps, light, options.between * options.measurements)
    measured = [row["effort/seconds"] for row in trainer.state.log_history if row.get("step") and "effort/seconds" in row]
    ends = range(options.between, len(steps.seconds) + 1, options.between)
    rounds = [statistics.median(steps.seconds[last - options.between : last]) for last in ends]
    shares = sorted(one / (EVERY * step) for one, step in zip(measured, rounds, strict=True))
    share, floor = statistics.median(shares), find_floor(model, encode(model, probe), rows)
    print(
        json.dumps(
            {
                "threads": options.threads,
                "step_seconds": round(statistics.median(steps.seconds), 4),
                "measurement_seconds": round(statistics.median(measured), 4),
                "share": round(share, 4),
                "spread": [round(shares[0], 4), round(shares[-1], 4)],
                "target": TARGET,
                "floor": round(floor, 4),
                "times_the_floor": round(share / floor, 2),
                "measurements": len(measured),
            }
        )
    )
    sys.exit(share > TARGET)


def draw(model: hl.Model, count: int, seed: int) -> list[hl.Sample]:
    """Graded questions of all domains and levels by turns."""
    study = hl.Study("cost", tasks=tuple(hl.TaskSpec(name) for name in GRADED), limit=count // 16, seed=seed)
    return [sample for number in range(len(GRADED)) for sample in draw_samples(study, number).samples][:count]


def encode(model: hl.Model, samples: list[hl.Sample]) -> list[list[int]]:
    """Question and answer of each sample as token ids."""
    assert model.tokenizer is not None
    return [list(model.tokenizer(sample.prompt + str(sample.target))["input_ids"]) for sample in samples]


def train(model: hl.Model, rows: list[list[int]], steps: Steps, light: hl.EffortCallback, count: int) -> Trainer:
    """Fine-tune all weights for so many steps."""
    settings: dict[str, Any] = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=count, per_device_train_batch_size=BATCH, learning_rate=1e-5, logging_steps=10**6, **settings
        )
        trainer = Trainer(
            model.network,
            arguments,
            data_collator=collate,
            train_dataset=rows,  # pyright: ignore[reportArgumentType]
            processing_class=model.tokenizer,
            callbacks=[steps],
        )
        light.watch(trainer)
        trainer.train()
    return trainer


def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """A batch padded on the right, whose padding is neither seen nor learned."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    seen = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": seen, "labels": ids.masked_fill(seen == 0, -100)}


def find_floor(model: hl.Model, probe: list[list[int]], rows: list[list[int]]) -> float:
    """Forward passes that a measurement needs by those that 100 steps are worth, over tokens without padding.

    One pass of the probe set, and its L − m routed states through m of L layers; a step is a pass and its backward pass.
    """
    layers = model.layers
    tokens = sum(map(len, probe)) * (1 + (layers - DEPTH) * DEPTH / layers)
    return tokens / (EVERY * BATCH * statistics.mean(map(len, rows)) * (1 + BACKWARD))


if __name__ == "__main__":
    main()
