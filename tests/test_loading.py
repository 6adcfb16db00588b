"""Every way to load a model: its certificate holds, and what is read is what the plain load gives, within the precision."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import read as read_prompts
from families import build_family, build_tokenizer, random_ids
from plain import model_logits
from safetensors.torch import save_file
from sentences import is_one_sentence
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging

from hyperlens.errors import CertificateError, InputError, ModelError
from hyperlens.lenses import HyperLens
from hyperlens.models import Model, disable_adapters, fingerprint_model, load_model
from hyperlens.tasks import Sample
from hyperlens.tracing import trace

SAMPLES = [Sample("w20 w30 w40 w21 w22", " w33"), Sample("w50 w60", " w11 w12")]
STORIES = [Sample("Once upon a time there was a little", " girl named Lily"), Sample("The dog ran to the", " park")]
CONTEXTS = ("jump", "cached")
LAYERS_ON_DISK = {f"model.layers.{number}": "disk" if number > 2 else "cpu" for number in range(6)}
SPREAD = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk", **LAYERS_ON_DISK}


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed; it is an extra")


# What PEFT itself calls when it wraps a model, and what we call to see that it does no harm.
deprecated = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def no_bars() -> Iterator[None]:
    """Saving is not what is tested here: it draws no bars."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def save(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with its tokenizer. To be read only."""
    return save(build_family("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def plain(saved: Path) -> Model:
    return load_model(saved)


def read(model: Model, context: str = "jump", samples: list[Sample] = SAMPLES) -> np.ndarray:
    """Probabilities of the targets, whatever the model would say itself."""
    return np.nan_to_num(trace(model, samples, HyperLens((0, 2), context)).to_numpy())


def difference(model: Model, other: Model, samples: list[Sample] = SAMPLES) -> float:
    """The largest difference of any probability, in both contexts."""
    assert model.certificate.contexts == other.certificate.contexts == CONTEXTS
    return max(float(np.abs(read(model, way, samples) - read(other, way, samples)).max()) for way in CONTEXTS)


def refused(source: Any, kind: type[Exception], words: str, **options: Any) -> None:
    """`source` is refused with an error of exactly this kind, in one sentence with these words."""
    with pytest.raises(kind, match=words) as caught:
        load_model(source, **options)
    assert caught.type is kind
    assert is_one_sentence(str(caught.value)), str(caught.value)


# 16 bit.


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 5e-4), ("float16", 1e-4)])
def test_sixteen_bit_reads_what_float32_reads_within_its_rounding(saved: Path, plain: Model, dtype: str, bound: float) -> None:
    model = load_model(saved, dtype=dtype)
    assert model.certificate.max_error is not None and model.certificate.max_error <= 2e-2
    assert difference(model, plain) < bound


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 5e-2), ("float16", 1e-2)])
def test_sixteen_bit_reads_the_same_from_a_trained_model(stories: Path, dtype: str, bound: float) -> None:
    assert difference(load_model(stories, dtype=dtype), load_model(stories), STORIES) < bound


# Spread over devices and disk.


@pytest.mark.parametrize("spread", [{"": "cpu"}, "auto", "sequential", "disk", {"": "disk"}, SPREAD], ids=str)
def test_a_spread_model_is_the_plain_one(saved: Path, plain: Model, spread: Any, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(saved, device_map=spread)
    assert capfd.readouterr() == ("", "")
    assert difference(model, plain) <= 1e-5
    assert model.fingerprint == plain.fingerprint == fingerprint_model(model.network)


def test_weights_that_must_be_written_to_lie_on_disk_go_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(build_family("mixtral"), tmp_path / "mixtral")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plain, model = load_model(folder), load_model(folder, device_map="disk")
    assert difference(model, plain) <= 1e-5
    assert model.fingerprint == plain.fingerprint
    assert len(list(tmp_path.glob("hyperlens-offload-*/*"))) > 0
    del model
    gc.collect()
    assert not list(tmp_path.glob("hyperlens-offload-*"))


def test_weights_that_are_nowhere_are_refused() -> None:
    config = build_family("llama").config
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    refused(network, ModelError, "on the meta device, where nothing is; load the weights")


# Several processes.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensor", "fsdp"])
def test_each_of_two_processes_that_share_a_model_reads_what_one_reads(
    saved: Path, plain: Model, tmp_path: Path, kind: str
) -> None:
    script = str(Path(__file__).with_name("distributed.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*command, str(saved), str(tmp_path)], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    expected = read_prompts(plain)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["sharded"] > 0
        assert tuple(found["contexts"]) == CONTEXTS and found["way"] == "bypass" and found["error"] <= 1e-5
        assert found["fingerprint"] == plain.fingerprint
        for mine, one in zip(found["read"], expected, strict=True):
            np.testing.assert_allclose(np.array(mine), np.array(one), atol=1e-5)


# Adapters.


def adapt(base: Path, folder: Path, **changes: Any) -> Any:
    """A LoRA adapter of random weights on `base`, saved in `folder`; gives the PeftModel."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"], "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**{**settings, **changes}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(folder)
    return adapted.eval()


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


# Quantised.


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


ALL_QUANTISED = [("int8", "bitsandbytes"), ("nf4", "bitsandbytes"), ("torchao-int8", "torchao")]


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
    refused(network, CertificateError, "differs by")


@needs("torchao")
def test_a_model_without_a_layer_to_quantise_is_refused(tmp_path: Path) -> None:
    refused(save(build_family("gpt2"), tmp_path), ModelError, "knows none of the layers", dtype="torchao-int8")


# GGUF.


def write_gguf(network: PreTrainedModel, file: Path, pieces: dict[str, int], kinds: list[int]) -> Path:
    """A Llama as llama.cpp keeps it: its own names, and the rows of queries and keys in its own order."""
    import gguf

    config: Any = network.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(sorted(pieces, key=lambda piece: pieces[piece]))
    writer.add_token_scores([-float(number) for number in range(len(pieces))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in network.state_dict().items():
        values = tensor.numpy()
        if (count := heads.get(name.split(".")[-2])) is not None:
            values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if (own := names.get_name(name, (".weight",))) is not None:
            writer.add_tensor(own, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def tiny_gguf(plain: Model, tmp_path: Path) -> Path:
    pieces = build_tokenizer().get_vocab()
    return write_gguf(plain.network, tmp_path / "tiny.gguf", pieces, [3] * 4 + [1] * (len(pieces) - 4))


@needs("gguf")
def test_a_gguf_file_is_read_as_the_same_weights_in_safetensors(
    plain: Model, tiny_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load_model(tiny_gguf, build_tokenizer())
    assert capfd.readouterr() == ("", "")
    assert model.name == str(tiny_gguf) and model.network.dtype == torch.float32
    assert difference(model, plain) <= 1e-5
    renamed = tiny_gguf.rename(tiny_gguf.with_name("other.gguf"))
    assert load_model(renamed).fingerprint == model.fingerprint
    assert load_model(renamed, dtype="bfloat16").network.dtype == torch.bfloat16


@needs("gguf")
def test_a_gguf_file_brings_its_tokenizer(stories: Path, tmp_path: Path) -> None:
    plain = load_model(stories)
    assert plain.tokenizer is not None
    pieces = plain.tokenizer.get_vocab()
    file = write_gguf(plain.network, tmp_path / "stories.gguf", pieces, [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259))
    assert difference(load_model(file), plain, STORIES) <= 1e-5


@needs("gguf")
def test_what_is_no_whole_gguf_file_is_refused(tiny_gguf: Path) -> None:
    whole, folder = tiny_gguf.read_bytes(), tiny_gguf.parent
    refused(folder, ModelError, "has its weights as GGUF; give the file itself, such as .*tiny.gguf")
    refused(folder / "none.gguf", ModelError, "there is no file .*none.gguf")
    refused(tiny_gguf, InputError, "is GGUF, which is not quantised again", dtype="int8")
    refused(tiny_gguf, ModelError, "mapped to disk", device_map="disk")
    for part in (whole[: len(whole) // 2], b"", b"x" * 100):
        tiny_gguf.write_bytes(part)
        refused(tiny_gguf, ModelError, "cannot be loaded .*; expected a complete GGUF file")


# Taken as they are: compiled, in training, with checkpointing.


def compile_layers(network: Any) -> Any:
    for layer in network.model.layers:
        layer.compile(backend="eager")
    return network


def compile_in_place(network: Any) -> Any:
    network.compile(backend="eager")
    return network


def compile_forward(network: Any) -> Any:
    network.forward = torch.compile(network.forward, backend="eager")
    return network


def checkpointing(network: Any) -> Any:
    network.gradient_checkpointing_enable()
    return network.train()


def compile_whole(network: Any) -> Any:
    return torch.compile(network, backend="eager")


@deprecated
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("change", [compile_whole, compile_in_place, compile_forward, compile_layers, checkpointing])
def test_a_compiled_or_training_model_is_the_plain_one(
    saved: Path, plain: Model, change: Callable[[Any], Any], used: bool
) -> None:
    network = change(AutoModelForCausalLM.from_pretrained(saved))
    training, ids = network.training, random_ids(1, 5)
    before = model_logits(network, ids) if used else None
    model = load_model(network, build_tokenizer())
    assert difference(model, plain) <= 1e-5
    assert model.fingerprint == plain.fingerprint and model.name == str(saved)
    assert network.training == training
    assert torch.allclose(model_logits(network, ids), model_logits(plain.network, ids), atol=1e-5)
    assert before is None or torch.equal(model_logits(network, ids), before)


def test_a_module_that_is_no_model_of_transformers_is_refused() -> None:
    refused(torch.nn.Linear(2, 2), ModelError, "Linear is no model of transformers")
    refused(torch.compile(torch.nn.Linear(2, 2), backend="eager"), ModelError, "is no model of transformers")


# Extras that are not there.


def test_a_missing_extra_is_named(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("peft", "bitsandbytes", "torchao", "gguf"):
        monkeypatch.setitem(sys.modules, package, None)
    for dtype, package in ALL_QUANTISED:
        words = rf"\"{dtype}\" needs {package}; install it with: pip install 'hyperlens\[{package}\]'"
        refused(saved, ModelError, words, dtype=dtype)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(saved)}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, ModelError, r"an adapter, needs peft; install it with: pip install 'hyperlens\[peft\]'")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "tiny.gguf", ModelError, r"needs gguf; install it with: pip install 'hyperlens\[gguf\]'")


@pytest.mark.parametrize("package", ["bitsandbytes", "torchao"])
def test_a_missing_extra_is_named_for_a_model_saved_quantised(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": package}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, package, None)
    refused(folder, ModelError, rf"which is quantised, needs {package}; install it with: pip install 'hyperlens\[{package}\]'")
