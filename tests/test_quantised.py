"""Quantised weights: read as the floats that they stand for, near the plain model, and the same when loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import build_family
from loading import ALL_QUANTISED, STORIES, difference, needs, refused, save
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hyperlens.errors import CertificateError, InputError, ModelError
from hyperlens.models import Model, fingerprint_model, load_model


def dequantised(model: Model) -> Model:
    """The plain model whose weights are what the quantised ones stand for."""
    plain = AutoModelForCausalLM.from_config(model.network.config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            values: Any = parameter
            if (state := getattr(parameter, "quant_state", None)) is not None:
                from bitsandbytes.functional import dequantize_4bit

                values = dequantize_4bit(parameter.data, state)
            elif hasattr(parameter, "dequantize") and type(parameter.data) is not torch.Tensor:
                values = values.dequantize()
            plain.get_parameter(name).copy_(values)
    del plain.config.quantization_config
    return load_model(plain, model.tokenizer)


@pytest.mark.parametrize(
    "dtype", [pytest.param("nf4", marks=needs("bitsandbytes")), pytest.param("torchao-int8", marks=needs("torchao"))]
)
def test_quantised_weights_read_as_the_floats_that_they_stand_for(saved: Path, plain: Model, dtype: str) -> None:
    model = load_model(saved, dtype=dtype)
    assert model.certificate.max_error is not None and model.certificate.max_error <= 1e-5
    assert difference(model, dequantised(model)) <= 1e-5
    assert 0 < difference(model, plain) < 1e-2


@needs("bitsandbytes")
def test_int8_reads_near_the_plain_model(saved: Path, plain: Model, stories: Path) -> None:
    model = load_model(saved, dtype="int8")
    assert model.certificate.max_error is not None and model.certificate.max_error <= 1e-5
    assert 0 < difference(model, plain) < 1e-3
    assert difference(load_model(stories, dtype="int8"), load_model(stories), STORIES) < 0.1


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=needs(package)) for dtype, package in ALL_QUANTISED])
def test_a_model_saved_quantised_is_loaded_as_saved(
    saved: Path, tmp_path: Path, dtype: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load_model(saved, dtype=dtype)
    again = load_model(save(model.network, tmp_path))
    assert again.fingerprint == model.fingerprint == fingerprint_model(model.network)
    assert difference(again, model) == 0
    assert capfd.readouterr() == ("", "")
    refused(tmp_path, InputError, "is quantised already .*; leave its dtype at auto", dtype=dtype)


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=needs(package)) for dtype, package in ALL_QUANTISED])
def test_each_quantisation_has_its_own_fingerprint(saved: Path, plain: Model, dtype: str) -> None:
    assert load_model(saved, dtype=dtype).fingerprint != plain.fingerprint


@needs("bitsandbytes")
def test_fingerprinting_leaves_a_quantised_model_as_it_is() -> None:
    """bitsandbytes' own `state_dict` does not, on processors for which it repacks weights."""
    from bitsandbytes.nn import Linear4bit

    network = build_family("llama", hidden_size=256)
    network.model.layers[0].mlp.up_proj = Linear4bit(256, 64, bias=False, compress_statistics=False, quant_type="nf4").to("cpu")
    layer, inputs = network.model.layers[0].mlp.up_proj.eval(), torch.ones(2, 256)
    with torch.no_grad():
        before = layer(inputs)
        fingerprint_model(network)
        assert torch.equal(layer(inputs), before)


@needs("bitsandbytes")
def test_an_int8_model_whose_tokens_depend_on_their_neighbours_is_refused(stories: Path) -> None:
    """Its columns with outliers anywhere in the batch stay in 16 bit: a text alone gives other logits than beside another."""
    network = AutoModelForCausalLM.from_pretrained(
        stories, dtype=torch.float32, quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    )
    refused(network, CertificateError, "differs by .*; its int8 layers keep columns .*: load it with llm_int8_threshold=0")


@needs("torchao")
def test_a_model_without_a_layer_to_quantise_is_refused(tmp_path: Path) -> None:
    refused(save(build_family("gpt2"), tmp_path), ModelError, "knows none of the layers", dtype="torchao-int8")
