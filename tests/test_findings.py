"""The findings page says what its committed numbers say, and these are of the model that is shipped."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from hyperlens.tasks import GRADED, LEVELS

ROOT = Path(__file__).resolve().parent.parent
FOUND = json.loads((ROOT / "docs" / "findings.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page_script():
    spec = importlib.util.spec_from_file_location("findings_page", ROOT / "benchmarks" / "findings_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_findings_are_of_the_model_that_is_shipped(reference):
    assert FOUND["about"]["model"] == reference.fingerprint


def test_every_table_on_the_pages_is_made_of_the_committed_numbers(page_script):
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/findings.md", "README.md"))
    tables = page_script.make_tables(FOUND)
    assert len(tables) > 10
    for name, table in tables.items():
        assert f"<!-- table: {name} -->\n\n{table}\n\n<!-- end -->" in (readme if name == "summary" else page), name


def test_every_cell_has_at_least_two_hundred_questions():
    cells = {(group["task"], group["level"]): group["n"] for group in FOUND["levels"]["jump"]["groups"]}
    assert set(cells) == {(task, level) for task in GRADED for level in LEVELS} and min(cells.values()) >= 200


def test_the_reference_model_reached_its_aim():
    for group in FOUND["levels"]["jump"]["groups"]:
        assert group["accuracy"] >= (0.95 if group["level"] <= 3 else 0.9), group
