"""Adapters such as LoRA: on they are the merged model, off the base, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_family, build_tokenizer
from loading import CONTEXTS, adapt, deprecated, difference, needs, read, refused, save
from sentences import is_one_sentence
from transformers import AutoModelForCausalLM

from hyperlens.errors import ModelError
from hyperlens.models import Model, disable_adapters, fingerprint_model, load_model


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """The folder of a LoRA adapter on the small Llama."""
    adapt(saved, tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(folder: Path, **changes: Any) -> Path:
    """`folder` with its adapter's configuration changed."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


KINDS = [{}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"use_rslora": True, "target_modules": "all-linear"}]


@needs("peft")
@deprecated
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_adapter_on_is_the_merged_model_and_off_it_is_the_base(
    saved: Path, plain: Model, tmp_path: Path, kind: dict[str, Any]
) -> None:
    adapted = adapt(saved, tmp_path, **kind)
    model = load_model(tmp_path)
    assert model.name == str(tmp_path) and model.certificate.contexts == CONTEXTS
    before = read(model)
    assert np.abs(before - read(plain)).max() > 1e-3
    with disable_adapters(model) as base:
        assert difference(base, plain) <= 1e-5
        assert base.fingerprint == plain.fingerprint != model.fingerprint
        assert base.name == f"{tmp_path} (adapter off)"
    assert np.array_equal(read(model), before) and fingerprint_model(model.network) == model.fingerprint
    merged = load_model(adapted.merge_and_unload(), build_tokenizer())
    assert difference(merged, model) <= 1e-5
    assert merged.fingerprint not in (model.fingerprint, plain.fingerprint)


@needs("peft")
@deprecated
def test_a_model_that_peft_wrapped_is_taken_as_it_is(saved: Path, plain: Model, tmp_path: Path) -> None:
    adapted = adapt(saved, tmp_path).train()
    needed = {name: parameter.requires_grad for name, parameter in adapted.named_parameters()}
    model = load_model(adapted, build_tokenizer())
    assert model.name == f"{saved} (adapter default)"
    assert model.fingerprint == load_model(tmp_path).fingerprint
    with pytest.raises(KeyError), disable_adapters(model) as base:
        assert base.name == f"{saved} (adapter off)"
        raise KeyError
    assert difference(model, load_model(tmp_path)) <= 1e-5
    assert needed == {name: parameter.requires_grad for name, parameter in adapted.named_parameters()}
    assert adapted.training
    with adapted.disable_adapter():
        assert load_model(adapted, build_tokenizer()).fingerprint == plain.fingerprint


@needs("peft")
@deprecated
def test_strength_and_choice_of_an_adapter_enter_the_fingerprint(saved: Path, adapter: Path, tmp_path: Path) -> None:
    weak = Path(shutil.copytree(adapter, tmp_path / "weak"))
    assert load_model(rewrite(weak, lora_alpha=1)).fingerprint != load_model(adapter).fingerprint
    adapted = adapt(saved, tmp_path / "two")
    adapted.load_adapter(adapter, "other")
    first = fingerprint_model(load_model(adapted).network)
    adapted.set_adapter("other")
    assert load_model(adapted).name == f"{saved} (adapter other)"
    assert fingerprint_model(load_model(adapted).network) != first


@needs("peft")
@deprecated
def test_an_adapter_that_cannot_be_taken_off_is_refused(saved: Path, plain: Model, tmp_path: Path) -> None:
    adapted = adapt(saved, tmp_path)
    adapted.merge_adapter()
    biased = adapt(saved, tmp_path / "biased", bias="all")
    for model, words in ((plain, "has no adapter"), (load_model(adapted), "merged"), (load_model(biased), "changed biases")):
        with pytest.raises(ModelError, match=words) as caught, disable_adapters(model):
            pass
        assert is_one_sentence(str(caught.value))


@needs("peft")
@deprecated
@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"device_map": "auto"}, {"device": "cpu"}], ids=str)
def test_an_adapter_goes_with_the_other_ways_to_load(saved: Path, adapter: Path, options: dict[str, Any]) -> None:
    base = load_model(saved, **options)
    with disable_adapters(load_model(adapter, **options)) as off:
        assert difference(off, base) <= 1e-5 and off.fingerprint == base.fingerprint


@needs("peft")
@needs("bitsandbytes")
@deprecated
def test_an_adapter_on_a_quantised_base_can_be_taken_off(saved: Path, adapter: Path) -> None:
    base = load_model(saved, dtype="nf4")
    with disable_adapters(load_model(adapter, dtype="nf4")) as off:
        assert difference(off, base) <= 1e-5 and off.fingerprint == base.fingerprint


@needs("peft")
@deprecated
def test_the_base_on_disk_is_not_touched_by_an_adapter(saved: Path, adapter: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    refused(adapter, ModelError, "lies on disk, where PEFT would overwrite it", device_map="disk")
    assert (saved / "model.safetensors").read_bytes() == before


@needs("peft")
@deprecated
def test_an_adapter_without_its_base_or_for_another_is_refused(adapter: Path, tmp_path: Path) -> None:
    refused(rewrite(adapter, base_model_name_or_path="/no/such"), ModelError, "base cannot be had: there is no folder /no/such")
    refused(
        rewrite(adapter, base_model_name_or_path="nobody/nothing"), ModelError, "nobody/nothing .the base of .*, and the hub"
    )
    refused(rewrite(adapter, base_model_name_or_path=None), ModelError, "names no base model")
    for name, changes in (("gpt2", {}), ("llama", {"num_hidden_layers": 4}), ("llama", {"num_hidden_layers": 8})):
        other = save(build_family(name, **changes), tmp_path / f"{name}{changes.get('num_hidden_layers')}")
        refused(rewrite(adapter, base_model_name_or_path=str(other)), ModelError, "does not fit its base")
    wide = save(build_family("llama", hidden_size=64), tmp_path / "wide")
    refused(rewrite(adapter, base_model_name_or_path=str(wide)), ModelError, "does not fit its base")
    refused(rewrite(adapter, task_type="SEQ_CLS"), ModelError, "an adapter for SEQ_CLS; HyperLens reads decoder-only models")


@needs("peft")
@deprecated
def test_an_adapter_without_readable_safetensors_is_refused(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused(adapter, ModelError, "safetensors of .* are damaged")
    weights.rename(adapter / "adapter_model.bin")
    refused(adapter, ModelError, "weights only as pickle .adapter_model.bin")
    (adapter / "adapter_model.bin").unlink()
    refused(adapter, ModelError, "has no weights; expected .*beside its adapter_config.json")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (adapter / "adapter_config.json").write_text("{")
    refused(adapter, ModelError, "cannot be loaded .Expecting property name")


@needs("peft")
@deprecated
def test_an_adapter_that_adds_to_the_text_is_refused(saved: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(saved), settings)
    adapted.save_pretrained(tmp_path)
    refused(adapted, ModelError, "of kind PROMPT_TUNING, which adds to the text")
    refused(tmp_path, ModelError, "prompt")
