"""What the tests of fine-tuning share: samples, recipes, and when two models are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sentences import is_one_sentence

from hyperlens.models import Model
from hyperlens.tasks import Sample
from hyperlens.training.finetuning.recipe import FineTuneRecipe

SAMPLES = [Sample(f"w{20 + n} w{30 + n % 7} w{40 - n}", f" w{50 + n % 5} w{60 + n % 3}", task="own") for n in range(12)]
TINY = FineTuneRecipe(rate=0.02, steps=4, batch=4, save_every=2, log_every=2)
FULL = replace(TINY, method="full", rate=0.003)


def weights(network: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def refused(kind: type[Exception], words: str, call: Any, *given: Any, **options: Any) -> None:
    with pytest.raises(kind, match=words) as caught:
        call(*given, **options)
    assert is_one_sentence(str(caught.value)), str(caught.value)


def likely(model: Model) -> list[Sample]:
    """Prompts with the answers that the model itself is sure enough of for them to have an effort."""
    answers = []
    for sample in SAMPLES:
        ids = model.tokenizer(sample.prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            token = model.network(ids).logits[0, -1, 11:].argmax() + 11
        answers.append(replace(sample, target=f" {model.tokenizer.convert_ids_to_tokens(int(token))}"))
    return answers
