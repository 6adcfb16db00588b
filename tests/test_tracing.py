"""A trace is what its formulas say, however the texts are batched; and what cannot be read is refused in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import LAYERS, VOCABULARY, build_family
from plain import layer_states, run_replaced
from torch import Tensor
from traced import CONTEXTS, SIDES, TEXTS, loaded, own_logits, same, words

from hyperlens.effort import measure_resolution
from hyperlens.errors import HyperLensWarning, InputError, ModelError
from hyperlens.lenses import HyperLens, LogitLens, lens
from hyperlens.models import Model, load_model
from hyperlens.tasks.sample import Sample
from hyperlens.tracing import Limits, trace
from hyperlens.trajectory import READINGS, measure_effort

# The formulas.


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_focal_depth_0_is_the_logit_lens_done_by_the_models_own_read_out(family: str) -> None:
    model, ids = loaded(family), TEXTS[0]
    found = trace(model, [ids], LogitLens(), "all", readings=("probability", "entropy"))
    with torch.no_grad():
        states = torch.stack(layer_states(model.network, torch.tensor([ids])))[:, 0]
        p = model.splice.head(states.flatten(0, 1)).unflatten(0, states.shape[:2]).softmax(-1)
    expected = p[:, range(len(ids)), p[-1].argmax(-1)].T
    np.testing.assert_allclose(found.to_numpy()[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(found.to_numpy("entropy")[:, 0], torch.special.entr(p).sum(-1).T, atol=1e-5)
    same(found, trace(model, [ids], HyperLens((0,)), "all", readings=("probability", "entropy")))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "bloom"])
def test_jump_is_the_formula_by_pytorchs_own_hooks(family: str) -> None:
    model, ids, m = loaded(family), TEXTS[1], 2
    found = trace(model, [ids], HyperLens((m,)), "all").confidence(m)
    states = layer_states(model.network, torch.tensor([ids]))
    top = own_logits(model, ids).argmax(-1)
    for number in range(LAYERS - m):
        left = run_replaced(model.network, torch.tensor([ids]), LAYERS - m, states[number])[0]
        with torch.no_grad():
            p = model.splice.head(left).softmax(-1)
        np.testing.assert_allclose(found[:, number], p[range(len(ids)), top], atol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_states_from_layers_less_focal_depth_on_are_the_models_own(family: str, context: Any) -> None:
    model = loaded(family)
    found = trace(model, TEXTS, HyperLens((0, 1, 4, LAYERS), context), "all", readings=READINGS)
    p = torch.cat([own_logits(model, ids) for ids in TEXTS]).softmax(-1)
    own, top = p.max(-1)
    assert np.array_equal(found.data["output_id"].values, top)
    np.testing.assert_allclose(found.data["output_probability"].values, own, atol=1e-5)
    for name in READINGS:
        values = found.to_numpy(name)
        assert values.shape == (sum(map(len, TEXTS)), 4, LAYERS + 1) and values.dtype == np.float32
        for number, m in enumerate(found.focal_depths):
            last = values[:, number, LAYERS - m :]
            assert np.array_equal(last, np.broadcast_to(values[:, :1, -1], last.shape)), (name, m)
    np.testing.assert_allclose(found.to_numpy()[:, 0, -1], own, atol=1e-5)
    assert not found.to_numpy("rank")[..., -1].any()
    assert np.abs(found.to_numpy("js_to_output")[..., -1]).max() < 1e-5
    assert found.manifest["largest_error_in_run"] <= 1e-5


def test_several_focal_depths_at_once_are_each_alone() -> None:
    model = loaded("mistral")
    for context in CONTEXTS:
        together = trace(model, TEXTS, HyperLens((0, 1, 3), context), "all")
        for m in together.focal_depths:
            alone = trace(model, TEXTS, HyperLens((m,), context), "all")
            np.testing.assert_allclose(together.confidence(m), alone.confidence(m), atol=1e-5)


# Positions and references.


def test_the_last_position_is_read_by_default_and_named_by_its_place_in_the_text() -> None:
    model = loaded("llama")
    found = trace(model, [words(ids) for ids in TEXTS], LogitLens())
    assert found.manifest["positions"] == "last" and found.manifest["reference"] == "output"
    assert list(found.data["position"].values) == [len(ids) - 1 for ids in TEXTS]
    assert list(found.data["token_text"].values) == [f"w{ids[-1]}" for ids in TEXTS]
    assert list(found.data["reference_id"].values) == [int(own_logits(model, ids)[-1].argmax()) for ids in TEXTS]
    same(found, trace(model, TEXTS, LogitLens()))
    same(found, trace(model, (words(ids) for ids in TEXTS), LogitLens()))


def test_one_text_need_not_be_in_a_list() -> None:
    same(trace(loaded("llama"), words(TEXTS[0]), LogitLens()), trace(loaded("llama"), [TEXTS[0]], LogitLens()))
    same(trace(loaded("llama"), Sample(words(TEXTS[0])), LogitLens()), trace(loaded("llama"), [TEXTS[0]], LogitLens()))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_target_is_read_at_each_position_that_predicts_it(context: Any, side: Any) -> None:
    model, limits = loaded("gpt2"), Limits(padding_side=side)
    samples = [Sample(words(ids[:-3]), " " + words(ids[-3:])) for ids in TEXTS]
    found = trace(model, samples, HyperLens((0, 2), context), limits=limits)
    assert found.manifest["positions"] == "answer" and found.manifest["reference"] == "target"
    assert list(found.data["position"].values) == [len(ids) - 4 + place for ids in TEXTS for place in range(3)]
    assert list(found.data["reference_id"].values) == [token for ids in TEXTS for token in ids[-3:]]
    expected = [
        own_logits(model, ids)[len(ids) - 4 + place].softmax(-1)[ids[len(ids) - 3 + place]]
        for ids in TEXTS
        for place in range(3)
    ]
    np.testing.assert_allclose(found.to_numpy()[:, 0, -1], expected, atol=1e-6)
    assert list(found.samples["read"]) == [3] * len(TEXTS)


def test_an_answer_may_be_read_with_the_models_own_token_as_reference() -> None:
    model, ids = loaded("llama"), TEXTS[1]
    sample = Sample(words(ids[:-3]), " " + words(ids[-3:]))
    found = trace(model, [sample], LogitLens(), reference="output")
    assert np.array_equal(found.data["reference_id"].values, own_logits(model, ids)[-4:-1].argmax(-1))
    assert found.manifest["smallest"] == 0.0
    assert trace(model, [sample], LogitLens()).manifest["smallest"] == 0.01


def test_a_sample_is_correct_where_every_answer_token_is_the_models_own() -> None:
    model, prompt = loaded("llama"), TEXTS[0]
    right = [*prompt, int(own_logits(model, prompt)[-1].argmax())]
    right += [int(own_logits(model, right)[-1].argmax())]
    assert min(right) > 10
    wrong = [*right[:-1], 20 if right[-1] != 20 else 21]
    samples = [Sample(words(prompt), " " + words(ids[len(prompt) :])) for ids in (right, wrong)]
    for reference in ("target", "output"):
        assert list(trace(model, samples, LogitLens(), reference=reference).samples["correct"]) == [True, False]
    assert trace(model, [prompt], LogitLens()).samples["correct"].isna().all()


def test_all_positions_of_prompt_and_target_are_read() -> None:
    ids = TEXTS[0]
    found = trace(loaded("llama"), [Sample(words(ids[:-2]), " " + words(ids[-2:]))], LogitLens(), "all")
    same(found, trace(loaded("llama"), [ids], LogitLens(), "all"))


@pytest.mark.parametrize("context", CONTEXTS)
def test_generated_tokens_are_those_of_the_models_own_greedy_generation(context: Any) -> None:
    model = loaded("llama")
    found = trace(model, TEXTS, HyperLens((0, 1), context), "generated", limits=Limits(max_new_tokens=6))
    assert found.manifest["reference"] == "generated"
    for number, ids in enumerate(TEXTS):
        made = model.network.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=6)[0, len(ids) :].tolist()
        mine = found.data.isel(token=found.data["sample"].values == number)
        assert mine["reference_id"].values.tolist() == made == mine["output_id"].values.tolist()
        assert mine["position"].values.tolist() == list(range(len(ids) - 1, len(ids) - 1 + len(made)))
        np.testing.assert_allclose(mine["probability"].values[:, 0, -1], mine["output_probability"].values, atol=1e-6)


def test_generation_ends_with_the_end_token_or_the_context() -> None:
    network = build_family("llama")
    ids = TEXTS[1]
    free = network.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=5, eos_token_id=-1)[0, len(ids) :].tolist()
    network.generation_config.eos_token_id = [free[2], 1]
    stop = free.index(free[2]) + 1
    found = trace(load_model(network), [ids], LogitLens(), "generated")
    assert found.data["reference_id"].values.tolist() == free[:stop]
    network.generation_config.eos_token_id = None
    narrow = build_family("llama", max_position_embeddings=20)
    narrow.generation_config.eos_token_id = None
    assert len(trace(load_model(narrow), [ids], LogitLens(), "generated").data["token"]) == 20 - len(ids)


def test_a_target_that_changes_the_prompts_last_token_is_read_from_there_and_said_once() -> None:
    samples = [Sample("w20 w2", "1 w22"), Sample("w20 w30", " w31"), Sample("w20 w3", "3")]
    with pytest.warns(HyperLensWarning, match="in 2 of 3 texts the target changes the last token of the prompt") as caught:
        found = trace(loaded("llama"), samples, LogitLens())
    assert len(caught) == 1
    assert found.data["reference_id"].values.tolist() == [21, 22, 31, 33]


# Answer options.


def option_share(model: Model, ids: Sequence[int], options: Sequence[int]) -> Tensor:
    return own_logits(model, ids)[-1][list(options)].softmax(-1)


@pytest.mark.parametrize("context", CONTEXTS)
def test_with_options_readings_are_of_the_options_alone(context: Any) -> None:
    model, options = loaded("llama"), (20, 30, 40)
    samples = [Sample(words(ids), options=(" w20", " w30 w31", " w40")) for ids in TEXTS]
    limits = Limits(letter=False)
    readings = ("probability", "entropy", "rank", "kl_to_output")
    found = trace(model, samples, HyperLens((0, 2), context), readings=readings, limits=limits)
    shares = torch.stack([option_share(model, ids, options) for ids in TEXTS])
    np.testing.assert_allclose(found.to_numpy()[:, 0, -1], shares.max(-1).values, atol=1e-5)
    assert found.data["reference_id"].values.tolist() == [options[best] for best in shares.argmax(-1).tolist()]
    assert found.data["output_id"].values.tolist() == [int(own_logits(model, ids)[-1].argmax()) for ids in TEXTS]
    assert found.manifest["guess"] == pytest.approx(1 / 3) and found.manifest["options"] == 3
    assert found.to_numpy("entropy").max() <= np.log(3) + 1e-6 and found.to_numpy("rank").max() <= 2
    with torch.no_grad():
        states = torch.stack([torch.stack(layer_states(model.network, torch.tensor([ids])))[:, 0, -1] for ids in TEXTS])
        among = torch.stack([model.splice.head(each)[:, list(options)] for each in states]).softmax(-1)
    expected = among[range(len(TEXTS)), :, shares.argmax(-1)]
    np.testing.assert_allclose(found.to_numpy()[:, 0], expected, atol=1e-5)


def test_the_probabilities_over_all_options_add_up_to_one() -> None:
    model, options = loaded("gpt2"), (" w20", " w30", " w40")
    totals = [
        trace(model, [Sample(words(TEXTS[0]), each, options)], HyperLens((2,)), limits=Limits(letter=False)).to_numpy()
        for each in options
    ]
    np.testing.assert_allclose(sum(totals), 1.0, atol=1e-5)


def test_options_are_lettered_by_default_and_colliding_ones_are_refused_with_their_number() -> None:
    model = loaded("llama")
    sample = Sample(words(TEXTS[0]), " w20 w22", options=(" w20 w21", " w20 w22", " w30"))
    found = trace(model, [sample], LogitLens())
    assert found.data["reference_text"].values.tolist() == ["B"]
    assert found.samples["prompt"][0] == f"{words(TEXTS[0])}\nA. w20 w21\nB. w20 w22\nC. w30\nAnswer:"
    letters = [model.tokenizer.convert_tokens_to_ids(letter) for letter in "ABC"]  # type: ignore[union-attr]
    share = option_share(model, model.tokenizer(found.samples["prompt"][0])["input_ids"], letters)  # type: ignore[index]
    np.testing.assert_allclose(found.to_numpy()[0, 0, -1], share[1], atol=1e-5)
    with pytest.raises(InputError, match="2 of the 3 options of text 1 share their first token; let them be lettered"):
        trace(model, [sample], LogitLens(), limits=Limits(letter=False))


@pytest.mark.parametrize("reference", [None, "target", "output"])
def test_among_options_a_sample_is_correct_where_the_models_best_option_is_the_target(reference: Any) -> None:
    model, options = loaded("llama"), (20, 30, 40)
    best = int(option_share(model, TEXTS[0], options).argmax())
    samples = [Sample(words(TEXTS[0]), f" w{token}", (" w20", " w30", " w40")) for token in options]
    found = trace(model, samples, LogitLens(), reference=reference, limits=Limits(letter=False))
    assert list(found.samples["correct"]) == [number == best for number in range(3)]


def test_the_top_tokens_among_options_are_tokens_of_options() -> None:
    samples = [Sample(words(ids), options=(" w20", " w30", " w40")) for ids in TEXTS]
    found = trace(loaded("llama"), samples, HyperLens((0, 2)), limits=Limits(letter=False, top_k=3))
    assert np.array_equal(np.sort(found.data["top_ids"].values, -1), np.broadcast_to([20, 30, 40], (4, 2, LAYERS + 1, 3)))
    assert np.array_equal(found.data["top_ids"].values[:, 0, -1, 0], found.data["reference_id"].values)


# Top tokens.


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_top_token_of_the_last_state_is_the_output(context: Any) -> None:
    found = trace(loaded("llama"), TEXTS, HyperLens((0, 2), context), "all", limits=Limits(top_k=4))
    ids, shares = found.data["top_ids"].values, found.data["top_probabilities"].values
    assert ids.shape == shares.shape == (sum(map(len, TEXTS)), 2, LAYERS + 1, 4)
    for number, m in enumerate(found.focal_depths):
        assert (ids[:, number, LAYERS - m :, 0] == found.data["output_id"].values[:, None]).all()
    np.testing.assert_allclose(shares[:, 0, -1, 0], found.data["output_probability"].values, atol=1e-6)
    assert (np.diff(shares) <= 0).all() and (shares.sum(-1) <= 1 + 1e-5).all()


def test_no_more_top_tokens_are_kept_than_there_are() -> None:
    found = trace(loaded("llama"), TEXTS[:1], LogitLens(), limits=Limits(top_k=1000))
    assert found.data.sizes["top"] == VOCABULARY
    np.testing.assert_allclose(found.data["top_probabilities"].values.sum(-1), 1.0, atol=1e-5)


# The focal depth.


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_auto_chooses_the_depth_of_largest_mean_resolution_and_reports_the_sweep(family: str, context: Any) -> None:
    model = loaded(family)
    found = trace(model, TEXTS, HyperLens(context=context))
    sweep = found.manifest["lens"]["auto"]
    every = trace(model, TEXTS, HyperLens((0, 1, 2), context), "all")
    expected = {m: float(np.nanmean(measure_resolution(every.confidence(m).astype(float)))) for m in (0, 1, 2)}
    assert {m: one["resolution"] for m, one in sweep["candidates"].items()} == pytest.approx(expected, rel=1e-4)
    assert sweep["chosen"] == max(expected, key=lambda m: expected[m])
    assert sweep["positions"] == sum(map(len, TEXTS))
    assert found.focal_depths == (0, sweep["chosen"] or max((1, 2), key=lambda m: expected[m]))
    same(found, trace(model, TEXTS, HyperLens(found.focal_depths, context)))


def test_auto_has_only_the_logit_lens_where_no_deeper_focus_leaves_four_states() -> None:
    found = trace(load_model(build_family("llama", num_hidden_layers=4)), TEXTS)
    assert found.focal_depths == (0,) and found.manifest["lens"]["auto"]["chosen"] == 0


def test_auto_looks_at_64_of_many_positions() -> None:
    sweep = trace(loaded("llama"), [TEXTS[1]] * 5, HyperLens(), "all").manifest["lens"]["auto"]
    assert sweep["positions"] == 64


def test_at_the_full_focal_depth_nothing_is_left_to_read_and_a_warning_says_so() -> None:
    for context in CONTEXTS:
        found = trace(loaded("llama"), TEXTS, HyperLens((LAYERS,), context))
        assert found.confidence(LAYERS).shape == (len(TEXTS), 1)
        with pytest.warns(HyperLensWarning, match="at focal depth 6 of 6 layers only 0 states are left"):
            measured = measure_effort(found)
        assert np.isnan(measured["effort"].values).all()


# The model afterwards.


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_trace_leaves_the_model_as_it_was_and_reads_it_without_dropout(context: Any) -> None:
    network = build_family("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    model = load_model(network)
    rested = trace(model, TEXTS, HyperLens((0, 2), context), "generated", limits=Limits(max_new_tokens=3))
    before, logits = {name: tensor.clone() for name, tensor in network.state_dict().items()}, own_logits(model, TEXTS[0])
    network.train()
    network.transformer.h[1].eval()
    flags = [module.training for module in network.modules()]
    attributes = [sorted(vars(module)) for module in network.modules()]
    same(trace(model, TEXTS, HyperLens((0, 2), context), "generated", limits=Limits(max_new_tokens=3)), rested, 0.0)
    assert [module.training for module in network.modules()] == flags
    assert [sorted(vars(module)) for module in network.modules()] == attributes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    network.eval()
    assert torch.equal(own_logits(model, TEXTS[0]), logits)


def test_a_trace_that_fails_leaves_the_model_as_it_was() -> None:
    network = build_family("gpt2").train()
    model = load_model(network)

    def fail(*_: Any) -> None:
        raise ArithmeticError("deliberate")

    handle = network.transformer.h[4].register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError, match="deliberate"):
        trace(model, TEXTS, HyperLens((1,)))
    handle.remove()
    assert all(module.training and "forward" not in vars(module) for module in network.modules())
    assert torch.is_grad_enabled()


def test_the_manifest_says_what_was_read() -> None:
    model = loaded("mistral")
    manifest = trace(model, TEXTS, HyperLens((2, 0, 2), "cached"), readings=("rank",)).manifest
    lens = {"name": "hyper", "focal_depths": [0, 2], "context": "cached", "between": [], "auto": None}
    assert manifest["lens"] == lens
    assert manifest["model"]["fingerprint"] == model.fingerprint
    assert manifest["model"]["certificate"]["contexts"] == ("jump", "cached")
    assert manifest["readings"] == ["probability", "rank"]


# Trained models.


STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the"


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ["stories", "bitllama"])
def test_a_trained_model_is_read_as_it_speaks(name: str, context: Any, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    model = load_model(folder, dtype="float32")
    depths = (0, 1)
    found = trace(model, STORY, HyperLens(depths, context), "all")
    ids = model.tokenizer(STORY)["input_ids"]  # type: ignore[misc]
    p = own_logits(model, ids).softmax(-1)
    assert len(found.data["token"]) == len(ids) > 15
    assert found.data["output_id"].values.tolist() == p.argmax(-1).tolist()
    for m in depths:
        np.testing.assert_allclose(found.confidence(m)[:, -1], p.max(-1).values, atol=1e-5)
    effort = measure_effort(found)["effort"].values
    assert np.isfinite(effort).all() and (effort >= 0).all() and (effort <= 1).all()
    assert effort.mean() > 0.05


@pytest.mark.parametrize("form", ["steps", "replay"])
@pytest.mark.parametrize("name", ["stories", "bitllama"])
def test_a_trained_model_reads_the_same_in_every_form_of_cached(name: str, form: Any, request: pytest.FixtureRequest) -> None:
    model, lens = load_model(request.getfixturevalue(name), dtype="float32"), HyperLens((0, 2), "cached")
    assert model.certificate.cached_form == "rows"
    other = replace(model, certificate=replace(model.certificate, cached_form=form))
    same(trace(other, [STORY], lens, "all"), trace(model, [STORY], lens, "all"))


def test_a_trained_model_needs_less_effort_with_the_deeper_state_and_is_sure_of_its_own_words(stories: Path) -> None:
    model = load_model(stories, dtype="float32")
    found = trace(model, STORY, HyperLens((0, 2)), "generated", limits=Limits(max_new_tokens=8))
    assert found.data["output_id"].values.tolist() == found.data["reference_id"].values.tolist()
    confidence = found.confidence(2)
    assert confidence[:, -1].mean() > confidence[:, 0].mean() + 0.2


def test_a_generation_is_greedy_whatever_the_model_is_set_to_and_has_no_verdict():
    model = load_model("reference")
    model.network.generation_config.repetition_penalty = 5.0
    own = model.network.generation_config
    made = trace(model, [Sample("2 + 2 + 2 is", " 6")], LogitLens(), "generated", limits=Limits(max_new_tokens=8))
    assert (made.data["output_id"].values == made.data["reference_id"].values).all()
    assert model.network.generation_config is own
    assert made.samples["correct"].isna().all() and made.samples["text"][0].startswith("2 + 2 + 2 is")


def test_routed_states_that_overflow_are_refused(monkeypatch):
    model = load_model("reference")
    routed = lens.route_jump

    def overflow(*args):
        states = routed(*args)
        states[0, 0] = float("inf")
        return states

    monkeypatch.setattr(lens, "route_jump", overflow)
    with pytest.raises(ModelError, match="for states that were routed through its deepest 2 layers"):
        trace(model, "2 + 2 is", HyperLens((2,)))
