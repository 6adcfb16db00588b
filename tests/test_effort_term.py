from __future__ import annotations

from typing import Any

import pytest
import torch
from families import LAYERS, build_family, random_ids

from hyperlens import HyperLens, load_model, trace
from hyperlens.effort import SMALLEST_GIVEN, measure_shortfall
from hyperlens.errors import InputError, ModelError
from hyperlens.splice import Inputs, Probes, Splice, Way
from hyperlens.tracing import Limits
from hyperlens.training import effort_term
from hyperlens.training.effort_term import choose_states, read_effort
from hyperlens.trajectory import measure_effort

DEPTH = 2
FAMILIES = ("llama", "gpt2", "gemma2", "qwen3", "gemma3n_text")


def lay_out(dtype: torch.dtype = torch.float32, name: str = "llama") -> tuple[Any, Inputs, Probes, torch.Tensor]:
    """A small model, a batch, the places that are read in it, and the model's own top token at each."""
    network = build_family(name, dtype)
    inputs = Inputs(random_ids(3, 7))
    probes = Probes(torch.tensor([0, 0, 1, 2]), torch.tensor([3, 6, 5, 2]))
    with torch.no_grad():
        targets = probes.pick(network(input_ids=inputs.ids).logits).argmax(-1)
    return network, inputs, probes, targets


def read(
    network: Any, inputs: Inputs, probes: Probes, targets: torch.Tensor, states: tuple[int, ...], way: Way = "bypass"
) -> torch.Tensor:
    splice = Splice(network)
    splice.way = way
    with splice.watch({*states, splice.depth}) as recorded:
        network(input_ids=inputs.ids, use_cache=False)
    return read_effort(splice, inputs, recorded, states, DEPTH, probes, targets)


@pytest.mark.parametrize("name", FAMILIES)
def test_effort_in_training_is_that_of_a_trace(name):
    network, inputs, probes, targets = lay_out(name=name)
    model = load_model(network)
    every = choose_states(LAYERS, DEPTH, LAYERS)
    with torch.no_grad():
        found = read(network, inputs, probes, targets, every, model.splice.way)
    for place, (row, position) in enumerate(zip(probes.rows.tolist(), probes.positions.tolist(), strict=True)):
        read_one = trace(
            model, [inputs.ids[row, : position + 1].tolist()], HyperLens((DEPTH,)), "last", limits=Limits(progress=False)
        )
        assert found[place].item() == pytest.approx(float(measure_effort(read_one)["effort"].values[0, 0]), abs=1e-5)


@pytest.mark.parametrize("name, step", [("gpt2", 1e-5)])  # whose norms compute in float64 too
def test_the_gradient_of_effort_agrees_with_finite_differences(name, step):
    network, inputs, probes, targets = lay_out(torch.float64, name)
    states = choose_states(LAYERS, DEPTH, 3)
    total = read(network, inputs, probes, targets, states).sum()
    total.backward()
    checked = 0
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        direction = torch.randn_like(weight)
        direction /= direction.norm()
        slope = (weight.grad * direction).sum().item()
        differences = []
        for move in (step, -step):
            with torch.no_grad():
                weight.add_(direction, alpha=move)
                differences.append(read(network, inputs, probes, targets, states).sum().item())
                weight.sub_(direction, alpha=move)
        expected = (differences[0] - differences[1]) / (2 * step)
        assert slope == pytest.approx(expected, rel=1e-3, abs=1e-6), name
        checked += abs(expected) > 1e-5
    assert checked > LAYERS, "almost nothing moves the effort, so that nothing was checked"


def test_blocks_of_rows_give_the_same_effort_and_gradient(monkeypatch):
    network, inputs, probes, targets = lay_out()
    states = choose_states(LAYERS, DEPTH, 3)

    def measure() -> tuple[torch.Tensor, list[torch.Tensor]]:
        network.zero_grad()
        found = read(network, inputs, probes, targets, states)
        found.sum().backward()
        return found.detach(), [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]

    whole, gradients = measure()
    monkeypatch.setattr(effort_term, "BLOCK", 5 * 4 * network.config.vocab_size)
    parts, same = measure()
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(same, gradients)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    network, inputs, probes, targets = lay_out()
    network.config.use_cache = False
    states = choose_states(LAYERS, DEPTH, 3)
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            network.activation_checkpointing_enable({"use_reentrant": reentrant})
            network.enable_input_require_grads()
        network.train()
        network.zero_grad()
        read(network, inputs, probes, targets, states).sum().backward()
        found.append([weight.grad.clone() for weight in network.parameters() if weight.grad is not None])
    torch.testing.assert_close(found[1], found[0])
    assert sum(gradient.abs().sum() for gradient in found[0]) > 0


def test_watching_changes_nothing_and_sees_only_calls_with_gradients():
    network, inputs, _, _ = lay_out()
    splice = Splice(network)
    alone = network(input_ids=inputs.ids).logits
    with splice.watch({0, LAYERS}) as recorded:
        with torch.no_grad():
            network(input_ids=inputs.ids.flip(1))
        assert not recorded
        watched = network(input_ids=inputs.ids).logits
        first = dict(recorded)
        network(input_ids=inputs.ids.flip(1))
    assert torch.equal(alone, watched)
    assert set(first) == {0, LAYERS} and all(recorded[number] is state for number, state in first.items())
    with torch.no_grad(), splice.watch({0}) as still:
        network(input_ids=inputs.ids)
    assert torch.equal(still[0], first[0]) and not still[0].requires_grad and first[0].requires_grad


def test_a_state_that_never_passes_with_gradients_is_named():
    network, inputs, _, _ = lay_out()
    words = "state 2 of LlamaForCausalLM never passed with gradients"
    with pytest.raises(ModelError, match=words), Splice(network).watch({2}), torch.no_grad():
        network(input_ids=inputs.ids)


def test_a_target_that_the_model_hardly_believes_in_has_no_effort_and_no_gradient():
    network, inputs, probes, _ = lay_out()
    with torch.no_grad():
        unlikely = probes.pick(network(input_ids=inputs.ids).logits).softmax(-1).min(-1)
    assert (unlikely.values < SMALLEST_GIVEN).all()
    found = read(network, inputs, probes, unlikely.indices, choose_states(LAYERS, DEPTH, 3))
    assert found.isnan().all()
    measure_shortfall(found, torch.ones_like(found)).sum().backward()
    assert all(weight.grad is None or not weight.grad.any() for weight in network.parameters())


@pytest.mark.parametrize("count", range(1, 8))
def test_chosen_states_are_apart_and_can_be_changed_by_the_lens(count):
    for depth in range(LAYERS):
        states = choose_states(LAYERS, depth, count)
        assert len(set(states)) == len(states) == min(count, LAYERS - depth)
        assert states == tuple(sorted(states)) and states[0] >= 0 and states[-1] < LAYERS - depth


def test_states_that_are_not_there_are_refused():
    with pytest.raises(InputError, match="focal depth 6 leaves no state of a model of 6 layers; give 0 to 5"):
        choose_states(6, 6, 2)
    with pytest.raises(InputError, match="effort is to be read of 0 states"):
        choose_states(6, 2, 0)
