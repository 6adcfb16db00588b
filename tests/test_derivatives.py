from __future__ import annotations

import numpy as np
import pytest
import torch
from families import LAYERS, build_family, build_tokenizer
from plain import layer_states, run_replaced

import hyperlens as hl
from hyperlens import effort
from hyperlens.errors import InputError

TEXTS = ["w11 w40 w23 w17 w90 w12 w55 w31 w20 w77", "w30 w31 w32"]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "granite"])
def test_derivatives_agree_with_finite_differences_of_the_models_own_layers(family):
    network, tokenizer = build_family(family, torch.float64), build_tokenizer()
    model = hl.load_model(network, tokenizer)
    slopes = hl.differentiate_steps(model, TEXTS, (0, 1, 3))
    for number, text in enumerate(TEXTS):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        states = layer_states(network, ids)
        top = model.splice.head(states[-1][:, -1]).argmax(-1).item()
        for place, depth in enumerate((0, 1, 3)):
            for state in range(LAYERS - depth):
                confidence = []
                for step in (-3e-3, 3e-3):  # norms compute in float32 whatever the model, which a smaller step would show
                    moved = states[state] + step * (states[state + 1] - states[state])
                    left = run_replaced(network, ids, LAYERS - depth, moved) if depth else moved
                    confidence.append(model.splice.head(left[:, -1]).softmax(-1)[0, top].item())
                expected = (confidence[1] - confidence[0]) / 6e-3
                found = slopes.values[number, place, state].item()
                assert found == pytest.approx(expected, rel=5e-3, abs=2e-5), (depth, state)
            assert np.isnan(slopes.values[number, place, LAYERS - depth :]).all()


def test_a_batch_gives_what_each_text_gives_alone():
    model = hl.load_model(build_family("qwen3"), build_tokenizer())
    together = hl.differentiate_steps(model, TEXTS, (0, 2), hl.Limits(memory_mb=1))
    for number, text in enumerate(TEXTS):
        alone = hl.differentiate_steps(model, [text], (0, 2)).values[0]
        np.testing.assert_allclose(together.values[number], alone, rtol=1e-3, atol=1e-6)


def test_the_model_is_left_as_it_was():
    network = build_family("llama").train()
    model = hl.load_model(network, build_tokenizer())
    slopes = hl.differentiate_steps(model, TEXTS, (0, 2))
    assert network.training and all(parameter.grad is None for parameter in network.parameters())
    own = slopes.values[:, 0]
    assert float(effort.measure_directional_gain(own, own)) == pytest.approx(1)


def test_a_depth_that_leaves_no_state_is_refused():
    model = hl.load_model(build_family("llama"), build_tokenizer())
    with pytest.raises(InputError, match="no state is left to move"):
        hl.differentiate_steps(model, TEXTS, (LAYERS,))
