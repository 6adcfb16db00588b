"""The training of a tuned lens: what it learns, what it keeps, and where it stops."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import make_call
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentences import is_one_sentence

import hyperlens as hl
from hyperlens.errors import ArtefactError, InputError
from hyperlens.lenses import Translators
from hyperlens.training import tuning
from hyperlens.training.checkpoints import LOG, NAME
from hyperlens.training.distillation import distil_batch
from hyperlens.training.lens_recipe import LensRecipe
from hyperlens.training.texts import Corpus, cut_text, divide_texts, generate_source
from hyperlens.training.tuning import train_translators, tune_lens

TINY = LensRecipe("adamw", 0.003, steps=6, step_tokens=60, warmup=2, evaluate_every=2)
TEXTS = [f"w{number % 50} w{number % 37} w{number % 23} w{number % 11} w{number}" for number in range(10, 60)]


def corpus_of(model, texts=TEXTS, length=16):
    return divide_texts([cut_text(model, text, length, "text") for text in texts], 0.2, 1000, 0)


def curve(rows):
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


def same(one, other):
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


STOPPED = (
    TINY,
    replace(TINY, optimiser="muon", rate=0.01),
    replace(TINY, bias=False, focal_depth=2),
    replace(TINY, autocast="bfloat16"),
)


@pytest.mark.parametrize("recipe", STOPPED)
def test_a_stopped_training_goes_on_to_the_same_lens_and_curve_bit_for_bit(plain, tmp_path, recipe):
    corpus, resumed = corpus_of(plain), []
    whole = train_translators(plain, corpus, recipe, tmp_path / "whole")

    def stop(row):
        resumed.append(row)
        if row["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_translators(plain, corpus, recipe, tmp_path / "stopped", stop)
    again = train_translators(plain, corpus, recipe, tmp_path / "stopped", resumed.append)
    assert same(whole.lens.translators, again.lens.translators)
    assert [row["step"] for row in resumed] == [0, 2, 4, 6]
    assert curve(whole.curve) == curve(again.curve) == curve(resumed)
    kept = [json.loads(line) for line in (tmp_path / "stopped" / LOG).read_text().splitlines()]
    assert curve(kept) == curve(whole.curve)
    finished = load_file(tmp_path / "stopped" / NAME), load_file(tmp_path / "whole" / NAME)
    assert all(torch.equal(tensor, finished[1][name]) for name, tensor in finished[0].items())


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_lens_bit_for_bit(saved, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    text = ["--text", str(tmp_path / "text.jsonl")]
    words = [*text, "--length", "16", "--steps", "6", "--step-tokens", "60", "--evaluate-every", "2"]
    command = f"""
import os, signal, sys
from hyperlens import terminal
from hyperlens.cli import main
show = terminal.show_lens_training
def kill(console, row, steps):
    show(console, row, steps)
    if row["step"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
terminal.show_lens_training = kill
sys.argv = ["hyperlens", "tune-lens", {str(saved)!r}, *{words!r}, "--out", {str(tmp_path / "killed")!r}]
main()"""
    child = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (-signal.SIGKILL, "") and not (tmp_path / "killed").exists()
    call = make_call(capsys, monkeypatch, "tune-lens", str(saved), *words)
    status, told, _ = call("--out", tmp_path / "killed")
    assert status == 0 and "step 6 of 6" in told and "step 4 of 6" not in told
    assert call("--out", tmp_path / "whole")[0] == 0
    one, other = (hl.load_lens(tmp_path / name) for name in ("killed", "whole"))
    assert one.fingerprint == other.fingerprint


def test_without_a_step_in_the_right_direction_the_lens_is_the_logit_lens(plain):
    blown = train_translators(plain, corpus_of(plain), replace(TINY, rate=1000.0, steps=2, clip=1e9))
    assert all(after > before for before, after in zip(blown.logit, blown.curve[-1]["validation"], strict=True))
    assert not blown.lens.translators.weight.any() and not blown.lens.translators.bias.any()
    assert blown.tuned == blown.logit
    logit = hl.trace(plain, TEXTS[:3], hl.LogitLens(), "all", readings=["kl_to_output"])
    tuned = hl.trace(plain, TEXTS[:3], blown.lens, "all", readings=["kl_to_output"])
    assert (logit.to_numpy("kl_to_output") == tuned.to_numpy("kl_to_output")).all()


def test_the_curve_begins_with_the_kl_of_the_logit_lens(plain):
    corpus = corpus_of(plain)
    found = train_translators(plain, corpus, replace(TINY, steps=1)).logit
    read = hl.trace(plain, [list(chunk) for chunk in corpus.validation], hl.LogitLens(), "all", readings=["kl_to_output"])
    assert read.to_numpy("kl_to_output")[:, 0, :-1].mean(0) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("focal_depth", [0, 2])
def test_a_gradient_that_is_accumulated_is_that_of_one_large_batch(plain, focal_depth):
    recipe = replace(TINY, focal_depth=focal_depth)
    ways = [tuning._prepare(plain, corpus_of(plain), recipe, None, hl.Limits(batch_tokens=tokens)) for tokens in (16, 4096)]
    chunks = ways[0].corpus.draw(0, 60, 0)
    counts = [len(list(tuning._batch(plain, chunks, focal_depth, way.limits))) for way in ways]
    assert counts[0] > counts[1] == 1
    losses = [way._measure(chunks, learn=True) for way in ways]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-7)
    for name in ("weight", "bias"):
        torch.testing.assert_close(*(getattr(way.translators, name).grad for way in ways), rtol=1e-4, atol=1e-6)


def test_padding_is_never_read(plain):
    recipe = replace(TINY, validation_share=0.3)
    training = tuning._prepare(plain, corpus_of(plain), recipe, None, hl.Limits())
    chunks = [training.corpus.training[0], training.corpus.training[1][:2]]
    apart = [training._measure([chunk], learn=False) * len(chunk) for chunk in chunks]
    together = training._measure(chunks, learn=False) * sum(map(len, chunks))
    torch.testing.assert_close(together, sum(apart), rtol=1e-5, atol=1e-6)


def test_states_that_pass_no_translator_before_the_deepest_layers_keep_the_identity(plain):
    lens = train_translators(plain, corpus_of(plain), replace(TINY, focal_depth=2)).lens
    assert not lens.translators.weight[plain.layers - 2 :].any() and lens.translators.weight[: plain.layers - 2].any()
    assert lens.focal_depths == (2,) and lens.origin.focal_depth == 2


def test_the_clipping_of_one_state_leaves_the_others_as_they_are():
    translators = Translators.identity(3, 4)
    translators.weight.grad = torch.ones(3, 4, 4) * torch.tensor([0.01, 10.0, 0.1])[:, None, None]
    translators.bias.grad = torch.zeros(3, 4)
    lengths = tuning._clip(translators, 1.0)
    assert lengths.tolist() == pytest.approx([0.04, 40.0, 0.4])
    assert translators.weight.grad.flatten(1).norm(dim=1).tolist() == pytest.approx([0.04, 1.0, 0.4])


def test_a_model_in_bfloat16_is_tuned_with_translators_in_float32(saved):
    model = hl.load_model(saved, dtype="bfloat16")
    found = train_translators(model, corpus_of(model), replace(TINY, steps=20, rate=0.01, evaluate_every=10))
    assert found.lens.translators.weight.dtype == torch.float32
    assert sum(found.tuned) < sum(found.logit)


def test_the_model_is_left_as_it_was(plain):
    before = {name: value.clone() for name, value in plain.network.state_dict().items()}
    plain.network.train()
    train_translators(plain, corpus_of(plain), TINY)
    assert plain.network.training and all(parameter.grad is None for parameter in plain.network.parameters())
    plain.network.eval()
    assert all(torch.equal(value, before[name]) for name, value in plain.network.state_dict().items())


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_rate_rises_to_its_highest_and_falls_to_zero(decay):
    recipe = LensRecipe(steps=100, warmup=10, decay=decay)
    rates = [recipe.scale_rate(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[-1] < 0.02
    assert LensRecipe(steps=3, warmup=10).scale_rate(2) == pytest.approx(0.3)


def test_a_training_ends_early_once_the_validation_does_not_get_better(plain):
    rows = []
    recipe = replace(TINY, rate=1000.0, steps=100, clip=1e9, evaluate_every=1, patience=3)
    train_translators(plain, corpus_of(plain), recipe, report=rows.append)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]


def test_one_long_text_and_a_folder_by_its_name_are_enough(plain, tmp_path):
    text = " ".join(TEXTS)
    lens = tune_lens(plain, text, TINY, 16, str(tmp_path / "kept"))
    assert (tmp_path / "kept" / NAME).exists() and same(lens.translators, tune_lens(plain, [text], TINY, 16).translators)
    assert lens.origin.dtype == "float32"


def test_what_validates_is_never_seen_in_a_step(plain, monkeypatch):
    seen, corpus = [], corpus_of(plain)

    def watch(splice, translators, inputs, probes, focal_depth, limits, share):
        if share is not None:
            seen.extend(
                tuple(row[: int(probes.positions[probes.rows == number].max()) + 1].tolist())
                for number, row in enumerate(inputs.ids)
            )
        return distil_batch(splice, translators, inputs, probes, focal_depth, limits, share)

    monkeypatch.setattr(tuning, "distil_batch", watch)
    train_translators(plain, corpus, replace(TINY, steps=20))
    assert set(seen) == set(corpus.training) and not set(seen) & set(corpus.validation)


def test_what_is_saved_says_how_it_was_trained_and_reads_the_model(plain, tmp_path):
    found = train_translators(plain, corpus_of(plain), TINY)
    hl.save_lens(found.lens, tmp_path / "lens", found.describe([{"kind": "file", "name": "mine.txt"}]))
    training = json.loads((tmp_path / "lens" / "manifest.json").read_text())["training"]
    assert training["recipe"]["optimiser"] == "adamw" and training["recipe"]["rate"] == 0.003
    assert training["text"]["sources"][0]["name"] == "mine.txt" and training["text"]["training"]["tokens"] > 60
    assert training["kl_to_output"]["logit"] == found.logit and training["kl_to_output"]["tuned"] == found.tuned
    assert [row["step"] for row in training["curve"]] == [0, 2, 4, 6]
    assert hl.load_lens(tmp_path / "lens").fit_to(plain).origin.fingerprint == plain.fingerprint


def test_a_checkpoint_of_another_training_is_refused_with_what_differs(plain, tmp_path):
    corpus = corpus_of(plain)
    train_translators(plain, corpus, TINY, tmp_path)
    train_translators(plain, corpus, replace(TINY, rate=0.003), tmp_path)
    with pytest.raises(InputError, match=r"another recipe \(steps is 6, here 7\); choose another --checkpoint"):
        train_translators(plain, corpus, replace(TINY, steps=7), tmp_path)
    with pytest.raises(InputError, match=r"another recipe \(text is [0-9a-f]{64}, here [0-9a-f]{64}\)"):
        train_translators(plain, Corpus(corpus.training[1:], corpus.validation), TINY, tmp_path)
    with pytest.raises(InputError, match=r"another recipe \(model is"):
        train_translators(replace(plain, fingerprint="0" * 64), corpus, TINY, tmp_path)
    lens = hl.save_lens(train_translators(plain, corpus, TINY).lens, tmp_path / "lens")
    with pytest.raises(ArtefactError, match=r"holds results of HyperLens, not a checkpoint; choose another --checkpoint"):
        train_translators(plain, corpus, TINY, lens)
    (tmp_path / NAME).write_bytes(b"none")
    with pytest.raises(ArtefactError, match=r"cannot be read .*remove it to begin anew"):
        train_translators(plain, corpus, TINY, tmp_path)


@pytest.mark.parametrize("recipe", [TINY, replace(TINY, optimiser="muon", rate=0.01)])
def test_a_checkpoint_whose_tensors_are_missing_or_of_another_shape_is_refused(plain, tmp_path, recipe):
    corpus = corpus_of(plain)
    train_translators(plain, corpus, recipe, tmp_path)
    whole = load_file(tmp_path / NAME)
    with safe_open(tmp_path / NAME, "pt") as opened:
        about = opened.metadata()
    names = [
        "tensor/best/weight",
        "tensor/last/bias",
        *(name for name in whole if name.endswith(("exp_avg", "momentum_buffer"))),
    ]
    for name in names:
        rest = {other: tensor for other, tensor in whole.items() if not other.startswith(name.rpartition("/")[0])}
        for changed in (rest, {**whole, name: whole[name][:1]}):
            save_file(changed, tmp_path / NAME, about)
            with pytest.raises(ArtefactError, match=r"is damaged: it has .* as .*; remove it to begin anew") as caught:
                train_translators(plain, corpus, recipe, tmp_path)
            assert is_one_sentence(str(caught.value))


def test_before_the_first_step_only_the_model_can_be_to_blame(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "distil_batch", lambda *given: torch.full((6,), math.nan))
    for folder, kept in (
        (None, "no checkpoint was asked for"),
        (tmp_path / "run", f"nothing was written to {tmp_path / 'run'} yet"),
    ):
        with pytest.raises(InputError, match=re.escape(kept)) as caught:
            train_translators(plain, corpus_of(plain), TINY, folder)
        assert str(caught.value).endswith(": load the model in a wider --dtype") and is_one_sentence(str(caught.value))


def test_the_lens_of_another_training_is_not_replaced(plain, tmp_path):
    corpus = corpus_of(plain)
    found = train_translators(plain, corpus, TINY)
    folder = hl.save_lens(found.lens, tmp_path / "lens", found.describe())
    tuning.check_lens(folder, plain, corpus, TINY)
    tuning.check_lens(tmp_path / "none", plain, corpus, TINY)
    for recipe, model, said in (
        (replace(TINY, seed=3), plain, r"\(seed is 0, here 3\)"),
        (TINY, replace(plain, fingerprint="0" * 64), r"\(model is"),
    ):
        with pytest.raises(ArtefactError, match=f"lens of another recipe {said}.*choose another --out, or remove it") as caught:
            tuning.check_lens(folder, model, corpus, recipe)
        assert is_one_sentence(str(caught.value))
    hl.save_lens(found.lens, folder)
    with pytest.raises(ArtefactError, match="how it was trained is not known"):
        tuning.check_lens(folder, plain, corpus, TINY)


@pytest.mark.parametrize("broken", ["loss", "gradient", "validation"])
def test_a_loss_that_is_not_finite_stops_with_state_and_step_and_keeps_the_last_checkpoint(
    plain, tmp_path, monkeypatch, broken
):
    corpus, calls = corpus_of(plain), []

    def spoil(splice, translators, inputs, probes, focal_depth, limits, share):
        found = distil_batch(splice, translators, inputs, probes, focal_depth, limits, share)
        calls.append(share)
        if (share is None) == (broken == "validation") and translators.weight.any() and len(calls) > 6:
            (translators.weight.grad if broken == "gradient" else found)[3] = math.nan
        return found

    monkeypatch.setattr(tuning, "distil_batch", spoil)
    with pytest.raises(InputError) as caught:
        train_translators(plain, corpus, replace(TINY, steps=20), tmp_path / "run")
    message = str(caught.value)
    assert is_one_sentence(message) and "the loss of state 3 is not finite" in message and "step" in message
    kept = json.loads((tmp_path / "run" / LOG).read_text().splitlines()[-1])["step"]
    assert f"the checkpoint of step {kept} in {tmp_path / 'run'} is kept" in message
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / NAME).values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimiser": "sgd"}, '"sgd" is not an optimiser; choose from muon, adamw'),
        ({"decay": "steps"}, '"steps" is not a way for the rate to fall; choose from linear, cosine'),
        ({"autocast": "half"}, '"half" is not a precision for autocast; give bfloat16, or leave it away'),
        ({"steps": 0}, "steps is 0; give a number from 1 up"),
        ({"steps": True}, "steps is True; give a whole number"),
        ({"step_tokens": 0}, "step_tokens is 0"),
        ({"rate": -1.0}, "rate is -1.0; give a number above 0"),
        ({"clip": math.nan}, "clip is nan"),
        ({"warmup": -1}, "warmup is -1; give a number from 0 up"),
        ({"validation_share": 1.0}, "the validation share is 1.0; give a number between 0 and 1"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(changes, said):
    with pytest.raises(InputError) as caught:
        LensRecipe(**changes)
    assert said in str(caught.value) and is_one_sentence(str(caught.value))


def test_text_that_is_too_short_and_depths_that_are_too_deep_are_refused(plain):
    with pytest.raises(
        InputError, match=r"has \d+ tokens to train on \(and \d+ held out to validate\), less than one step of 4096"
    ):
        tune_lens(plain, TEXTS, LensRecipe())
    with pytest.raises(InputError, match=r"1 different text of \d+ tokens together cannot be divided"):
        tune_lens(plain, [TEXTS[0]] * 3, TINY)
    with pytest.raises(InputError, match=r"focal depth 6 leaves no state to train for"):
        tune_lens(plain, TEXTS, replace(TINY, focal_depth=6))
    with pytest.raises(InputError, match=r"chunks of 1 tokens cannot be trained on"):
        tune_lens(plain, TEXTS, TINY, length=1)


def test_the_command_trains_on_all_kinds_of_text_and_shows_each_state(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    follow = make_call(capsys, monkeypatch, "tune-lens", str(saved))
    (tmp_path / "text.txt").write_text(" ".join(TEXTS))
    words = ["--text", "text.txt", "--length", "16", "--steps", "4", "--step-tokens", "60", "--evaluate-every", "2"]
    status, told, wrong = follow(*words, "--out", "lens", "--json")
    assert (status, wrong) == (0, "")
    *rows, last = map(json.loads, told.splitlines())
    assert [row["step"] for row in rows] == [0, 2, 4] and Path(last["lens"]) == tmp_path / "lens"
    assert len(last["logit"]) == len(last["tuned"]) == 6
    status, told, _ = follow(*words, "--out", "lens")
    assert (
        status == 0 and "step" not in told.partition("KL from")[0] and "tuned lens" in told and rows[0]["seconds_left"] is None
    )
    status, _, wrong = follow(*words, "--out", "lens", "--seed", "3", "--checkpoint", "new")
    assert status == 2 and "lens of another recipe (seed is 0, here 3" in wrong and "choose another --out" in wrong
    for folder, said in (("lens", "--checkpoint and --out are both"), ("./other/../lens", "--checkpoint and --out are both")):
        assert said in follow(*words, "--out", "lens", "--checkpoint", folder)[2]
    wrong = follow(*words, "--out", "second", "--checkpoint", "lens")[2]
    assert "holds results of HyperLens, not a checkpoint; choose another --checkpoint" in wrong
    status, _, wrong = follow(*words, "--out", "lens", "--seed", "3")
    assert status == 2 and "another recipe" in wrong and "seed is 0, here 3" in wrong
    assert follow("--out", "other")[2].startswith("hyperlens: there is no text to train on; give --text")


def drop(model, corpus, recipe):
    """What the training left of each state's KL, on texts that it did not see."""
    found = train_translators(model, corpus, recipe, limits=hl.Limits(1024))
    return [after / before for before, after in zip(found.logit, found.curve[-1]["validation"], strict=True)]


@pytest.fixture(scope="module")
def told(stories):
    """A story model, and what it wrote itself."""
    model = hl.load_model(stories)
    return model, divide_texts(generate_source(model, 64, 128, 0).texts, 0.1, 1024, 0)


@pytest.mark.slow
@pytest.mark.parametrize("focal_depth", [0, 2])
def test_every_state_of_a_story_model_is_read_better_on_held_out_text(told, focal_depth):
    model, corpus = told
    recipe = LensRecipe(steps=40, step_tokens=1024, warmup=5, focal_depth=focal_depth, evaluate_every=40)
    left = drop(model, corpus, recipe)
    assert len(left) == model.layers - focal_depth and max(left) < 1


@pytest.mark.slow
def test_the_shipped_lens_reads_every_state_better_than_the_logit_lens_on_held_out_questions(reference):
    from reference_lens import ask_unseen

    lens = hl.load_lens("reference").fit_to(reference)
    questions = [sample.prompt + sample.target for sample in ask_unseen(6, 99)]
    kl = [
        hl.trace(reference, questions, one, "all", readings=["kl_to_output"]).to_numpy("kl_to_output")[:, 0, :-1].mean(0)
        for one in (hl.LogitLens(), lens)
    ]
    assert (kl[1] < kl[0]).all()


def test_the_shipped_lens_is_that_of_the_shipped_model_and_small(reference):
    from hyperlens.lenses.tuned import LENS_FOLDER

    manifest = json.loads((LENS_FOLDER / "manifest.json").read_text())
    assert sum(file.stat().st_size for file in LENS_FOLDER.iterdir()) < 2 * 2**20
    tuned, logit = (manifest["training"]["kl_to_output"][name] for name in ("tuned", "logit"))
    assert manifest["origin"]["fingerprint"] == reference.fingerprint
    assert all(after < before for before, after in zip(logit, tuned, strict=True))
