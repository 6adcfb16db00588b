from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import hyperlens as hl
from hyperlens.errors import ArtefactError
from hyperlens.plots import draw_effort, draw_trajectories, pick_colours
from hyperlens.report import describe_trends, find_caveats, render_report, write_report
from hyperlens.tasks import GRADED

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a browser would see: the tags, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.said, self.inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.said.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    study = hl.Study(limit=6, levels=(1, 3), focal_depths=(0, 2))
    return hl.run_study(hl.load_model("reference"), study, tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(run):
    return render_report(run)


def test_the_page_needs_nothing_from_elsewhere(page):
    for tag, attributes in Page(page).tags:
        assert tag not in ("link", "iframe", "object"), tag
        assert not {"src", "href"} & set(attributes), attributes
    assert "Plotly" in page and "@import" not in page.split("</style>")[0]


def test_the_page_says_every_number_of_the_table(run, page):
    said = " ".join(Page(page).said)
    for group in run.groups:
        for depth in ("0", "2"):
            effort = group["effort"][depth]
            assert f"{effort['mean']:.2f} [{effort['low']:.2f}, {effort['high']:.2f}]" in said
    for trend in run.trends:
        assert f"{trend['rho']:.2f} [{trend['low']:.2f}, {trend['high']:.2f}]" in said
    for name in (*GRADED, run.manifest["model"]["fingerprint"], "2605.05741", "not calibrated"):
        assert name in said


def test_texts_and_names_cannot_become_markup(tmp_path):
    samples = tuple(hl.Sample("Ada's friend is", " Ben", task=EVIL, level=level, id=EVIL) for level in (1, 2))
    run = hl.run_study(hl.load_model("reference"), hl.Study(samples=samples * 3, focal_depths=(0,)), tmp_path / "run")
    tags = Page(render_report(run)).tags
    assert "img" not in {tag for tag, _ in tags} and not any("onerror" in attributes for _, attributes in tags)
    assert not re.search(r"<script>\s*alert", render_report(run))


def test_a_page_is_written_beside_the_run_or_where_it_is_asked_for(run, tmp_path):
    assert write_report(run) == run.folder.with_name("run.html")
    assert write_report(run, tmp_path / "new" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(ArtefactError, match="is a folder; give the name of a file"):
        write_report(run, tmp_path)
    (tmp_path / "thesis.html").write_text("years of work")
    with pytest.raises(ArtefactError, match="was not written by HyperLens"):
        write_report(run, tmp_path / "thesis.html")
    with pytest.raises(ArtefactError, match="cannot be"):
        write_report(run, tmp_path / "thesis.html" / "page.html")


def test_own_samples_without_levels_have_a_page_too(tmp_path):
    own = (hl.Sample("Ada's friend is", " Ben", task="mine"), hl.Sample("Ben's boss is", " Ada", task="mine"))
    run = hl.run_study(hl.load_model("reference"), hl.Study(samples=own, focal_depths=(0,)), tmp_path / "own")
    said = " ".join(Page(render_report(run)).said)
    assert "mine" in said and "These tasks have no levels" in said and "Is it difficulty" not in said


def test_each_level_is_a_line_with_its_band_in_each_panel(run):
    figure = draw_trajectories(run.trajectory, "logic")
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(lines) == 2 * 2 and len(figure.data) == 2 * len(lines)
    mine = run.trajectory.samples.index[(run.trajectory.samples["task"] == "logic") & (run.trajectory.samples["level"] == 3)]
    tokens = np.isin(run.trajectory.data["sample"].values, mine)
    for depth, line in zip((0, 2), [line for line in lines if line.name == "level 3"], strict=True):
        np.testing.assert_allclose(line.y, run.trajectory.confidence(depth)[tokens].mean(0), rtol=1e-5)


def test_the_effort_figure_shows_the_groups_means(run):
    figure = draw_effort(run.groups, (0, 2))
    assert len(figure.data) == len(GRADED) * 2
    assert list(figure.data[0].y) == [group["effort"]["0"]["mean"] for group in run.groups[:2]]


def test_colours_are_told_apart():
    assert len(set(pick_colours(5))) == 5 and len(pick_colours(1)) == 1


def trend(task, low, rho, high):
    return {"task": task, "depth": 0, "rho": rho, "low": low, "high": high}


def test_the_findings_say_where_effort_rises_falls_or_neither():
    trends = [trend("a", 0.1, 0.3, 0.5), trend("b", -0.5, -0.3, -0.1), trend("c", -0.1, 0.0, 0.1), trend("d", None, None, None)]
    (sentence,) = describe_trends(trends, (0, 2))
    assert sentence == "With the logit lens (m = 0) effort rises with the level in a; falls in b; shows no trend in c."


def group(task, level, n=100, tokens=20.0, accuracy=1.0, confidence=0.9):
    return {"task": task, "level": level, "n": n, "tokens": tokens, "accuracy": accuracy, "confidence": confidence}


def test_caveats_are_found_in_the_numbers():
    assert find_caveats([group("a", 1), group("a", 2)]) == []
    undefined = {**group("a", 1), "undefined": {"0": 2}}
    assert find_caveats([undefined], (0,)) == ["At m = 0 the effort of 2 samples is undefined; they are left out of its means."]
    assert "Fewer than 30 samples" in find_caveats([group("a", 1, n=5)])[0]
    assert "20 to 40 tokens" in find_caveats([group("a", 1), group("a", 2, tokens=40.0)])[0]
    assert "from 1.00 down to 0.40" in find_caveats([group("a", 1), group("a", 2, accuracy=0.4)])[0]
    assert "above 0.99 in every group" in find_caveats([group("a", 1, confidence=0.999)])[0]
