from __future__ import annotations

import html
import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from pages import EVIL, Page

import hyperlens as hl
from hyperlens.contrast import estimate_auroc, estimate_curve
from hyperlens.errors import ArtefactError, HyperLensWarning, InputError
from hyperlens.plots import Line, draw_curves, join_panels
from hyperlens.report import gather_report, render_report, write_figures, write_report
from hyperlens.report.figures import draw_levels, draw_overview, draw_trajectories, list_figures
from hyperlens.report.markdown import escape, render_markdown
from hyperlens.report.shards import Sum
from hyperlens.report.tables import tabulate_chapter, tabulate_overview, tabulate_signs
from hyperlens.report.words import describe_findings, say_clear
from hyperlens.resampling import MOST_RESAMPLED
from hyperlens.runs.summary import count_signs
from hyperlens.runs.tokens import Token, find_last
from hyperlens.spelling import say_interval, say_number, shorten, spell
from hyperlens.trajectory import average_tokens

GRADED = (hl.TaskSpec("logic", levels=(1, 3)), hl.TaskSpec("knowledge:plain", levels=(1, 2)))
DEEP = (hl.LensSpec(focal_depths=(0, 15)),)
NAMES = ["Ada", "Ben", "Cleo", "Dan"]
needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser; install chromium")


def own(task: str, relation: str, count: int) -> list[hl.Sample]:
    asked = [f"{a}'s {relation} is" for a in NAMES] * count
    return [
        hl.Sample(prompt, f" {NAMES[place % 4]}", task=task, id=f"{task}/{place}") for place, prompt in enumerate(asked[:count])
    ]


@pytest.fixture(scope="session")
def run(reference, tmp_path_factory):
    study = hl.Study(
        "two",
        models=(hl.ModelSpec("reference"), hl.ModelSpec("reference", name="twin")),
        tasks=(
            hl.TaskSpec("logic", levels=(1, 3)),
            hl.TaskSpec("knowledge:plain", levels=(1, 2)),
            hl.TaskSpec("a"),
            hl.TaskSpec("b"),
        ),
        lenses=(hl.LensSpec(focal_depths=(0, 2)),),
        contrasts=(hl.ContrastSpec("a", "b", "friends"), hl.ContrastSpec("logic", "logic", "steps", (1,), (3,))),
        limit=10,
        shard_samples=7,
    )
    given = {"a": own("a", "friend", 9), "b": own("b", "boss's rival", 8)}
    return hl.run_study(study, tmp_path_factory.mktemp("report") / "two", {"reference": reference, "twin": reference}, given)


@pytest.fixture(scope="session")
def data(run):
    return gather_report(run)


@pytest.fixture(scope="session")
def page(data):
    return render_report(data)


@pytest.fixture(scope="session")
def evil(reference, tmp_path_factory):
    """A run in which everything that is text attacks."""
    samples = [
        hl.Sample(f"{EVIL} {a}'s friend is", f" {a} {EVIL}", task=EVIL, level=level, id=EVIL) for a in NAMES for level in (1, 2)
    ]
    spec = hl.ModelSpec("reference", name=EVIL)
    study = hl.Study(
        "evil",
        (spec,),
        (hl.TaskSpec(EVIL),),
        (hl.LensSpec(EVIL, (0, 1)),),
        (hl.ContrastSpec(EVIL, EVIL, EVIL, (1,), (2,)),),
    )
    found = hl.run_study(study, tmp_path_factory.mktemp("evil") / "run", {EVIL: reference}, {EVIL: samples})
    found.manifest["study"]["name"] = EVIL  # no study is made with such a name, but a manifest can be written by anyone
    return found


def run_own(reference, folder: Path, samples: list[hl.Sample], depths=(0,)) -> hl.Run:
    study = hl.Study("own", tasks=(hl.TaskSpec("mine"),), lenses=(hl.LensSpec(focal_depths=depths),))
    return hl.run_study(study, folder, {"reference": reference}, {"mine": samples})


# what is gathered


def test_streamed_curves_are_those_of_the_whole_trajectory(run, data):
    whole = run.trajectory("logic", "twin")
    chapter = data.chapters[1]
    assert (chapter.model, chapter.lens, chapter.pair) == ("twin", "jump", (0, 2))
    for depth in (0, 2):
        (curves,) = [one for one in chapter.curves if (one.title, one.depth) == ("logic", depth)]
        confidence = average_tokens(whole, whole.confidence(depth).astype(float))
        assert [line.name for line in curves.lines] == ["level 1", "level 3"]
        for level, line in zip((1, 3), curves.lines, strict=True):
            expected = estimate_curve(confidence[(whole.samples["level"] == level).to_numpy()], run.store.study.seed)
            np.testing.assert_allclose([line.y, line.low, line.high], expected, atol=1e-12)


def test_the_sides_of_a_contrast_are_the_curves_of_its_tasks(run, data):
    (curves,) = [one for one in data.chapters[0].curves if one.title == "friends: easy against hard" and one.depth == 2]
    whole = run.trajectory("b", "reference")
    expected = average_tokens(whole, whole.confidence(2).astype(float)).mean(0)
    assert curves.pair and [line.name for line in curves.lines] == ["easy: a", "hard: b"]
    np.testing.assert_allclose(curves.lines[1].y, expected, atol=1e-12)
    titles = {one.title for one in data.chapters[0].curves}
    assert titles == {"friends: easy against hard", "logic", "knowledge:plain"}


@pytest.mark.parametrize("count", [1, 2, 900, MOST_RESAMPLED + 1, 5000])
def test_a_streamed_band_is_that_of_all_curves_at_once(count):
    values = np.random.default_rng(0).random((count, 5)) ** 3
    order = np.random.default_rng(1).permutation(count)
    parts = [Sum(5), Sum(5)]
    for part in np.array_split(order, 7):
        parts[len(part) % 2].add(part, values[part])
    line = (parts[0] + parts[1]).line("all", 3)
    np.testing.assert_allclose([line.y, line.low, line.high], estimate_curve(values, 3), atol=1e-12)


def test_a_curve_with_a_gap_is_left_out():
    total = Sum(2)
    total.add(np.array([0, 1]), np.array([[0.2, np.nan], [0.4, 0.6]]))
    assert total.count == 1 and total.line("all", 0).y == [0.4, 0.6]


def test_distributions_and_correctness_are_those_of_the_samples(run, data):
    samples = run.samples()
    mine = samples[(samples["model"] == "reference") & (samples["task"] == "logic")]
    (spreads,) = [one for one in data.chapters[0].spreads if (one.title, one.depth) == ("logic", 2)]
    for level, spread in zip((1, 3), spreads.spreads, strict=True):
        efforts = mine.loc[mine["level"] == level, "effort@2"].to_numpy(float)
        assert spread.n == sum(spread.counts) == len(efforts)
        np.testing.assert_allclose(spread.quartiles, np.percentile(efforts, (25, 50, 75)))
    assert {one.title for one in data.chapters[0].spreads} == {"logic", "knowledge:plain", "tasks without levels"}
    for one in data.chapters[0].accuracies:
        known = samples[(samples["model"] == "reference") & (samples["task"] == one.task)]
        effort, correct = known[f"effort@{one.depth}"].to_numpy(float), known["correct"].to_numpy(float)
        assert (one.right.n, one.wrong.n) == ((correct == 1).sum(), (correct == 0).sum())
        expected = estimate_auroc(effort[correct == 1], effort[correct == 0], 0)
        np.testing.assert_equal(one.auroc, expected)
        assert np.mean([share for share in one.line.y if share is not None]) == pytest.approx(correct.mean(), abs=0.1)


def test_examples_are_the_samples_of_most_and_least_effort(run, data):
    samples, whole = run.samples(texts=True), run.trajectory("knowledge:plain", "reference")
    mine = samples[(samples["model"] == "reference") & (samples["task"] == "knowledge:plain")].sort_values("effort@2")
    shown = [one for one in data.chapters[0].examples if one.task == "knowledge:plain"]
    assert [one.hardest for one in shown] == [True] * 5 + [False] * 5
    assert [one.effort for one in shown] == [*mine["effort@2"][::-1][:5], *mine["effort@2"][:5]]
    for one in shown:
        row = mine[mine["id"] == one.id].iloc[0]
        assert (one.prompt, one.target, one.level) == (row["prompt"], row["target"], row["level"])
        tokens = whole.data["sample"].values == list(whole.samples["id"]).index(one.id)
        np.testing.assert_array_equal([token.confidence for token in one.tokens], whole.to_numpy()[tokens][:, 1])
        assert [token.reference for token in one.tokens] == whole.data["reference_text"].values[tokens].tolist()


def test_few_samples_are_shown_on_one_end_only(reference, tmp_path):
    data = gather_report(run_own(reference, tmp_path / "one", own("mine", "friend", 1)))
    assert [one.hardest for one in data.chapters[0].examples] == [True]
    data = gather_report(run_own(reference, tmp_path / "three", own("mine", "friend", 3)))
    assert [one.hardest for one in data.chapters[0].examples] == [True, True, False]
    assert len({one.id for one in data.chapters[0].examples}) == 3


def test_a_long_answer_shows_its_first_tokens(reference, tmp_path):
    target = " Ada" * 40
    data = gather_report(run_own(reference, tmp_path / "long", [hl.Sample("Ada's friend is", target, task="mine", id="0")]))
    (example,) = data.chapters[0].examples
    assert len(example.tokens) == 24 and example.left_out == 16
    assert "and 16 more tokens" in Page(render_report(data)).text


def test_what_is_fed_stands_beside_what_the_model_finds_most_likely(reference, tmp_path):
    """The reference is the model's own next token: what follows in the text is another one where the model is wrong."""
    given = [hl.Sample("Ada's friend is", " Ben Cleo Dan Ada", task="mine", id="0")]
    run = run_own(reference, tmp_path / "fed", given)
    (example,) = gather_report(run).chapters[0].examples
    assert example.read == "target" and example.correct is False
    assert [token.follows.strip() for token in example.tokens if token.follows] == ["Ben", "Cleo", "Dan", "Ada"]
    whole = run.trajectory("mine").data
    assert [token.reference for token in example.tokens] == whole["output_text"].values.tolist()
    differ = [token for token in example.tokens if token.follows != token.reference]
    page = render_report(gather_report(run))
    assert differ and ">in the text<" in page and "what follows<" not in page and ">the model&#39;s next token<" in page
    for token in differ:
        assert f'<td class="word">{token.reference}</td><td class="word">{token.follows}</td>' in page


def test_where_the_model_is_right_or_writes_itself_the_two_are_one(reference, tmp_path):
    answer = hl.Sample("Ada's friend is", task="mine", id="0")
    study = hl.Study("said", tasks=(hl.TaskSpec("mine", read="generated", max_new_tokens=3),), lenses=(hl.LensSpec(),))
    run = hl.run_study(study, tmp_path / "said", {"reference": reference}, {"mine": [answer]})
    (example,) = gather_report(run).chapters[0].examples
    assert example.read == "generated" and [one.follows for one in example.tokens] == [one.reference for one in example.tokens]
    assert ">in the text<" not in render_report(gather_report(run))


def test_the_last_token_of_a_target_is_what_is_left_of_it():
    tokens = [Token("is", "7", (1.0,)), Token("1", "8", (1.0,), "1"), Token("2", "9", (1.0,))]
    assert find_last(tokens, "target", " 123", False) == "3" and find_last(tokens, "target", " 129", False) == "9"
    assert find_last(tokens, "target", " 123", True) == find_last(tokens, "generated", None, False) == "9"
    assert find_last(tokens, "target", " 4", False) is None and find_last(tokens, "target", None, False) is None
    assert find_last(tokens[:1], "options", " four", False) == "four"


# the page


def test_no_table_of_numbers_is_wider_than_the_page(data):
    for chapter in data.chapters:
        for name, table in tabulate_chapter(data, chapter):
            assert len(table.columns) <= 9, name  # seven of them and one interval for each depth, or three for each of two


def test_the_page_needs_nothing_from_elsewhere(page):
    for tag, attributes in Page(page).tags:
        assert tag not in ("link", "iframe", "object", "img", "base"), tag
        assert "src" not in attributes and attributes.get("href", "#").startswith("#"), attributes
    assert "@import" not in page.split("</style>")[0] and page.count("Plotly.react") and "default-src 'none'" in page


def test_the_page_says_every_number_of_the_tables(run, data, page):
    said = Page(page).text
    for group in run.results["groups"]:
        assert all(say_interval(group["effort"][depth]) in said for depth in ("0", "2"))
    for row in run.results["contrasts"]:
        for value in (row["difference"], row["auroc"], row["cliff"], row["correct"], *row["matched"].values()):
            assert say_interval(value) in said
        assert say_number(row["easy"]["mean"]) in said and say_number(row["hard"]["mean"]) in said
    for trend in run.results["trends"]:
        assert say_interval(trend) in said and say_interval(trend["partial"]["both"]) in said
    for model in run.models.values():
        assert model["fingerprint"] in said
    for text in ("2605.05741", "not calibrated", "HyperLens's own", "the paper's", "twin", "knowledge:plain", *data.caveats):
        assert " ".join(text.split()) in said


def test_a_comparison_beside_the_run_is_linked(data, page, run, tmp_path):
    comparison = run.folder.with_name(f"{run.folder.name}.comparison.html")
    comparison.write_text("")
    written = write_report(run, tmp_path / "page.html").read_text(encoding="utf-8")
    comparison.unlink()
    links = [attributes["href"] for tag, attributes in Page(written).tags if tag == "a"]
    assert [link for link in links if not link.startswith("#")] == [os.path.relpath(comparison, tmp_path)]
    assert "Compared with another model" in written and "Compared with another model" not in page


def test_figures_are_data_that_cannot_end_their_script(page):
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert len(found) == page.count('class="plot"') > 10
    for text in found:
        assert not set("<>&") & set(text)
        go.Figure(json.loads(text))


def test_texts_and_names_cannot_become_markup(evil):
    page = render_report(gather_report(evil))
    seen = Page(page)
    assert not {"img", "b onerror"} & {tag for tag, _ in seen.tags} and not any("onerror" in each for _, each in seen.tags)
    assert "alert(1)" in seen.text and "62615533" not in seen.text
    assert len(re.findall(r"</script>", page)) == len(re.findall(r"<script", page)) - get_plotly_scripts()
    assert "\x1b" not in page and "\u202e" not in page and "\\u001b[31m" in seen.text
    plain = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "alert(1)" in plain and "<script>alert" not in plain


def get_plotly_scripts() -> int:
    """How often plotly.js itself says <script without the tag being one, less its </script>."""
    from plotly.offline import get_plotlyjs

    text = get_plotlyjs()
    return text.count("<script") - text.count("</script>")


def test_several_models_have_a_part_each_and_one_has_none(page, reference, tmp_path):
    opened = [attributes for tag, attributes in Page(page).tags if tag == "details" and attributes.get("class") == "chapter"]
    assert len(opened) == 2 and "open" in opened[0] and "open" not in opened[1]
    one = render_report(gather_report(run_own(reference, tmp_path / "own", own("mine", "friend", 2))))
    tags = Page(one).tags
    assert not any(attributes.get("class") == "chapter" for tag, attributes in tags if tag == "details")


def test_own_samples_without_levels_or_contrasts_have_a_page_too(reference, tmp_path):
    data = gather_report(run_own(reference, tmp_path / "own", own("mine", "friend", 2)))
    said = Page(render_report(data)).text
    assert "These tasks have no levels and nothing is contrasted" in said and "mine" in said
    assert "Is it difficulty" not in said and "Is the hard side more effort" not in said
    assert tabulate_overview(data) is None and draw_overview(data) is None and draw_levels(data, data.chapters[0]) is None


def test_a_single_sample_without_a_target_has_a_page(reference, tmp_path):
    study = hl.Study("said", tasks=(hl.TaskSpec("mine", read="generated", max_new_tokens=2),), lenses=DEEP)
    given = {"mine": [hl.Sample("Ada's friend is", task="mine", id="0")]}
    with pytest.warns(HyperLensWarning, match="effort is coarse"):
        run = hl.run_study(study, tmp_path / "one", {"reference": reference}, given)
    data = gather_report(run)
    said = Page(render_report(data)).text
    assert "Fewer than 30 samples" in said and "fewer than 4 states are left to read" in said and "it said:" in said
    assert data.chapters[0].examples[0].correct is None


def test_effort_that_is_nowhere_defined_has_a_page(reference, tmp_path):
    with pytest.warns(HyperLensWarning, match="effort is undefined"):
        run = run_own(reference, tmp_path / "all", own("mine", "friend", 3), (16,))
    data = gather_report(run)
    assert data.chapters[0].examples == () and "the effort of 3 samples is undefined" in Page(render_report(data)).text
    assert all(figure.data for _, figure in list_figures(data))


# findings


def test_the_findings_say_what_is_clear(run, data):
    said = " ".join(describe_findings(data))
    for row in run.results["contrasts"]:
        assert row["contrast"] in said
    assert "With the logit lens (m = 0)" in said and "At focal depth m = 2" in said and "sign test, p = " in said


def test_trends_are_judged_by_their_intervals_and_that_is_said_once(data):
    rows = [
        {"model": "twin", "lens": "jump", "depth": 2, "task": task, "rho": 0.1, "low": low, "high": high}
        for task, low, high in (("up", 0.05, 0.2), ("down", -0.3, -0.1), ("flat", -0.1, 0.3))
    ]
    chapter = data.chapters[1]
    alone = type(data)(data.manifest, {**data.results, "trends": rows, "contrasts": [], "signs": []}, (chapter,), (), {})
    rule = "“Rises” and “falls”: their interval excludes 0, not corrected for the {} trends shown."
    assert describe_findings(alone) == [
        f"At focal depth m = 2, effort rises with the level in up; falls in down; does neither in flat. {rule.format(3)}"
    ]
    both = [*rows, *({**row, "depth": 0} for row in rows)]
    alone = type(data)(data.manifest, {**alone.results, "trends": both}, (chapter,), (), {})
    logit, focal = describe_findings(alone)
    assert logit.endswith(rule.format(6)) and rule[:7] not in focal
    alone = type(data)(data.manifest, {**alone.results, "trends": rows[:1]}, (chapter,), (), {})
    assert describe_findings(alone)[0].endswith("in up. “Rises” and “falls”: their interval excludes 0.")


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "said"),
    [
        (0.01, 0.2, 0.05, "▲"),
        (-0.2, -0.01, 0.001, "▼"),
        (0.01, 0.2, 0.0501, ""),
        (-0.2, -0.01, None, ""),
        (-0.01, 0.2, 0.001, ""),
        (None, None, 0.001, ""),
    ],
)
def test_a_difference_is_clear_by_its_interval_and_by_its_adjusted_p(low, high, p_holm, said):
    assert say_clear({"difference": {"value": 0.1, "low": low, "high": high}, "p_holm": p_holm}) == said


def test_sentences_marks_and_counts_follow_the_one_rule(run, data):
    def change(row, p_holm):
        names = {"value": 0.3, "low": 0.1, "high": 0.5}
        return {**row, "difference": names, "p_holm": p_holm, "matched": {**row["matched"], "confidence": names}}

    for p_holm, mark, count in ((0.04, "0.30 ▲", 4), (0.06, "0.30\n", 0)):
        rows = [change(row, p_holm) for row in run.results["contrasts"]]
        sign = count_signs(rows, {(chapter.model, chapter.lens): chapter.main for chapter in data.chapters})[-1]
        assert (sign["depth"], sign["cells"], sign["positive"]) == ("chosen", 4, 4)
        found = type(data)(
            data.manifest, {**data.results, "contrasts": rows, "signs": [sign], "trends": []}, data.chapters, (), data.reads
        )
        said = describe_findings(found)
        assert any("takes clearly more effort in 4 of 4" in one for one in said) == (count == 4)
        assert any("does not clearly differ in 4 of 4" in one for one in said) == (count == 0)
        assert any("For all 4 of them, the interval lies on the same side of 0" in one for one in said) == (count == 4)
        assert said[-1].endswith(f"{count} and 0 of them clearly.")
        overview, signs = tabulate_overview(found), tabulate_signs(found)
        assert overview and all(cell.startswith(mark) for row in overview.rows for cell in (row[4], row[7]))
        assert signs and [row[-2:] for row in signs.rows] == [(f"{count} / 0", "0.125" if count else "1.000")]


# Markdown


def test_markdown_says_the_same_numbers(run, data):
    text = html.unescape(render_markdown(data, run.folder, run.folder.with_suffix(".md"))).replace("\\", "")
    for chapter in data.chapters:
        for _, table in tabulate_chapter(data, chapter):
            for row in table.rows:
                assert all(" ".join(cell.split()) in text for cell in row)
    for sentence in (*describe_findings(data), *data.caveats):
        assert sentence in text
    assert text.startswith("<!-- HyperLens -->\n# two")


def test_each_row_of_a_markdown_table_has_as_many_cells_as_its_head(evil):
    text = render_markdown(gather_report(evil), evil.folder, evil.folder)
    counts = []
    for line in text.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        if cells and counts and counts[-1]:
            assert cells == counts[-1], line
        counts.append(cells)
    assert max(counts) == 10


def test_markdown_takes_texts_as_texts(evil):
    text = render_markdown(gather_report(evil), evil.folder, evil.folder)
    body = text.removeprefix("<!-- HyperLens -->")
    assert "<" not in body and not re.search(r"(?<!\\)\]\(", body) and "\x1b" not in text and "\u202e" not in text
    assert not re.search(r"(?<!\\)`", body)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a|b", r"a\|b"),
        ("# no", r"\# no"),
        ("- no", r"\- no"),
        ("1. no", r"1\. no"),
        ("0.38 [0.33, 0.43]", "0.38 [0.33, 0.43]"),
        ("[a](b) ![c](d)", r"[a\](b) \![c\](d)"),
        ("http://x.y www.z", r"http\://x.y www\.z"),
        ("two\nlines", "two lines"),
        ("a\\|b", r"a\\\|b"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
    ],
)
def test_signs_that_mean_something_are_escaped(text, safe):
    assert escape(text) == safe


# files


def test_a_report_is_written_beside_the_run_or_where_it_is_asked_for(run, tmp_path):
    assert write_report(run) == run.folder.with_name("two.html")
    assert write_report(run, format="md") == run.folder.with_name("two.md")
    assert write_report(run, tmp_path / "new" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    first = write_report(run, tmp_path / "a.md", "md").read_text(encoding="utf-8")
    assert write_report(run, tmp_path / "a.md", "md").read_text(encoding="utf-8") == first
    with pytest.raises(InputError, match='no report format "pdf"; choose from html, md'):
        write_report(run, format="pdf")


@pytest.mark.parametrize("format", ["html", "md"])
def test_files_of_others_are_never_replaced(run, tmp_path, format):
    with pytest.raises(ArtefactError, match="is a folder; give the name of a file"):
        write_report(run, tmp_path, format)
    thesis = tmp_path / "thesis"
    thesis.write_text("years of work")
    with pytest.raises(ArtefactError, match="was not written by HyperLens"):
        write_report(run, thesis, format)
    with pytest.raises(ArtefactError, match="cannot be"):
        write_report(run, thesis / "page", format)
    assert thesis.read_text() == "years of work"


@pytest.fixture
def few_figures(data, monkeypatch):
    """What is gathered and drawn, kept short: these tests are about files."""
    figures = [
        (name, join_panels([(name, draw_curves([Line("all", [0, 1], [0.1, 0.2])], 4))])) for name in ("contrasts", "levels")
    ]
    monkeypatch.setattr("hyperlens.report.figures.gather_report", lambda run: data)
    monkeypatch.setattr("hyperlens.report.figures.list_figures", lambda data: figures)


@pytest.fixture
def drawn_at_once(few_figures, monkeypatch):
    def draw(figures) -> None:
        for _, file in figures:
            file.write_text("drawn")

    monkeypatch.setattr("hyperlens.report.figures._render", draw)


def test_figures_have_names_of_their_own_and_the_data_of_the_report(data):
    figures = dict(list_figures(data))
    assert {"contrasts", "reference-jump-levels", "twin-jump-trajectory-logic", "twin-jump-distribution-m2"} <= set(figures)
    (group,) = [group for group in draw_trajectories(data.chapters[1]) if group.title == "logic"]
    (curves,) = [one for one in data.chapters[1].curves if (one.title, one.depth) == ("logic", 0)]
    for drawn in (group.panels[0].figure, figures["twin-jump-trajectory-logic"]):
        assert list(drawn.data[1].y) == list(curves.lines[0].y)
    levels = figures["reference-jump-levels"]
    means = [row["effort"]["0"]["mean"] for row in data.rows("groups", data.chapters[0]) if row["task"] == "logic"]
    assert list(levels.data[0].y) == means


def test_figures_replace_figures_of_ours_and_nothing_else(run, tmp_path, drawn_at_once):
    files = write_figures(run, tmp_path / "figures", ("svg", "svg", "pdf"))
    assert len(files) == len(set(files)) and {file.suffix for file in files} == {".svg", ".pdf"}
    assert write_figures(run, tmp_path / "figures", ("pdf",)) == [file for file in files if file.suffix == ".pdf"]
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {file.name for file in files} | {"figures.json"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "contrasts.svg").write_text("my own")
    with pytest.raises(ArtefactError, match=r"contrasts\.svg exists and was not written by HyperLens"):
        write_figures(run, tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["contrasts.svg"]
    with pytest.raises(ArtefactError, match="is a file; figures need a folder"):
        write_figures(run, tmp_path / "mine" / "contrasts.svg")


def test_markdown_links_to_the_figures_beside_the_run(run, drawn_at_once):
    try:
        (file, *_) = write_figures(run)
        assert file.parent == run.folder.with_name("two-figures")
        assert "(<two-figures/contrasts.svg>)" in write_report(run, format="md").read_text(encoding="utf-8")
    finally:
        shutil.rmtree(run.folder.with_name("two-figures"))
    assert "## Figures" not in write_report(run, format="md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("formats", "said"), [(("gif",), 'no figure format "gif"; choose from svg, png, pdf'), ((), "no figure format was given")]
)
def test_formats_are_checked_before_anything_is_drawn(run, tmp_path, formats, said):
    with pytest.raises(InputError, match=said):
        write_figures(run, tmp_path / "figures", formats)


def test_figures_without_kaleido_are_refused(run, tmp_path, few_figures, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(InputError, match=r"pip install 'hyperlens\[figures\]', and a Chromium"):
        write_figures(run, tmp_path / "figures")
    assert list(tmp_path.iterdir()) == []


def test_figures_without_a_browser_are_refused(run, tmp_path, few_figures, monkeypatch):
    pytest.importorskip("kaleido")
    errors = importlib.import_module("kaleido.errors")

    def fail(*_, **__):
        raise errors.ChromeNotFoundError("none")

    monkeypatch.setattr("kaleido.write_fig_from_object_sync", fail)
    with pytest.raises(InputError, match="no browser was found; install Chromium, or name it in the environment variable"):
        write_figures(run, tmp_path / "figures")
    assert list(tmp_path.iterdir()) == []


@needs_browser
def test_a_figure_is_drawn_in_each_format(run, tmp_path, few_figures):
    pytest.importorskip("kaleido")
    svg, png, pdf = write_figures(run, tmp_path / "figures", ("svg", "png", "pdf"))[:3]
    assert "<text" in svg.read_text(encoding="utf-8") and png.read_bytes()[:4] == b"\x89PNG" and pdf.read_bytes()[:4] == b"%PDF"


# words


def test_numbers_and_texts_are_said_plainly():
    assert say_interval({"rho": -0.5, "low": None, "high": None}) == "−0.50"
    assert say_interval({"mean": 0.5, "low": 0.25, "high": 1.0}) == "0.50 [0.25, 1.00]"
    assert say_interval({"value": -0.03, "low": -0.06, "high": -0.004}) == "−0.030 [−0.060, −0.004]"
    assert say_interval({"value": 0.03, "low": 0.0004, "high": 0.06}) == "0.0300 [0.0004, 0.0600]"
    assert say_interval({"value": 0.03, "low": 0.0, "high": 0.06}) == say_interval({"value": 0.03, "low": 1e-17, "high": 0.06})
    assert say_interval({"value": 0.03, "low": 0.0, "high": 0.06}) == "0.03 [0.00, 0.06]"
    assert say_number(-0.0004) == "0.00" and say_number(float("nan")) == "–"
    assert spell("a\x00\ud800b") == "a\\u0000b" and shorten("x" * 50, 20) == "x" * 9 + " […] " + "x" * 9
    assert Line("a", [0], [0.5]).low == ()


def test_a_model_refused_half_way_is_said_and_not_shown(run, tmp_path):
    place = shutil.copytree(run.folder, tmp_path / "refused")
    (file,) = (place / "models").glob("01-*.json")
    file.write_text(json.dumps({"name": "twin", "refused": "memory does not suffice"}))
    found = hl.open_run(place)
    found.results["refused"]["twin"] = "memory does not suffice"
    del found.results["models"]["twin"]
    for kind in ("groups", "trends", "choices", "contrasts"):
        found.results[kind] = [row for row in found.results[kind] if row["model"] != "twin"]
    data = gather_report(found)
    assert [chapter.model for chapter in data.chapters] == ["reference"]
    assert (
        data.caveats[0] == "twin was left out: memory does not suffice." and data.caveats[0] in Page(render_report(data)).text
    )
