"""What a model is fine-tuned on: samples as token ids, encoded as they are measured."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hyperlens.configuration import context_length
from hyperlens.encoding import Encoded, encode_whole
from hyperlens.errors import InputError
from hyperlens.models import Model
from hyperlens.models.quiet import quiet
from hyperlens.tasks import Sample, letter_options
from hyperlens.training.finetuning.recipe import FineTuneRecipe

LEFT_OUT = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True)
class Example:
    """One sample as token ids. The tokens from place `first` on are learned; those at `measured` are also read by a trace, and
    have an effort. Behind them there may be the token that ends the text."""

    ids: tuple[int, ...]
    first: int
    measured: tuple[int, ...]

    @property
    def labels(self) -> list[int]:
        """The token to be learned at each place, -100 where none is."""
        return [LEFT_OUT] * self.first + list(self.ids[self.first :])


@dataclass(frozen=True)
class Examples:
    """The examples of a fine-tuning, and how many are of which task."""

    rows: tuple[Example, ...]
    tasks: tuple[tuple[str, int], ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all tokens, of what is learned and what is measured, in their order."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(f"{row.ids} {row.first} {row.measured}\n".encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What is saved with a fine-tuned model."""
        return {
            "samples": len(self.rows),
            "tokens": sum(len(row.ids) for row in self.rows),
            "answer_tokens": sum(len(row.measured) for row in self.rows),
            "tasks": dict(self.tasks),
            "sha256": self.fingerprint,
        }


def prepare_examples(model: Model, samples: Iterable[Sample], recipe: FineTuneRecipe) -> Examples:
    """The samples as they are measured: with their solved examples and lettered options, or in the model's chat template.

    Raises InputError where there is none, where one has no target or an image, and where one does not fit into the model's
    context or into `recipe.length`: nothing is cut, since the answer would be what is lost.
    """
    given = [_check_sample(sample, number) for number, sample in enumerate(samples, 1)]
    if not given:
        raise InputError("there is nothing to train on; give samples with a prompt and a target")
    _check_targets(given)
    ends: dict[bool, int | None] = {}
    rows = []
    with quiet():  # tokenizers say of each long text that the model's context does not hold it
        for number, sample in enumerate(given, 1):
            listed = letter_options(sample) if sample.options else sample
            encoded = encode_whole(listed, model, "answer", f"text {number}")
            if recipe.end and sample.chat not in ends:
                ends[sample.chat] = find_end(model, sample.chat)
            rows.append(_make_example(encoded, ends.get(sample.chat), f"text {number}"))
    _check_lengths(rows, model, recipe)
    return Examples(tuple(rows), tuple(Counter(sample.task for sample in given).items()))


def find_end(model: Model, chat: bool) -> int:
    """The token that ends a text, or in a chat the turn of the assistant: the first one that the template puts behind it.

    Raises InputError where there is none.
    """
    tokenizer: Any = model.tokenizer
    if chat and tokenizer.chat_template:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd"}]
        behind = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("bcd")[2].strip()
        if ids := tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []:
            return ids[0]
    if tokenizer.eos_token_id is None:
        raise InputError(f"{model.name} has no token that ends a text; set end to False, to learn the answers alone")
    return tokenizer.eos_token_id


def _make_example(encoded: Encoded, end: int | None, name: str) -> Example:
    """The example of a text: all of its target is learned, though of options only the place that tells them apart is read."""
    if encoded.beside:
        raise InputError(f"{name} has an image; fine-tuning is on text alone, leave the image away")
    measured = tuple(place + 1 for place in encoded.positions)
    ending = () if end is None or encoded.ids[-1] == end else (end,)
    return Example(encoded.ids + ending, measured[0], measured)


def _check_sample(sample: object, number: int) -> Sample:
    if not isinstance(sample, Sample):
        raise InputError(
            f"text {number} is of type {type(sample).__name__}; give hl.Sample(prompt, target), or read a file of them with "
            "hl.read_samples"
        )
    return sample


def _check_targets(samples: Sequence[Sample]) -> None:
    without = [number for number, sample in enumerate(samples, 1) if not (sample.target or "").strip()]
    if without:
        raise InputError(
            f"{len(without)} of {len(samples)} samples have no target (first: text {without[0]}); give each the answer that is "
            "to be learned"
        )


def _check_lengths(rows: Sequence[Example], model: Model, recipe: FineTuneRecipe) -> None:
    context = context_length(model.splice.config)
    most = min((length for length in (context, recipe.length) if length is not None), default=None)
    long = [(number, len(row.ids)) for number, row in enumerate(rows, 1) if most is not None and len(row.ids) > most]
    if long:
        where = f"the context of {model.name}" if most == context else "the length that was given"
        raise InputError(
            f"{len(long)} of {len(rows)} samples do not fit into {where}, {most} tokens (first: text {long[0][0]}, with its "
            f"answer {long[0][1]} tokens); shorten them, or leave them out"
        )
