"""States routed through the deepest layers: against slow references by PyTorch's own hooks, however they are batched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import LAYERS, build_family, random_ids
from plain import layer_states, replace_one, run_replaced
from torch import Tensor

from hyperlens import routing
from hyperlens.certificate import pad_texts
from hyperlens.routing import CachedForm, Recall, route_cached, route_jump, run_recalling
from hyperlens.splice import Inputs, Probes, Splice

FULL = ["llama", "gpt2", "gpt_neox", "falcon", "gptj", "granite", "mixtral", "olmo2"]
WINDOWED = ["mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "cohere2"]
LENGTHS = (17, 11)
"""Both longer than the window of 8."""

PLACES = ((0, 16), (0, 3), (1, 10), (1, 0), (0, 9))
"""(text, position) of each probe, in no order, and not as many in each text."""


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def texts() -> list[Tensor]:
    return [random_ids(1, length, seed)[0] for seed, length in enumerate(LENGTHS)]


def batch(side: str = "right") -> tuple[Inputs, Probes]:
    """The two texts padded on one side, and the probes in their columns."""
    inputs, starts = pad_texts(texts(), side, 0)
    rows = torch.tensor([row for row, _ in PLACES])
    return inputs, Probes(rows, torch.tensor([starts[row] + place for row, place in PLACES]))


def fill(splice: Splice, inputs: Inputs, probes: Probes, deepest: int, form: CachedForm = "rows") -> tuple[Tensor, Recall]:
    """All states at the probes, and what `cached` passes recall of the batch."""
    done, recall = run_recalling(splice, inputs, range(LAYERS + 1), probes, deepest, form)
    return torch.stack([done.states[number] for number in range(LAYERS + 1)]), recall


def close(found: Tensor, expected: Tensor, bound: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= bound * expected.abs().max())


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bloom", "falcon", "mamba", "gpt_neo"])
def test_jump_is_the_model_with_all_states_replaced(family: str) -> None:
    model = build_family(family)
    for row, text in enumerate(texts()):
        own = layer_states(model, text[None])
        for m in (1, 3, LAYERS):
            start = LAYERS - m
            stacked = torch.stack(own[: start + 1])
            ends = Probes(torch.zeros(2, dtype=torch.long), torch.tensor([0, len(text) - 1]))
            routed = route_jump(Splice(model), Inputs(text[None]), stacked, start, ends)
            expected = [run_replaced(model, text[None], start, state)[0, [0, -1]] for state in stacked]
            assert close(routed, torch.stack(expected)), (row, m)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gpt_neo"])
def test_jump_in_a_ragged_batch_is_each_text_alone(family: str, side: str) -> None:
    model, (inputs, probes) = build_family(family), batch(side)
    splice, start = Splice(model), LAYERS - 2
    states = splice.run(inputs, record=range(start + 1)).states
    routed = route_jump(splice, inputs, torch.stack([states[number] for number in range(start + 1)]), start, probes)
    own = [layer_states(model, text[None]) for text in texts()]
    for number in range(start + 1):
        done = [run_replaced(model, text[None], start, own[row][number])[0] for row, text in enumerate(texts())]
        expected = torch.stack([done[row][place] for row, place in PLACES])
        assert close(routed[number], expected), number


def test_stacked_states_are_routed_as_one_by_one() -> None:
    splice, (inputs, probes) = Splice(build_family("mistral")), batch("left")
    states = splice.run(inputs, record=range(4)).states
    stacked = torch.stack([states[number] for number in (3, 0, 2, 1)])
    together = route_jump(splice, inputs, stacked, 4, probes)
    alone = torch.cat([route_jump(splice, inputs, state[None], 4, probes) for state in stacked])
    assert together.shape == (4, len(PLACES), 32)
    assert close(together, alone, 1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", [*FULL, *WINDOWED])
def test_cached_is_the_model_with_one_positions_state_replaced(family: str, side: str) -> None:
    model, (inputs, probes) = build_family(family), batch(side)
    splice = Splice(model)
    for m in (1, 4) if side == "right" else (3,):
        start = LAYERS - m
        states, recall = fill(splice, inputs, probes, m)
        routed = route_cached(splice, inputs, states[: start + 1], start, probes, recall)
        for probe, (row, place) in enumerate(PLACES):
            expected = replace_one(model, texts()[row], start, place, states[: start + 1, probe])
            assert close(routed[:, probe], expected), (m, row, place)


STEPPED = ["llama", "mistral", "gpt2", "bloom", "gpt_neo", "mamba"]
"""Where a step of generation on the model's own memory is exact: keys of all tokens, of a window, with biases, recurrent."""


@pytest.mark.parametrize("form", ["steps", "replay"])
@pytest.mark.parametrize("family", [*STEPPED, "gemma2"])
def test_every_form_of_cached_is_the_model_with_one_positions_state_replaced(family: str, form: CachedForm) -> None:
    model, (inputs, probes) = build_family(family), batch()
    splice = Splice(model)
    for m in (2, LAYERS):
        start = LAYERS - m
        states, recall = fill(splice, inputs, probes, m, form)
        routed = route_cached(splice, inputs, states[: start + 1], start, probes, recall)
        for probe, (row, place) in enumerate(PLACES):
            expected = replace_one(model, texts()[row], start, place, states[: start + 1, probe])
            assert close(routed[:, probe], expected), (m, row, place)


@pytest.mark.parametrize("form", ["steps", "replay"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_every_form_of_cached_gives_the_same_in_parts_and_from_any_side(family: str, form: CachedForm) -> None:
    splice, (inputs, probes) = Splice(build_family(family)), batch("left")
    states, recall = fill(splice, inputs, probes, 3)
    whole = route_cached(splice, inputs, states[:4], 3, probes, recall)
    _, recall = fill(splice, inputs, probes, 3, form)
    assert close(route_cached(splice, inputs, states[:4], 3, probes, recall), whole)
    assert close(route_cached(splice, inputs, states[:4], 3, probes, recall, batch_tokens=20), whole)


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_stepping_leaves_the_memory_of_a_text_as_it_was(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    splice, (inputs, probes) = Splice(build_family(family)), batch()
    states, recall = fill(splice, inputs, probes, 3, "steps")
    first = route_cached(splice, inputs, states[:4], 3, probes, recall)
    assert torch.equal(route_cached(splice, inputs, states[:4], 3, probes, recall), first)
    monkeypatch.setattr(routing, "LONGEST_WALK", 0)
    assert close(route_cached(splice, inputs, states[:4], 3, probes, recall), first), "walked and run afresh"


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("rows", [1, 7, 10])
def test_cached_in_chunks_is_cached_at_once(family: str, rows: int, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    splice = Splice(build_family(family))
    inputs, _ = batch(side)
    mask = torch.ones_like(inputs.ids) if inputs.mask is None else inputs.mask
    everywhere = Probes(*mask.nonzero().flip(0).T)
    states, recall = fill(splice, inputs, everywhere, 2)
    whole = route_cached(splice, inputs, states[:4], 4, everywhere, recall)
    monkeypatch.setattr(routing, "QUERY_ROWS", rows)
    assert close(route_cached(splice, inputs, states[:4], 4, everywhere, recall), whole, 1e-6)


@pytest.mark.parametrize("family", ["llama", "cohere2"])
def test_routing_leaves_the_cache_as_it_was(family: str) -> None:
    splice, (inputs, probes) = Splice(build_family(family)), batch()
    states, recall = fill(splice, inputs, probes, 3)
    kept = [(layer.keys, layer.values) for layer in recall.cache.layers]
    copies = [tuple(None if part is None else part.clone() for part in pair) for pair in kept]
    first = route_cached(splice, inputs, states[:4], 3, probes, recall)
    assert torch.equal(route_cached(splice, inputs, states[:4], 3, probes, recall), first)
    for layer, pair, copy in zip(recall.cache.layers, kept, copies, strict=True):
        assert layer.keys is pair[0] and layer.values is pair[1]
        assert all(part is None or torch.equal(part, old) for part, old in zip(pair, copy, strict=True))
    assert [layer.keys is not None for layer in recall.cache.layers] == [number >= 3 for number in range(LAYERS)]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_one_cache_serves_every_smaller_focal_depth(family: str) -> None:
    splice, (inputs, probes) = Splice(build_family(family)), batch()
    states, deep = fill(splice, inputs, probes, LAYERS)
    for m in (1, 2, 5):
        start = LAYERS - m
        _, exact = fill(splice, inputs, probes, m)
        routed = [route_cached(splice, inputs, states[: start + 1], start, probes, each) for each in (deep, exact)]
        assert torch.equal(*routed)


@pytest.mark.parametrize("family", ["mistral", "gpt2", "bloom"])
def test_the_next_layers_in_their_own_context_give_the_state_so_many_layers_on(family: str) -> None:
    splice, inputs = Splice(build_family(family)), batch()[0]
    states = splice.run(inputs, record=range(LAYERS + 1)).states
    for m in (1, 2, 4):
        for state in range(LAYERS + 1 - m):
            routed = splice.run(inputs, states[state], state, state + m, record=[state + m]).states[state + m]
            assert torch.equal(routed, states[state + m]), (m, state)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_in_both_contexts_the_last_routed_state_is_the_models_own(family: str) -> None:
    splice, (inputs, probes) = Splice(build_family(family)), batch()
    states, recall = fill(splice, inputs, probes, LAYERS)
    whole = splice.run(inputs, record=range(LAYERS + 1)).states
    for m in range(1, LAYERS + 1):
        start = LAYERS - m
        cached = route_cached(splice, inputs, states[: start + 1], start, probes, recall)[-1]
        jumped = route_jump(splice, inputs, torch.stack([whole[number] for number in range(start + 1)]), start, probes)[-1]
        assert close(cached, states[LAYERS]) and close(jumped, states[LAYERS]), m


def test_the_contexts_differ_where_earlier_positions_matter_and_agree_at_the_first() -> None:
    splice, (inputs, _) = Splice(build_family("llama")), batch()
    probes = Probes(torch.tensor([0, 0]), torch.tensor([0, 16]))
    states, recall = fill(splice, inputs, probes, 2)
    whole = splice.run(inputs, record=[1]).states[1]
    cached = route_cached(splice, inputs, states[1][None], 4, probes, recall)[0]
    jumped = route_jump(splice, inputs, whole[None], 4, probes)[0]
    assert close(cached[0], jumped[0])
    assert not close(cached[1], jumped[1], 1e-3)
