"""What decides the reference model: its recipe, its tokenizer, its untrained weights."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from hyperlens.errors import ArtefactError, InputError
from hyperlens.tasks.graded import GRADED

UNKNOWN, BEGIN, PAD, STOP = 0, 1, 2, 3
SPECIAL = ("<unk>", "<s>", "<pad>", ".")


@dataclass(frozen=True)
class Recipe:
    """All that decides the reference model. `steps` are optimiser steps of `rows` contexts of `length` tokens.

    The learning rates are those of Muon (`matrix_rate`, matrices inside the layers) and AdamW (`other_rate`). A level is
    unlocked once the one before it is right in `unlock_at` of its questions. Of a level that is known, `stepwise_share` of
    the questions have their steps written, `matched_share` an aside, and `rare_share` of single steps each the second wording
    and the held-out operands. `passed_weight` weighs the loss of values that nobody asks for yet.
    """

    layers: int = 16
    width: int = 128
    heads: int = 4
    inner: int = 256
    rows: int = 16
    length: int = 128
    steps: int = 5000
    warmup: int = 200
    decay_share: float = 0.2
    matrix_rate: float = 0.003
    other_rate: float = 0.001
    unlock_at: float = 0.8
    stepwise_share: float = 0.25
    matched_share: float = 0.6
    rare_share: float = 0.25
    passed_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"the training has {self.steps} steps; give a number from 1 up")

    @property
    def plateau(self) -> int:
        """The last step before the learning rates begin to fall."""
        return round(self.steps * (1 - self.decay_share))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, digit or sign of the graded tasks; a word goes on in tokens that begin with ##."""
    words = dict.fromkeys(
        [*SPECIAL, "is", "by", "steps", "then", "but", "not", *(w for task in GRADED.values() for w in task.words)]
    )
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"[A-Za-z]+('s)*|[0-9]+|[-+*^]=|[^\sA-Za-z0-9]"), behavior="removed", invert=True
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[UNKNOWN],
        bos_token=SPECIAL[BEGIN],
        pad_token=SPECIAL[PAD],
        eos_token=SPECIAL[STOP],
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: Recipe, vocabulary: int) -> Qwen3ForCausalLM:
    """The untrained decoder that the recipe describes."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.width // recipe.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=BEGIN,
        eos_token_id=STOP,
        pad_token_id=PAD,
    )
    return Qwen3ForCausalLM(config)


def save_reference(model: Qwen3ForCausalLM, recipe: Recipe, folder: Path, log: Path | None = None) -> None:
    """The trained model as a folder that transformers loads: safetensors, configuration, tokenizer; beside them the recipe
    and the training's log. Raises ArtefactError where it cannot be written."""
    try:
        model.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")
        if log is not None:
            shutil.copyfile(log, folder / "training.jsonl")
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{folder} cannot be written ({error}); choose another --out, the checkpoint is kept") from None


def check_folder(folder: Path, option: str) -> None:
    """Raises ArtefactError where `folder`, given by `option`, cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArtefactError(f"{folder} is no folder to write to ({error.strerror}); choose another {option}") from None
