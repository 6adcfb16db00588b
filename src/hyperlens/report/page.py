"""A run as one self-contained HTML page: it needs no network, and no text of a sample or a model can become markup."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hyperlens.artefact import MARK, check_file, page_beside, to_json, write_file
from hyperlens.errors import InputError
from hyperlens.report.comparison import comparison_beside, link_page
from hyperlens.report.data import Chapter, ReportData
from hyperlens.report.figures import draw_correctness, draw_distributions, draw_levels, draw_overview, draw_trajectories
from hyperlens.report.gather import gather_report
from hyperlens.report.markdown import LAST_CAVEAT, MARK_MD, render_markdown
from hyperlens.report.tables import TABLES, tabulate_chapter, tabulate_models, tabulate_overview, tabulate_signs, tabulate_tasks
from hyperlens.report.template import fill_template
from hyperlens.report.words import DEFINITIONS, describe_findings, name_chapter
from hyperlens.runs import Run
from hyperlens.spelling import spell


def write_report(run: Run, out: str | os.PathLike[str] | None = None, format: str = "html") -> Path:
    """Write the report of a study to `out` (beside the run's folder, under its name, by default); gives its path.

    `format` is html, one page that needs nothing else, or md, the same tables as Markdown. Raises InputError for another one,
    ArtefactError where it cannot be written or a file stands there that is not ours.
    """
    if format not in ("html", "md"):
        raise InputError(f'there is no report format "{format}"; choose from html, md')
    page = page_beside(run.folder)
    place = check_file((page if format == "html" else page.with_suffix(".md")) if out is None else out, _mark(format))
    data = gather_report(run)
    if format == "md":
        return write_file(place, render_markdown(data, run.folder, place))
    return write_file(place, render_report(data, link_page(comparison_beside(run.folder), place)))


def render_report(data: ReportData, comparison: str = "") -> str:
    """The page as text, with a link to the comparison at this address, if there is one."""
    return fill_template(
        "report.html",
        MARK,
        comparison=comparison,
        manifest=data.manifest,
        results=data.results,
        study=to_json(data.manifest["study"], indent=1),
        findings=describe_findings(data),
        definitions=DEFINITIONS,
        overview=tabulate_overview(data),
        signs=tabulate_signs(data),
        differences=draw_overview(data),
        caveats=[*data.caveats, LAST_CAVEAT],
        chapters=[_lay_out(data, chapter) for chapter in data.chapters],
        models=tabulate_models(data),
        tasks=tabulate_tasks(data),
    )


def _lay_out(data: ReportData, chapter: Chapter) -> dict[str, Any]:
    """What the page shows of one chapter."""
    return {
        "title": spell(name_chapter(data, chapter)),
        "about": chapter,
        "first": chapter is data.chapters[0],
        "tables": dict.fromkeys(TABLES) | dict(tabulate_chapter(data, chapter)),
        "levels": draw_levels(data, chapter),
        "trajectories": list(draw_trajectories(chapter)),
        "distributions": list(draw_distributions(chapter)),
        "correctness": draw_correctness(chapter),
        "examples": {
            task: [one for one in chapter.examples if one.task == task]
            for task in dict.fromkeys(one.task for one in chapter.examples)
        },
    }


def _mark(format: str) -> str:
    return MARK if format == "html" else MARK_MD
