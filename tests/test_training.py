from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import hyperlens as hl
from hyperlens.errors import InputError
from hyperlens.models import REFERENCE_FOLDER
from hyperlens.tasks import GRADED
from hyperlens.training.reference import Recipe, build_model, build_tokenizer, save_reference, train_reference

TINY = Recipe(layers=2, width=16, heads=2, inner=16, rows=4, length=32, steps=8, warmup=2)


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path):
    rows, resumed = [], []
    whole = train_reference(TINY, tmp_path / "whole", every=2, report=rows.append)

    def stop(row):
        resumed.append(row)
        if row["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_reference(TINY, tmp_path / "stopped", every=2, report=stop)
    again = train_reference(TINY, tmp_path / "stopped", every=2, report=resumed.append)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in resumed]


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    train_reference(TINY, tmp_path, every=8)
    with pytest.raises(InputError, match=r"holds another recipe .*differs in seed"):
        train_reference(dataclasses.replace(TINY, seed=1), tmp_path)


def test_every_word_of_every_task_is_one_token():
    tokenizer = build_tokenizer()
    for task in GRADED.values():
        for sample in task.samples(30, 0):
            ids = tokenizer(sample.prompt + sample.target)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == sample.prompt + sample.target


def test_what_is_saved_loads_and_passes_its_certificate(tmp_path):
    model = build_model(TINY, len(build_tokenizer()))
    save_reference(model, TINY, tmp_path / "model")
    assert hl.load_model(tmp_path / "model").certificate.contexts == ("jump", "cached")


def test_the_shipped_model_is_small_and_its_tokenizer_is_the_recipes():
    weights = REFERENCE_FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 8 * 2**20
    assert len(load_file(weights)) > 100
    text = "Ada's friend's boss is 3 + 4 ends in ."
    assert AutoTokenizer.from_pretrained(REFERENCE_FOLDER)(text)["input_ids"] == build_tokenizer()(text)["input_ids"]
