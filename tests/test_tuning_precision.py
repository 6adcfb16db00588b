"""The training of a tuned lens with autocast: what is made in bfloat16, how near it is, and what stays as it was."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from commands import make_call
from families import LAYERS, VOCABULARY, build_family, random_ids
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentences import is_one_sentence
from test_distillation import all_probes, draw_translators, gradients
from test_tuning import TEXTS, TINY, corpus_of, curve, same
from torch.nn.functional import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode

import hyperlens as hl
from hyperlens.errors import InputError
from hyperlens.splice import Inputs, Splice, at_rest
from hyperlens.tracing import Limits
from hyperlens.training import tuning
from hyperlens.training.checkpoints import NAME
from hyperlens.training.distillation import autocasting, count_copies, distil_batch
from hyperlens.training.tuning import train_translators

CAST = replace(TINY, autocast="bfloat16")
NEAR = 0.02
"""How far a loss may be from that in float32, relative to it: bfloat16 keeps eight binary digits of each logit."""


class Products(TorchDispatchMode):
    """The precision of each matrix product that gives logits, and of each that does not."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.logits, self.others = vocabulary, set(), set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            (self.logits if made.shape[-1] == self.vocabulary else self.others).add(made.dtype)
        return made


def distil(network: Any, precision: str | None, focal_depth: int = 0, proved: bool = False) -> tuple[Any, torch.Tensor]:
    translators, inputs, splice = draw_translators(), Inputs(random_ids(3, 11)), Splice(network)
    splice.end_proved = proved
    with splice.lock, at_rest(network, gradients=True), autocasting(splice, precision):
        return translators, distil_batch(splice, translators, inputs, all_probes(inputs), focal_depth, Limits(), 1.0)


@pytest.mark.parametrize("focal_depth", [0, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere2", "opt"])
def test_loss_is_near_and_gradients_are_nearly_parallel_to_those_in_float32(family, focal_depth):
    network = build_family(family)
    (half, losses), (full, expected) = (distil(network, precision, focal_depth) for precision in ("bfloat16", None))
    assert not torch.equal(losses, expected)
    torch.testing.assert_close(losses, expected, rtol=NEAR, atol=1e-4)
    for mine, theirs in gradients(half, full):
        assert mine.dtype == losses.dtype == torch.float32
        reached = range(LAYERS - focal_depth)
        assert cosine_similarity(mine[reached].flatten(1), theirs[reached].flatten(1)).min() > 0.99


def test_an_unembedding_that_is_converted_once_gives_what_one_that_always_is_does():
    network = build_family("llama")
    (one, losses), (other, expected) = (distil(network, "bfloat16", proved=proved) for proved in (True, False))
    assert torch.equal(losses, expected)
    assert all(torch.equal(mine, theirs) for mine, theirs in gradients(one, other))


def test_steps_make_products_in_bfloat16_and_validations_in_float32(plain):
    training = tuning._prepare(plain, corpus_of(plain), CAST, None, Limits())
    found = {}
    for learn in (True, False):
        with Products(VOCABULARY) as products:
            training._measure(training.corpus.validation[:2], learn)
        found[learn] = (products.logits, products.others)
    assert found == {True: ({torch.bfloat16},) * 2, False: ({torch.float32},) * 2}
    slope = training.translators.weight.grad
    assert slope is not None and slope.dtype == torch.float32


def test_the_model_is_put_back_and_other_threads_never_see_it_changed(plain):
    network, ids, found = plain.network, random_ids(1, 4), []
    head = network.get_output_embeddings()
    with autocasting(plain.splice, "bfloat16"), torch.no_grad():
        other = threading.Thread(target=lambda: found.append(network(ids).logits))
        other.start()
        other.join()
        assert network(ids).logits.dtype == torch.bfloat16
    assert "forward" not in network.__dict__ and "forward" not in head.__dict__
    with torch.no_grad():
        assert torch.equal(network(ids).logits, found[0])


def test_a_short_training_comes_as_far_as_in_float32(plain):
    recipe = replace(TINY, steps=20, rate=0.01, evaluate_every=10)
    full, half = (train_translators(plain, corpus_of(plain), replace(recipe, autocast=kind)) for kind in (None, "bfloat16"))
    assert half.logit == full.logit and sum(full.tuned) < sum(full.logit)
    gained, expected = (sum(one.logit) - sum(one.tuned) for one in (half, full))
    assert gained == pytest.approx(expected, rel=NEAR)
    assert half.lens.translators.weight.dtype == torch.float32


def test_a_checkpoint_from_before_there_was_autocast_goes_on_bit_for_bit(plain, tmp_path):
    corpus = corpus_of(plain)
    whole = train_translators(plain, corpus, TINY)

    def stop(row):
        if row["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_translators(plain, corpus, TINY, tmp_path, stop)
    with safe_open(tmp_path / NAME, "pt") as opened:
        about = opened.metadata()
    earlier = {name: value for name, value in json.loads(about["recipe"]).items() if name != "autocast"}
    save_file(load_file(tmp_path / NAME), tmp_path / NAME, about | {"recipe": json.dumps(earlier)})
    with pytest.raises(InputError, match=r"another recipe \(autocast is absent, here bfloat16\)"):
        train_translators(plain, corpus, CAST, tmp_path)
    again = train_translators(plain, corpus, TINY, tmp_path)
    assert same(whole.lens.translators, again.lens.translators) and curve(whole.curve) == curve(again.curve)


def test_a_lens_from_before_there_was_autocast_is_known_as_that_of_the_same_recipe(plain, tmp_path):
    corpus = corpus_of(plain)
    found = train_translators(plain, corpus, TINY)
    about = found.describe()
    del about["recipe"]["autocast"]
    folder = hl.save_lens(found.lens, tmp_path / "lens", about)
    tuning.check_lens(folder, plain, corpus, TINY)


def test_a_model_that_is_not_in_float32_is_refused(saved):
    model = hl.load_model(saved, dtype="bfloat16")
    with pytest.raises(InputError, match="autocast is for a model in float32") as caught:
        train_translators(model, corpus_of(model), CAST)
    assert is_one_sentence(str(caught.value)) and "computes in bfloat16: leave it away" in str(caught.value)


@pytest.mark.parametrize("focal_depth", [0, 2])
def test_the_weights_that_are_held_come_out_of_the_memory_and_may_take_half_of_it(plain, focal_depth, monkeypatch):
    values = plain.network.get_output_embeddings().weight.numel()
    deepest = plain.network.model.layers[LAYERS - focal_depth :]
    values += sum(weight.numel() for layer in deepest for weight in layer.parameters())
    assert count_copies(plain.splice, "bfloat16", focal_depth) == 2 * values
    monkeypatch.setattr(tuning, "count_copies", lambda *_: 100 * 2**20 - 1)
    recipe = replace(CAST, focal_depth=focal_depth)
    assert tuning._prepare(plain, corpus_of(plain), recipe, None, Limits(200)).limits.memory_mb == 100
    with pytest.raises(InputError, match="take 100 MB, more than half of memory_mb 199") as caught:
        tuning._prepare(plain, corpus_of(plain), recipe, None, Limits(199))
    assert is_one_sentence(str(caught.value)) and "give --memory-mb 200 or more" in str(caught.value)


def test_the_command_trains_with_autocast_and_refuses_other_precisions(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(" ".join(TEXTS))
    words = ["--text", "text.txt", "--length", "16", "--steps", "2", "--step-tokens", "60", "--out", "lens"]
    follow = make_call(capsys, monkeypatch, "tune-lens", str(saved), *words)
    status, _, wrong = follow("--autocast", "float16")
    assert status == 2 and '"float16" is not a precision for autocast; give bfloat16, or leave it away' in wrong
    assert follow("--autocast", "bfloat16")[0] == 0
    assert json.loads((tmp_path / "lens" / "manifest.json").read_text())["training"]["recipe"]["autocast"] == "bfloat16"
    status, _, wrong = follow()
    assert status == 2 and "lens of another recipe (autocast is bfloat16, here None)" in wrong


def test_the_rounds_say_how_many_times_as_fast_a_step_with_autocast_is():
    from tuned_lens_speed import AUTOCAST, report_rounds

    rounds = {"forward": [1.0] * 3, "original": [8.0, 12.0, 9.0], "ours": [4.0, 4.0, 6.0], AUTOCAST: [2.0, 1.0, 2.0]}
    report = report_rounds(rounds, {"seconds": 1.0}, 100)
    assert (report["original"]["ours_is_faster_by"], report["original"]["autocast_is_faster_by"]) == (2.0, 4.5)
    assert (report["ours"]["autocast_is_faster_by"], report["ours"]["autocast_spread"]) == (3.0, [2.0, 4.0])
    assert sorted(report[AUTOCAST]) == ["seconds", "times_the_floor", "tokens_per_second"]
