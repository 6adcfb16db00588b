"""Results show themselves in a notebook: no text of others becomes markup, nothing grows without bound, both grounds serve."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated import make_table, save_run
from pages import EVIL, Page
from test_trajectory import made

import hyperlens as hl
from hyperlens.errors import InputError
from hyperlens.notebook import (
    CONFIDENCE,
    EFFORT,
    STRONGEST,
    draw_effort,
    draw_interval,
    draw_table,
    draw_tokens,
    draw_trajectory,
    frame,
)
from hyperlens.runs.display import show_run
from hyperlens.runs.run import sum_up
from hyperlens.runs.summary import summarise

TAGS = set("div style p strong table caption thead tbody tr th td span svg title path circle ul li".split())
GROUNDS = {"light": ((255, 255, 255), (0x1D, 0x24, 0x30)), "dark": ((0x14, 0x18, 0x1F), (0xE6, 0xE9, 0xEF))}


def check(page: str) -> Page:
    """That it stands alone: our tags only, nothing that runs, and nothing from elsewhere."""
    found = Page(page)
    assert {tag for tag, _ in found.tags} <= TAGS
    assert {name for _, attributes in found.tags for name in attributes} & {"onerror", "onclick", "href", "src"} == set()
    assert "\x1b" not in page and "\u202e" not in page
    return found


@pytest.fixture
def run(tmp_path: Path) -> hl.Run:
    """A run with results of two tasks, one of which has a name that attacks."""
    table = make_table(60, ("sums", "words"), (1, 2, 3))
    run = save_run(tmp_path / "base", table)
    measured = run.samples()
    measured["task"] = measured["task"].cat.rename_categories({"words": EVIL})
    contrasts = (hl.ContrastSpec("sums", "sums", EVIL, (1,), (3,)),)
    found = summarise(measured, {("base", "jump"): (0, 2)}, contrasts)
    return hl.Run(run.store, {**sum_up(run.store), **found})


def test_a_trajectory_shows_its_tokens_its_effort_and_its_states():
    trajectory = made()
    page = check(trajectory._repr_html_())
    assert "3 tokens of 2 texts" in page.text and "<script>" in page.text and "\\u001b[31m" in page.text
    effort = hl.measure_effort(trajectory)["effort"].values
    assert all(f"{value:.2f}" in page.text for value in effort.ravel())
    assert sum(tag == "svg" for tag, _ in page.tags) == effort.size


def test_a_trajectory_of_any_length_is_shown_in_little_room():
    one = made()
    many = hl.Trajectory(one.data.isel(token=np.repeat([0, 1, 2], 4000)), one.samples, one.manifest)
    page = many._repr_html_()
    assert len(page) < 250_000 and "more tokens" in page
    check(page)


def test_a_run_shows_effort_by_task_and_level_with_intervals(run: hl.Run):
    page = check(run._repr_html_())
    for group in run.results["groups"]:
        effort = group["effort"]["2"]
        assert f"{effort['mean']:.2f} [{effort['low']:.2f}, {effort['high']:.2f}]" in page.text
    assert "Does effort follow the level?" in page.text and "Is the hard side more effort?" in page.text
    assert repr(run) == "Run(base: base on sums, words)"


def test_a_run_of_many_tasks_is_shown_in_little_room(run: hl.Run):
    results = {**run.results, "groups": run.results["groups"] * 500}
    page = show_run("many", results)
    assert len(page) < 250_000 and "more rows" in page


def test_a_comparison_shows_its_verdicts_and_changes(tmp_path: Path):
    table = make_table(60, ("sums", "words"))
    after = table.assign(effort=table["effort"] - 0.2)
    runs = save_run(tmp_path / "base", table), save_run(tmp_path / "tuned", after, name=f"tuned {EVIL[:40]}")
    found = hl.compare_runs(*runs)
    page = check(found._repr_html_())
    for verdict in found.verdicts:
        assert f"{verdict['name']}. {verdict['sentence']}" in page.text
        assert all(said in page.text for said in verdict["weakened"])
    assert "▼ −0.20 [−0.20, −0.20]" in page.text and "lost effort" in repr(found)


def test_the_tables_of_a_run_have_a_row_for_each_group_and_depth(run: hl.Run):
    groups = run.table()
    assert len(groups) == 2 * len(run.results["groups"]) and set(groups["depth"]) == {0, 2}
    row, source = groups.iloc[1], run.results["groups"][0]
    assert (row["effort"], row["effort_low"]) == (source["effort"]["2"]["mean"], source["effort"]["2"]["low"])
    assert (row["accuracy_low"], row["correct_n"]) == (source["accuracy_interval"]["low"], source["correct"]["n"])
    contrasts = run.table("contrasts")
    assert contrasts["difference"].tolist() == [row["difference"]["value"] for row in run.results["contrasts"]]
    assert contrasts["easy_accuracy"].dtype == float
    assert isinstance(run.table("trends"), pd.DataFrame) and not any("." in name for name in run.table("trends"))
    with pytest.raises(InputError, match='no table of "contrast"; choose from groups, trends, contrasts'):
        run.table("contrast")


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("effort", [0.0, 0.5, 1.0])
def test_letters_are_legible_on_every_effort_and_both_grounds(ground: str, effort: float):
    below, ink = GROUNDS[ground]
    colour = [int(part) for part in EFFORT.split(",")]
    mixed = [STRONGEST * effort * top + (1 - STRONGEST * effort) * under for top, under in zip(colour, below, strict=True)]
    assert contrast(ink, mixed) >= 4.5  # WCAG 2, AA
    assert contrast([int(part) for part in CONFIDENCE.split(",")], below) >= 3


def contrast(one, other) -> float:
    light = sorted(luminance(colour) for colour in (one, other))
    return (light[1] + 0.05) / (light[0] + 0.05)


def luminance(colour) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (one / 255 for one in colour)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_more_effort_is_a_darker_ground_and_none_has_no_ground():
    shades = [float(re.findall(r",([\d.]+)\)", draw_effort(value))[0]) for value in (math.nan, 0.0, 0.3, 0.9)]
    assert shades[0] == shades[1] == 0 < shades[2] < shades[3] <= STRONGEST
    assert draw_effort(None).endswith(">–</span>")


def test_a_column_is_as_high_as_its_confidence_and_the_models_own_are_fainter():
    drawn = draw_trajectory([0.0, 0.5, 1.0], 2)
    assert 'd="M0 18V18.0h5V9.0h5V18Z"' in drawn and 'd="M10 18V0.0h5V18Z"' in drawn
    assert drawn.count('fill-opacity="0.45"') == 1 and "0.00 0.50 1.00" in drawn
    assert "–" in draw_trajectory([math.nan, 1.0], 2)


def test_an_interval_lies_where_its_numbers_are():
    drawn = draw_interval(0.5, 0.0, 1.0, (0.0, 1.0))
    assert 'd="M4.0 7H86.0"' in drawn and 'cx="45.0"' in drawn
    assert draw_interval(None, None, None, (0.0, 1.0)) == draw_interval(math.nan, 0.0, 1.0, (0.0, 1.0)) == "–"


def test_only_markup_of_ours_is_markup():
    page = check(frame(EVIL, draw_table(EVIL, [EVIL], [[EVIL], [draw_tokens(["<b>"], [0.5])]]), EVIL))
    assert page.text.count("alert(1)") == 5 and page.text.count("<b>") == 1
