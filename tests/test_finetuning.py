from __future__ import annotations

import copy
import io
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from commands import make_call
from families import build_family, build_tokenizer
from loading import needs
from rich.console import Console
from sentences import is_one_sentence

import hyperlens as hl
from hyperlens.artefact import hash_file
from hyperlens.errors import ArtefactError, HyperLensWarning, InputError, ModelError
from hyperlens.models import Model
from hyperlens.models.fingerprint import fingerprint_model
from hyperlens.models.quiet import quiet
from hyperlens.tasks import Sample
from hyperlens.terminal import show_fine_tuned
from hyperlens.terminal.finetuning import Asked
from hyperlens.training.finetuning.base_values import BaseValues, check_known, keep_base_values, measure_base
from hyperlens.training.finetuning.examples import LEFT_OUT, prepare_examples
from hyperlens.training.finetuning.files import read_examples
from hyperlens.training.finetuning.keeping import _find_last
from hyperlens.training.finetuning.recipe import FineTuneRecipe

pytestmark = [needs("trl"), needs("peft")]

SAMPLES = [Sample(f"w{20 + n} w{30 + n % 7} w{40 - n}", f" w{50 + n % 5} w{60 + n % 3}", task="own") for n in range(12)]
TINY = FineTuneRecipe(rate=0.02, steps=4, batch=4, save_every=2, log_every=2)
FULL = replace(TINY, method="full", rate=0.003)


def weights(network: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def refused(kind: type[Exception], words: str, call: Any, *given: Any, **options: Any) -> None:
    with pytest.raises(kind, match=words) as caught:
        call(*given, **options)
    assert is_one_sentence(str(caught.value)), str(caught.value)


def losses(
    model: Model, recipe: FineTuneRecipe, tmp: Path, samples: list[Sample] = SAMPLES
) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """A trainer, and the gradient and the loss of its first batch."""
    from hyperlens.splice import Splice
    from hyperlens.training.finetuning.loop import tabulate
    from hyperlens.training.finetuning.trainer import EffortTrainer, make_config

    examples = prepare_examples(model, samples[:4], recipe)
    base = keep_base_values(model, examples, recipe, None) if recipe.effort_weight else None
    network = copy.deepcopy(model.network).requires_grad_(True)
    with quiet():
        trainer = EffortTrainer(
            network,
            model,
            Splice(network),
            recipe,
            args=make_config(recipe, str(tmp), False, model.splice.device),
            train_dataset=tabulate(examples, base),
            processing_class=model.tokenizer,
        )
        if recipe.gradient_checkpointing:
            network.activation_checkpointing_enable()
        network.train()
        batch = next(iter(trainer.get_train_dataloader()))
        loss = trainer.compute_loss(network, batch)
        loss.backward()
    gradient = {name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None}
    return trainer, gradient, loss.detach()


def noted(trainer: Any) -> dict[str, float]:
    return {name: total / count for name, (total, count) in trainer.sums.items()}


# --- the recipe and the examples


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("effort_weight is -1.0; give a number from 0 up", {"effort_weight": -1.0}),
        ('"dora" is no method', {"method": "dora"}),
        ('"hold" is no aim; choose from keep, raise, lower', {"aim": "hold"}),
        ("batch is True; give a whole number", {"batch": True}),
        ("steps is 0; give a number from 1 up", {"steps": 0}),
        ("rate is nan; give a number above 0", {"rate": math.nan}),
        ("label_smoothing is 1.0; give a share", {"label_smoothing": 1.0}),
        ("a step of 16 examples has no 3 equal parts", {"accumulation": 3}),
        ("to keep Ω there is none", {"shift": 0.1}),
        ("the seed is 4294967296; give a whole number", {"seed": 2**32}),
        ("shift is 2.0; give a number from 0 to 1", {"shift": 2.0, "aim": "raise"}),
    ],
)
def test_a_recipe_that_none_could_follow_is_refused(words: str, change: dict[str, Any]) -> None:
    refused(InputError, words, replace, FineTuneRecipe(), **change)


def test_what_is_learned_is_what_a_trace_reads_and_then_the_end(plain: Model) -> None:
    rows = prepare_examples(plain, SAMPLES, TINY).rows
    trajectory = hl.trace(plain, SAMPLES, hl.LogitLens(), "answer", "target")
    traced = trajectory.data["reference_id"].values if "reference_id" in trajectory.data else trajectory.data["token_id"].values
    assert [row.ids[place] for row in rows for place in row.measured] == list(traced)
    for row in rows:
        assert row.labels[: row.first] == [LEFT_OUT] * row.first
        assert row.labels[row.first :] == list(row.ids[row.first :])
        assert row.ids[-1] == plain.tokenizer.eos_token_id and len(row.ids) - 1 not in row.measured
    bare = prepare_examples(plain, SAMPLES, replace(TINY, end=False)).rows
    assert [row.ids for row in bare] == [row.ids[:-1] for row in rows]


def test_a_chat_is_learned_in_its_template_up_to_the_end_of_the_turn(plain: Model) -> None:
    tokenizer = copy.deepcopy(plain.tokenizer)
    turns = "{% for turn in messages %}{{ 'w11 ' + turn.content + ' w12 ' }}{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}w13 {% endif %}"
    model = replace(plain, tokenizer=tokenizer)
    row = prepare_examples(model, [Sample("w20", "w21", shots=(("w22", "w23"),), chat=True)], TINY).rows[0]
    assert tokenizer.decode(row.ids) == "w11 w22 w12 w11 w23 w12 w11 w20 w12 w13 w21 w12"
    assert tokenizer.decode(row.ids[row.first :]) == "w21 w12"


def test_samples_that_cannot_be_learned_are_refused_before_anything_is_trained(plain: Model) -> None:
    without = [*SAMPLES[:3], Sample("w20 w21"), Sample("w22", "")]
    refused(InputError, r"2 of 5 samples have no target \(first: text 4\)", prepare_examples, plain, without, TINY)
    refused(InputError, "there is nothing to train on", prepare_examples, plain, [], TINY)
    long = [*SAMPLES[:2], Sample("w20 " * 500, " w21")]
    refused(InputError, r"1 of 3 samples do not fit into the context of .*first: text 3", prepare_examples, plain, long, TINY)
    short = replace(TINY, length=5)
    refused(
        InputError,
        r"12 of 12 samples do not fit into the length that was given, 5 tok",
        prepare_examples,
        plain,
        SAMPLES,
        short,
    )
    refused(InputError, "came without a tokenizer", hl.fine_tune, replace(plain, tokenizer=None), SAMPLES, TINY)
    deep = replace(TINY, effort_weight=1.0, focal_depth=99)
    refused(InputError, "focal depth 99 leaves no state", hl.fine_tune, plain, SAMPLES, deep)
    texts = (text for text in ["a", "b"])
    refused(InputError, r"text 1 is of type str; give hl.Sample\(prompt, target\)", hl.fine_tune, plain, texts, TINY)
    nowhere = replace(TINY, lora_targets="nowhere")
    refused(InputError, "takes no such adapter", hl.fine_tune, plain, SAMPLES, nowhere)


def test_files_of_rows_and_of_chats_give_the_same_samples_in_every_format(tmp_path: Path) -> None:
    rows = [{"prompt": "w1 w2", "target": " w3"}, {"prompt": "w4", "target": " w5"}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.json").write_text(json.dumps(rows))
    (tmp_path / "own.csv").write_text("prompt,target\nw1 w2, w3\nw4, w5\n")
    read = [read_examples(tmp_path / f"own.{kind}") for kind in ("jsonl", "json", "csv")]
    assert read[0] == read[1] == read[2]
    assert [(one.prompt, one.target, one.task) for one in read[0]] == [("w1 w2", " w3", "own"), ("w4", " w5", "own")]
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "a b c d".split(), strict=True)]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}))
    assert read_examples(tmp_path / "chat.jsonl") == [
        Sample("c", "d", shots=(("a", "b"),), chat=True, task="chat", id="chat/1")
    ]
    (tmp_path / "bad.jsonl").write_text(json.dumps({"messages": turns[:3]}))
    refused(InputError, "row 1 of .* has messages by user, assistant, user; expected", read_examples, tmp_path / "bad.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    refused(InputError, "holds no examples", read_examples, tmp_path / "empty.jsonl")
    (tmp_path / "hole.jsonl").write_text('{"prompt": " ", "target": "w"}\n')
    refused(InputError, r"1 of 1 rows cannot be learned .* is without a prompt", read_examples, tmp_path / "hole.jsonl")


# --- the loss


def test_without_terms_it_is_the_plain_trainer_bit_for_bit(plain: Model, tmp_path: Path) -> None:
    from trl import SFTTrainer

    from hyperlens.training.finetuning.loop import tabulate
    from hyperlens.training.finetuning.trainer import Collator, make_config

    ours = hl.fine_tune(plain, SAMPLES, FULL)
    network = copy.deepcopy(plain.network)
    with quiet():
        theirs = SFTTrainer(
            network,
            args=make_config(FULL, str(tmp_path), False, plain.splice.device),
            train_dataset=tabulate(prepare_examples(plain, SAMPLES, FULL), None),
            data_collator=Collator(plain.splice.filler),
            processing_class=plain.tokenizer,
        )
        theirs.train()
    assert same(weights(ours.network), weights(network))
    assert not same(weights(ours.network), weights(plain.network))


def test_the_terms_are_what_their_formulas_say(plain: Model, tmp_path: Path) -> None:
    examples, rng = prepare_examples(plain, SAMPLES[:4], FULL), torch.Generator().manual_seed(0)
    _, _, nll = losses(plain, FULL, tmp_path)
    other = copy.deepcopy(plain.network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    base = hl.load_model(other, plain.tokenizer)
    log_p, log_q, learned = [], [], []
    for row in examples.rows:
        for network, kept in ((plain.network, log_p), (other, log_q)):
            with torch.no_grad():
                kept.append(network(torch.tensor([row.ids])).logits[0, row.first - 1 : -1].log_softmax(-1))
        learned += row.ids[row.first :]
    p, q = torch.cat(log_p), torch.cat(log_q)
    assert torch.allclose(nll, -p[range(len(p)), learned].mean(), atol=1e-6)
    smooth = losses(plain, replace(FULL, label_smoothing=0.2), tmp_path)[2]
    assert torch.allclose(smooth, 0.8 * nll + 0.2 * -p.mean(), atol=1e-5)
    trainer, _, loss = kl_of(plain, base, replace(FULL, kl_weight=0.5), tmp_path)
    kl = (q.exp() * (q - p)).sum(-1).mean()
    assert torch.allclose(loss, nll + 0.5 * kl, atol=1e-5) and kl > 0.01
    assert noted(trainer)["kl"] == pytest.approx(kl.item(), abs=1e-5)
    assert torch.allclose(losses(plain, replace(FULL, kl_weight=0.5), tmp_path)[2], nll, atol=1e-6)  # from itself


def kl_of(model: Model, base: Model, recipe: FineTuneRecipe, tmp: Path) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    trainer, *_ = losses(model, recipe, tmp)
    trainer.base = base
    trainer.sums.clear()
    with quiet():
        loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    return trainer, {}, loss.detach()


def likely(model: Model) -> list[Sample]:
    """Prompts with the answers that the model itself is sure enough of for them to have an effort."""
    answers = []
    for sample in SAMPLES:
        ids = model.tokenizer(sample.prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            token = model.network(ids).logits[0, -1, 11:].argmax() + 11
        answers.append(replace(sample, target=f" {model.tokenizer.convert_ids_to_tokens(int(token))}"))
    return answers


def test_effort_is_kept_raised_or_lowered_as_was_asked(plain: Model) -> None:
    samples, found = likely(plain), {}
    for aim, weight, shift in (("keep", 0.0, 0.0), ("raise", 20.0, 0.5), ("lower", 20.0, 0.5)):
        recipe = replace(FULL, steps=6, effort_weight=weight, aim=aim, shift=shift, end=False, focal_depth=1)
        tuned = hl.fine_tune(plain, samples, recipe)
        measured = measure_base(hl.load_model(tuned.network, plain.tokenizer), prepare_examples(plain, samples, recipe), recipe)
        found[aim] = np.nanmean(measured)
        if weight:
            assert tuned.base is not None and np.isfinite(tuned.base.effort).any()
            assert {"effort/term", "effort/mean", "effort/base"} <= tuned.log[0].keys()
    assert found["lower"] < found["keep"] < found["raise"]


def test_the_term_begins_at_nothing_where_effort_is_to_be_kept(plain: Model, tmp_path: Path) -> None:
    samples = likely(plain)
    trainer, _, loss = losses(plain, replace(FULL, effort_weight=5.0), tmp_path, samples)
    means = noted(trainer)
    assert means["effort/term"] == pytest.approx(0.0, abs=1e-6)
    assert means["effort/mean"] == pytest.approx(means["effort/base"])  # some token has an effort
    assert torch.allclose(loss, losses(plain, FULL, tmp_path, samples)[2], atol=1e-5)


def test_gradient_checkpointing_and_accumulation_change_nothing_but_memory(plain: Model, tmp_path: Path) -> None:
    recipe = replace(FULL, effort_weight=3.0, aim="raise", shift=0.5, kl_weight=0.1, label_smoothing=0.1)
    samples = likely(plain)
    samples = [replace(one, target=one.target + " w33" * (number % 4)) for number, one in enumerate(samples)]
    trainer, gradient, _ = losses(plain, recipe, tmp_path, samples)
    assert noted(trainer)["effort/term"] > 0.01
    _, again, _ = losses(plain, replace(recipe, gradient_checkpointing=True), tmp_path, samples)
    assert all(torch.allclose(tensor, again[name], atol=1e-6) for name, tensor in gradient.items())
    recipe = replace(recipe, steps=2, log_every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HyperLensWarning)  # of the further tokens
        whole, parts = (hl.fine_tune(plain, samples, replace(recipe, accumulation=number)) for number in (1, 4))
    for one, other in zip(whole.log, parts.log, strict=True):
        for name in ("loss", "kl", "effort/term", "effort/mean", "effort/base"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    ours, theirs = weights(whole.network), weights(parts.network)
    moved = max((tensor - plain.network.get_parameter(name)).abs().max() for name, tensor in ours.items())
    assert max((tensor - theirs[name]).abs().max() for name, tensor in ours.items()) < 0.05 * moved


# --- what stays, what is kept, what goes on


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


def test_what_is_watched_of_a_task_is_not_trained_on_and_spread_evenly() -> None:
    from hyperlens.cli import finetuning

    trained = finetuning._draw("mathematics", 50, 0, False, 1, "")  # the seed of what is watched
    found = finetuning._find_probe("mathematics", trained, False, 0, "")
    known = {(one.prompt, one.target) for one in trained}
    assert len(found) == finetuning.WATCHED and not known & {(one.prompt, one.target) for one in found}
    levels = [sum(one.level == level for one in found) for level in {one.level for one in found}]
    assert len(levels) == len({one.level for one in trained}) and max(levels) <= 3 * min(levels)


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


def test_the_command_line_trains_watches_and_says_what_to_do_next(
    saved: Path, plain: Model, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(json.dumps({"prompt": one.prompt, "target": one.target}) + "\n" for one in likely(plain))
    (tmp_path / "own.jsonl").write_text(rows)
    call = make_call(capsys, monkeypatch, "finetune", str(saved), str(tmp_path / "own.jsonl"), "--out", str(tmp_path / "out"))
    options = "--steps 4 --batch 4 --log-every 2 --effort-weight 1 --focal-depth 1".split()
    status, shown, _ = call(*options, "--watch", tmp_path / "own.jsonl", "--watch-every", 2, "--watch-share", 1)
    assert status == 0
    lines = shown.splitlines()
    assert [line[:11] for line in lines if "loss" in line] == ["step 2 of 4", "step 4 of 4"]
    assert sum("watched: accuracy" in line for line in lines) == 3
    watched = [line.rpartition(": ")[2] for line in lines if "watched: accuracy" in line]
    assert watched == ["the base", "no change shown", "no change shown"]  # of 12 samples
    assert re.search(r"step 4 of 4  watched: accuracy [01]\.\d+ \([+−]?\d\.\d+\)  confidence .* \(.*\)  Ω .* \(.*\): no", shown)
    assert lines[-1].startswith("Next: hyperlens compare")
    assert lines[-1].endswith("/out --file HELD-OUT.jsonl --focal-depth 1")
    status, shown, _ = call(*options, "--json")
    result = json.loads(shown)
    assert status == 0 and result["found"] and result["examples"]["tasks"] == {"own": 12}
    for words, sentence in (
        (["--rate", "0.5"], "holds another fine-tuning"),
        (["--effort-weight=-1"], "effort_weight is -1.0; give a number from 0 up"),
        (["--stop", "blind confidence"], "give --watch FILE or TASK too"),
    ):
        status, shown, said = call(*options, *words)
        assert status == 2 and not shown and sentence in said and len(said.strip().splitlines()) == 1
    status, _, said = make_call(capsys, monkeypatch, "finetune", str(saved))("--out", tmp_path / "two")
    assert status == 2 and "there is nothing to train on" in said


def test_what_is_to_be_run_next_draws_other_samples_than_were_trained_on() -> None:
    console = Console(file=io.StringIO(), width=400)
    result = {
        "out": "tuned",
        "found": False,
        "recipe": {"seed": 7},
        "examples": {},
        "base": {"name": "reference"},
        "training": {"steps": 3, "planned": 4, "stopped": True},
    }
    options = {"options": ("--focal-depth", "1", "--chat"), "shots": ("--few-shot", "2")}
    show_fine_tuned(console, result, (), Asked(("mathematics", "gsm8k", "gsm8k"), files=True, **options))
    said = console.file.getvalue()
    next_seeds = "--task mathematics --task gsm8k --few-shot 2 --seed 9 --focal-depth 1 --chat\n"
    assert f"Next: hyperlens compare reference tuned {next_seeds}" in said
    assert "Next: hyperlens compare reference tuned --file HELD-OUT.jsonl --focal-depth 1 --chat\n" in said
    assert "rows of gsm8k that were trained on" in said and "after step 3 of 4" in said


def test_what_was_skipped_kept_and_stopped_is_said_at_the_end() -> None:
    console = Console(file=io.StringIO(), width=400)
    result = {"out": "tuned", "found": False, "recipe": {"seed": 7}, "examples": {}, "base": {"name": "reference"}}
    measured = {"effort/share": 0.01, "effort/seconds": 0.2, "confidence/probe": 0.5}
    rows = [{"step": 1, **measured}, {"step": 2, "effort/share": 0.01}, {"step": 3, **measured, "blind_confidence": 1.0}]
    stopped = {"training": {"steps": 3, "planned": 8, "stopped": True}}
    best = {"rule": "accuracy", "score": 0.5471, "step": 1}
    show_fine_tuned(console, result | stopped, rows, Asked(stop="lost accuracy"), best)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith('Stopped by the rule "lost accuracy" after step 3 of 8')
    assert lines[1].startswith("1 of 3 measurements were skipped for their cost")
    assert lines[2].startswith("At its last reading, after step 3, tuned shows blind confidence")
    assert lines[3:5] == ["Model: tuned", "Best (accuracy 0.547, step 1): tuned.checkpoint/best"]
    show_fine_tuned(console, result | stopped, [*rows, {"step": 4, **measured, "blind_confidence": 0.0}], Asked())
    assert console.file.getvalue().count("shows blind confidence") == 1


def test_an_interruption_says_from_which_step_the_same_command_goes_on(
    saved: Path, plain: Model, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperlens.cli import finetuning

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt

    rows = "".join(json.dumps({"prompt": one.prompt, "target": one.target}) + "\n" for one in SAMPLES)
    (tmp_path / "own.jsonl").write_text(rows)
    call = make_call(capsys, monkeypatch, "finetune", str(saved), str(tmp_path / "own.jsonl"), "--out", str(tmp_path / "out"))
    options = "--steps 5 --batch 4 --log-every 2 --save-every 3".split()
    monkeypatch.setattr(finetuning, "_report", lambda light, json: interrupt)
    status, _, said = call(*options)
    assert status == 130 and said.splitlines()[-1] == "hyperlens: stopped; the same command goes on from step 3"
    status, _, said = call(*options, "--anew")
    assert status == 130 and "with --resume for --anew, goes on from step 3" in said
    monkeypatch.setattr(finetuning, "_read", lambda *given: interrupt({"step": 4}))
    status, _, said = call(*options)
    assert status == 130 and said.splitlines()[-1] == "hyperlens: stopped; the same command goes on from here"


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
