"""How a run and a comparison show themselves in a notebook, from what they say of themselves as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hyperlens.diagnosis import DOWN, UP
from hyperlens.notebook import draw_effort, draw_interval, draw_scale, draw_table, frame
from hyperlens.runs.caveats import describe_lens, find_caveats, pick_headline
from hyperlens.runs.summary import is_clear
from hyperlens.spelling import NOTHING, say_interval, say_number, spell

Row = Mapping[str, Any]
SHARE, CHANGE = (0.0, 1.0), (-1.0, 1.0)
"""The ends of an axis of efforts, and of one of their differences and correlations."""
SIGNS = {UP: "▲ ", DOWN: "▼ "}


def show_run(name: str, results: Row) -> str:
    """Ω by task and level, how it follows the level, and hard against easy, each with its interval, at the headline depths."""
    parts: list[str] = [draw_scale()]
    for model, document in results["models"].items():
        for lens, read in document["lenses"].items():
            parts += _show_lens(results, (model, lens), f"{model}, {describe_lens(read)}", pick_headline(read))
    return frame(f"Run {name}: Ω with 95 % intervals", *parts, *find_caveats(results))


def show_comparison(document: Row, ranked: Sequence[Row]) -> str:
    """The `ranked` verdicts with what weakens them, and what changed by task and level at the main depth."""
    before, after, lens = document["before"], document["after"], document["lens"]
    title = f"Comparison: {before['model']} → {after['model']}, {lens['said']}, m = {lens['depth']}"
    several = len(ranked) > 2
    verdicts = [row for row in ranked if several or row["task"] is None]
    changes = [row for row in document["changes"] if row["depth"] == lens["depth"]]
    changes = [row for row in changes if several or row["task"] is None or row["level"] is not None]
    broke = f"{document['count_broken']} of {document['samples']} samples broke: right before, wrong after."
    columns = ["task", "level", "n", "accuracy", "confidence", "Ω", "Ω, after − before", "", "pattern"]
    table = draw_table(
        "What changed: before → after; ▲ ▼ where it counts as shown", columns, [_change_row(row) for row in changes]
    )
    return frame(title, *(part for row in verdicts for part in _say_verdict(row)), table, broke)


def _show_lens(results: Row, pair: tuple[str, str], about: str, depths: Sequence[int]) -> Iterator[Markup]:
    """The tables of what one model was read to do through one lens."""
    mine = {
        kind: [row for row in results[kind] if (row["model"], row["lens"]) == pair and row.get("depth", depths[0]) in depths]
        for kind in ("groups", "trends", "contrasts")
    }
    columns = ["task", "level", "n", "accuracy", "confidence", *(part for depth in depths for part in (f"Ω, m = {depth}", ""))]
    yield draw_table(about, columns, [_group_row(row, depths) for row in mine["groups"]])
    if mine["trends"]:
        columns = ["task", "m", "n", "Spearman's rho of level and Ω", "", "at matched confidence"]
        yield draw_table("Does effort follow the level?", columns, [_trend_row(row) for row in mine["trends"]])
    if mine["contrasts"]:
        columns = ["contrast", "m", "Ω easy", "Ω hard", "hard − easy", "", "AUROC", "p (Holm)"]
        yield draw_table(
            "Is the hard side more effort? ▲ ▼ where clearly", columns, [_contrast_row(row) for row in mine["contrasts"]]
        )


def _group_row(row: Row, depths: Sequence[int]) -> list[object]:
    cells: list[object] = [row["task"], _say_level(row), row["n"], say_number(row["accuracy"]), say_number(row["confidence"])]
    for depth in depths:
        effort = row["effort"][str(depth)]
        cells += [draw_effort(effort["mean"], say_interval(effort))]
        cells += [draw_interval(effort["mean"], effort["low"], effort["high"], SHARE)]
    return cells


def _trend_row(row: Row) -> list[object]:
    line = draw_interval(row["rho"], row["low"], row["high"], CHANGE)
    return [row["task"], row["depth"], row["n"], say_interval(row), line, say_interval(row["matched"]["confidence"])]


def _contrast_row(row: Row) -> list[object]:
    found = row["difference"]
    sign = "" if not is_clear(row) else SIGNS[UP if found["value"] > 0 else DOWN]
    sides = [draw_effort(row[side]["mean"]) for side in ("easy", "hard")]
    line = draw_interval(found["value"], found["low"], found["high"], CHANGE)
    last = [say_interval(row["auroc"]), say_number(row["p_holm"], 4)]
    return [row["contrast"], row["depth"], *sides, sign + say_interval(found), line, *last]


def _change_row(row: Row) -> list[object]:
    found = row["effort"]["difference"]
    sign = SIGNS.get(row["effort"]["direction"], "")
    line = draw_interval(found["value"], found["low"], found["high"], CHANGE)
    means = [_say_means(row[name]) for name in ("accuracy", "confidence", "effort")]
    return [row["task"] or "all samples", _say_level(row), row["n"], *means, sign + say_interval(found), line, row["verdict"]]


def _say_means(change: Row) -> str:
    """Both means; a sign where their difference counts as shown."""
    means = " → ".join(say_number(change[when]["value"]) for when in ("before", "after"))
    return SIGNS.get(change["direction"], "") + means


def _say_verdict(row: Row) -> Iterator[Markup]:
    """A verdict in words, and what weakens it."""
    yield Markup("<p><strong>{}: {}.</strong> {}</p>").format(
        *(spell(said) for said in (row["task"] or "all samples", row["name"], row["sentence"]))
    )
    if row["weakened"]:
        yield Markup("<ul>{}</ul>").format(
            Markup("").join(Markup("<li>{}</li>").format(spell(said)) for said in row["weakened"])
        )


def _say_level(row: Row) -> str:
    return NOTHING if row["level"] is None else str(row["level"])
