"""Reading and running slices of a model: exact, by its own read-out, and leaving nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from families import LAYERS, build_family, random_ids
from plain import layer_states, model_logits, run_replaced
from torch import Tensor, nn
from transformers import PreTrainedModel

from hyperlens.anatomy import study_anatomy
from hyperlens.errors import ModelError
from hyperlens.lenses import HyperLens
from hyperlens.models import load_model
from hyperlens.splice import Inputs, Probes, Splice, at_rest
from hyperlens.tracing import trace

FAMILIES = ["llama", "mistral", "gemma2", "gpt2", "bloom", "falcon", "gptj", "mamba"]
"""Layers that return tensors and tuples, take their state by place and by name; absolute, rotary and alibi positions."""

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def all_states(splice: Splice, ids: Tensor) -> dict[int, Tensor]:
    return splice.run(Inputs(ids), record=range(splice.depth + 1)).states


def portrait(model: PreTrainedModel) -> list[tuple[Any, ...]]:
    """All that a visit could leave behind in any module: attributes, hooks, training flags."""
    seen = []
    for name, module in model.named_modules():
        hooks = [len(held) for key, held in vars(module).items() if key.endswith("_hooks")]
        seen.append((name, sorted(vars(module)), hooks, module.training, module.__dict__.get("forward")))
    return seen


def use(splice: Splice, ids: Tensor) -> None:
    """Everything that a splice can do."""
    states = all_states(splice, ids)
    splice.run(Inputs(ids), states[2], 2, 4, record=[4])
    splice.head(states[3][:, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_states_are_what_plain_hooks_see(family: str) -> None:
    model, ids = build_family(family), random_ids(2, 12)
    states = all_states(Splice(model), ids)
    assert sorted(states) == list(range(LAYERS + 1))
    assert all(torch.equal(states[number], state) for number, state in enumerate(layer_states(model, ids)))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "bloom", "falcon", "gptj"])
def test_states_between_layers_are_the_models_own_hidden_states(family: str) -> None:
    model, ids = build_family(family), random_ids(2, 12)
    own = model(input_ids=ids, output_hidden_states=True).hidden_states
    states = all_states(Splice(model), ids)
    assert all(torch.equal(states[number], own[number]) for number in range(LAYERS))


@pytest.mark.parametrize("family", FAMILIES)
def test_any_slice_leads_from_state_to_state_bit_for_bit(family: str) -> None:
    splice, ids = Splice(build_family(family)), random_ids(2, 12)
    states = all_states(splice, ids)
    for start, stop in combinations(range(LAYERS + 1), 2):
        found = splice.run(Inputs(ids), states[start], start, stop, record=[stop]).states[stop]
        assert torch.equal(found, states[stop]), (start, stop)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_state_gives_the_models_logits_when_the_rest_of_it_runs(family: str) -> None:
    model, ids = build_family(family), random_ids(2, 12)
    splice, own = Splice(model), model_logits(model, ids)[:, -1]
    whole = splice.run(Inputs(ids), record=range(LAYERS + 1))
    torch.testing.assert_close(whole.logits, own, rtol=0, atol=1e-5)
    for start, state in whole.states.items():
        assert torch.equal(splice.run(Inputs(ids), state, start).logits, whole.logits), start


@pytest.mark.parametrize("family", FAMILIES)
def test_hook_bypass_and_pytorchs_own_hooks_agree_on_foreign_states(family: str) -> None:
    model, ids = build_family(family), random_ids(2, 12)
    splice = Splice(model)
    foreign = all_states(splice, random_ids(2, 12, seed=1))[1]
    for start in (1, LAYERS - 2):
        expected = run_replaced(model, ids, start, foreign)
        for way in ("bypass", "hook"):
            splice.way = way
            assert torch.equal(splice.run(Inputs(ids), foreign, start, record=[LAYERS]).states[LAYERS], expected), way


def test_a_bypass_runs_only_the_layers_of_its_slice() -> None:
    splice, ids, ran = Splice(build_family("llama")), random_ids(1, 6), []
    states = all_states(splice, ids)
    splice.head(states[2][:, -1])  # the first bypass looks once at what each layer returns
    for number, layer in enumerate(splice.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    splice.run(Inputs(ids), states[2], 2, 4)
    assert ran == [2, 3]
    splice.way = "hook"
    splice.run(Inputs(ids), states[2], 2, 4)
    assert ran == [2, 3, *range(LAYERS)]


def test_probes_pick_their_states_in_their_order() -> None:
    splice, ids = Splice(build_family("gpt2")), random_ids(3, 7)
    rows, positions = torch.tensor([2, 0, 0]), torch.tensor([6, 1, 4])
    whole = all_states(splice, ids)
    picked = splice.run(Inputs(ids), record=[0, 3, LAYERS], probes=Probes(rows, positions)).states
    assert all(torch.equal(picked[number], whole[number][rows, positions]) for number in (0, 3, LAYERS))


def test_a_state_that_never_passes_is_refused() -> None:
    with pytest.raises(ModelError, match="state 9 of LlamaForCausalLM never passed"):
        Splice(build_family("llama")).run(Inputs(random_ids(1, 4)), record=[9])


HEADS: dict[str, Callable[[PreTrainedModel, Tensor], Tensor]] = {
    "llama": lambda model, state: model.lm_head(model.model.norm(state)),
    "mamba": lambda model, state: model.lm_head(model.backbone.norm_f(state)),
    "gpt2": lambda model, state: model.lm_head(model.transformer.ln_f(state)),
    "gemma2": lambda model, state: 2.0 * torch.tanh(model.lm_head(model.model.norm(state)) / 2.0),
    "granite": lambda model, state: model.lm_head(model.model.norm(state)) / 3.0,
    "cohere2": lambda model, state: model.lm_head(model.model.norm(state)) * 0.5,
}


@pytest.mark.parametrize("family", HEADS)
def test_the_models_own_read_out_is_the_head_its_authors_wrote(family: str) -> None:
    model = build_family(family)
    splice = Splice(model)
    for state in all_states(splice, random_ids(2, 9)).values():
        torch.testing.assert_close(splice.head(state[:, -1]), HEADS[family](model, state[:, -1]), rtol=0, atol=1e-5)


def test_the_precision_is_that_of_the_states_or_of_most_weights_whichever_is_narrower() -> None:
    model = build_family("llama", dtype=torch.bfloat16)
    model.model.layers[0].register_parameter("adapter", nn.Parameter(torch.zeros(10**6)))
    assert Splice(model).dtype == torch.bfloat16
    assert Splice(build_family("mamba", dtype=torch.bfloat16, residual_in_fp32=True)).dtype == torch.bfloat16
    assert Splice(build_family("llama")).dtype == torch.float32


def test_many_states_are_read_out_as_each_of_them_alone() -> None:
    splice = Splice(build_family("gemma2"))
    states = torch.randn(5, 32)
    together = splice.head(states)
    alone = torch.cat([splice.head(state[None]) for state in states])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2"])
@pytest.mark.parametrize("way", ["bypass", "hook"])
def test_use_leaves_the_model_as_it_was(family: str, way: Any) -> None:
    model, ids = build_family(family).train(), random_ids(2, 8)
    model.get_input_embeddings().training = False
    before = portrait(model)
    with at_rest(model):
        own = model_logits(model, ids)
    splice = Splice(model)
    splice.way = way
    with at_rest(model):
        use(splice, ids)
        assert torch.equal(model_logits(model, ids), own)
    assert portrait(model) == before


def fail_at(layer: nn.Module) -> Any:
    """A layer that raises when its turn comes; gives the handle to mend it."""

    def hook(*_: Any) -> None:
        raise ArithmeticError("deliberate")

    return layer.register_forward_pre_hook(hook)


@pytest.mark.parametrize("number", [0, 3, LAYERS - 1])
def test_an_error_inside_a_layer_leaves_the_model_as_it_was(number: int) -> None:
    model, ids = build_family("llama").train(), random_ids(2, 8)
    splice, own, before = Splice(model), model_logits(model, ids), portrait(model)
    handle = fail_at(splice.layers[number])
    with pytest.raises(ArithmeticError, match="deliberate"), at_rest(model):
        use(splice, ids)
    handle.remove()
    assert portrait(model) == before
    assert torch.equal(model_logits(model, ids), own)
    use(splice, ids)


def test_a_forward_that_someone_else_put_on_a_layer_still_runs_and_stays() -> None:
    model, ids, calls = build_family("llama"), random_ids(1, 5), []
    splice = Splice(model)
    layer, original = splice.layers[2], splice.layers[2].forward

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args))
        return original(*args, **kwargs)

    layer.forward = theirs
    all_states(splice, ids)
    assert layer.__dict__["forward"] is theirs
    assert len(calls) == 1


@pytest.mark.parametrize("number", [1, LAYERS - 1])
def test_a_users_own_hook_survives_and_is_part_of_the_model(number: int) -> None:
    model, ids = build_family("llama"), random_ids(2, 8)
    plain = model_logits(model, ids)
    splice = Splice(model)
    calls = []

    def steer(_: Any, args: Any, output: Tensor) -> Tensor:
        calls.append(number)
        return output + 0.5

    splice.layers[number].register_forward_hook(steer)
    steered = model_logits(model, ids)
    assert not torch.allclose(steered, plain)
    states = all_states(splice, ids)
    for start in range(LAYERS + 1):
        torch.testing.assert_close(splice.run(Inputs(ids), states[start], start).logits, steered[:, -1], rtol=0, atol=1e-5)
    calls.clear()
    assert torch.equal(model_logits(model, ids), steered)
    assert calls == [number]


def in_thread(work: Callable[[], Any]) -> Any:
    """The result of `work`, done by another thread while this one waits."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(30)
    return results[0]


@pytest.mark.parametrize("way", ["bypass", "hook"])
def test_another_thread_sees_the_untouched_model_during_a_run(way: Any) -> None:
    model, ids = build_family("llama"), random_ids(2, 8)
    splice, own, seen = Splice(model), model_logits(model, ids), []
    splice.way = way
    states = all_states(splice, ids)
    expected = splice.run(Inputs(ids), states[1] + 1.0, 2, 4, record=[4]).states[4]
    here = threading.get_ident()

    def meanwhile(*_: Any) -> None:
        if threading.get_ident() == here:
            seen.append(in_thread(lambda: model_logits(model, ids)))

    handle = splice.layers[3].register_forward_pre_hook(meanwhile)
    found = splice.run(Inputs(ids), states[1] + 1.0, 2, 4, record=[4]).states[4]
    handle.remove()
    assert len(seen) == 1
    assert torch.equal(seen[0], own)
    assert torch.equal(found, expected)


def test_splices_of_one_model_take_turns_in_threads() -> None:
    model = build_family("llama")
    texts = [random_ids(1, 8, seed) for seed in range(4)]
    expected = [layer_states(model, ids)[3] for ids in texts]
    found: dict[int, Tensor] = {}

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(3):
                found[number] = all_states(Splice(model), texts[number])[3]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(torch.equal(found[number], state) for number, state in enumerate(expected))


def test_at_rest_switches_dropout_and_gradients_off_for_a_while() -> None:
    model = build_family("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).train()
    ids = random_ids(1, 5)
    with torch.enable_grad():
        with at_rest(model):
            first, second = model(input_ids=ids).logits, model(input_ids=ids).logits
        assert torch.is_grad_enabled()
    assert torch.equal(first, second) and not first.requires_grad
    assert all(module.training for module in model.modules())


def test_layers_are_found_by_what_runs_whatever_the_configuration_counts() -> None:
    model = build_family("mixtral", num_local_experts=LAYERS)
    assert study_anatomy(model).layers == tuple(model.model.layers)
    model.config.num_hidden_layers = 5  # by which this model cuts its own loop
    assert study_anatomy(model).layers == tuple(model.model.layers)[:5]


def test_a_model_without_a_list_of_layers_that_runs_is_refused() -> None:
    model = build_family("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(ModelError, match="LlamaForCausalLM has no list of decoder layers that runs on a text"):
        Splice(model)


@pytest.mark.parametrize(
    ("family", "changes", "plain"),
    [
        ("llama", {}, True),
        ("gpt2", {}, True),
        ("phi", {}, True),
        ("gemma2", {}, False),
        ("gemma2", {"final_logit_softcapping": 1e5}, False),
        ("granite", {}, False),
        ("cohere2", {}, False),
    ],
)
def test_only_logits_to_which_nothing_is_done_are_summed_up_while_they_come(family: str, changes: Any, plain: bool) -> None:
    model = load_model(build_family(family, **changes))
    assert model.splice.ends_plainly == plain
    texts, lens = [[5, 6, 7, 8, 9], [11, 12, 13]], HyperLens((0, 2))
    streamed = trace(model, texts, lens, "all", readings=("probability", "log_probability"))
    whole = trace(model, texts, lens, "all", readings=("probability", "log_probability", "rank"))
    for name in ("probability", "log_probability"):
        np.testing.assert_allclose(streamed.to_numpy(name), whole.to_numpy(name), rtol=1e-4, atol=1e-6)


def test_a_head_that_was_changed_is_not_taken_for_a_matrix() -> None:
    network: Any = build_family("llama")
    model = load_model(network)
    assert model.splice.ends_plainly
    network.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    assert not model.splice.ends_plainly and not load_model(network).splice.ends_plainly
