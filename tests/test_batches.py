"""However texts are batched, padded and cut into chunks, each is read as it is alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from families import LAYERS, build_family, build_tokenizer, random_ids
from plain import layer_states, replace_one
from traced import CONTEXTS, SIDES, TEXTS, loaded, same

from hyperlens import routing
from hyperlens.configuration import rotary_boundary
from hyperlens.lenses import HyperLens, LogitLens
from hyperlens.models import load_model
from hyperlens.splice import Splice
from hyperlens.tracing import Limits, batches, reading, trace
from hyperlens.trajectory import READINGS


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_a_ragged_batch_is_each_text_alone(family: str, context: Any, side: Any) -> None:
    model, lens, readings = loaded(family), HyperLens((0, 2), context), ("probability", "kl_to_output")
    together = trace(model, TEXTS, lens, "all", readings=readings, limits=Limits(padding_side=side))
    assert list(together.samples["tokens"]) == [len(ids) for ids in TEXTS]
    for number, ids in enumerate(TEXTS):
        mine = together.data["sample"].values == number
        alone = trace(model, [ids], lens, "all", readings=readings)
        assert np.array_equal(together.data["position"].values[mine], range(len(ids)))
        for name in readings:
            np.testing.assert_allclose(together.to_numpy(name)[mine], alone.to_numpy(name), atol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("side", SIDES)
def test_families_whose_memory_is_their_own_are_read_in_ragged_batches_too(side: Any, context: Any) -> None:
    lens = HyperLens((0, 2), context)
    for family in ("bloom", "gpt_neo", "mamba"):
        together = trace(loaded(family), TEXTS, lens, "last", limits=Limits(padding_side=side))
        alone = [trace(loaded(family), [ids], lens, "last").to_numpy() for ids in TEXTS]
        np.testing.assert_allclose(together.to_numpy(), np.concatenate(alone), atol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (3, 20), (1000, 1)])
def test_read_in_chunks_is_read_at_once(context: Any, rows: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, limits = loaded("gemma2"), Limits(top_k=3)
    settings = (HyperLens((0, 2, 5, LAYERS), context), "all", None, READINGS, limits)
    whole = trace(model, TEXTS[2:], *settings)
    monkeypatch.setattr(batches.Job, "logit_rows", rows)
    monkeypatch.setattr(batches.Job, "stack_tokens", tokens)
    monkeypatch.setattr(batches.Job, "batch_tokens", tokens)
    same(trace(model, TEXTS[2:], *settings), whole)


@pytest.mark.parametrize("batch_tokens", [1, 24, 10_000])
def test_the_size_of_a_batch_and_the_memory_change_nothing(batch_tokens: int) -> None:
    settings = (HyperLens((0, 2)), "last", None, ("probability", "margin"))
    few = trace(loaded("gpt2"), TEXTS, *settings, Limits(batch_tokens=batch_tokens, memory_mb=1))
    same(few, trace(loaded("gpt2"), TEXTS, *settings))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_model_in_16_bit_is_read_within_its_bound(context: Any, side: Any) -> None:
    exact, model = loaded("gemma2"), load_model(build_family("gemma2", dtype=torch.bfloat16))
    settings = (HyperLens((0, 2), context), "all", None, ("probability",), Limits(padding_side=side))
    found = trace(model, TEXTS, *settings)
    assert found.to_numpy().dtype == np.float32 and found.manifest["model"]["dtype"] == "bfloat16"
    assert found.manifest["largest_error_in_run"] <= 2e-2
    assert np.abs(found.to_numpy() - trace(exact, TEXTS, *settings).to_numpy()).mean() < 0.01


def test_batches_hold_no_more_tokens_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, run = [], Splice.run

    def watched(splice: Splice, inputs: Any, *args: Any, **options: Any) -> Any:
        sizes.append(tuple(inputs.ids.shape))
        return run(splice, inputs, *args, **options)

    model = loaded("llama")
    monkeypatch.setattr(Splice, "run", watched)
    trace(model, TEXTS, LogitLens(), limits=Limits(batch_tokens=24))
    assert [size for size in sizes if size[1] > 1] == [(1, 17), (2, 12), (1, 5)]


def test_results_come_in_the_order_of_the_texts() -> None:
    found = trace(loaded("llama"), TEXTS, LogitLens(), "all", limits=Limits(batch_tokens=1))
    labels = zip(found.data["sample"].values, found.data["position"].values, found.data["token_id"].values, strict=True)
    assert list(labels) == [(number, place, token) for number, ids in enumerate(TEXTS) for place, token in enumerate(ids)]


@pytest.mark.parametrize("family", ["bloom", "mamba", "gpt_neo"])
def test_steps_of_generation_read_what_replaying_the_text_reads(family: str) -> None:
    model, lens = loaded(family), HyperLens((0, 2), "cached")
    assert model.certificate.cached_form == "steps"
    stepped = trace(model, TEXTS, lens, "all")
    replayed = trace(replace(model, certificate=replace(model.certificate, cached_form="replay")), TEXTS, lens, "all")
    np.testing.assert_allclose(stepped.data["probability"], replayed.data["probability"], atol=1e-5)
    assert not np.allclose(stepped.data["probability"], trace(model, TEXTS, HyperLens((0, 2)), "all").data["probability"])


def test_a_long_text_does_not_change_the_rotary_angles_of_the_others_in_its_batch() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    network = build_family("phi3", rope_parameters=rope, original_max_position_embeddings=12, sliding_window=None)
    model = load_model(network, build_tokenizer())
    assert rotary_boundary(model.splice.config) == 12
    texts = [random_ids(1, length, seed)[0].tolist() for seed, length in enumerate((20, 9, 16, 12))]
    together = trace(model, texts, HyperLens((0, 2))).to_numpy("probability")
    alone = np.concatenate([trace(model, [text], HyperLens((0, 2))).to_numpy("probability") for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("form", ["rows", "steps"])
def test_beyond_the_boundary_of_the_angles_cached_reads_the_whole_text(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    network = build_family("phi3", rope_parameters=rope, original_max_position_embeddings=12, sliding_window=None)
    model = load_model(network, build_tokenizer())
    model = replace(model, certificate=replace(model.certificate, cached_form=form))
    text = random_ids(1, 20)[0].tolist()
    monkeypatch.setattr(routing, "QUERY_ROWS", 12)
    found = trace(model, [text], HyperLens((3,), "cached"), "all")
    states = layer_states(network, torch.tensor([text]))
    left = replace_one(network, torch.tensor(text), LAYERS - 3, 5, states[1][:1, 5])
    with torch.no_grad():
        own = model.splice.head(left)[0].softmax(-1)
    assert float(found.to_numpy()[5, 0, 1]) == pytest.approx(float(own[found.data["reference_id"].values[5]]), abs=1e-6)


@pytest.mark.parametrize("context", CONTEXTS)
def test_states_wider_than_the_weights_are_read_in_both_contexts(context: Any) -> None:
    model = load_model(build_family("mamba", dtype=torch.bfloat16, residual_in_fp32=True), build_tokenizer())
    assert model.certificate.contexts == CONTEXTS and model.certificate.cached_form == "steps"
    together = trace(model, TEXTS, HyperLens((0, 2), context), "all")
    assert together.manifest["largest_error_in_run"] <= 2e-2


@pytest.mark.parametrize("family", ["mamba", "bloom"])
def test_steps_in_little_memory_read_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trace(loaded(family), TEXTS, HyperLens((2,), "cached"), "all")
    sizes: list[int] = []
    step = routing._step
    monkeypatch.setattr(routing, "_step", lambda *args: sizes.append(len(args[3])) or step(*args))
    monkeypatch.setattr(batches.Job, "stack_tokens", 2)
    same(trace(loaded(family), TEXTS, HyperLens((2,), "cached"), "all"), whole)
    assert 1 in sizes and max(sizes) < LAYERS - 2 + 1


def test_where_padding_is_not_exact_only_texts_of_one_length_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = loaded("llama"), []
    prepare = batches.prepare_batch
    monkeypatch.setattr(
        reading, "prepare_batch", lambda job, texts, *more: seen.append(len(texts)) or prepare(job, texts, *more)
    )
    texts = [[20, 21, 22], [23, 24], [25, 26, 27]]
    padded = trace(model, texts, LogitLens())
    assert seen == [3]
    apart = trace(replace(model, certificate=replace(model.certificate, paddings=("left",))), texts, LogitLens())
    assert seen == [3, 2, 1]
    np.testing.assert_allclose(apart.data["probability"], padded.data["probability"], atol=1e-6)


def test_short_texts_are_not_padded_to_long_ones_once_a_batch_is_worth_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, lens = loaded("llama"), LogitLens()
    texts = [[5 + number % 40 for number in range(length)] for length in (5, 30, 6, 30, 5, 36, 5)]
    made, make = [], batches.make_batches
    monkeypatch.setattr(batches, "ENOUGH", 60)
    monkeypatch.setattr(reading, "make_batches", lambda *given: [made.append(one) or one for one in make(*given)])
    found = trace(model, texts, lens, limits=Limits(progress=False))
    assert [sorted(len(texts[number]) for number in one) for one in made] == [[30, 30, 36], [5, 5, 5, 6]]
    alone = [trace(model, [text], lens).to_numpy() for text in texts]
    np.testing.assert_allclose(found.to_numpy(), np.concatenate(alone), atol=1e-6)
