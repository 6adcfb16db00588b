"""What changed between two models, as tables, figures and sentences, for every format alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyperlens.diagnosis import DOWN, LITTLE, OUTCOMES, PATTERNS, RULE, SMALLEST_CHANGE, UP
from hyperlens.plots import BESIDE, PAIR, Line, Points, Style, draw_differences, draw_quadrants
from hyperlens.report.figures import Group, Panel
from hyperlens.report.tables import Table
from hyperlens.report.words import DEFINITIONS, join
from hyperlens.runs.comparison import Comparison, rank_verdicts
from hyperlens.spelling import NOTHING, say_interval, say_number, spell

Row = Mapping[str, Any]
MAIN = ("accuracy", "confidence", "effort")
"""What a verdict is made of."""
PHASES = ("struggle", "commit", "read")
TITLES = {
    "accuracy": "accuracy",
    "confidence": "confidence",
    "effort": "effort Ω",
    "struggle": "struggle",
    "commit": "commit",
    "read": "answer tokens",
}
EVERYTHING = "all samples"
CHANGED = "after − before"
STYLES = {
    "stayed wrong": Style(BESIDE, symbol="square-open"),
    "stayed right": Style(PAIR[0], symbol="circle-open"),
    "mended": Style("#009e73", symbol="triangle-up"),
    "broke": Style(PAIR[1], symbol="x"),
    "unknown": Style(BESIDE, symbol="diamond-open"),
}
"""How a sample is drawn by what became of it, in the order in which they cover one another."""
MOST_POINTS = 3000
"""Samples in the figures of quadrants; of more, so many drawn at random."""
MOST_PANELS = 6
LONGEST = 22
"""Letters of a name beside a figure."""

SHARED_DEFINITIONS = (
    "Confidence trajectory",
    "Focal depth m",
    "Effort Ω, from 0 to 1",
    "Struggle and commit",
    "Attention context",
)
COMPARED_DEFINITIONS = (
    (
        "Before, after, and their difference",
        "ours",
        "Two models read the same samples through the same lens. A difference is the mean of after − before over the samples "
        "that both have, with its 95 % interval by a paired bootstrap: samples, each with both its sides, are drawn again. "
        f"{RULE} ▲ and ▼ mark those that rose, and fell. Intervals are not adjusted for their number.",
    ),
    (
        "Blind confidence",
        "paper",
        "Surer, with less effort, and right less often: what the paper reports of fine-tuning. That all three differences have "
        "to be shown, and the names of the weaker patterns, are ours.",
    ),
    (
        "Quadrant and outcome",
        "ours",
        "A sample's quadrant says whether its final confidence and its effort went up or down. It is tied where one of them "
        f"changed by less than {SMALLEST_CHANGE:.5f}, and undefined where one is not known. Its outcome: it stayed right, "
        "broke (right before, wrong after), mended, stayed wrong, or is unknown.",
    ),
)


def list_definitions() -> list[tuple[str, str, str]]:
    """What the words of a comparison mean: name, whose definition it is, text."""
    return [*(one for one in DEFINITIONS if one[0] in SHARED_DEFINITIONS), *COMPARED_DEFINITIONS]


def name_sides(comparison: Comparison) -> tuple[str, str]:
    """What the two models are called: by their names, or by those of their runs where these are the same."""
    sides = comparison.before, comparison.after
    names = [spell(side["model"]) for side in sides]
    if names[0] == names[1]:
        names = [f"{name} ({spell(Path(side['folder']).name)})" for name, side in zip(names, sides, strict=True)]
    return names[0], names[1]


def name_task(row: Row) -> str:
    """The task of a row, or that all samples are meant."""
    return EVERYTHING if row["task"] is None else spell(row["task"])


def describe_provenance(comparison: Comparison) -> str:
    """How the two were read, in a sentence or two."""
    lens = comparison.lens
    return (
        f"{len(comparison.samples):,} samples in pairs, read through the lens {spell(lens['name'])} ({spell(lens['said'])}) at "
        f"the focal depths {join(lens['depths'])}. Verdicts, quadrants and trajectories are those of m = {lens['depth']}."
    )


def list_verdicts(comparison: Comparison) -> list[Row]:
    """The verdicts, the most alarming one first, the others without what weakens it too."""
    first, *others = rank_verdicts(_pick_verdicts(comparison))
    return [first, *({**row, "weakened": [one for one in row["weakened"] if one not in first["weakened"]]} for row in others)]


def _pick_verdicts(comparison: Comparison) -> list[Row]:
    """The verdict on all samples, then those on each task where there are several."""
    whole, *tasks = sorted(comparison.verdicts, key=lambda row: row["task"] is not None)
    return [whole, *tasks] if len(tasks) > 1 else [whole]


def tabulate_patterns() -> Table:
    """All patterns with their conditions."""
    rows = tuple((pattern.name, pattern.condition) for pattern in PATTERNS)
    caption = "The patterns. Up and down: the difference counts as shown, and lies above, or below, 0."
    return Table(caption, ("pattern", "found where"), rows, 2)


def tabulate_changes(comparison: Comparison) -> Table:
    """Accuracy, confidence and effort over all, by task, and by level, at the main depth."""
    caption = (
        f"Means before → after and their difference with its interval, at m = {comparison.lens['depth']}: ▲ it rose, ▼ it "
        "fell, neither where that does not count as shown."
    )
    return _tabulate(comparison, MAIN, caption)


def tabulate_phases(comparison: Comparison) -> Table:
    """Struggle, commitment and number of answer tokens, likewise."""
    return _tabulate(
        comparison, PHASES, "Layers of struggle, the state of commitment, and the tokens that were read, likewise."
    )


def tabulate_depths(comparison: Comparison) -> Table | None:
    """The effort, and the verdict, at each focal depth, over all and by task; None where there is only one."""
    if len(comparison.lens["depths"]) < 2:
        return None
    listed = [row for row in comparison.changes if row["level"] is None]
    tasks = dict.fromkeys(row["task"] for row in listed)
    if len(tasks) < 3:
        listed = [row for row in listed if row["task"] is None]
    rows = [
        (name_task(row), str(row["depth"]), *_say_change(row["effort"]), *_say_change(row["struggle"], 1), row["verdict"])
        for row in sorted(listed, key=lambda row: list(tasks).index(row["task"]))
    ]
    return Table(
        "Effort and struggle at every focal depth that both were read at, and the pattern that it gives there.",
        ("task", "m", *("before → after", CHANGED) * 2, "pattern"),
        tuple(rows),
        1,
        (("", 2), ("effort Ω", 2), ("struggle", 2), ("", 1)),
    )


def tabulate_controls(comparison: Comparison) -> Table:
    """What is left of the change of effort once confidence is the same."""
    effort = {row["task"]: row["effort"]["difference"] for row in _at_main(comparison) if row["level"] is None}
    rows = [
        (
            name_task(row),
            row["name"],
            say_interval(effort[row["task"]]),
            f"{say_interval(row['alike'])}\nn = {row['alike']['n']}",
            say_interval(row["matched"]),
        )
        for row in _pick_verdicts(comparison)
    ]
    return Table(
        "Ω is a share of the final confidence, so that a change of confidence alone can change it. What is left of ΔΩ among "
        f"the samples whose confidence changed by less than {LITTLE}, and among samples of like confidence before and after "
        "(no longer in pairs).",
        ("task", "pattern", "ΔΩ", "confidence hardly changed", "like confidence"),
        tuple(rows),
        2,
    )


def tabulate_quadrants(comparison: Comparison) -> Table:
    """How many samples of each outcome are in each quadrant, over all and by task; outcomes and quadrants without any left out,
    but for the four quadrants themselves."""
    listed = [row for row in comparison.quadrants if row["task"] is None or len(_pick_verdicts(comparison)) > 1]
    shown = [name for name in OUTCOMES if name != "unknown" or any(row[name] for row in listed)]
    rows = [
        (name_task(row), row["quadrant"], *(f"{row[name]:,}" for name in shown))
        for row in listed
        if any(row[name] for name in OUTCOMES) or "," in row["quadrant"]
    ]
    return Table("All samples, counted by quadrant and by outcome.", ("task", "quadrant", *shown), tuple(rows), 2)


def tabulate_sides(comparison: Comparison) -> Table:
    """Which two models were compared, and how they were run."""
    names = (
        ("folder", "run"),
        ("model", "model"),
        ("fingerprint", "fingerprint"),
        ("base", "adapter of"),
        ("dtype", "loaded as"),
        ("layers", "layers"),
        ("seed", "seed"),
        ("created", "begun"),
    )
    sides = comparison.before, comparison.after
    rows = [
        (title, *(_say_fact(side.get(name)) for side in sides))
        for name, title in names
        if any(side.get(name) is not None for side in sides)
    ]
    versions = (", ".join(f"{name} {number}" for name, number in side["versions"].items()) for side in sides)
    rows.append(("versions", *(_say_fact(text or None) for text in versions)))
    return Table("The two models and their runs.", ("", "before", "after"), tuple(rows), 3)


def draw_changes(comparison: Comparison) -> Group:
    """The differences of accuracy, confidence and effort, a panel each: over all, and by task or, of one task, by level."""
    rows = _at_main(comparison)
    whole = [row for row in rows if row["level"] is None]
    listed = whole if len(whole) > 1 else rows
    panels = []
    for name in MAIN:
        known = [row for row in listed if not math.isnan(row[name]["difference"]["value"])]
        if known:
            panels.append(Panel(TITLES[name], _draw_forest(known, name)))
    return Group("Differences", tuple(panels))


def draw_samples(comparison: Comparison) -> Group | None:
    """Where the samples are by change of confidence and of effort, and what became of them: a panel for each of a few tasks,
    else one. None where no sample has both changes."""
    frame = thin_samples(comparison.samples)
    names = list(dict.fromkeys(frame["task"]))
    split = [(spell(name), frame.loc[frame["task"] == name]) for name in names]
    if not 1 < len(names) <= MOST_PANELS:
        split = [(EVERYTHING, frame)]
    panels = tuple(Panel(name, draw_quadrants(list(_list_points(mine)))) for name, mine in split)
    counts = comparison.samples["outcome"].value_counts()
    legend = tuple((f"{name} ({counts[name]:,})", STYLES[name]) for name in OUTCOMES if counts.get(name, 0))
    return Group("Quadrants", panels, legend) if len(frame) else None


def thin_samples(samples: pd.DataFrame) -> pd.DataFrame:
    """At most 3,000 of the samples whose changes of confidence and effort are known, drawn at random, always the same ones;
    with these changes as columns x and y."""
    known = _measure_changes(samples)
    if len(known) <= MOST_POINTS:
        return known
    kept = np.random.default_rng(0).choice(len(known), MOST_POINTS, replace=False)
    return known.take(np.sort(kept))


def describe_thinning(samples: pd.DataFrame) -> str:
    """That not all samples are drawn, where that is so."""
    many = len(_measure_changes(samples)) > MOST_POINTS
    return f" {MOST_POINTS:,} of them, drawn at random, are shown; the counts are of all." * many


def trace_path(confidence: Sequence[float], width: int, height: int) -> str:
    """The points of a trajectory in a box of this size, as SVG has them; states without a value are left out.

    >>> trace_path((0.0, 0.5, 1.0), 10, 4)
    '0.0,4.0 5.0,2.0 10.0,0.0'
    """
    step = width / max(1, len(confidence) - 1)
    known = [(place, value) for place, value in enumerate(confidence) if math.isfinite(value)]
    return " ".join(f"{place * step:.1f},{(1 - value) * height:.1f}" for place, value in known)


def _measure_changes(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples of which both changes are known, with them as columns x and y."""
    x, y = (samples[f"{name}_after"] - samples[f"{name}_before"] for name in ("confidence", "effort"))
    return samples.assign(x=x.astype(float), y=y.astype(float)).dropna(subset=["x", "y"])


def _tabulate(comparison: Comparison, measures: Sequence[str], caption: str) -> Table:
    rows = []
    for row in _at_main(comparison):
        cells = (text for name in measures for text in _say_change(row[name], 1 if name in PHASES else 2))
        rows.append((name_task(row), NOTHING if row["level"] is None else str(row["level"]), f"{row['n']:,}", *cells))
    return Table(
        caption,
        ("task", "level", "n", *("before → after", CHANGED) * len(measures)),
        tuple(rows),
        1,
        (("", 3), *((TITLES[name], 2) for name in measures)),
    )


def _at_main(comparison: Comparison) -> list[Row]:
    """The changes at the main depth: over all, by task, by level; a task that is all there is does not repeat the first."""
    rows = [row for row in comparison.changes if row["depth"] == comparison.lens["depth"]]
    alone = len({row["task"] for row in rows} - {None}) == 1
    return [row for row in rows if row["task"] is None or row["level"] is not None or not alone]


def _say_change(change: Row, digits: int = 2) -> tuple[str, str]:
    """The means, and the difference with its mark and its interval."""
    means = " → ".join(say_number(change[when]["value"], digits) for when in ("before", "after"))
    value, _, interval = say_interval(change["difference"]).partition(" ")
    return means, f"{value} {_mark(change)}".strip() + f"\n{interval}".rstrip()


def _mark(change: Row) -> str:
    return {UP: "▲", DOWN: "▼"}.get(change["direction"], "")


def _say_fact(value: object) -> str:
    return NOTHING if value is None else spell(value)


def _draw_forest(rows: Sequence[Row], name: str) -> Any:
    """The differences of one measure with their intervals; hollow where it is not clear."""
    labels = [name_task(row) + (f", level {row['level']}" if row["level"] is not None else "") for row in rows]
    if rows[-1]["level"] is not None:
        labels = [EVERYTHING, *(f"level {row['level']}" for row in rows[1:])]
    line = Line(TITLES[name], labels, *([row[name]["difference"][end] for row in rows] for end in ("value", "low", "high")))
    figure = draw_differences([line], CHANGED, LONGEST)
    shapes = ["circle" if _mark(row[name]) else "circle-open" for row in rows]
    figure.update_traces(marker_symbol=shapes, marker_color=PAIR[0])
    figure.update_xaxes(nticks=4, tickangle=0)
    return figure


def _list_points(frame: pd.DataFrame) -> Iterator[Points]:
    for name, style in STYLES.items():
        mine = frame[frame["outcome"] == name]
        if len(mine):
            yield Points(name, mine["x"].tolist(), mine["y"].tolist(), style)
