"""The warning light: what it measures, that it leaves no trace on the training, and its cap."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import LAYERS, build_family, build_tokenizer, random_ids
from hypothesis import given
from hypothesis import strategies as some
from loading import deprecated
from sentences import is_one_sentence
from traced import words
from transformers import TrainerCallback
from watched import (
    PROBE,
    QUIET,
    draw_randomly,
    equal,
    make_light,
    make_trainer,
    measured_rows,
    own_rows,
    refuses,
    weights,
)

import hyperlens as hl
from hyperlens.errors import HyperLensError, HyperLensWarning, InputError
from hyperlens.monitoring import callback as room
from hyperlens.monitoring import keeping
from hyperlens.monitoring import probe as probing
from hyperlens.monitoring.spending import Spending


@deprecated
@pytest.mark.parametrize(
    "changes",
    [{}, {"bf16": True}, {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}],
    ids=["plain", "autocast", "checkpointing"],
)
def test_the_light_changes_no_bit_of_a_training_and_measures_what_a_trace_reads_of_the_saved_model(
    tmp_path: Path, changes: Any
) -> None:
    alone = make_trainer(tmp_path / "alone", None, **changes)
    alone.train()
    watched = make_trainer(tmp_path / "watched", light := make_light(every=1, keep=draw_randomly), **changes)
    watched.train()
    assert equal(weights(alone), weights(watched))
    assert own_rows(alone) == own_rows(watched) and len(own_rows(alone)) == 3
    assert [reading.step for reading in light.readings] == [0, 1, 2, 3, 4]
    assert [row["blind_confidence"] for row in measured_rows(watched)] == [0.0] * 5
    check_reading(light.readings[-1], hl.load_model(tmp_path / "watched" / "best"))
    change = light.readings[-1].changes["effort"].difference
    assert change.value == pytest.approx(light.readings[-1].effort - light.readings[0].effort)
    assert change.low < change.value < change.high


def check_reading(reading: Any, saved: hl.Model) -> None:
    """That a reading is what a trace of the saved model gives."""
    found = hl.trace(saved, PROBE, hl.HyperLens((2,)), reference="output")
    assert reading.confidence == pytest.approx(float(found.data["probability"].values[:, 0, -1].mean()), rel=1e-5)
    assert reading.effort == pytest.approx(float(hl.measure_effort(found)["effort"].mean()), rel=1e-5)
    assert reading.accuracy == float(found.samples["correct"].mean())
    assert reading.samples == 8 and {name: part.samples for name, part in reading.tasks.items()} == {"odd": 4, "even": 4}
    assert np.mean([part.effort for part in reading.tasks.values()]) == pytest.approx(reading.effort)


@pytest.mark.slow
@deprecated
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # what TRL imports calls it
def test_a_training_of_an_adapter_with_trl_is_the_same_with_the_light(tmp_path: Path) -> None:
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    rows = Dataset.from_list(
        [{"prompt": words(row[:8]), "completion": f" {words(row[8:])}"} for row in random_ids(32, 12).tolist()]
    )

    def train(name: str, light: hl.EffortCallback | None) -> Any:
        adapter = LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        torch.manual_seed(0)
        settings = SFTConfig(str(tmp_path / name), max_steps=4, per_device_train_batch_size=4, learning_rate=1e-1, **QUIET)
        network: Any = build_family("llama")
        trainer = SFTTrainer(network, settings, train_dataset=rows, processing_class=build_tokenizer(), peft_config=adapter)
        if light is not None:
            light.watch(trainer)
        trainer.train()
        return trainer

    alone, watched = train("alone", None), train("watched", light := make_light(keep=lambda reading: float(reading.step)))
    assert equal(weights(alone), weights(watched)) and own_rows(alone) == own_rows(watched)
    assert "mean_token_accuracy" in own_rows(alone)[0], "the means that TRL keeps, and gives to the next row that is logged"
    best = tmp_path / "watched" / "best"
    assert (best / "adapter_model.safetensors").exists() and not (best / "model.safetensors").exists()
    assert light.readings[-1].confidence != light.readings[0].confidence


def test_a_measurement_leaves_the_network_as_it_was() -> None:
    network: Any = build_family("llama", attention_dropout=0.3).train()
    network.lm_head.eval()
    network.model.embed_tokens.weight.requires_grad_(False)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    before = [module.training for module in network.modules()]
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with probing.kept_randomness():
        probing.measure_probe(probing.prepare_probe(network, build_tokenizer(), PROBE, 2))
        draw_randomly(SimpleNamespace(step=1))
    assert [module.training for module in network.modules()] == before
    assert [p.requires_grad for p in network.parameters()].count(False) == 1
    assert all((p.grad == 1).all() for p in network.parameters() if p.requires_grad)
    assert "forward" not in network.__dict__ and torch.is_grad_enabled()
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.slow
def test_a_resumed_training_keeps_its_base_and_its_best(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path / "whole", first := make_light(keep="effort"), **saving)
    whole.train()
    part = make_trainer(tmp_path / "part", make_light(keep="effort"), steps=4, callbacks=[_StopAt(2)], **saving)
    part.train()
    again = make_trainer(tmp_path / "part", second := make_light(keep="effort"), **saving)
    again.train(resume_from_checkpoint=True)
    assert [reading.step for reading in second.readings] == [2, 4]
    assert second.readings[-1] == first.readings[-1] and second.readings[0] == first.readings[1]
    assert measured_rows(again)[-1]["effort/probe/change"] == measured_rows(whole)[-1]["effort/probe/change"] != 0
    best = [json.loads((tmp_path / name / "best" / "effort.json").read_text()) for name in ("whole", "part")]
    assert best[0]["step"] == best[1]["step"] and best[0]["score"] == best[1]["score"]
    (tmp_path / "part" / keeping.BASE).unlink()
    trainer = make_trainer(tmp_path / "part", make_light(), **saving)
    refuses(
        lambda: trainer.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2")), InputError, "has no effort_base"
    )


class _StopAt(TrainerCallback):
    """Ends a training as an interruption would, after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_a_base_may_be_a_trajectory_of_the_probe_set_or_its_folder(tmp_path: Path) -> None:
    other = hl.load_model(build_family("llama", seed=1), build_tokenizer())
    base = hl.trace(other, PROBE, hl.HyperLens((0, 2)), reference="output")
    base.save(tmp_path / "base")
    light = make_light(base=tmp_path / "base")
    make_trainer(tmp_path, light, steps=1).train()
    identity = json.loads((tmp_path / keeping.BASE).read_text())["probe"]
    effort = light.readings[0].changes["effort"]
    assert effort.before.value == pytest.approx(float(hl.measure_effort(base)["effort"].sel(focal_depth=2).mean()))
    assert effort.before.value == pytest.approx(keeping.find_base(base, identity)["effort"].mean()) != effort.after.value
    refuses(lambda: keeping.find_base(hl.trace(other, PROBE, hl.HyperLens((2,))), identity), InputError, "its reference differ")
    refuses(lambda: keeping.find_base(base, identity | {"lens": {"focal depth": 1}}), InputError, "has no focal depth 1")


@given(
    steps=some.lists(some.floats(0.01, 100), min_size=1, max_size=30),
    takes=some.lists(some.floats(0.01, 10), min_size=30, max_size=30),
    most=some.floats(0.01, 1.0),
)
def test_steady_measurements_never_take_more_than_their_share(steps: list[float], takes: list[float], most: float) -> None:
    now, spending, left_out = 0.0, Spending(began=0.0, last=max(takes)), 0
    for step in steps:
        now += step
        if spending.allows(now, most):
            now += max(takes)
            spending = spending.add(max(takes))
            assert spending.share(now) <= most * (1 + 1e-9)
        else:
            assert (spending.spent + spending.last) / (now + spending.last) > most * (1 - 1e-9)
            spending, left_out = spending.skip(), left_out + 1
    assert spending.skipped == left_out


def test_a_measurement_that_would_pass_the_cap_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Hours(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            now[0] += 10.0  # what a step takes

    def slow(probe: Any, measure: Callable[[Any], Any] = probing.measure_probe) -> Any:
        now[0] += 1.5
        return measure(probe)

    monkeypatch.setattr(room, "measure_probe", slow)
    light = make_light(every=1, most_share=0.05)
    light.clock = lambda: now[0]
    trainer = make_trainer(tmp_path, light, steps=8, callbacks=[Hours()])
    with pytest.warns(HyperLensWarning, match="step 1 is skipped: it takes 1.5 s, .* have 0.13 of .*now 1") as caught:
        trainer.train()
    assert len(caught) == 1 and is_one_sentence(str(caught[0].message))
    rows = measured_rows(trainer)[1:]
    assert [reading.step for reading in light.readings] == [0, 3, 6, 8], "1.5 of 31.5 s, 3 of 63 s, and after the last step"
    assert [row["effort/skipped"] for row in rows] == [1, 2, 2, 3, 4, 4, 5, 5] and "effort/probe" not in rows[0]
    assert [row["effort/share"] for row in rows] == pytest.approx(
        [0, 0, 1.5 / 31.5, 1.5 / 41.5, 1.5 / 51.5, 3 / 63, 3 / 73, 4.5 / 84.5]
    )
    assert rows[2]["effort/seconds"] == 1.5


def test_what_is_said_of_the_focal_depth_is_said_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_light(every=1, focal_depth=LAYERS - 1))
    with pytest.warns(HyperLensWarning, match="at focal depth") as caught:
        trainer.train()
    assert len(caught) == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), ValueError("a bug")])
def test_a_measurement_without_memory_ends_no_training_and_a_bug_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(probe: Any, measure: Callable[[Any], Any] = probing.measure_probe) -> Any:
        if trainer.state.global_step:
            raise error
        return measure(probe)

    monkeypatch.setattr(room, "measure_probe", fail)
    trainer = make_trainer(tmp_path, make_light())
    if isinstance(error, ValueError):
        with pytest.raises(ValueError, match="a bug"):
            trainer.train()
        return
    with pytest.warns(HyperLensWarning, match="step [24] failed: memory did not suffice") as caught:
        trainer.train()
    assert trainer.state.global_step == 4 and [row.get("effort/failed") for row in measured_rows(trainer)] == [None, 1.0, 1.0]
    assert all(is_one_sentence(str(one.message)) for one in caught)


@pytest.mark.parametrize("main", [True, False])
def test_whatever_fails_in_the_main_process_ends_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: bool
) -> None:
    told: list[Any] = []

    def broadcast(decided: list[Any], src: int) -> None:
        told.append(decided[0])
        decided[0] = (False, None)[len(told) - 1]  # from the main process: its base is measured, its first look fails

    def measure(probe: Any, measure: Callable[[Any], Any] = probing.measure_probe) -> Any:
        if told:
            raise RuntimeError("the accelerator is gone")
        return measure(probe)

    there = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, broadcast_object_list=broadcast)
    monkeypatch.setattr(room, "dist", there)
    monkeypatch.setattr(room, "measure_probe", measure)
    trainer = make_trainer(tmp_path, make_light(every=1))
    if not main:
        monkeypatch.setattr(type(trainer.state), "is_world_process_zero", property(lambda state: False, lambda *_: None))
    with pytest.raises(RuntimeError if main else HyperLensError, match="is gone" if main else "the main process .* failed"):
        trainer.train()
    assert told == ([False, None] if main else [False, False]) and trainer.state.global_step == 1


def test_what_fails_in_a_measurement_is_a_warning_and_the_training_goes_on(tmp_path: Path) -> None:
    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 2:
                model.model.norm.weight.data[0] = float("nan")

    trainer = make_trainer(tmp_path / "nan", make_light(), callbacks=[Break()], logging_nan_inf_filter=False)
    with pytest.warns(HyperLensWarning, match="after step [24] failed: .* gives NaN or infinite") as caught:
        trainer.train()
    assert trainer.state.global_step == 4 and [row.get("effort/failed") for row in measured_rows(trainer)] == [None, 1.0, 1.0]
    assert all(is_one_sentence(str(one.message)) for one in caught)
    trainer = make_trainer(tmp_path / "rule", make_light(keep=lambda reading: None, stop=lambda reading: reading.step == 2))
    with pytest.warns(HyperLensWarning, match="the rule to keep by gave None"):
        trainer.train()
    assert trainer.state.global_step == 2, "a rule that is a function stops too"
    assert {"effort/probe", "effort/stopped"} <= measured_rows(trainer)[-1].keys(), "what was measured is logged all the same"


def test_trackers_get_the_rows_and_without_a_trainer_only_its_history(tmp_path: Path) -> None:
    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            rows.append(dict(logs))

    rows: list[dict[str, Any]] = []
    make_trainer(tmp_path / "known", make_light(), steps=2, callbacks=[Tracker()]).train()
    assert ["effort/probe" in row for row in rows] == [True, True, False, False]
    rows.clear()
    alone = make_trainer(tmp_path / "unknown", None, steps=2, callbacks=[Tracker(), make_light()])
    with pytest.warns(HyperLensWarning, match=r"call callback\.watch\(trainer\)"):
        alone.train()
    assert not any("effort/probe" in row for row in rows) and len(measured_rows(alone)) == 2


def test_texts_without_targets_are_read_at_their_ends_and_have_no_accuracy(tmp_path: Path) -> None:
    light = hl.EffortCallback([sample.prompt for sample in PROBE], every=1, most_share=1.0)
    trainer = make_trainer(tmp_path, light, steps=1)
    trainer.train()
    row = measured_rows(trainer)[-1]
    assert {"effort/probe", "confidence/probe/change"} <= row.keys()
    assert not any(name.startswith(("accuracy", "blind")) or "task" in name for name in row) and np.isnan(
        light.readings[0].accuracy
    )
