"""Laws of other people's numbers: bounds, limits, what must not change them, and their definitions done by a plain loop."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import LAYERS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from plain import layer_states
from traced import CONTEXTS, TEXTS, loaded, same, words

from hyperlens import neighbours
from hyperlens.errors import ArtefactError, InputError
from hyperlens.lenses import HyperLens, LogitLens
from hyperlens.neighbours import NEEDED, NUMBERS, describe_neighbours, measure_neighbours, pool_neighbours
from hyperlens.readings import read_logits
from hyperlens.runs import LensSpec
from hyperlens.tasks import Sample
from hyperlens.tracing import (
    ExitClassifier,
    Limits,
    fit_exit_classifier,
    load_exit_classifier,
    save_exit_classifier,
    trace,
)
from hyperlens.trajectory import READINGS, Trajectory, average_tokens

shapes = st.tuples(st.integers(1, 4), st.integers(1, 9))
grid = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
bits = arrays(np.float64, shapes, elements=grid)
ranks = arrays(np.float64, shapes, elements=st.sampled_from([0.0, 0.0, 1.0, 7.0]))
margins = arrays(np.float64, shapes, elements=st.sampled_from([-0.5, 0.0, 0.1, 0.9]))


def as_divergence(values: np.ndarray) -> np.ndarray:
    """In nats, the last state at no distance from itself."""
    nats = values * math.log(2)
    nats[:, -1] = 0.0
    return nats


def loop(formula: Any, rows: np.ndarray) -> np.ndarray:
    return np.array([formula(row.tolist()) for row in rows], dtype=float)


def settle_by_loop(row: list[float], g: float = 0.5) -> float:
    running = math.inf
    for number in range(1, len(row)):
        running = min(running, row[number] / math.log(2))
        if running <= g:
            return number
    return math.nan


def depth_by_loop(row: list[float]) -> float:
    if len(row) < 2 or row[-1]:
        return math.nan
    return min(number for number in range(len(row)) if not any(row[number:]))


def exit_by_loop(row: list[float], threshold: float, first: int) -> float:
    if len(row) - 1 < first:
        return math.nan
    return next((number for number in range(first, len(row) - 1) if row[number] >= threshold), len(row) - 1)


def silent_by_loop(row: list[float]) -> float:
    if len(row) < 2 or row[-1] <= 0:
        return math.nan
    return min(number for number in range(len(row)) if all(value > 0 for value in row[number:]))


@given(bits)
def test_settling_is_the_running_minimum_of_the_source(values: np.ndarray) -> None:
    nats = as_divergence(values)
    expected = loop(settle_by_loop, nats)
    np.testing.assert_array_equal(neighbours.find_settling(nats), expected)
    first = math.ceil(0.85 * (nats.shape[1] - 1))
    deep = np.where(np.isnan(expected), np.nan, expected >= first)
    np.testing.assert_array_equal(neighbours.measure_deep_thinking(nats), deep)


@given(ranks)
def test_what_is_said_of_ranks_is_what_a_loop_says(rank: np.ndarray) -> None:
    np.testing.assert_array_equal(neighbours.find_prediction_depth(rank), loop(depth_by_loop, rank))
    known = (rank[:, -1] == 0) & (rank.shape[1] > 1)
    first = loop(lambda row: row.index(0.0) if 0.0 in row else math.nan, rank)
    np.testing.assert_array_equal(neighbours.find_agreement(rank), np.where(known, first, np.nan))
    share = loop(lambda row: np.mean([one == 0 for one in row[:-1]]) if len(row) > 1 else math.nan, rank)
    np.testing.assert_allclose(neighbours.measure_consistency(rank), np.where(known, share, np.nan))


@given(ranks)
def test_agreement_never_comes_after_the_depth_from_which_it_lasts_and_consistency_lies_between(rank: np.ndarray) -> None:
    states = rank.shape[1] - 1
    first, lasting = neighbours.find_agreement(rank), neighbours.find_prediction_depth(rank)
    share = neighbours.measure_consistency(rank)
    known = ~np.isnan(share)
    assert (first[known] <= lasting[known]).all() and (lasting[known] <= states).all()
    assert (share[known] * states >= (states - lasting)[known] - 1e-9).all()
    assert (share[known] * states <= (states - first)[known] + 1e-9).all()


@given(bits, st.sampled_from([0.25, 0.5, 0.9]), st.sampled_from([1, 2]))
def test_an_exit_is_the_first_state_whose_confidence_reaches_the_threshold(values: np.ndarray, at: float, first: int) -> None:
    expected = loop(lambda row: exit_by_loop(row, at, first), values)
    np.testing.assert_array_equal(neighbours.find_exit(values, at, first), expected)


@given(margins)
def test_the_two_phases_part_the_layers_where_the_margin_turns_positive_for_good(margin: np.ndarray) -> None:
    silent, decisive = neighbours.find_decision_phases(margin)
    np.testing.assert_array_equal(silent, loop(silent_by_loop, margin))
    known = ~np.isnan(silent)
    assert (silent[known] + decisive[known] == margin.shape[1] - 1).all() and (decisive[known] >= 0).all()


@given(bits, ranks, margins)
def test_numpy_and_torch_agree_on_every_number(values: np.ndarray, rank: np.ndarray, margin: np.ndarray) -> None:
    given_to = {"js_to_output": as_divergence(values), "kl_to_output": values, "rank": rank, "decision_margin": margin}
    for name, number in NUMBERS.items():
        array = given_to.get(number.reading, values)
        np.testing.assert_allclose(number.measure(array), number.measure(torch.from_numpy(array)).numpy(), err_msg=name)


def test_a_token_that_is_decided_from_the_start_takes_no_depth() -> None:
    still, first = np.zeros((1, 9)), np.ones((1, 9))
    assert neighbours.find_settling(still) == 1 and neighbours.measure_deep_thinking(still) == 0
    assert neighbours.measure_consistency(still) == 1 and neighbours.find_prediction_depth(still) == 0
    assert neighbours.measure_convergence_gap(still) == 0 and neighbours.find_exit(first) == 1
    assert neighbours.find_decision_phases(first) == (0, 8)


def test_a_token_that_is_decided_in_the_last_step_takes_all_depth() -> None:
    far, late = np.array([[math.log(2)] * 8 + [0.0]]), np.array([[-1.0] * 8 + [1.0]])
    assert neighbours.find_settling(far) == 8 and neighbours.measure_deep_thinking(far) == 1
    assert neighbours.measure_consistency(far) == 0 and neighbours.find_prediction_depth(far) == 8
    assert neighbours.measure_convergence_gap(far) == pytest.approx(math.log(2)) and neighbours.find_exit(late) == 8
    assert neighbours.find_decision_phases(late) == (8, 0)


def test_a_threshold_that_is_met_exactly_counts_as_reached() -> None:
    half = np.array([1.0, 0.9, 0.5, 0.2, 0.0]) * math.log(2)
    assert neighbours.find_settling(half) == 2 and neighbours.find_settling(np.nextafter(half, 1.0)) == 3
    assert neighbours.find_exit(np.array([0.0, 0.5, 0.9, 1.0])) == 2
    assert np.isnan(neighbours.find_decision_phases(np.array([0.5, 0.0]))[0])


@pytest.mark.parametrize(("layers", "fraction", "first"), [(20, 0.85, 17), (16, 0.85, 14), (100, 0.07, 7), (32, 1.0, 32)])
def test_the_deep_regime_begins_at_the_fraction_of_the_layers_rounded_up(layers: int, fraction: float, first: int) -> None:
    rows = np.where(np.arange(layers + 1) < np.arange(1, layers + 1)[:, None], math.log(2), 0.0)  # row k settles at state k + 1
    deep = neighbours.measure_deep_thinking(rows, 0.5, fraction)
    assert np.array_equal(deep, np.arange(1, layers + 1) >= first)


def test_distance_is_measured_in_bits_so_that_a_threshold_above_ln_two_can_be_missed() -> None:
    apart = read_logits(torch.tensor([[60.0, 0.0]]), torch.tensor([0]), ["js_to_output"], torch.tensor([[0.0, 60.0]]))
    trajectory = np.array([float(apart["js_to_output"]), float(apart["js_to_output"]), 0.0])
    assert neighbours.find_settling(trajectory, 0.75) == 2


def test_without_states_or_for_another_token_nothing_is_said() -> None:
    alone, other = np.zeros((2, 1)), np.array([[0.0, 0.0, 3.0]])
    for formula in (number.measure for number in NUMBERS.values()):
        assert np.isnan(formula(alone)).all()
    for formula in (neighbours.measure_consistency, neighbours.find_prediction_depth, neighbours.find_agreement):
        assert np.isnan(formula(other)).all()


def read_all(logits: torch.Tensor) -> dict[str, np.ndarray]:
    """Every number of random logits `[token, state, vocabulary]`, the last state's being the model's own."""
    output = logits[:, -1:]
    reference = output.argmax(-1).expand(logits.shape[:-1])
    found = read_logits(logits, reference, READINGS, output.expand_as(logits))
    numbers = {name: one for name, one in NUMBERS.items() if one.reading in found}
    return {name: np.asarray(number.measure(found[number.reading].double().numpy())) for name, number in numbers.items()}


def test_neither_a_constant_on_all_logits_nor_the_order_of_the_vocabulary_changes_a_number() -> None:
    logits = (3 * torch.randn(40, 9, 13)).round(decimals=1) + torch.linspace(0, 1, 9)[:, None] * 6 * torch.randn(40, 1, 13)
    logits += 1e-3 * torch.rand(13)
    expected = read_all(logits)
    for changed in (logits + torch.randn(40, 9, 1), logits[..., torch.randperm(13)]):
        for name, values in read_all(changed).items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert all(len(np.unique(values)) > 1 for values in expected.values())
    np.testing.assert_array_equal(expected["silent"], expected["prediction_depth"])


@pytest.fixture(scope="module")
def traced() -> Trajectory:
    return trace(loaded("llama"), TEXTS, HyperLens((0, 2, LAYERS)), "all", readings=NEEDED)


def test_each_number_of_a_trajectory_is_its_formula_at_the_states_that_the_depth_leaves(traced: Trajectory) -> None:
    found = measure_neighbours(traced)
    assert found.attrs["missing"] == {"exit_classifier": "exit_probability"}
    for name, number in NUMBERS.items():
        if name == "exit_classifier":
            continue
        for place, depth in enumerate(traced.focal_depths):
            left = 0 if name == "exit_state" else depth
            values = traced.to_numpy(number.reading)[:, place, : LAYERS - left + 1].astype(np.float64)
            np.testing.assert_array_equal(found[name].values[:, place], number.measure(values), err_msg=name)
    assert (
        np.isnan(found["prediction_depth"].values[:, -1]).all() and not np.isnan(found["prediction_depth"].values[:, 0]).any()
    )


def test_of_a_whole_text_the_deep_thinking_is_a_ratio_over_its_tokens(traced: Trajectory) -> None:
    pooled, token = pool_neighbours(traced), measure_neighbours(traced)
    owners = traced.data["sample"].values
    for number in range(len(TEXTS)):
        deep = token["deep_thinking"].values[owners == number, 0]
        assert pooled["deep_thinking"].values[number, 0] == pytest.approx(np.count_nonzero(deep) / len(TEXTS[number]))
    np.testing.assert_array_equal(pooled["consistency"], average_tokens(traced, token["consistency"].values))
    assert pooled["left_out"].sel(number="consistency", focal_depth=LAYERS).values.tolist() == [len(text) for text in TEXTS]
    assert not pooled["left_out"].sel(focal_depth=0).values.any()
    described = describe_neighbours(traced)
    assert described["samples"][1]["settling"]["2"] == pooled["settling"].values[1, 1]
    assert set(described["numbers"]) == set(NUMBERS) - {"exit_classifier"}


def test_numbers_whose_reading_is_not_there_are_named_and_none_at_all_is_refused() -> None:
    model = loaded("llama")
    some = measure_neighbours(trace(model, [TEXTS[0]], LogitLens(), readings=("gap",)))
    assert list(some.data_vars) == ["exit_softmax"] and some.attrs["missing"]["settling"] == "js_to_output"
    with pytest.raises(InputError, match="none of the readings that the neighbours' numbers need; read js_to_output, rank"):
        measure_neighbours(trace(model, [TEXTS[0]], LogitLens()))


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_cosine_is_that_of_the_states_that_pytorchs_hooks_see(family: str, context: Any) -> None:
    model = loaded(family)
    found = trace(model, TEXTS, HyperLens((2, 3), context), "all", readings=("state_cosine", "entropy"))
    cosine = found.to_numpy("state_cosine")
    assert np.isnan(cosine[..., 0]).all() and np.array_equal(cosine[:, 0, 1:], cosine[:, 1, 1:])
    for number, ids in enumerate(TEXTS):
        states = torch.stack(layer_states(model.network, torch.tensor([ids])))[:, 0]
        expected = torch.nn.functional.cosine_similarity(states[1:], states[:-1], dim=-1).T
        np.testing.assert_allclose(cosine[found.data["sample"].values == number, 0, 1:], expected, atol=1e-5)
    tight = Limits(memory_mb=1, batch_tokens=20)
    same(found, trace(model, TEXTS, HyperLens((2, 3), context), "all", readings=("state_cosine", "entropy"), limits=tight))


def test_the_cosine_is_the_same_among_answer_options_and_in_a_saved_trajectory(tmp_path: Path) -> None:
    model = loaded("llama")
    lettered = Sample(words(TEXTS[0]), target=" A", options=(" w20", " w21", " w22"))
    among = trace(model, [lettered], HyperLens((1,)), readings=("state_cosine",))
    ids = model.tokenizer(among.samples["prompt"][0])["input_ids"]
    open_ = trace(model, [ids], LogitLens(), "last", readings=("state_cosine",))
    np.testing.assert_allclose(among.to_numpy("state_cosine")[:, 0, 1:], open_.to_numpy("state_cosine")[:, 0, 1:], atol=1e-6)
    again = Trajectory.load(among.save(tmp_path / "t"))
    np.testing.assert_array_equal(again.to_numpy("state_cosine"), among.to_numpy("state_cosine"))


@pytest.fixture(scope="module")
def classifier() -> ExitClassifier:
    return fit_exit_classifier(loaded("llama"), TEXTS)


def test_the_exit_probability_is_one_linear_classifier_at_every_state(classifier: ExitClassifier) -> None:
    model, ids = loaded("llama"), TEXTS[1]
    for lens in (LogitLens(), HyperLens((1, 2), "cached")):
        found = trace(model, [ids], lens, "all", readings=(classifier, "rank"))
        states = torch.stack(layer_states(model.network, torch.tensor([ids])))[:, 0]
        expected = (states @ classifier.weight + classifier.bias).sigmoid().T
        for values in np.moveaxis(found.to_numpy("exit_probability"), 1, 0):
            assert np.isnan(values[:, 0]).all()
            np.testing.assert_allclose(values[:, 1:], expected[:, 1:], atol=1e-5)
    assert found.manifest["readings"] == ["probability", "exit_probability", "rank"]
    assert found.manifest["exit_classifier"]["fingerprint"] == classifier.fingerprint
    assert "exit_classifier" in measure_neighbours(found)


def test_the_classifier_has_the_least_loss_of_its_source_and_is_found_again(classifier: ExitClassifier) -> None:
    model = loaded("llama")
    again = fit_exit_classifier(model, TEXTS, limits=Limits(batch_tokens=20))
    torch.testing.assert_close(again.weight, classifier.weight, rtol=1e-3, atol=1e-4)
    found = trace(model, TEXTS, LogitLens(), "all", readings=(classifier, "rank"))
    p, agrees = found.to_numpy("exit_probability")[:, 0, 1:LAYERS], found.to_numpy("rank")[:, 0, 1:LAYERS] == 0
    share = agrees.mean(0)
    mixed = (share > 0) & (share < 1)
    each = -np.where(agrees, (1 - share) * np.log(p), share * np.log1p(-p.astype(np.float64)))[:, mixed]
    assert each.mean() < 0.7 * np.where(agrees, 1 - share, share)[:, mixed].mean() * math.log(2)
    assert each.mean() <= classifier.training["loss"] + 1e-6
    assert classifier.training["agreement"] == pytest.approx(share.tolist())


def test_labels_that_a_plane_parts_are_told_apart() -> None:
    from hyperlens.tracing.exits import _fit_logistic

    states = torch.randn(60, 3, 4) * torch.tensor([1.0, 100.0, 0.01, 1.0]) + 5
    agrees = states[..., 0] - states[..., 3] > 0.3
    states[..., 0] += torch.where(agrees, 0.5, -0.5)
    weight, bias, _ = _fit_logistic(states, agrees)
    assert ((states.double() @ weight + bias > 0) == agrees).all()


def test_a_rare_label_weighs_as_much_as_a_common_one() -> None:
    from hyperlens.tracing.exits import _fit_logistic

    states, agrees = torch.randn(2000, 2, 3), torch.rand(2000, 2) < 0.1
    weight, bias, _ = _fit_logistic(states, agrees)
    assert float((states.double() @ weight + bias).sigmoid().mean()) == pytest.approx(0.5, abs=0.05)


def test_a_saved_classifier_reads_the_same_and_one_of_another_model_is_refused(
    classifier: ExitClassifier, tmp_path: Path
) -> None:
    again = load_exit_classifier(save_exit_classifier(classifier, tmp_path / "exit"))
    assert again.fingerprint == classifier.fingerprint and again.training == classifier.training
    with pytest.raises(InputError, match=r"was fitted to .*; fit one to this model with fit_exit_classifier"):
        trace(loaded("mistral"), [TEXTS[0]], LogitLens(), readings=(again,))
    with pytest.raises(InputError, match="two exit classifiers"):
        trace(loaded("llama"), [TEXTS[0]], LogitLens(), readings=(again, classifier))
    with pytest.raises(ArtefactError, match="holds no exit classifier but a trajectory"):
        load_exit_classifier(trace(loaded("llama"), [TEXTS[0]], LogitLens()).save(tmp_path / "t"))
    save_exit_classifier(ExitClassifier(-classifier.weight, classifier.bias, classifier.origin), tmp_path / "other")
    (tmp_path / "other" / "exit.safetensors").replace(tmp_path / "exit" / "exit.safetensors")
    with pytest.raises(ArtefactError, match="holds other weights than its manifest says"):
        load_exit_classifier(tmp_path / "exit")
    (tmp_path / "exit" / "exit.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ArtefactError, match="holds a damaged exit classifier"):
        load_exit_classifier(tmp_path / "exit")


def test_what_no_classifier_can_be_fitted_to_is_refused_in_one_sentence() -> None:
    model = loaded("llama")
    with pytest.raises(InputError, match='not fitted at positions "generated"; choose from all, answer, last'):
        fit_exit_classifier(model, TEXTS, "generated")
    with pytest.raises(InputError, match="from 0 positions"):
        fit_exit_classifier(model, TEXTS, most=0)
    with pytest.raises(InputError, match="nothing to learn; give more texts"):
        fit_exit_classifier(model, [TEXTS[0]], "last")


def test_a_study_reads_the_cosine_and_refuses_what_needs_a_classifier() -> None:
    assert LensSpec(readings=("probability", "state_cosine")).readings[1] == "state_cosine"
    with pytest.raises(InputError, match="exit_probability is read by a classifier that was fitted to the model"):
        LensSpec(readings=("exit_probability",))


def test_the_command_line_shows_them_beside_the_trajectory(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hyperlens.cli import app

    asked = ["trace", str(saved), words(TEXTS[0]), "--focal-depth", "0,2", "--neighbours"]
    app(asked, standalone_mode=False)
    shown = capsys.readouterr().out
    assert "Neighbours' numbers, mean of 1 text" in shown and "convergence gap" in shown
    assert "Left out: exit classifier, which needs the reading exit_probability." in shown
    app([*asked, "--json"], standalone_mode=False)
    printed = json.loads(capsys.readouterr().out)["neighbours"]
    assert set(printed["samples"][0]) == set(NUMBERS) - {"exit_classifier"}
    assert printed["numbers"]["settling"] == {"unit": "state", "source": "arXiv 2602.13517"}


@pytest.mark.slow
def test_the_tables_of_the_page_are_made_of_what_was_measured() -> None:
    from findings_page import DOCS

    spec = importlib.util.spec_from_file_location("neighbours_benchmark", DOCS.parent / "benchmarks" / "neighbours.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tables = script.make_tables(json.loads((DOCS / "neighbours.json").read_text(encoding="utf-8")))
    page = script.PAGE.read_text(encoding="utf-8")
    assert set(tables) == {"levels_0", "levels_2", "effort", "exits", "stories"}
    assert [name for name, table in tables.items() if table not in page] == [], "run benchmarks/neighbours.py --only draw"


def test_the_page_names_every_number_and_its_source() -> None:
    page = (Path(__file__).parent.parent / "docs" / "neighbours.md").read_text(encoding="utf-8")
    for name, number in NUMBERS.items():
        assert f"`{name}`" in page and all(source in page for source in number.source.removeprefix("arXiv ").split(", "))


@pytest.mark.slow
def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    from test_docs import run_blocks

    run_blocks("docs/neighbours.md")
    assert "exit_classifier" in capsys.readouterr().out
