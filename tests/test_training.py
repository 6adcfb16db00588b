from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from transformers import AutoTokenizer

import hyperlens as hl
from hyperlens.errors import ArtefactError, InputError
from hyperlens.models import REFERENCE_FOLDER
from hyperlens.tasks import GRADED, LEVELS, VARIANTS, GradedTask
from hyperlens.tasks.graded.graded import HELD_OUT_SHARE, UNSEEN_FROM
from hyperlens.training import curriculum
from hyperlens.training.checkpoints import LOG, NAME
from hyperlens.training.curriculum import draw_batch
from hyperlens.training.recipe import Recipe, build_tokenizer, save_reference
from hyperlens.training.reference import train_reference

TINY = Recipe(layers=2, width=16, heads=2, inner=16, rows=4, length=48, steps=8, warmup=2)
ALL_KNOWN = {f"{task}/{level}": 0.9 for task in GRADED for level in LEVELS}


def curve(rows):
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


def test_a_stopped_training_goes_on_to_the_same_weights_and_curve(tmp_path):
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
    assert [row["step"] for row in rows] == [2, 4, 6, 8] and curve(rows) == curve(resumed)
    for folder in ("whole", "stopped"):
        kept = [json.loads(line) for line in (tmp_path / folder / LOG).read_text().splitlines()]
        assert curve(kept) == curve(rows)


def test_a_training_that_is_killed_goes_on_from_its_last_checkpoint(tmp_path):
    script = f"""
        import sys, os, signal
        from pathlib import Path
        from hyperlens.training.recipe import Recipe
        from hyperlens.training.reference import train_reference
        def kill(row):
            if row["step"] == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        train_reference({TINY!r}, Path(sys.argv[1]), every=2, report=kill)
    """
    lines = "\n".join(line.removeprefix("        ") for line in script.strip("\n").splitlines())
    done = subprocess.run([sys.executable, "-c", lines, str(tmp_path / "killed")], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    whole, again = train_reference(TINY, tmp_path / "whole"), train_reference(TINY, tmp_path / "killed")
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in whole.state_dict().items())


def test_a_checkpoint_of_another_recipe_is_refused_with_the_fields_that_differ(tmp_path):
    train_reference(TINY, tmp_path, every=8)
    with pytest.raises(InputError, match=r"another recipe \(seed is 0, here 1\); choose another --checkpoint"):
        train_reference(dataclasses.replace(TINY, seed=1), tmp_path)
    with pytest.raises(InputError, match=r"width is 16, here 32"):
        train_reference(dataclasses.replace(TINY, width=32), tmp_path)
    with pytest.raises(InputError, match=r"steps is 8, here 9"):
        train_reference(dataclasses.replace(TINY, steps=9), tmp_path)


def test_the_number_of_steps_may_change_while_the_rates_are_on_their_plateau(tmp_path):
    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_reference(TINY, tmp_path / "longer", every=4, report=stop)
    longer = dataclasses.replace(TINY, steps=12)
    again, whole = train_reference(longer, tmp_path / "longer"), train_reference(longer, tmp_path / "whole")
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in whole.state_dict().items())


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_reference(TINY, tmp_path / "full", every=4, report=stop)
    before = (tmp_path / "full" / NAME).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(ArtefactError, match=r"checkpoint of step 8 cannot be written .*the one before it is intact"):
            train_reference(TINY, tmp_path / "full", every=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "full").glob("*.tmp")) and (tmp_path / "full" / NAME).read_bytes() == before
    whole, again = train_reference(TINY, tmp_path / "whole"), train_reference(TINY, tmp_path / "full")
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in whole.state_dict().items())


def test_a_checkpoint_from_before_a_field_was_there_is_of_another_recipe(tmp_path):
    train_reference(TINY, tmp_path, every=8)
    with safe_open(tmp_path / NAME, "pt") as opened:
        about = opened.metadata()
    recipe = {name: value for name, value in json.loads(about["recipe"]).items() if name != "passed_weight"}
    save_file(load_file(tmp_path / NAME), tmp_path / NAME, metadata={**about, "recipe": json.dumps(recipe | {"mood": 1})})
    with pytest.raises(InputError, match=r"mood is 1, here absent; passed_weight is absent, here 1.0"):
        train_reference(TINY, tmp_path)


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path):
    train_reference(TINY, tmp_path, every=8)
    with safe_open(tmp_path / NAME, "pt") as opened:
        about = opened.metadata()
    whole, accuracies = load_file(tmp_path / NAME), about.pop("progress")
    earlier = {name.replace("tensor/", "model/"): tensor for name, tensor in whole.items()}
    save_file(earlier, tmp_path / NAME, metadata={**about, "accuracies": accuracies})
    again = train_reference(TINY, tmp_path)
    assert all(torch.equal(weight, whole.get(f"tensor/{name}", weight)) for name, weight in again.state_dict().items())
    save_file(
        {name: tensor for name, tensor in whole.items() if "norm" not in name}, tmp_path / NAME, about | {"progress": "{}"}
    )
    with pytest.raises(ArtefactError, match=r"is damaged: it has nothing as .*norm.*; remove it to begin anew"):
        train_reference(TINY, tmp_path)


@pytest.mark.parametrize("content", [b"not safetensors", save({"a": torch.ones(1)})])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(ArtefactError, match=r"checkpoint.safetensors cannot be read .*remove it to begin anew"):
        train_reference(TINY, tmp_path)


def test_every_word_of_every_task_is_known_to_the_tokenizer():
    tokenizer = build_tokenizer()
    for task in GRADED.values():
        for variant in VARIANTS:
            for sample in task.samples(4, 0, variant):
                ids = tokenizer(sample.prompt + sample.target)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids, skip_special_tokens=True) == sample.prompt + sample.target


def test_a_batch_asks_only_what_training_may_see():
    tokenizer = build_tokenizer()
    asked = set()
    for step in range(6):
        batch = draw_batch(random.Random(step), Recipe(), ALL_KNOWN)
        for row in batch.ids:
            asked |= {part.strip() for part in tokenizer.decode(row, skip_special_tokens=False).removeprefix("<s>").split(" .")}
    levels = [level for level in LEVELS if level >= UNSEEN_FROM]
    evaluated = {
        sample.prompt for task in GRADED.values() for name in VARIANTS for sample in task.samples(10, 0, name, levels=levels)
    }
    assert len(asked) > 300 and not any(question.startswith(tuple(evaluated)) for question in asked)


@pytest.mark.parametrize("name", GRADED)
def test_what_is_passed_is_the_value_of_the_chain_so_far_and_never_of_a_held_out_one(name, monkeypatch):
    composed, compose = [], GradedTask.compose

    def watch(self, *args, **options):
        composed.append(compose(self, *args, **options))
        return composed[-1]

    monkeypatch.setattr(GradedTask, "compose", watch)
    rng, weights, left_out = random.Random(name), [1.0] * len(LEVELS), 0
    for _ in range(150):
        question = curriculum._draw_question(GRADED[name], rng, Recipe(), weights, ALL_KNOWN)
        longest = 1 if question.cell.endswith(("reworded", "wide")) else len(LEVELS)
        text, expected = "", []
        for fragment in composed[-1][0]:
            text += fragment.text
            if fragment.chain is None or fragment.done > longest:
                continue
            digest = hashlib.sha256(fragment.chain.cores[fragment.done - 1].encode()).digest()
            if fragment.done >= UNSEEN_FROM and digest[0] % HELD_OUT_SHARE == 0:
                left_out += 1
            else:
                value = build_tokenizer()(fragment.chain.values[fragment.done - 1], add_special_tokens=False)["input_ids"][0]
                expected.append((len(build_tokenizer()(text, add_special_tokens=False)["input_ids"]) - 1, value))
        assert question.passed == expected
    assert left_out > 5


def test_an_untrained_curriculum_asks_single_steps_alone():
    batch = draw_batch(random.Random(0), Recipe(), {})
    assert {cell.partition("/")[2].partition(":")[0] for cell in batch.cells} == {"1"}
    assert not [cell for cell in batch.cells if cell.endswith(("reworded", "wide"))]


def test_what_is_saved_loads_and_passes_its_certificate(tmp_path):
    model = train_reference(dataclasses.replace(TINY, steps=2), tmp_path / "checkpoint")
    save_reference(model, TINY, tmp_path / "model", tmp_path / "checkpoint" / LOG)
    assert hl.load_model(tmp_path / "model").certificate.contexts == ("jump", "cached")
    assert (tmp_path / "model" / "training.jsonl").read_bytes() == (tmp_path / "checkpoint" / LOG).read_bytes()


def test_the_shipped_model_is_small_and_its_recipe_and_tokenizer_are_the_committed_ones():
    weights = REFERENCE_FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 20 * 2**20
    assert len(load_file(weights)) > 100
    assert json.loads((REFERENCE_FOLDER / "recipe.json").read_text()) == dataclasses.asdict(Recipe())
    text = "not Ada's friend's boss but 3 + 14 is p = true ; x ^= 4 ;"
    assert AutoTokenizer.from_pretrained(REFERENCE_FOLDER)(text)["input_ids"] == build_tokenizer()(text)["input_ids"]


def test_the_log_of_the_shipped_model_is_kept_with_it():
    rows = [json.loads(line) for line in (REFERENCE_FOLDER / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == Recipe().steps and [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert {f"{task}/{level}" for task in GRADED for level in LEVELS} <= set(rows[-1])
    assert rows[-1]["seconds"] > 0 and rows[-1]["loss"] < rows[0]["loss"]
