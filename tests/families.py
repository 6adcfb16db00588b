"""Small random models of all architectures of transformers: vectors randomised, windows shorter than the texts."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import transformers
from family_changes import CHANGES, IMAGE_TOKEN, IMPLIED, LAYERS, SMALL, TOWER, VOCABULARY, WIDTH, WINDOW
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

__all__ = ["LAYERS", "VOCABULARY", "WIDTH", "WINDOW"]

FAMILIES = (
    "llama mistral qwen2 qwen3 gemma2 gemma3_text gpt2 gpt_neox phi3 "
    "olmo2 granite cohere2 mixtral bloom gptj falcon mamba gpt_neo"
).split()
"""A sample of different ones, for the tests that read each of them at length."""

ALL_FAMILIES = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
IMAGE_FAMILIES = list(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)

_GRID = {"image_grid_thw": [[1, 4, 4]]}
IMAGE_PROMPTS: dict[str, tuple[int, tuple[int, ...], str | None, dict[str, Any]]] = {
    "llava": (16, (1, 3, 32, 32), None, {}),
    "qwen2_vl": (4, (16, 384), "mm_token_type_ids", _GRID),
    "qwen2_5_vl": (4, (16, 384), "mm_token_type_ids", _GRID),
    "qwen3_vl": (4, (16, 384), "mm_token_type_ids", _GRID),
    "qwen3_5": (4, (16, 384), "mm_token_type_ids", _GRID),
    "gemma3": (4, (1, 3, 32, 32), "token_type_ids", {}),
    "idefics3": (4, (1, 1, 3, 32, 32), None, {}),
    "internvl": (4, (1, 3, 32, 32), None, {}),
}
"""Family → tokens of an image of 4 × 4 patches, shape of its pixel values, the name of the map of its tokens, and the rest."""

LARGEST = 8_000_000
"""Parameters of the largest model that is built."""

_LANGUAGE = {"text_config", "decoder", "decoder_config", "attn_config", "ffn_config"}
"""The parts of a configuration that are, or belong to, the language model."""


def build_family(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random causal language model of the family, all of its vectors (norms, biases) random too.

    Raises what the library raises where it cannot be built, and ValueError where it would be large.
    """
    return _build(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name], dtype, seed, changes)


def build_image_family(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of the family that takes images and text, like `build_family`."""
    return _build(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name], dtype, seed, changes)


def small_config(kind: type[PreTrainedConfig], changes: dict[str, Any], table: dict[str, Any] = SMALL) -> PreTrainedConfig:
    """A configuration of this kind, its fields small by name, its parts too; `changes` come last."""
    fields = {field.name for field in dataclasses.fields(kind)}
    values = {name: value for name, value in table.items() if name in fields}
    for name in fields & IMPLIED.keys():
        values |= IMPLIED[name]
    values |= CHANGES.get(kind.model_type, {}) | changes
    parts: Any = kind.sub_configs
    for name, part in parts.items():
        given = values.get(name) or {}
        if "model_type" in given:
            part = CONFIG_MAPPING[given["model_type"]]
        elif part is AutoConfig:  # any will do: that of the default
            part = type(getattr(kind(), name))
        values[name] = small_config(part, given, SMALL if name in _LANGUAGE else TOWER)
    return kind(**values)


def _build(architecture: str, dtype: torch.dtype, seed: int, changes: dict[str, Any]) -> PreTrainedModel:
    architect = getattr(transformers, architecture)
    config = small_config(architect.config_class, changes)
    with torch.device("meta"):
        size = architect._from_config(config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"{architecture} would have {size} parameters, more than {LARGEST}; make more of its fields small")
    torch.manual_seed(seed)
    model = architect._from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *_saved_vectors(model)]:
            if tensor.ndim == 1 or (tensor == tensor.flatten()[0]).all():  # constant: it would hide what it scales or adds
                tensor.add_(0.3 * torch.randn_like(tensor))
            elif config.model_type != "mamba":  # larger weights make its recurrence amplify rounding beyond any bound
                tensor.mul_(3.0)
    return model


def _saved_vectors(model: PreTrainedModel) -> list[torch.Tensor]:
    """Scales and biases that are buffers and are saved with the model."""
    saved = model.state_dict().keys()
    return [part for name, part in model.named_buffers() if name in saved and part.ndim == 1 and part.is_floating_point()]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of one token per word, for the vocabulary of these models: w11 … w96, and what lettered options need."""
    words = "<pad> <s> </s> <unk> A B C D . : Answer".split()
    words += [f"w{number}" for number in range(len(words), VOCABULARY)]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def random_ids(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Token ids, none of them special."""
    return torch.randint(11, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def image_inputs(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """What the forward of a family of IMAGE_PROMPTS takes for one text with an image after its fourth token."""
    tokens, shape, tokens_map, rest = IMAGE_PROMPTS[name]
    ids, image = random_ids(1, 12 + tokens, seed), slice(4, 4 + tokens)
    ids[:, image] = IMAGE_TOKEN
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    inputs = {"input_ids": ids, "pixel_values": pixels} | {part: torch.tensor(value) for part, value in rest.items()}
    return inputs if tokens_map is None else inputs | {tokens_map: (ids == IMAGE_TOKEN).long()}
