"""The tutorials run, show what is committed, and say no number that they do not show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
from loading import deprecated, needs
from tutorials import TUTORIALS, list_words, part_numbers, run_notebook

NAMES = ["first-look", "own-model-and-data", "fine-tuning"]
LAST_DIGIT = 0.0101
"""Two digits are shown of most numbers; on another machine the second may be rounded the other way."""

WHOLE_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?!\w)")
TOLD = {"32", "64"}
"""People of the small world, and questions of the fine-tuning: said of the models, and shown nowhere."""


def read(name: str) -> Any:
    return nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)


def test_all_tutorials_are_tried() -> None:
    assert sorted(NAMES) == sorted(file.stem for file in TUTORIALS.glob("*.ipynb"))


@pytest.mark.slow
@needs("peft")
@deprecated
@pytest.mark.filterwarnings("ignore::hyperlens.errors.HyperLensWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_shows_what_is_committed(name: str) -> None:
    committed, shown = (list(list_words(one)) for one in (read(name), run_notebook(TUTORIALS / f"{name}.ipynb")))
    assert len(shown) == len(committed)
    for now, before in zip(shown, committed, strict=True):
        (said, numbers), (expected, values) = part_numbers(now), part_numbers(before)
        assert said == expected, "run benchmarks/tutorials.py, and read what the text beside it says"
        np.testing.assert_allclose(numbers, values, atol=LAST_DIGIT, rtol=0)


def read_sections(name: str) -> Iterator[tuple[str, str, str]]:
    """The text below each heading, the code there, and what that shows."""
    text = code = shown = ""
    for cell in read(name).cells:
        if cell.cell_type == "code":
            code, shown = code + cell.source + "\n", "\n".join([shown, *list_words(SimpleNamespace(cells=[cell]))])
            continue
        before, *headed = re.split(r"^(?=#+ )", cell.source, flags=re.MULTILINE)
        text += before
        for part in headed:
            yield text, code, shown
            text, code, shown = part, "", ""
    yield text, code, shown


@pytest.mark.parametrize("name", NAMES)
def test_every_number_in_the_text_is_shown_in_its_section(name: str) -> None:
    for text, code, shown in read_sections(name):
        measured, written = (set(WHOLE_NUMBER.findall(found)) for found in (shown, code))
        said = set(WHOLE_NUMBER.findall(re.sub(r"m = \d", "", text))) - TOLD
        assert {one for one in said if one not in measured and ("." in one or one not in written)} == set()


def test_a_number_that_another_section_shows_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = read("first-look")
    notebook.cells[-1].source += " It is 0.79."
    monkeypatch.setattr(nbformat, "read", lambda *_, **__: notebook)
    with pytest.raises(AssertionError, match=r"0\.79"):
        test_every_number_in_the_text_is_shown_in_its_section("first-look")


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_is_small_and_names_no_machine(name: str) -> None:
    file = TUTORIALS / f"{name}.ipynb"
    text = file.read_text(encoding="utf-8")
    assert len(text) < 100_000 and "plotly.js" not in text and "<script" not in text
    assert not re.search(r"/(?:tmp|home|root|work)/", text) and str(Path.home()) not in text
    assert all(set(cell.metadata) == set() for cell in read(name).cells)
