"""Every way to load a model: its certificate holds, and what is read is what the plain load gives, within the precision."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import KINDS
from distributed import read as read_prompts
from families import build_family, build_tokenizer, random_ids
from loading import ALL_QUANTISED, CONTEXTS, SPREAD, STORIES, deprecated, difference, needs, refused, save
from plain import model_logits
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from hyperlens.errors import InputError, ModelError
from hyperlens.models import Model, fingerprint_model, load_model

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


@pytest.fixture(scope="module")
def shared_reads(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two processes that shared a model found."""
    out, script = tmp_path_factory.mktemp("shared"), str(Path(__file__).with_name("distributed.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*command, str(saved), str(out)], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_of_two_processes_that_share_a_model_reads_what_one_reads(plain: Model, shared_reads: Path, kind: str) -> None:
    expected = read_prompts(plain)
    for rank in range(2):
        found = json.loads((shared_reads / f"{kind}-{rank}.json").read_text())
        assert found["sharded"] > 0
        assert tuple(found["contexts"]) == CONTEXTS and found["way"] == "bypass" and found["error"] <= 1e-5
        assert found["fingerprint"] == plain.fingerprint
        for mine, one in zip(found["read"], expected, strict=True):
            np.testing.assert_allclose(np.array(mine), np.array(one), atol=1e-5)


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
