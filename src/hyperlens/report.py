"""A run as one self-contained HTML page: it needs no network, and no text of a sample or a model can become markup."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hyperlens.artefact import MARK, check_file, page_beside, write_file
from hyperlens.plots import draw_effort, draw_trajectories
from hyperlens.runs import Run

FEW_SAMPLES = 30
LENGTHS_DIFFER = 1.1
ACCURACIES_DIFFER = 0.1


def write_report(run: Run, out: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of a study to `out` (beside the run's folder, under its name, by default); gives its path.

    Raises ArtefactError where it cannot be written.
    """
    return write_file(check_file(page_beside(run.folder) if out is None else out, MARK), render_report(run))


def render_report(run: Run) -> str:
    """The page as text."""
    trajectory = run.trajectory
    depths = trajectory.focal_depths
    tasks = list(dict.fromkeys(group["task"] for group in run.groups))
    figures = {
        "effort": _embed(draw_effort(run.groups, depths)),
        "tasks": [(task, _embed(draw_trajectories(trajectory, task, run.manifest["seed"]))) for task in tasks],
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "rho": _rho, "mean": _mean}
    template = environment.from_string((files("hyperlens") / "data" / "report.html").read_text(encoding="utf-8"))
    return template.render(
        run=run,
        manifest=run.manifest,
        depths=depths,
        headline=run.headline_depths,
        figures=figures,
        findings=describe_trends(run.trends, run.headline_depths),
        caveats=find_caveats(run.groups, run.headline_depths),
        mark=Markup(MARK),
        plotly=Markup(get_plotlyjs()),
    )


def describe_trends(trends: Sequence[Mapping[str, Any]], depths: Sequence[int]) -> list[str]:
    """One sentence per focal depth: in which tasks effort rises with the level, in which it falls, in which neither shows."""
    sentences = []
    for depth in depths:
        mine = [trend for trend in trends if trend["depth"] == depth and trend["rho"] is not None]
        kinds = {
            "rises with the level in": [trend["task"] for trend in mine if (trend["low"] or 0) > 0],
            "falls in": [trend["task"] for trend in mine if (trend["high"] or 0) < 0],
            "shows no trend in": [trend["task"] for trend in mine if (trend["low"] or 0) <= 0 <= (trend["high"] or 0)],
        }
        said = [f"{what} {', '.join(tasks)}" for what, tasks in kinds.items() if tasks]
        if said:
            sentences.append(
                f"{'With the logit lens (m = 0)' if depth == 0 else f'At focal depth m = {depth}'} effort {'; '.join(said)}."
            )
    return sentences


def find_caveats(groups: Sequence[Mapping[str, Any]], depths: Sequence[int] = ()) -> list[str]:
    """What weakens a reading of these groups at these focal depths, found from their numbers."""
    caveats = []
    undefined = {depth: sum(group["undefined"][str(depth)] for group in groups) for depth in depths}
    for depth, count in undefined.items():
        if count:
            caveats.append(f"At m = {depth} the effort of {count} samples is undefined; they are left out of its means.")
    few = [_name(group) for group in groups if group["n"] < FEW_SAMPLES]
    if few:
        caveats.append(f"Fewer than {FEW_SAMPLES} samples, so that intervals are wide: {', '.join(few)}.")
    for task in dict.fromkeys(group["task"] for group in groups):
        rows = [group for group in groups if group["task"] == task]
        lengths, accuracies = [row["tokens"] for row in rows], [row["accuracy"] for row in rows if row["accuracy"] is not None]
        if max(lengths) > LENGTHS_DIFFER * min(lengths):
            caveats.append(
                f"{task}: texts have {min(lengths):.0f} to {max(lengths):.0f} tokens on average, depending on the level; see "
                "the trends with length taken out."
            )
        if accuracies and max(accuracies) - min(accuracies) > ACCURACIES_DIFFER:
            caveats.append(
                f"{task}: accuracy goes from {max(accuracies):.2f} down to {min(accuracies):.2f}, so that right and wrong "
                "answers mix differently at each level; see the columns of correct answers alone."
            )
    if all(group["confidence"] is not None and group["confidence"] > 0.99 for group in groups):
        caveats.append(
            "Final confidence is above 0.99 in every group: levels are matched in it, and it says nothing of difficulty."
        )
    return caveats


def _name(group: Mapping[str, Any]) -> str:
    return group["task"] if group["level"] is None else f"{group['task']} level {group['level']}"


def _embed(figure: Any) -> Markup:
    """The figure as a part of the page; plotly writes `<` in it as an escape of JSON."""
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}))


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _mean(value: Mapping[str, Any], digits: int = 2) -> str:
    ends = "" if value["low"] is None else f" [{_number(value['low'], digits)}, {_number(value['high'], digits)}]"
    return _number(value["mean"], digits) + ends


def _rho(value: Mapping[str, Any]) -> str:
    ends = "" if value["low"] is None else f" [{_number(value['low'])}, {_number(value['high'])}]"
    return _number(value["rho"]) + ends
