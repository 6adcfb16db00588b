"""Fine-tuning: its recipe, what is learned of examples, and its loss."""

from __future__ import annotations

import copy
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuned import FULL, SAMPLES, TINY, likely, refused, same, weights
from loading import needs

import hyperlens as hl
from hyperlens.errors import HyperLensWarning, InputError
from hyperlens.models import Model
from hyperlens.models.quiet import quiet
from hyperlens.tasks import Sample
from hyperlens.training.finetuning.base_values import keep_base_values, measure_base
from hyperlens.training.finetuning.examples import LEFT_OUT, prepare_examples
from hyperlens.training.finetuning.files import read_examples
from hyperlens.training.finetuning.recipe import FineTuneRecipe

pytestmark = [needs("trl"), needs("peft")]


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
