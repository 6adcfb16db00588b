"""The random model, its tokenizer and the texts, saved once for all peers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peers_ways.shared import Texts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHARED = Path(os.environ.get("HYPERLENS_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "models"
TRAINED = "stories260K"
SPECIAL = ("<pad>", "<s>", "</s>")
SURE = 20.0
"""By how much the random head is enlarged, so that its top token has a probability in which a difference shows."""
STORIES = (
    "Once upon a time, there was a little girl named Lily. She loved to play",
    "The dog ran",
    "Tom and his mom went to the park. They saw a big red ball under a tree, and Tom wanted to",
    "One day, a bird sat on the",
    "It was a sunny day. Sam had a toy car that was very fast. He showed it to his friend, and his friend said",
)


def save_model(folder: Path, layers: int, width: int, vocabulary: int, longest: int) -> None:
    """A random Llama of the usual proportions, with a tokenizer whose words are `w3`, `w4` …, one token each."""
    if (folder / "tokenizer.json").exists():
        return
    torch.manual_seed(0)
    heads = max(1, width // 64)
    shape: dict[str, Any] = {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 43 * width // 16}
    shape |= {"num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": longest}
    config = LlamaConfig(**shape, pad_token_id=0, bos_token_id=1, eos_token_id=2, dtype="float32")
    network = LlamaForCausalLM(config)
    with torch.no_grad():
        network.lm_head.weight.mul_(SURE)
    network.save_pretrained(folder)
    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), vocabulary))]
    spelt = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=SPECIAL[0]))
    spelt.pre_tokenizer = WhitespaceSplit()
    pad, begin, end = SPECIAL
    names = {"pad_token": pad, "bos_token": begin, "eos_token": end, "unk_token": pad}
    PreTrainedTokenizerFast(tokenizer_object=spelt, **names).save_pretrained(folder)


def draw_texts(lengths: list[int], vocabulary: int, seed: int) -> Texts:
    """Random words, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(len(SPECIAL), vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return Texts(ids, [" ".join(f"w{token}" for token in row) for row in ids])


def save_texts(folder: Path, texts: dict[str, Texts]) -> None:
    """Beside the model, where the workers look for them."""
    (folder / "texts.json").write_text(json.dumps({name: asdict(one) for name, one in texts.items()}), encoding="utf-8")


def spread_lengths(count: int, tokens: int) -> list[int]:
    """From an eighth of the tokens to all, evenly."""
    return [max(2, round(tokens * (1 + 7 * place / max(1, count - 1)) / 8)) for place in range(count)]


def trained_texts() -> tuple[Path, Texts] | None:
    """The trained model and texts of its kind, where it is."""
    folder = SHARED / TRAINED
    if not folder.is_dir():
        return None
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return folder, Texts([tokenizer(text)["input_ids"] for text in STORIES], list(STORIES))


def judge_alone(folder: Path, texts: Texts) -> tuple[list[int], list[float]]:
    """The model's own top token after each text, alone, with its probability."""
    network: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chosen, sure = [], []
    for row in texts.ids:
        with torch.no_grad():
            best = network(torch.tensor([row])).logits[0, -1].softmax(-1).max(-1)
        chosen.append(int(best.indices))
        sure.append(float(best.values))
    return chosen, sure
