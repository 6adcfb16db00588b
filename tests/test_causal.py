from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import LAYERS, WIDTH, build_family, build_tokenizer
from plain import layer_states, run_replaced
from sentences import is_one_sentence

import hyperlens as hl
from hyperlens.causal import Ablation, average_alignment, correlate_influences
from hyperlens.causal.ablation import ablate, hold_state, read_controls
from hyperlens.causal.basis import differentiate
from hyperlens.causal.responses import compare_changes, sum_influence
from hyperlens.errors import InputError
from hyperlens.lenses import Origin, Translators
from hyperlens.splice import at_rest

TEXTS = ["w11 w40 w23 w17 w90 w12 w55 w31 w20 w77", "w30 w31 w32", "w60 w14 w88 w41 w19 w62", "w12 w13 w71 w50"]
STATE = 3


@pytest.fixture(scope="module")
def model():
    return hl.load_model(build_family("qwen3"), build_tokenizer())


@pytest.fixture(scope="module")
def basis(model):
    return hl.extract_causal_basis(model, hl.HyperLens((1,)), TEXTS, Ablation(STATE), 4)


def tune(model, scale: float = 0.2, seed: int = 0) -> hl.TunedLens:
    generator = torch.Generator().manual_seed(seed)
    drawn = Translators(
        scale * torch.randn(LAYERS, WIDTH, WIDTH, generator=generator), torch.randn(LAYERS, WIDTH, generator=generator)
    )
    return hl.TunedLens((0,), translators=drawn, origin=Origin(model.name, model.fingerprint))


def measure_plainly(model, texts, state, vectors, positions=slice(None)):
    """The model's own influence of a span, and the state's mean, by PyTorch's own hooks, one text after the other."""
    ids = [torch.tensor([model.tokenizer(text)["input_ids"]]) for text in texts]
    states = [layer_states(model.network, one)[state] for one in ids]
    mean = torch.cat([one[0, positions] for one in states]).mean(0)
    found = []
    for one, hidden in zip(ids, states, strict=True):
        moved = hidden + (mean - hidden) @ vectors @ vectors.T
        left, own = run_replaced(model.network, one, state, moved), run_replaced(model.network, one, state, hidden)
        with torch.no_grad():
            log_p, log_q = (model.splice.head(part[0, positions]).log_softmax(-1) for part in (own, left))
        found.append((log_p.exp() * (log_p - log_q)).sum(-1).mean().item())
    return np.array(found), mean


@pytest.mark.parametrize(("family", "positions"), [("llama", "all"), ("gpt2", "last"), ("gemma2", "all")])
def test_the_models_own_influence_is_what_plain_hooks_find(family, positions):
    model = hl.load_model(build_family(family), build_tokenizer())
    directions, ablation = hl.draw_directions(WIDTH, WIDTH // 2), Ablation(STATE, positions=positions)
    found = hl.align_responses(model, hl.LogitLens(), TEXTS, directions, ablation, together=True).model_influence[0]
    places = slice(None) if positions == "all" else slice(-1, None)
    expected, _ = measure_plainly(model, TEXTS, STATE, directions, places)
    assert expected.min() > 1e-5
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("lens", [hl.HyperLens((LAYERS - STATE,)), hl.HyperLens((1,), between=tuple(range(1, LAYERS + 1)))])
def test_a_lens_that_is_the_model_has_its_influences_and_is_aligned(model, lens):
    responses = hl.align_responses(model, lens, TEXTS, hl.draw_directions(WIDTH, 5), Ablation(STATE))
    np.testing.assert_allclose(responses.lens_influence, responses.model_influence, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(responses.alignment, 1, atol=1e-4)
    assert correlate_influences(responses).value == pytest.approx(1)
    assert average_alignment(responses).low > 0.999


def test_other_lenses_are_not_aligned_with_the_model(model):
    responses = hl.align_responses(model, hl.LogitLens(), TEXTS, hl.draw_directions(WIDTH, 5), Ablation(STATE))
    assert responses.alignment.shape == (5, len(TEXTS)) and average_alignment(responses).high < 0.9


@pytest.mark.parametrize("kind", ["mean", "resample", "zero"])
def test_a_basis_is_orthonormal_and_its_influences_descend(model, kind):
    lens = {"mean": tune(model), "resample": hl.HyperLens((2,)), "zero": hl.LogitLens()}[kind]
    basis = hl.extract_causal_basis(model, lens, TEXTS, Ablation(STATE, kind), 3)
    torch.testing.assert_close(basis.vectors.T @ basis.vectors, torch.eye(3), atol=1e-5, rtol=0)
    assert basis.influences.min() > 0 and (np.diff(basis.influences) <= 0).all()
    measured = hl.measure_influence(model, TEXTS, basis.vectors, Ablation(STATE, kind), lens).mean(1)
    np.testing.assert_allclose(measured, basis.influences, rtol=1e-3)


def test_a_whole_basis_has_every_direction_once(model):
    basis = hl.extract_causal_basis(model, hl.LogitLens(), TEXTS[:1], Ablation(STATE), WIDTH)
    torch.testing.assert_close(basis.vectors.T @ basis.vectors, torch.eye(WIDTH), atol=1e-4, rtol=0)


def test_the_first_direction_matters_more_than_any_other_that_is_tried(model, basis):
    lens, ablation = hl.HyperLens((1,)), Ablation(STATE)
    random = torch.cat([hl.draw_directions(WIDTH, 25, seed) for seed in range(4)], 1)
    others = torch.cat([random, hl.find_components(model, TEXTS, ablation, WIDTH)], 1)
    tried = hl.measure_influence(model, TEXTS, others, ablation, lens).mean(1)
    assert len(tried) == 100 + WIDTH and basis.influences[0] > 1.5 * tried.max()


def test_a_planted_direction_is_found(model):
    planted = hl.find_components(model, TEXTS, Ablation(STATE), 1)
    only = (planted @ planted.T - torch.eye(WIDTH)).expand(LAYERS, -1, -1)
    bias = torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(1))
    lens = hl.TunedLens((0,), translators=Translators(only, bias), origin=Origin(model.name, model.fingerprint))
    basis = hl.extract_causal_basis(model, lens, TEXTS, Ablation(STATE), 2)
    assert abs(float(basis.vectors[:, 0] @ planted[:, 0])) > 0.99  # what else varies leaks a little
    assert basis.influences[1] < 1e-2 * basis.influences[0]


def test_without_any_direction_the_mean_state_is_left(model):
    hidden, target = torch.randn(2, 5, WIDTH), torch.randn(1, 1, WIDTH)
    torch.testing.assert_close(ablate(hidden, target, torch.eye(WIDTH)), target.expand(2, 5, -1))
    whole = hl.draw_directions(WIDTH, WIDTH)
    torch.testing.assert_close(ablate(hidden, target, whole), target.expand(2, 5, -1), atol=1e-5, rtol=0)
    found = hl.align_responses(model, hl.LogitLens(), TEXTS, whole, Ablation(STATE), together=True)
    _, mean = measure_plainly(model, TEXTS, STATE, whole)
    for number, text in enumerate(TEXTS):
        states = layer_states(model.network, torch.tensor([model.tokenizer(text)["input_ids"]]))[STATE][0]
        with torch.no_grad():
            log_p, log_q = (model.splice.head(part).log_softmax(-1) for part in (states, mean.expand_as(states).clone()))
        assert found.lens_influence[0, number] == pytest.approx((log_p.exp() * (log_p - log_q)).sum(-1).mean().item(), rel=1e-3)


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_neither_the_batches_nor_the_chunks_change_a_result(model, kind):
    directions, ablation = hl.draw_directions(WIDTH, 3), Ablation(STATE, kind, "last")
    whole = hl.align_responses(model, hl.HyperLens((2,)), TEXTS, directions, ablation)
    for limits in (hl.Limits(memory_mb=1, batch_tokens=1), hl.Limits(batch_tokens=20, padding_side="left")):
        parts = hl.align_responses(model, hl.HyperLens((2,)), TEXTS, directions, ablation, limits=limits)
        for name in ("lens_influence", "model_influence", "alignment"):
            np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-3, atol=1e-5)


def test_few_rows_of_logits_at_a_time_give_the_same_basis(model, basis, monkeypatch):
    monkeypatch.setattr("hyperlens.tracing.batches.Job.logit_rows", 12)
    parts = hl.extract_causal_basis(model, hl.HyperLens((1,)), TEXTS, Ablation(STATE), 1, hl.Limits(batch_tokens=12))
    assert abs(float(parts.vectors[:, 0] @ basis.vectors[:, 0])) > 0.999
    assert parts.influences[0] == pytest.approx(basis.influences[0], rel=1e-3)


def test_a_seed_makes_donors_that_can_be_drawn_again_and_are_never_the_position_itself(model):
    drawn = []
    for seed in (0, 0, 1):
        with hold_state(model, None, TEXTS, Ablation(STATE, "resample", seed=seed), None) as (stage, _):
            read = torch.cat([held.probes.pick(held.target) for held in stage.batches])
            drawn.append(torch.cdist(read, stage.gather()).argmin(1))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert all((donors != torch.arange(len(donors))).all() for donors in drawn) and len(drawn[0].unique()) > 5


def test_the_gradient_is_that_of_finite_differences():
    model = hl.load_model(build_family("llama", torch.float64), build_tokenizer())
    direction, step = hl.draw_directions(WIDTH, 2).double().unbind(1)
    for lens in (hl.LogitLens(), hl.HyperLens((2,)), hl.HyperLens((1,), between=(4,))):
        with hold_state(model, lens, TEXTS, Ablation(STATE), None) as (stage, fitted):
            controls = read_controls(stage, fitted)
            value, gradient = differentiate(stage, fitted, controls, direction)
            with torch.no_grad():
                ends = [
                    sum_influence(stage, fitted, controls, (direction + size * step)[:, None]).mean().item()
                    for size in (-1e-2, 1e-2)
                ]
        assert value == pytest.approx(sum(ends) / 2, rel=1e-2)
        assert float(gradient @ step) == pytest.approx((ends[1] - ends[0]) / 2e-2, rel=2e-2, abs=1e-5)


def test_similarity_is_an_angle_between_log_ratios():
    stimulus, response = torch.randn(2, 6, 20, dtype=torch.float64).unbind(0)
    weights = torch.rand(6, 20, dtype=torch.float64).softmax(-1)
    found = compare_changes(stimulus, response, weights)
    torch.testing.assert_close(compare_changes(response, stimulus, weights), found)
    torch.testing.assert_close(compare_changes(3 * stimulus + 7, response - 2, weights), found)
    torch.testing.assert_close(compare_changes(stimulus, -response, weights), -found)
    torch.testing.assert_close(compare_changes(stimulus, 2 * stimulus, weights), torch.ones(6, dtype=torch.float64))
    even = torch.full((6, 20), 1 / 20, dtype=torch.float64)
    expected = [np.corrcoef(one, other)[0, 1] for one, other in zip(stimulus, response, strict=True)]
    torch.testing.assert_close(compare_changes(stimulus, response, even), torch.tensor(expected, dtype=torch.float64))
    sure = torch.nn.functional.one_hot(torch.tensor(3), 20).double().expand(6, -1)
    assert compare_changes(stimulus, response, sure).isnan().all()


def test_what_changes_nothing_has_no_alignment(model):
    blind = Translators(-torch.eye(WIDTH).expand(LAYERS, -1, -1), torch.ones(LAYERS, WIDTH))
    lens = hl.TunedLens((0,), translators=blind, origin=Origin(model.name, model.fingerprint))
    responses = hl.align_responses(model, lens, TEXTS, hl.draw_directions(WIDTH, 2), Ablation(STATE))
    assert responses.lens_influence.max() < 1e-6 < responses.model_influence.min()
    assert np.isnan(responses.alignment).all() and average_alignment(responses).n == 0


def test_the_model_is_left_as_it_was(model):
    network = build_family("llama").train()
    hl.extract_causal_basis(hl.load_model(network, build_tokenizer()), hl.HyperLens((1,)), TEXTS, Ablation(STATE), 1)
    assert network.training and all(parameter.grad is None for parameter in network.parameters())
    with at_rest(network):
        assert not network.training


def test_principal_components_and_random_directions_are_orthonormal(model):
    for vectors in (hl.draw_directions(WIDTH, 7, 3), hl.find_components(model, TEXTS, Ablation(STATE), 7)):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(7), atol=1e-5, rtol=0)
    assert torch.equal(hl.draw_directions(WIDTH, 7, 3), hl.draw_directions(WIDTH, 7, 3))


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda model: Ablation(2, "median"), "no kind"),
        (lambda model: Ablation(2, seed=2**60), "the seed is"),
        (lambda model: hl.draw_directions(4, 2, 2**70), "the seed is"),
        (lambda model: correlate_influences(respond(model, torch.ones(WIDTH, 1)), -1), "the seed is -1"),
        (lambda model: average_alignment(respond(model, torch.ones(WIDTH, 1)), -1), "the seed is -1"),
        (lambda model: Ablation(2, positions="generated"), "no positions"),
        (lambda model: extract(model, Ablation(LAYERS + 1)), "has the states 0 to 6"),
        (lambda model: extract(model, Ablation(-1)), "has the states 0 to 6"),
        (lambda model: extract(model, Ablation(5), hl.HyperLens((2,))), "state 5 at focal depth 2 is the model's own output"),
        (lambda model: extract(model, lens=hl.HyperLens((0, 2))), "one at a time"),
        (lambda model: extract(model, lens=hl.HyperLens("auto")), "still to be chosen"),
        (lambda model: extract(model, lens=hl.HyperLens((2,), "cached")), "context jump"),
        (lambda model: extract(model, lens=hl.HyperLens((LAYERS + 1,))), "above this model's 6 layers"),
        (lambda model: extract(model, Ablation(2, positions="last"), texts=["w11 w12"]), "1 position is read"),
        (lambda model: extract(model, texts=[]), "no text"),
        (lambda model: extract(model, count=WIDTH + 1), "1 to 32 orthogonal"),
        (lambda model: extract(model, count=0), "1 to 32 orthogonal"),
        (lambda model: hl.draw_directions(4, 5), "1 to 4 orthogonal"),
        (lambda model: respond(model, torch.ones(WIDTH + 1, 2)), r"expected \[32, count\]"),
        (lambda model: respond(model, torch.zeros(WIDTH, 1)), "zero or not finite"),
        (lambda model: respond(model, torch.full((WIDTH, 1), torch.nan)), "zero or not finite"),
        (lambda model: respond(model, torch.ones(WIDTH, 2), together=True), "depend on each other"),
        (lambda model: respond(model, torch.randn(WIDTH, WIDTH + 1), together=True), "depend on each other"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_one_sentence(model, action, words):
    with pytest.raises(InputError, match=words) as caught:
        action(model)
    assert is_one_sentence(str(caught.value))


def test_the_page_says_what_was_measured_of_what_is_shipped():
    from causal_page import PAGE, make_tables
    from test_docs import check_tables

    found = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    check_tables(PAGE, make_tables(found), "run benchmarks/causal.py --only draw")
    lens = hl.load_lens("reference")
    assert found["about"]["model"] == lens.origin.fingerprint
    assert {cell["translators"] for cell in found["cells"]} == {None, lens.fingerprint}, "run benchmarks/causal.py --only tuned"


def extract(model, ablation=None, lens=None, texts=TEXTS, count=2):
    return hl.extract_causal_basis(model, lens or hl.LogitLens(), texts, ablation or Ablation(2), count)


def respond(model, directions, together=False):
    return hl.align_responses(model, hl.LogitLens(), TEXTS, directions, Ablation(2), together)
