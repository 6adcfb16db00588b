"""Fine-tuning: what stays as it was, what is kept, and how a training that ended goes on."""

from __future__ import annotations

import json
import math
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from families import build_family, build_tokenizer
from finetuned import FULL, SAMPLES, TINY, likely, refused, same, weights
from loading import needs

import hyperlens as hl
from hyperlens.artefact import hash_file
from hyperlens.errors import ArtefactError, HyperLensWarning, InputError, ModelError
from hyperlens.models import Model
from hyperlens.models.fingerprint import fingerprint_model
from hyperlens.tasks import Sample
from hyperlens.training.finetuning.base_values import BaseValues, check_known, keep_base_values
from hyperlens.training.finetuning.examples import prepare_examples
from hyperlens.training.finetuning.keeping import _find_last
from hyperlens.training.finetuning.recipe import FineTuneRecipe

pytestmark = [needs("trl"), needs("peft")]


@pytest.mark.parametrize("recipe", [TINY, FULL])
def test_the_given_model_stays_as_it_was_and_what_is_saved_is_what_was_trained(
    plain: Model, tmp_path: Path, recipe: FineTuneRecipe
) -> None:
    before, needs_gradients = weights(plain.network), [one.requires_grad for one in plain.network.parameters()]
    tuned = hl.fine_tune(plain, SAMPLES, replace(recipe, log_every=3), tmp_path / "out")
    assert same(before, weights(plain.network)) and fingerprint_model(plain.network) == plain.fingerprint
    assert needs_gradients == [one.requires_grad for one in plain.network.parameters()]
    loaded, held = hl.load_model(tmp_path / "out"), hl.load_model(tuned.network, plain.tokenizer)
    assert loaded.fingerprint == held.fingerprint != plain.fingerprint
    assert tuned.out == tmp_path / "out" and "forward" not in held.network.__dict__
    about = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert about["examples"]["tasks"] == {"own": 12} and about["base"]["fingerprint"] == plain.fingerprint
    rows = [json.loads(line) for line in (tmp_path / "out" / "training.jsonl").read_text().splitlines()]
    assert rows == list(tuned.log) and [row["step"] for row in rows] == [3, 4]
    if recipe.method == "lora":
        assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == plain.name
        with hl.disable_adapters(loaded) as base:
            assert base.fingerprint == plain.fingerprint


class Stop:
    """What stops a training after some steps, as Ctrl-C does."""

    def __new__(cls, step: int) -> Any:
        from transformers import TrainerCallback

        class Stopping(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                if state.global_step == step:
                    raise KeyboardInterrupt

        return Stopping()


@pytest.mark.parametrize(("family", "recipe"), [("llama", replace(TINY, lora_dropout=0.2)), ("mixtral", FULL)])
def test_a_stopped_training_goes_on_to_the_same_weights_with_its_base_values_intact(
    plain: Model, tmp_path: Path, family: str, recipe: FineTuneRecipe
) -> None:
    plain = plain if family == "llama" else hl.load_model(build_family(family), build_tokenizer())
    recipe, samples = replace(recipe, effort_weight=1.0), likely(plain)
    whole = hl.fine_tune(plain, samples, recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        hl.fine_tune(plain, samples, recipe, tmp_path / "stopped", [Stop(3)])
    values = tmp_path / "stopped.checkpoint" / "base_values" / "effort.parquet"
    before, rows = hash_file(values), []
    again = hl.fine_tune(plain, samples, recipe, tmp_path / "stopped", report=rows.append)
    assert same(weights(whole.network), weights(again.network))
    assert [row["step"] for row in rows] == [4] and again.log == whole.log
    assert hash_file(values) == before
    assert again.base is not None and whole.base is not None
    assert np.array_equal(again.base.effort, whole.base.effort, equal_nan=True)


@pytest.mark.parametrize(("family", "recipe"), [("llama", TINY), ("mixtral", FULL), ("gemma3n_text", TINY)])
def test_a_training_that_is_finished_is_read_and_trains_no_further(
    plain: Model, tmp_path: Path, family: str, recipe: FineTuneRecipe
) -> None:
    model = plain if family == "llama" else hl.load_model(build_family(family), build_tokenizer())
    recipe = replace(recipe, decay="none", effort_weight=0.0 if family == "llama" else 1.0, kl_weight=0.1)
    out = tmp_path / "out"
    samples = likely(model)  # 3 steps an epoch, so that the end is in the midst of one
    first = hl.fine_tune(model, samples, recipe, out)
    (out / "notes.txt").write_text("mine")
    before = {file.name: hash_file(file) for file in out.iterdir()}
    rows: list[Any] = []
    again = hl.fine_tune(model, samples, recipe, out, report=rows.append)
    assert again.found and not first.found and not rows and again.about == first.about and again.log == first.log
    assert same(weights(first.network), weights(again.network))
    assert {file.name: hash_file(file) for file in out.iterdir()} == before
    refused(ArtefactError, "holds this fine-tuning already", hl.fine_tune, model, samples, recipe, out, resume=False)
    shutil.rmtree(out)  # as if killed before it was written
    last = hl.fine_tune(model, samples, recipe, out)
    assert not last.found and last.log == first.log and last.about["training"]["steps"] == 4
    assert same(weights(first.network), weights(last.network))
    assert all(hash_file(out / name) == before[name] for name in before if name.endswith((".safetensors", ".jsonl")))


def test_a_training_that_a_rule_stopped_says_so_and_is_not_replaced(plain: Model, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Rule(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            control.should_training_stop |= state.global_step == 3

    out = tmp_path / "out"
    out.mkdir()
    (out / ".recipe.json.1.partial").write_text("")  # what a kill left
    hl.fine_tune(plain, SAMPLES, TINY, out, [Rule()])
    about = json.loads((out / "recipe.json").read_text())["training"]
    assert about == {"steps": 3, "planned": 4, "stopped": True}
    again = hl.fine_tune(plain, SAMPLES, TINY, out)
    assert again.found and again.about["training"] == about


def test_only_a_checkpoint_with_all_its_parts_is_gone_on_from(plain: Model, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        hl.fine_tune(plain, SAMPLES, TINY, tmp_path / "out", [Stop(3)])
    folder = tmp_path / "out.checkpoint"
    assert _find_last(folder) == folder / "checkpoint-2"
    for part in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors"):
        later = shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-3")
        assert _find_last(folder) == later
        (later / part).unlink()
        assert _find_last(folder) == folder / "checkpoint-2", part
        shutil.rmtree(later)


def test_a_full_disk_ends_in_one_sentence_and_leaves_the_last_checkpoint(
    plain: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = torch.save

    def fail(content: Any, file: Any, *given: Any, **options: Any) -> None:
        if "checkpoint-4" in str(file):
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
        write(content, file, *given, **options)

    monkeypatch.setattr(torch, "save", fail)
    refused(ArtefactError, "checkpoint of step 4 cannot be written", hl.fine_tune, plain, SAMPLES, TINY, tmp_path / "out")
    assert _find_last(tmp_path / "out.checkpoint") == tmp_path / "out.checkpoint" / "checkpoint-2"


def test_nothing_is_asked_of_any_network(plain: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from trl.trainer import base_trainer

    asked: list[Any] = []

    def ask(*given: Any, **options: Any) -> None:
        asked.append(given)
        raise OSError("no network")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", ask)
    monkeypatch.setattr(socket.socket, "connect", ask)
    monkeypatch.setattr(base_trainer, "send_telemetry", ask)
    light = hl.EffortCallback(SAMPLES[:8], every=2, focal_depth=1, keep="confidence", most_share=1.0)
    hl.fine_tune(replace(plain, name="reference"), SAMPLES, TINY, tmp_path / "out", [light])
    assert (tmp_path / "out.checkpoint" / "best" / "adapter_model.safetensors").exists() and not asked


def test_answers_without_an_effort_are_counted_before_anything_is_trained(
    plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = math.nan
    check_known(BaseValues(np.array([0.1, 0.2, 0.3, 0.4, nan]), {}))
    with pytest.warns(HyperLensWarning, match="2 of 5 answer tokens have no effort in the base"):
        check_known(BaseValues(np.array([0.1, 0.2, 0.3, nan, nan]), {}))
    unknown = BaseValues(np.full(12, nan), {})
    monkeypatch.setattr("hyperlens.training.finetuning.tuning.keep_base_values", lambda *given: unknown)
    effort = replace(TINY, effort_weight=1.0)
    refused(InputError, "none of the 12 answer tokens", hl.fine_tune, plain, SAMPLES, effort)


def test_a_model_that_fails_in_training_is_named_with_what_failed() -> None:
    model = hl.load_model(build_family("xlnet"), build_tokenizer())
    refused(ModelError, "XLNet.* cannot be trained by .* first step raised RuntimeError", hl.fine_tune, model, SAMPLES, TINY)


def test_padding_is_proved_for_every_term(plain: Model) -> None:
    unproved = replace(plain, certificate=replace(plain.certificate, paddings=()))
    ragged = [*SAMPLES[:5], Sample("w20", " w21")]
    for change in ({"effort_weight": 1.0}, {"kl_weight": 1.0}, {"label_smoothing": 0.1}):
        refused(InputError, "in one batch wrongly", hl.fine_tune, unproved, ragged, replace(TINY, **change))


def test_base_values_of_something_else_or_damaged_are_refused(plain: Model, tmp_path: Path) -> None:
    recipe, folder = replace(TINY, effort_weight=1.0), tmp_path / "values"
    examples = prepare_examples(plain, SAMPLES, recipe)
    kept = keep_base_values(plain, examples, recipe, folder)
    read = keep_base_values(plain, examples, recipe, folder)
    assert np.array_equal(kept.effort, read.effort, equal_nan=True) and kept.undefined == read.undefined
    deeper = replace(recipe, focal_depth=1)
    refused(ArtefactError, "other base values .*focal_depth is 2, here 1", keep_base_values, plain, examples, deeper, folder)
    fewer = prepare_examples(plain, SAMPLES[:5], recipe)
    refused(ArtefactError, "other base values .*examples is", keep_base_values, plain, fewer, recipe, folder)
    other = replace(plain, fingerprint="another")
    refused(ArtefactError, "other base values .*model is .* here another", keep_base_values, other, examples, recipe, folder)
    table = pq.read_table(folder / "effort.parquet")
    pq.write_table(table.slice(1), folder / "effort.parquet")
    refused(ArtefactError, "is damaged: its tokens are not those", keep_base_values, plain, examples, recipe, folder)
    (folder / "effort.parquet").write_bytes(b"PAR1")
    refused(ArtefactError, "cannot be read", keep_base_values, plain, examples, recipe, folder)


def test_nothing_of_another_training_or_of_others_is_written_over(plain: Model, tmp_path: Path) -> None:
    out, one = tmp_path / "out", replace(TINY, steps=2)
    hl.fine_tune(plain, SAMPLES, one, out)
    two = replace(one, rate=0.01)
    refused(ArtefactError, "holds another fine-tuning .*rate is 0.02, here 0.01", hl.fine_tune, plain, SAMPLES, two, out)
    shutil.rmtree(out)
    refused(InputError, "checkpoint of another fine-tuning", hl.fine_tune, plain, SAMPLES, two, out)
    assert hl.fine_tune(plain, SAMPLES, two, out, resume=False).log
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    refused(ArtefactError, "holds no fine-tuning of HyperLens", hl.fine_tune, plain, SAMPLES, two, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_its_checkpoints(plain: Model, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
            if state.global_step == 3:
                with torch.no_grad():
                    next(model.parameters()).fill_(math.nan)

    refused(InputError, "the loss is nan at step 4", hl.fine_tune, plain, SAMPLES, FULL, tmp_path / "out", [Break()])
    assert (tmp_path / "out.checkpoint" / "checkpoint-2").is_dir() and not (tmp_path / "out").exists()
    assert hl.fine_tune(plain, SAMPLES, FULL, tmp_path / "out").log[-1]["step"] == 4


def test_an_adapter_is_not_trained_on_an_adapter(plain: Model) -> None:
    tuned = hl.fine_tune(plain, SAMPLES, replace(TINY, steps=1))
    adapted = hl.load_model(tuned.network, plain.tokenizer)
    refused(InputError, "has an adapter at work", hl.fine_tune, adapted, SAMPLES, TINY)


def test_what_is_missing_is_named_with_its_extra(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    refused(ModelError, r"pip install 'hyperlens\[finetune\]'", hl.fine_tune, plain, SAMPLES, TINY)


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_adapter(saved: Path, plain: Model, tmp_path: Path) -> None:
    recipe, samples = replace(TINY, effort_weight=1.0), likely(plain)
    code = f"""
import os, signal
import hyperlens as hl
from hyperlens import FineTuneRecipe, Sample
def kill(row):
    if row["step"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
hl.fine_tune(hl.load_model({str(saved)!r}), {samples!r}, {recipe!r}, "killed", report=kill)
"""
    child = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert (tmp_path / "killed.checkpoint" / "checkpoint-2").is_dir() and not (tmp_path / "killed").exists()
    whole = hl.fine_tune(plain, samples, recipe, tmp_path / "whole")
    again = hl.fine_tune(plain, samples, recipe, tmp_path / "killed")
    assert same(weights(whole.network), weights(again.network)) and again.log == whole.log
    name = "adapter_model.safetensors"
    assert hash_file(tmp_path / "whole" / name) == hash_file(tmp_path / "killed" / name)
