"""What the tests of the warning light share: a probe set, a trainer that is watched, and what it logged."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import build_family, build_tokenizer, random_ids
from sentences import is_one_sentence
from traced import words
from transformers import Trainer, TrainingArguments

import hyperlens as hl
from hyperlens.errors import HyperLensError

PROBE = [
    hl.Sample(words(random_ids(1, 5, seed)[0].tolist()), f" w{20 + seed}", task="even" if seed % 2 else "odd")
    for seed in range(8)
]
MANY = PROBE * 3
"""So many that a change of them can be shown."""
ROWS = [{"input_ids": row, "labels": row} for row in random_ids(32, 12, 50).tolist()]
QUIET: dict[str, Any] = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 2}


def make_trainer(folder: Path, light: hl.EffortCallback | None, steps: int = 4, **changes: Any) -> Trainer:
    """A trainer of a small Llama with dropout, watched by the light."""
    settings = {**QUIET, "max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **changes}
    extra = {name: settings.pop(name) for name in ("callbacks", "processing_class") if name in settings}
    network: Any = build_family("llama", attention_dropout=0.3)
    rows: Any = ROWS
    trainer = Trainer(
        network,
        TrainingArguments(str(folder), **settings),
        train_dataset=rows,
        **{"processing_class": build_tokenizer(), **extra},
    )
    if light is not None:
        light.watch(trainer)
    torch.manual_seed(0)
    return trainer


def make_light(**changes: Any) -> hl.EffortCallback:
    return hl.EffortCallback(**{"probe": PROBE, "every": 2, "most_share": 1.0, **changes})


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def own_rows(trainer: Any) -> list[dict[str, Any]]:
    """What the trainer itself logged, without what depends on the clock."""
    rows = [row for row in trainer.state.log_history if not any("effort" in name for name in row)]
    return [{name: value for name, value in row.items() if "runtime" not in name and "per_second" not in name} for row in rows]


def measured_rows(trainer: Any) -> list[dict[str, Any]]:
    return [row for row in trainer.state.log_history if any("effort" in name for name in row)]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def draw_randomly(reading: Any) -> float:
    """A rule by which the last is best, and that uses up randomness, as a tracker may too."""
    random.random(), np.random.rand(), torch.rand(())
    return float(reading.step)


def write(place: Path, text: str) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


def refuses(action: Callable[[], Any], kind: type[HyperLensError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        action()
    assert is_one_sentence(str(caught.value)), str(caught.value)
