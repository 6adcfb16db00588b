"""Loading a model: what is loaded is what was saved, its fingerprint says which, and what cannot be read is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, build_family, build_tokenizer, random_ids
from plain import model_logits
from safetensors.torch import load_file, save_file
from sentences import is_one_sentence
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, BertConfig, DistilBertConfig, T5Config
from transformers.utils import logging

from hyperlens.errors import CertificateError, InputError, ModelError
from hyperlens.models import check_model, fingerprint_model, load_model


@pytest.fixture(scope="module", autouse=True)
def no_bars() -> Iterator[None]:
    """Saving is not what is tested here: it draws no bars."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with its tokenizer, as save_pretrained writes them. To be read only."""
    return save(build_family("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """The same, to be spoiled."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def refused(source: Any, kind: type[Exception], words: str, **options: Any) -> None:
    """`source` is refused with an error of exactly this kind, in one sentence with these words."""
    with pytest.raises(kind, match=words) as caught:
        load_model(source, **options)
    assert caught.type is kind
    assert is_one_sentence(str(caught.value)), str(caught.value)


def test_a_saved_model_is_loaded_as_it_was_in_memory(saved: Path) -> None:
    model, original, ids = load_model(saved), build_family("llama"), random_ids(2, 9)
    assert torch.equal(model_logits(model.network, ids), model_logits(original, ids))
    assert model.tokenizer is not None and model.tokenizer("w20 A w96")["input_ids"] == [20, 4, 96]
    assert model.name == str(saved) and model.layers == 6
    assert model.certificate.contexts == ("jump", "cached")
    assert not model.network.training


def test_a_model_in_memory_is_taken_as_it_is() -> None:
    network, tokenizer = build_family("gpt2").train(), build_tokenizer()
    model = load_model(network, tokenizer)
    assert model.network is network and model.tokenizer is tokenizer and network.training
    assert load_model(network).tokenizer is None
    assert load_model(network).name == "GPT2LMHeadModel"


def test_another_tokenizer_may_be_given_to_a_folder_without_one(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    tokenizer = build_tokenizer()
    assert load_model(copy, tokenizer).tokenizer is tokenizer


@pytest.mark.parametrize(("dtype", "kind"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_the_dtype_is_the_one_asked_for(saved: Path, dtype: str, kind: torch.dtype) -> None:
    model = load_model(saved, dtype=dtype)
    assert model.network.dtype == kind == model.splice.dtype


def test_a_device_and_a_device_map_are_passed_through(saved: Path) -> None:
    plain = load_model(saved)
    for options in ({"device": "cpu"}, {"device_map": {"": "cpu"}}):
        model = load_model(saved, **options)
        assert model.splice.device == torch.device("cpu")
        assert model.fingerprint == plain.fingerprint


def test_checking_gives_the_certificate_that_loading_gives(saved: Path) -> None:
    assert check_model(saved) == load_model(saved).certificate
    assert check_model(saved, dtype="bfloat16").certified


def test_the_fingerprint_is_the_same_in_memory_and_from_every_file_layout(saved: Path, tmp_path: Path) -> None:
    expected = fingerprint_model(build_family("llama"))
    assert re.fullmatch("[0-9a-f]{64}", expected)
    assert load_model(saved).fingerprint == expected
    shards = save(build_family("llama"), tmp_path / "shards", max_shard_size="20KB")
    assert len(list(shards.glob("*.safetensors"))) > 3
    assert load_model(shards).fingerprint == expected
    again = tmp_path / "again"
    load_model(saved).network.save_pretrained(again)
    assert fingerprint_model(AutoModelForCausalLM.from_pretrained(again)) == expected


def test_the_fingerprint_stays_through_use_and_training_mode() -> None:
    network = build_family("gpt2")
    before = fingerprint_model(network)
    load_model(network)
    network.train()
    assert fingerprint_model(network) == before


def test_each_weight_enters_the_fingerprint() -> None:
    network = build_family("llama")
    seen = {fingerprint_model(network)}
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.add_(0.01)
        seen.add(fingerprint_model(network))
    assert len(seen) == 1 + len(list(network.parameters()))


@pytest.mark.parametrize("change", [{"rms_norm_eps": 1e-3}, {"rope_theta": 500.0}, {"max_position_embeddings": 128}])
def test_the_configuration_enters_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint_model(build_family("llama", **change)) != fingerprint_model(build_family("llama"))


def test_the_dtype_enters_the_fingerprint() -> None:
    assert fingerprint_model(build_family("llama", dtype=torch.bfloat16)) != fingerprint_model(build_family("llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_families_share_a_fingerprint_and_none_depends_on_the_build(family: str) -> None:
    assert fingerprint_model(build_family(family)) == fingerprint_model(build_family(family))
    assert fingerprint_model(build_family(family)) != fingerprint_model(build_family(family, seed=1))


def test_loading_keeps_the_screen_and_the_settings_of_transformers(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level = logging.get_verbosity()
    load_model(saved)
    assert logging.get_verbosity() == level
    assert capfd.readouterr() == ("", "")


# What is refused.


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "a/b/c", "no such name!"])
def test_a_folder_that_is_not_there_is_refused(source: str) -> None:
    refused(source, ModelError, "there is no folder")


@pytest.mark.parametrize("source", ["nobody/nothing", "nothing-at-all"])
def test_a_hub_name_that_is_not_on_disk_is_refused_offline(source: str) -> None:
    refused(source, ModelError, f"there is no folder {source}, and the hub could not give it .*give a folder, or go online")


def test_a_file_is_refused(saved: Path) -> None:
    refused(saved / "config.json", ModelError, "is a file; expected the folder of a model")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, ModelError, "has no config.json; expected a folder that save_pretrained wrote")


def test_a_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    refused(copy, ModelError, "has no weights")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_weights_only_as_pickle_are_refused_unread(copy: Path, name: str) -> None:
    (copy / "model.safetensors").rename(copy / name)
    refused(copy, ModelError, f"weights only as pickle .{name}.*convert it to safetensors")


def overwrite(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 64 + data[64:], lambda data: b"not weights"],
    ids=["truncated", "empty", "header overwritten", "text"],
)
def test_damaged_safetensors_are_refused(copy: Path, damage: Callable[[bytes], bytes]) -> None:
    overwrite(copy / "model.safetensors", damage)
    refused(copy, ModelError, "the safetensors of .* are damaged .*; copy or download them again")


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = save(build_family("llama"), tmp_path, max_shard_size="20KB")
    sorted(folder.glob("*.safetensors"))[1].unlink()
    refused(folder, ModelError, "cannot be loaded .*model-00002-of")


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no_such_type"}', "{}"])
def test_a_configuration_that_means_nothing_is_refused(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    refused(copy, ModelError, "cannot be loaded")


def test_a_model_without_tokenizer_is_refused(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    refused(copy, ModelError, "has no tokenizer")


def test_a_tokenizer_that_cannot_be_parsed_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_text('{"model": ')
    refused(copy, ModelError, "has no tokenizer that can be read")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_an_incomplete_checkpoint_is_refused_with_its_first_missing_weight(copy: Path) -> None:
    edit_weights(copy, lambda weights: weights.pop("lm_head.weight"))
    refused(copy, ModelError, "lacks 1 of its weights .first: lm_head.weight., which would be random")


def test_a_weight_of_another_shape_is_refused(copy: Path) -> None:
    edit_weights(copy, lambda weights: weights.update({"model.norm.weight": torch.ones(31)}))
    refused(copy, ModelError, "model.norm.weight")


def test_nan_weights_are_refused_with_their_layer(copy: Path) -> None:
    edit_weights(copy, lambda weights: weights["model.layers.4.mlp.up_proj.weight"].fill_(torch.nan))
    refused(copy, CertificateError, "LlamaForCausalLM is refused: .*layer 5 gives NaN or infinite values")


_BERT = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_DISTILBERT = {"vocab_size": 97, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
_T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}


def test_an_encoder_that_claims_to_be_a_language_model_is_refused(tmp_path: Path) -> None:
    save(AutoModelForCausalLM.from_config(BertConfig(**_BERT)), tmp_path)
    refused(tmp_path, CertificateError, "as in an encoder; HyperLens reads models in which none does")


def test_an_encoder_without_a_language_head_is_refused(tmp_path: Path) -> None:
    save(AutoModel.from_config(DistilBertConfig(**_DISTILBERT)), tmp_path)
    refused(tmp_path, ModelError, "of type distilbert, no causal language model")


def test_an_encoder_decoder_is_refused_from_a_folder_and_from_memory(tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_config(T5Config(**_T5))
    refused(model, ModelError, "encoder-decoder")
    refused(save(model, tmp_path), ModelError, "encoder-decoder .t5.; HyperLens reads decoder-only models")


def test_an_unknown_dtype_is_refused(saved: Path) -> None:
    refused(saved, InputError, '"int3" is not a dtype; choose from auto, float32, bfloat16, float16', dtype="int3")


@pytest.mark.parametrize("device", ["banana", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(saved: Path, device: str) -> None:
    refused(saved, InputError, f'device "{device}" is not to be had here', device=device)


def test_a_device_and_a_device_map_together_are_refused(saved: Path) -> None:
    refused(saved, InputError, "device and device_map were both given", device="cpu", device_map="auto")


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc123"])
def test_remote_code_without_a_pinned_revision_is_refused(revision: str | None) -> None:
    refused("nobody/code", InputError, "remote code needs a pinned revision", trust_remote_code=True, revision=revision)


def test_remote_code_in_a_folder_does_not_run_unasked(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(copy, ModelError, "cannot be loaded")
    assert not (tmp_path / "ran").exists()
