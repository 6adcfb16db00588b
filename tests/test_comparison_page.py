from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from pages import EVIL, Page
from rich.console import Console

import hyperlens as hl
from hyperlens.diagnosis import (
    DOWN,
    FEWEST_PAIRS,
    OUTCOMES,
    PATTERNS,
    QUADRANTS,
    RULE,
    UP,
    diagnose,
    estimate_changes,
    find_outcomes,
    find_quadrants,
)
from hyperlens.errors import ArtefactError, InputError
from hyperlens.report import write_comparison
from hyperlens.report.changes import (
    MOST_POINTS,
    draw_changes,
    draw_samples,
    list_verdicts,
    name_sides,
    tabulate_changes,
    tabulate_controls,
    tabulate_depths,
    tabulate_phases,
    tabulate_quadrants,
    tabulate_sides,
    thin_samples,
    trace_path,
)
from hyperlens.report.comparison import comparison_beside, link_page, render_comparison
from hyperlens.report.markdown import escape
from hyperlens.runs import Broken, BrokenToken, Comparison
from hyperlens.terminal.comparing import show_comparison

LAYERS = 6


def interval(one) -> dict[str, float | int]:
    return dict(vars(one))


def make_side(folder: Path, model: str, **others) -> dict[str, object]:
    known = {"fingerprint": f"print of {model}", "base": None, "dtype": "float32", "layers": LAYERS, "source": model}
    return {
        "folder": str(folder),
        "model": model,
        **known,
        "versions": {"hyperlens": "1"},
        "created": "2026",
        "seed": 3,
    } | others


def make(folder: Path, counts: dict[str, int], depths=(0, 2), name=str, model="tuned", few_broken=3) -> Comparison:
    """A comparison in which confidence rises, effort and accuracy fall; `name` spells tasks, ids and prompts."""
    rng, count = np.random.default_rng(0), sum(counts.values())
    tasks = np.repeat([name(task) for task in counts], list(counts.values()))
    level = np.arange(count) % 2 + 1
    before = {"accuracy": rng.random(count) < 0.8, "confidence": rng.uniform(0.3, 0.8, count), "effort": rng.random(count)}
    after = {"accuracy": rng.random(count) < 0.5, "confidence": before["confidence"] + rng.uniform(-0.02, 0.2, count)}
    after["effort"] = before["effort"] * rng.uniform(0.5, 1.01, count)
    for side in (before, after):
        side["accuracy"] = side["accuracy"].astype(float)
        side |= {"struggle": rng.random(count) * 3, "commit": rng.random(count) * 5, "read": np.ones(count)}
    frame = pd.DataFrame({"task": tasks, "spec": tasks, "sample": np.arange(count), "level": level, "id": name("id")})
    for column, measure in (("correct", "accuracy"), ("confidence", "confidence"), ("effort", "effort")):
        frame[f"{column}_before"], frame[f"{column}_after"] = before[measure], after[measure]
    quadrants = find_quadrants(after["confidence"] - before["confidence"], after["effort"] - before["effort"])
    outcomes = find_outcomes(before["accuracy"], after["accuracy"])
    frame["quadrant"] = pd.Categorical.from_codes(quadrants, QUADRANTS)
    frame["outcome"] = pd.Categorical.from_codes(outcomes, OUTCOMES)
    changes, table, verdicts = [], [], []
    for task, mine in [(None, np.full(count, True)), *((str(one), tasks == one) for one in dict.fromkeys(tasks))]:
        for wanted in (None, 1, 2) if task else (None,):
            here = mine if wanted is None else mine & (level == wanted)
            sides = [{key: values[here] for key, values in side.items()} for side in (before, after)]
            found = estimate_changes(*sides)
            rows = {key: asdict(one) for key, one in found.items()}
            group = {"task": task, "level": wanted, "n": int(here.sum())}
            changes += [{**group, "depth": depth, **rows, "verdict": "blind confidence"} for depth in depths]
            if wanted is None:
                verdict = diagnose(*sides, found)
                weakened = [f"{name(task or 'all')} is weakened.", "Both are weakened."]
                verdicts.append(
                    {
                        **{"task": task, "depth": depths[-1], "n": int(here.sum()), "weakened": weakened},
                        **{"name": verdict.pattern.name, "tone": verdict.pattern.tone, "sentence": verdict.sentence},
                        **{"alike": interval(verdict.alike), "matched": interval(verdict.matched)},
                    }
                )
                for quadrant in QUADRANTS:
                    inside = frame[mine & (frame["quadrant"] == quadrant)]["outcome"].value_counts()
                    table.append(
                        {"task": task, "depth": depths[-1], "quadrant": quadrant, **{o: int(inside[o]) for o in OUTCOMES}}
                    )
    broke = frame[frame["outcome"] == "broke"]
    return Comparison(
        make_side(folder / "base", name("base")),
        make_side(folder / "tuned", name(model)),
        {"name": name("jump"), "said": "context jump", "context": "jump", "depths": list(depths), "depth": depths[-1]},
        tuple(changes),
        tuple(table),
        tuple(verdicts),
        frame,
        tuple(make_broken(row, name) for row in broke.head(few_broken).to_dict("records")),
        len(broke),
    )


def make_broken(row: dict, name=str) -> Broken:
    curve = tuple(np.linspace(0, row["confidence_after"], LAYERS + 1).tolist())
    first = BrokenToken(name(" four"), name(" four"), name(" five"), curve[::-1], curve)
    free = BrokenToken(None, name(" said"), None, curve, ())
    numbers = (row[f"{key}_{when}"] for key in ("confidence", "effort") for when in ("before", "after"))
    texts = (name("id"), name("2 + 2 is"), name(" four"), name("said before"), None)
    return Broken(row["task"], row["task"], row["sample"], int(row["level"]), *texts, *numbers, (first, free), 2)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Comparison:
    return make(tmp_path_factory.mktemp("runs"), {"logic": 70, "knowledge": 50})


@pytest.fixture(scope="module")
def page(comparison) -> str:
    return render_comparison(comparison)


def tables(comparison: Comparison):
    made = (tabulate_changes, tabulate_phases, tabulate_depths, tabulate_controls, tabulate_quadrants, tabulate_sides)
    return [make(comparison) for make in made]


def test_page_and_markdown_say_every_number_of_the_tables(comparison, page, tmp_path):
    said = Page(page).text
    written = write_comparison(comparison, tmp_path / "page.md", "md").read_text(encoding="utf-8")
    for table in tables(comparison):
        for row in table.rows:
            assert "| " + " | ".join(escape(cell) for cell in row) + " |" in written
            assert all(" ".join(cell.split()).replace("[", "").replace("]", "") in re.sub(r"[\[\]]", "", said) for cell in row)


def test_the_verdict_comes_first_with_what_weakens_it(comparison, page, tmp_path):
    written = write_comparison(comparison, tmp_path / "page.md", "md").read_text(encoding="utf-8")
    whole, *tasks = comparison.verdicts
    assert whole["name"] == "blind confidence" and len(tasks) == 2
    for text in (Page(page).text, written.replace("\\", "")):
        at = text.index("all samples: blind confidence")
        assert at < text.index(whole["sentence"]) < text.index("all is weakened.") < text.index("logic is weakened.")
        assert text.index("logic is weakened.") < text.index("Means before → after")
        assert text.count("Both are weakened.") == 1  # what weakens all verdicts is said with the first


def test_no_section_is_empty(tmp_path, comparison, page):
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert titles == [
        *("The other verdicts", "What changed", "Where the samples went", "The samples that broke"),
        *("What the words mean", "How it was measured"),
    ]
    one = replace(make(tmp_path, {"logic": 40}, depths=(2,)), broken=(), count_broken=0)
    lonely = render_comparison(one)
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", lonely) == [*titles[1:3], *titles[4:]]
    for text in (page, lonely):
        assert not re.search(r"</h[23]>\s*(<h[1-3]|</body>|<noscript)", text) and "<tbody>\n</tbody>" not in text
        links = {attributes["href"][1:] for tag, attributes in Page(text).tags if tag == "a"}
        assert links == {attributes["id"] for tag, attributes in Page(text).tags if tag == "h2" and attributes["id"] in links}
    written = write_comparison(one, tmp_path / "page.md", "md").read_text(encoding="utf-8")
    assert "broke\n" not in written and "other focal depths" not in written
    assert tabulate_depths(one) is None and len(list_verdicts(one)) == 1


def test_texts_and_names_cannot_become_markup(tmp_path):
    attacked = make(tmp_path, {"logic": 40, "knowledge": 40}, name=lambda text: f"{text} {EVIL}")
    page = render_comparison(attacked)
    seen, plain = Page(page), re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not {"img", "x"} & {tag for tag, _ in seen.tags} and not any("onerror" in each for _, each in seen.tags)
    assert "alert(1)" in plain and "<script>alert" not in page and "62615533" not in page
    assert "\x1b" not in page and "\u202e" not in page and "\\u001b[31m" in seen.text
    for text in re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL):
        assert not set("<>&") & set(text)
        go.Figure(json.loads(text))
    written = write_comparison(attacked, tmp_path / "page.md", "md").read_text(encoding="utf-8")
    assert "<script" not in written and "<img" not in written and "\x1b" not in written and "\n|" not in EVIL
    assert not re.search(r"(?<!\\)\[x\]|(?<!\\)`", written)


def test_a_file_that_is_no_comparison_is_left_alone(comparison, tmp_path):
    for name, text in (("page.html", hl.report.page.MARK), ("page.md", "<!-- HyperLens -->\n# A report")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ArtefactError, match="was not written by HyperLens for this"):
            write_comparison(comparison, tmp_path / name, name.split(".")[1])
        assert (tmp_path / name).read_text() == text
    with pytest.raises(InputError, match='no format "pdf" of a comparison; choose from html, md'):
        write_comparison(comparison, format="pdf")


def test_by_default_it_stands_beside_the_run_of_the_model_after_and_can_be_written_again(comparison):
    folder = Path(comparison.after["folder"])
    for _ in range(2):
        assert write_comparison(comparison) == folder.with_name("tuned.comparison.html")
        assert write_comparison(comparison, format="md") == folder.with_name("tuned.comparison.md")
    assert comparison_beside("a.b") == Path("a.b.comparison.html").absolute()


def test_reports_are_linked_where_they_are(comparison, tmp_path):
    own = replace(comparison, before=make_side(tmp_path / "javascript:1 'x", "base"))
    (tmp_path / "javascript:1 'x.html").write_text("")
    (tmp_path / "pages").mkdir()
    page = Page(write_comparison(own, tmp_path / "pages" / "page.html").read_text(encoding="utf-8"))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert [link for link in links if not link.startswith("#")] == ["../javascript%3A1%20%27x.html"]
    assert link_page(tmp_path / "missing.html", tmp_path / "page.html") == ""


def test_models_of_one_name_are_told_apart_by_their_runs(comparison):
    assert name_sides(comparison) == ("base", "tuned")
    same = replace(comparison, after={**comparison.after, "model": "base"})
    assert name_sides(same) == ("base (base)", "base (tuned)")


def test_of_many_samples_few_are_drawn_and_all_are_counted(tmp_path):
    many = make(tmp_path, {"logic": 4000, "knowledge": 3000})
    group = draw_samples(many)
    assert group is not None and sum(len(trace.x) for panel in group.panels for trace in panel.figure.data) == MOST_POINTS
    counts = many.samples["outcome"].value_counts()
    assert [name for name, _ in group.legend] == [f"{one} ({counts[one]:,})" for one in OUTCOMES if counts[one]]
    page = render_comparison(many)
    assert "3,000 of them, drawn at random, are shown; the counts are of all." in page
    assert len(page) < len(render_comparison(make(tmp_path, {"logic": 70}))) + 400_000
    kept = thin_samples(many.samples)
    assert kept.equals(thin_samples(many.samples)) and not thin_samples(many.samples.head(9)).empty
    assert "drawn at random" not in render_comparison(replace(many, samples=many.samples.head(MOST_POINTS)))
    np.testing.assert_allclose(kept["y"], kept["effort_after"] - kept["effort_before"])


def test_a_task_that_is_all_there_is_is_not_said_twice(tmp_path):
    one = make(tmp_path, {"logic": 40})
    assert [row[:2] for row in tabulate_changes(one).rows] == [("all samples", "–"), ("logic", "1"), ("logic", "2")]
    assert {row[0] for row in tabulate_quadrants(one).rows} == {"all samples"}
    assert list(draw_changes(one).panels[0].figure.layout.yaxis.ticktext) == ["all samples", "level 1", "level 2"]


def test_unknown_effort_is_counted_and_not_drawn(comparison):
    frame = comparison.samples.assign(effort_after=np.nan)
    assert draw_samples(replace(comparison, samples=frame)) is None
    assert "A dot is a sample" not in render_comparison(replace(comparison, samples=frame))


def test_the_figure_of_differences_has_those_of_the_table(comparison):
    group = draw_changes(comparison)
    assert [panel.title for panel in group.panels] == ["accuracy", "confidence", "effort Ω"]
    rows = [row for row in comparison.changes if row["depth"] == 2 and row["level"] is None]
    for panel, name in zip(group.panels, ("accuracy", "confidence", "effort"), strict=True):
        (trace,) = panel.figure.data
        assert list(trace.x) == [row[name]["difference"]["value"] for row in rows]
        clear = [row[name]["direction"] in (UP, DOWN) for row in rows]
        assert list(trace.marker.symbol) == ["circle" if one else "circle-open" for one in clear]


def test_what_counts_as_shown_is_marked_and_nothing_else(tmp_path):
    few = make(tmp_path, {"logic": 2 * FEWEST_PAIRS - 2})  # of each level too few
    everything, *levels = tabulate_changes(few).rows
    marked = [[cell for cell in row if "▲" in cell or "▼" in cell] for row in (everything, *levels)]
    assert len(marked[0]) == 3 and marked[1:] == [[], []]
    assert any(row["effort"]["difference"]["high"] < 0 for row in few.changes if row["level"]), "by its interval alone"
    console = Console(file=StringIO(), width=250)
    show_comparison(console, few)
    said = console.file.getvalue().splitlines()
    first = next(place for place, line in enumerate(said) if "logic" in line)
    assert "▼" in "".join(said[:first]) and "▼" not in "".join(said[first : first + 4])
    assert RULE in Page(render_comparison(few)).text


def test_a_sample_that_broke_shows_both_trajectories_told_apart_by_more_than_colour(comparison, page):
    assert page.count('<polyline class="before"') == 2 * len(comparison.broken)
    assert page.count('<polyline class="after"') == len(comparison.broken)  # one answer was shorter
    assert re.search(r"\.before {[^}]*stroke-dasharray", page) and "before dashed" in Page(page).text.replace("  ", " ")
    one = comparison.broken[0]
    assert trace_path(one.tokens[0].after, 120, 64) in page
    assert f"{len(comparison.broken)} of {comparison.count_broken}, those that gained" in Page(page).text
    assert trace_path((0.5, float("nan"), 1.0), 10, 4) == "0.0,2.0 10.0,0.0"


def test_every_pattern_is_defined_on_the_page(page):
    said = Page(page).text
    assert all(pattern.name in said and pattern.condition in said for pattern in PATTERNS)
