"""The decoder layers are what runs on a text, however a model is built around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import LAYERS, WIDTH, build_family, build_image_family, random_ids
from torch import nn

from hyperlens.anatomy import given_state, study_anatomy
from hyperlens.configuration import image_tokens, plain_token, special_tokens, text_config
from hyperlens.errors import ModelError
from hyperlens.splice import Inputs, Splice


def test_a_plain_stack_is_its_list_of_layers_each_called_once() -> None:
    model = build_family("llama")
    anatomy = study_anatomy(model)
    assert anatomy.layers == tuple(model.model.layers)
    assert anatomy.order == tuple(range(LAYERS))
    assert (anatomy.axes, anatomy.width) == ((0, 1), (WIDTH,))
    assert anatomy.returns == (None,) * LAYERS


@pytest.mark.parametrize(("family", "kind"), [("gptj", (tuple, 2)), ("rwkv", (tuple, 3)), ("openai-gpt", (list, 1))])
def test_layers_may_return_a_sequence(family: str, kind: tuple[type, int]) -> None:
    assert study_anatomy(build_family(family)).returns == (kind,) * LAYERS


def test_a_model_that_loops_has_one_state_for_each_call_of_a_layer() -> None:
    model = build_family("hrm_text")
    anatomy = study_anatomy(model)
    assert set(anatomy.layers) == {*model.model.L_module.layers, *model.model.H_module.layers}
    assert len(anatomy.order) == model.config.num_hidden_layers > len(anatomy.layers)


@pytest.mark.parametrize("family", ["gemma4", "mllama"])
def test_a_vision_tower_of_as_many_layers_is_none_of_the_text(family: str) -> None:
    model = build_image_family(family, vision_config={"num_hidden_layers": LAYERS})
    parts = dict(model.named_modules())
    names = [name for layer in study_anatomy(model).layers for name, part in parts.items() if part is layer]
    assert names and all("language_model" in name for name in names)


def test_layers_that_do_not_run_on_a_text_are_none_of_it() -> None:
    model = build_image_family("mllama")
    crossing = set(model.config.text_config.cross_attention_layers)
    every = list(model.model.language_model.layers)
    assert study_anatomy(model).layers == tuple(layer for number, layer in enumerate(every) if number not in crossing)


def test_states_with_more_axes_are_rows_and_tokens_first() -> None:
    model = build_family("gemma3n_text")
    streams = model.config.altup_num_inputs
    anatomy = study_anatomy(model)
    assert (anatomy.axes, anatomy.width) == ((1, 2), (streams, WIDTH))
    with torch.no_grad():
        states = Splice(model).run(Inputs(random_ids(2, 9)), record=range(LAYERS + 1)).states
    assert all(state.shape == (2, 9, streams, WIDTH) for state in states.values())


def test_experts_inside_a_layer_are_no_layers() -> None:
    model = build_family("mixtral", num_local_experts=LAYERS)
    assert study_anatomy(model).layers == tuple(model.model.layers)


def test_the_configuration_need_not_count_the_layers() -> None:
    model = build_family("llama")
    count, model.config.num_hidden_layers = model.config.num_hidden_layers, 99
    assert len(study_anatomy(model).layers) == count


REFUSED: dict[str, str] = {
    "cpmant": r"are \[2, 37, 32\] for 2 rows of 5 tokens; HyperLens reads models that keep one state for each token",
    "blt": "change their shape from layer to layer",
    "musicgen": "has no one embedding of token ids",
}


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_without_one_stream_of_states_is_refused_with_the_reason(family: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[family]):
        Splice(build_family(family))


def test_a_model_that_needs_more_than_a_text_is_refused_in_its_own_words() -> None:
    with pytest.raises(ModelError, match=r"does not run on a plain text \(it raised TypeError: .*pixel_values"):
        Splice(build_image_family("blip-2"))


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = build_family("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(ModelError, match="LlamaForCausalLM has no list of decoder layers that runs on a text"):
        study_anatomy(model)


def test_a_model_whose_layers_depend_on_the_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_family("llama")
    whole = model.model.layers
    original = model.model.forward

    def shorter(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        model.model.layers = whole if input_ids.shape[1] <= 5 else whole[: LAYERS - 1]
        return original(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model.model, "forward", shorter)
    with pytest.raises(ModelError, match="runs other layers on another text"):
        study_anatomy(model)


def test_watching_leaves_no_hook_behind() -> None:
    model = build_family("mixtral")
    study_anatomy(model)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_the_state_is_the_first_argument_or_the_first_tensor_by_name() -> None:
    state = torch.zeros(1)
    assert given_state((state, None), {}) == (None, state)
    assert given_state((), {"attention_mask": None, "hidden_states": state}) == ("hidden_states", state)
    with pytest.raises(ModelError, match="was called without a state"):
        given_state((), {"position_ids": torch.zeros(1, dtype=torch.long)})


def test_a_plain_token_is_none_that_means_more() -> None:
    config = text_config(build_family("llama"))
    assert special_tokens(config) >= {0, 1, 2}
    assert plain_token(config) == 3
    pieces = image_tokens(build_image_family("llava").config)
    assert pieces and pieces <= special_tokens(build_image_family("llava").config)
