"""The adapter that comes with the package, and the demonstration of what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Call, make_call
from loading import needs

import hyperlens as hl
from hyperlens.models import BLIND, REFERENCE
from hyperlens.models.loading import SHIPPED


@pytest.fixture
def compare(capsys, monkeypatch, tmp_path) -> Call:
    monkeypatch.chdir(tmp_path)
    return make_call(capsys, monkeypatch, "compare")


def test_the_shipped_adapter_was_made_of_the_shipped_model(reference):
    about = json.loads((SHIPPED[BLIND] / "recipe.json").read_text(encoding="utf-8"))
    adapter = json.loads((SHIPPED[BLIND] / "adapter_config.json").read_text(encoding="utf-8"))
    assert about["base"]["fingerprint"] == reference.fingerprint
    assert adapter["base_model_name_or_path"] == REFERENCE


@needs("peft")
def test_a_folder_of_the_same_name_comes_before_the_shipped_adapter(saved: Path, plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hl.load_model(BLIND).name == BLIND
    (tmp_path / BLIND).symlink_to(saved)
    assert hl.load_model(BLIND).fingerprint == plain.fingerprint


@pytest.mark.slow
@needs("peft")
def test_the_demonstration_finds_blind_confidence(compare):
    status, out, err = compare("--demo", "--task", "knowledge:wide", "--focal-depth", "2", "--no-html", "--json")
    found = json.loads(out)
    assert status == 0, err
    assert [row["name"] for row in found["verdicts"] if row["task"] == "knowledge:wide"] == ["blind confidence"]
    assert found["count_broken"] >= len(found["broken"]) > 0


def test_the_demonstration_has_its_own_pair(compare):
    status, _, err = compare("--demo", "my-model")
    assert status == 2 and "--demo compares reference with reference-blind; leave my-model away" in err
    status, _, err = compare()
    assert status == 2 and "there is nothing to compare" in err
