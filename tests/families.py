"""Small random models of many architectures: norms and biases randomised, windows shorter than the texts."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

LAYERS, WIDTH, VOCABULARY, WINDOW = 6, 32, 97, 8

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GATED = {"intermediate_size": 48, "num_key_value_heads": 2}
_WINDOWED = {**_GATED, "sliding_window": WINDOW}
_MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GATED,
    "mistral": _WINDOWED,
    "qwen2": {**_WINDOWED, "use_sliding_window": True, "layer_types": _MIXED},
    "qwen3": {**_WINDOWED, "use_sliding_window": True, "layer_types": _MIXED, "head_dim": 8},
    "gemma2": {**_WINDOWED, "head_dim": 8, "layer_types": _MIXED, "final_logit_softcapping": 2.0},
    "gemma3_text": {**_WINDOWED, "head_dim": 8, "layer_types": _MIXED},
    "gpt2": {},
    "gpt_neox": {"intermediate_size": 48},
    "phi3": _WINDOWED,
    "olmo2": _GATED,
    "granite": {**_GATED, "logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "cohere2": {**_WINDOWED, "layer_types": _MIXED, "logit_scale": 0.5},
    "mixtral": {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "bloom": {},
    "gptj": {"rotary_dim": 4},
    "falcon": {"alibi": False, "new_decoder_architecture": False},
    "mamba": {"state_size": 4, "intermediate_size": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]], "window_size": WINDOW, "num_layers": LAYERS},
}


def build_family(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of the family, all of its vectors (norms, biases) random too."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **{**_COMMON, **FAMILIES[name], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif name != "mamba":  # larger weights make its recurrence amplify rounding beyond any bound
                parameter.mul_(3.0)
    return model


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
