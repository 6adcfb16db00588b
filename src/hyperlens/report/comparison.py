"""A comparison of two models as one self-contained HTML page, or as Markdown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from hyperlens.artefact import check_file, page_beside, write_file
from hyperlens.errors import InputError
from hyperlens.report.changes import (
    describe_provenance,
    describe_thinning,
    draw_changes,
    draw_samples,
    list_definitions,
    list_verdicts,
    name_sides,
    name_task,
    tabulate_changes,
    tabulate_controls,
    tabulate_depths,
    tabulate_patterns,
    tabulate_phases,
    tabulate_quadrants,
    tabulate_sides,
    trace_path,
)
from hyperlens.report.markdown import LAST_CAVEAT, escape, list_sentences, write_table
from hyperlens.report.template import fill_template
from hyperlens.report.words import MARKS
from hyperlens.runs.comparison import Broken, Comparison
from hyperlens.spelling import say_number

MARK_COMPARISON = {
    "html": '<meta name="generator" content="HyperLens comparison">',
    "md": "<!-- HyperLens comparison -->",
}
"""What tells a comparison of ours, so that no report and no other file is replaced by one."""
BOX = (120, 64)
"""Width and height of a small figure of two trajectories, in units of its drawing."""


def write_comparison(comparison: Comparison, out: str | os.PathLike[str] | None = None, format: str = "html") -> Path:
    """Write a comparison to `out` (`NAME.comparison.html` beside the run of the model after, by default); gives its path.

    `format` is html, one page that needs nothing else, or md, the same sentences and tables as Markdown. Raises InputError for
    another one, ArtefactError where it cannot be written or a file stands there that is not a comparison of ours.
    """
    if format not in MARK_COMPARISON:
        raise InputError(f'there is no format "{format}" of a comparison; choose from {", ".join(MARK_COMPARISON)}')
    beside = comparison_beside(comparison.after["folder"]).with_suffix(f".{format}")
    place = check_file(beside if out is None else out, MARK_COMPARISON[format])
    return write_file(place, render_comparison(comparison, place) if format == "html" else _render_markdown(comparison))


def comparison_beside(folder: str | os.PathLike[str]) -> Path:
    """Where the comparison of a run with another one stands by default: beside it, under its name."""
    return page_beside(folder).with_suffix(".comparison.html")


def link_page(page: Path, out: Path) -> str:
    """The address of a page from the one that is to stand at `out`; empty where there is none."""
    return quote(os.path.relpath(page, out.parent).replace(os.sep, "/")) if page.is_file() else ""


def render_comparison(comparison: Comparison, out: Path | None = None) -> str:
    """The page as text; one that is to stand at `out` has links to the reports of both runs where they are beside these."""
    return fill_template(
        "comparison.html",
        MARK_COMPARISON["html"],
        comparison=comparison,
        sides=name_sides(comparison),
        about=describe_provenance(comparison),
        verdicts=[(name_task(row), row) for row in list_verdicts(comparison)],
        changes=tabulate_changes(comparison),
        forest=draw_changes(comparison),
        phases=tabulate_phases(comparison),
        depths=tabulate_depths(comparison),
        controls=tabulate_controls(comparison),
        quadrants=tabulate_quadrants(comparison),
        points=draw_samples(comparison),
        thinned=describe_thinning(comparison.samples),
        definitions=list_definitions(),
        patterns=tabulate_patterns(),
        caveat=LAST_CAVEAT,
        made=tabulate_sides(comparison),
        reports=list(_link_reports(comparison, out)) if out else [],
        trace=lambda confidence: trace_path(confidence, *BOX),
        box=BOX,
    )


def _link_reports(comparison: Comparison, out: Path) -> Iterator[tuple[str, str]]:
    """The reports of the two runs that were written beside them: their names, and their addresses from the page."""
    for folder in dict.fromkeys((comparison.before["folder"], comparison.after["folder"])):
        if address := link_page(page_beside(folder), out):
            yield page_beside(folder).name, address


def _render_markdown(comparison: Comparison) -> str:
    return "\n\n".join(_write_parts(comparison)) + "\n"


def _write_parts(comparison: Comparison) -> Iterator[str]:
    """The parts of the Markdown, in the order of the page."""
    yield f"{MARK_COMPARISON['md']}\n# What changed from {' to '.join(map(escape, name_sides(comparison)))}?"
    yield escape(describe_provenance(comparison))
    for row in list_verdicts(comparison):
        yield f"**{escape(name_task(row))}: {escape(row['name'])}.** {escape(row['sentence'])}"
        if row["weakened"]:
            yield "What weakens this:"
            yield list_sentences(row["weakened"])
    for title, table in (
        ("What changed", tabulate_changes(comparison)),
        ("Struggle, commitment and length", tabulate_phases(comparison)),
        ("At other focal depths", tabulate_depths(comparison)),
        ("Is it only confidence?", tabulate_controls(comparison)),
        ("Where the samples went", tabulate_quadrants(comparison)),
    ):
        if table:
            yield f"## {title}"
            yield from write_table(table)
    if comparison.broken:
        yield "## The samples that broke"
        yield f"{len(comparison.broken)} of {comparison.count_broken}, those that gained most confidence first."
        yield "\n".join(map(_write_broken, comparison.broken))
    yield "## What the words mean"
    yield "\n".join(f"- **{escape(name)}** ({MARKS[mark]}): {escape(text)}" for name, mark, text in list_definitions())
    yield from write_table(tabulate_patterns())
    yield escape(LAST_CAVEAT)
    yield "## How it was measured"
    yield from write_table(tabulate_sides(comparison))


def _write_broken(one: Broken) -> str:
    """A sample that broke, on one line."""
    level = "" if one.level is None else f", level {one.level}"
    target = "" if one.target is None else f" → {escape(one.target, 200)}"
    said = [
        " ".join(f"“{escape(top, 40)}”" for top in tops if top is not None)
        for tops in zip(*((token.top_before, token.top_after) for token in one.tokens), strict=True)
    ] or ["", ""]
    moved = ", ".join(
        f"{name} {say_number(before)} → {say_number(after)}"
        for name, before, after in (
            ("confidence", one.confidence_before, one.confidence_after),
            ("Ω", one.effort_before, one.effort_after),
        )
    )
    about = f"{escape(one.task)}{level}, {escape(one.id, 80)}, {moved}"
    return f"- {about}: {escape(one.prompt, 400)}{target}; top tokens before {said[0] or '–'}; after {said[1] or '–'}"
