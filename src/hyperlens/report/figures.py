"""The figures of a report: panels for its page, and files for papers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from hyperlens.artefact import PARTIAL, check_file, write_file
from hyperlens.errors import ArtefactError, InputError
from hyperlens.plots import (
    Line,
    Style,
    draw_accuracy,
    draw_curves,
    draw_differences,
    draw_effort,
    draw_spreads,
    join_panels,
    pick_colours,
    pick_styles,
)
from hyperlens.report.data import Chapter, ReportData
from hyperlens.report.gather import gather_report
from hyperlens.report.words import name_chapter, say_depth
from hyperlens.runs import Run
from hyperlens.spelling import spell

FORMATS = ("svg", "png", "pdf")
INDEX = "figures.json"
"""What tells a folder of our figures: it names them, and only those are ever replaced."""
SHARPNESS = 4
"""Pixels of a PNG per pixel of 1/96 inch."""
INSTALL = "figures for papers need kaleido and a Chrome or Chromium"


@dataclass(frozen=True)
class Panel:
    """One panel with its title."""

    title: str
    figure: go.Figure


@dataclass(frozen=True)
class Group:
    """Panels that belong together, and what their colours mean: names with the style of each."""

    title: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, Style], ...] = ()


def draw_overview(data: ReportData) -> Group | None:
    """Hard − easy of every model and contrast at the main depth and with the logit lens; None without contrasts."""
    labels = {(chapter.model, chapter.lens): spell(name_chapter(data, chapter)) for chapter in data.chapters}
    panels, lows, highs, depths = [], [0.0], [0.0], {chapter.main for chapter in data.chapters}
    for own in (True, False):
        lines = [_contrast_line(data, chapter, labels, chapter.main if own else 0) for chapter in data.chapters]
        if any(line.x for line in lines) and (own or depths != {0}):
            logit = all(chapter.logit for chapter in data.chapters)
            title = "each one's own focal depth" if own and len(depths) > 1 else say_depth(max(depths) if own else 0, logit)
            panels.append(Panel(title, draw_differences(lines)))
            lows += [end for line in lines for end in (*line.y, *line.low) if end is not None]
            highs += [end for line in lines for end in (*line.y, *line.high) if end is not None]
    for panel in panels:
        panel.figure.update_xaxes(range=[min(lows) - 0.03, max(highs) + 0.03])
    return Group("Hard − easy", tuple(panels), _legend(labels.values())) if panels else None


def draw_levels(data: ReportData, chapter: Chapter) -> Group | None:
    """Effort by level, a panel for each task that has levels."""
    panels = []
    for task, rows in _tasks(data, chapter):
        graded = [row for row in rows if row["level"] is not None]
        if len(graded) > 1:
            panels.append(Panel(spell(task), draw_effort([_level_line(graded, chapter, depth) for depth in chapter.headline])))
    return Group("Effort by level", tuple(panels), _legend(_say_depths(chapter, chapter.headline))) if panels else None


def draw_trajectories(chapter: Chapter) -> Iterator[Group]:
    """Mean trajectories of each task or contrast, a panel for each focal depth."""
    for title in dict.fromkeys(curves.title for curves in chapter.curves):
        mine = [curves for curves in chapter.curves if curves.title == title]
        named = zip(_say_depths(chapter, [curves.depth for curves in mine]), mine, strict=True)
        panels = [Panel(name, draw_curves(curves.lines, chapter.layers, curves.pair)) for name, curves in named]
        lines = mine[0].lines
        styles = pick_styles([line.beside for line in lines], mine[0].pair)
        legend = tuple((spell(line.name), style) for line, style in zip(lines, styles, strict=True))
        yield Group(spell(title), tuple(panels), legend)


def draw_distributions(chapter: Chapter) -> Iterator[Group]:
    """Distributions of effort, a group for each of the two depths."""
    for depth in chapter.pair:
        panels = [Panel(spell(one.title), draw_spreads(one.spreads)) for one in chapter.spreads if one.depth == depth]
        if panels:
            yield Group(say_depth(depth, chapter.logit), tuple(panels))


def draw_correctness(chapter: Chapter) -> Group | None:
    """Accuracy against effort, a panel for each task in which both right and wrong answers are found."""
    panels = []
    for task in dict.fromkeys(one.task for one in chapter.accuracies):
        lines = [one.line for one in chapter.accuracies if one.task == task and one.right.n and one.wrong.n]
        if lines:
            panels.append(Panel(spell(task), draw_accuracy(lines)))
    return Group("Effort and correctness", tuple(panels), _legend(_say_depths(chapter, chapter.pair))) if panels else None


def write_figures(run: Run, folder: str | os.PathLike[str] | None = None, formats: Sequence[str] = ("svg",)) -> list[Path]:
    """Write the figures of a report as files for papers, `NAME-figures` beside the run by default; gives their paths.

    `formats` are of svg, png and pdf; white ground, letters as letters in the first and last. Raises InputError where kaleido
    or a browser is missing, or a format is unknown; ArtefactError where a file stands that is not ours. Nothing is half
    written.
    """
    if unknown := [one for one in formats if one not in FORMATS]:
        raise InputError(f'there is no figure format "{unknown[0]}"; choose from {", ".join(FORMATS)}')
    if not formats:
        raise InputError(f"no figure format was given; choose from {', '.join(FORMATS)}")
    place = figures_beside(run.folder) if folder is None else Path(folder).absolute()
    figures = list(list_figures(gather_report(run)))
    names = [f"{name}.{kind}" for name, _ in figures for kind in dict.fromkeys(formats)]
    _check_folder(place, names)
    partial = place.with_name(f".{place.name}.{os.getpid()}{PARTIAL}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _render([(figure, partial / f"{name}.{kind}") for name, figure in figures for kind in dict.fromkeys(formats)])
        place.mkdir(exist_ok=True)
        known = [*dict.fromkeys([*read_index(place), *names])]
        write_file(place / INDEX, json.dumps({"written_by": "hyperlens", "files": known}, indent=1, ensure_ascii=False))
        for name in names:
            os.replace(partial / name, place / name)
    except OSError as error:
        raise ArtefactError(f"{place} cannot be written ({error.strerror}); choose another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [place / name for name in names]


def list_figures(data: ReportData) -> Iterator[tuple[str, go.Figure]]:
    """Every figure for paper with the name of its file, which no two share."""
    used: set[str] = set()

    def name(*parts: str) -> str:
        wanted = "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") or "x" for part in parts)[:80]
        free = next(one for one in (wanted, *(f"{wanted}-{number}" for number in range(2, 10_000))) if one not in used)
        used.add(free)
        return free

    if overview := draw_overview(data):
        yield name("contrasts"), _join(overview)
    for chapter in data.chapters:
        where = (chapter.model, chapter.lens)
        for what, group in (("levels", draw_levels(data, chapter)), ("accuracy", draw_correctness(chapter))):
            if group:
                yield name(*where, what), _join(group)
        for group in draw_trajectories(chapter):
            yield name(*where, "trajectory", group.title), _join(group)
        for group, depth in zip(draw_distributions(chapter), chapter.pair, strict=False):
            yield name(*where, "distribution", f"m{depth}"), _join(group)


def figures_beside(folder: Path) -> Path:
    """Where the figures of a run are written by default."""
    return folder.with_name(f"{folder.name}-figures")


def read_index(folder: Path) -> list[str]:
    """The files of a folder of our figures, in their order; none where it is not one."""
    with contextlib.suppress(OSError, ValueError):
        document = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if isinstance(document, dict) and document.get("written_by") == "hyperlens":
            return [str(name) for name in document.get("files", [])]
    return []


def _check_folder(place: Path, names: Sequence[str]) -> None:
    """Raises ArtefactError where a file would be replaced that is not one of our figures."""
    if place.exists() and not place.is_dir():
        raise ArtefactError(f"{place} is a file; figures need a folder, choose another")
    ours = read_index(place)
    for name in (*names, INDEX):
        if name not in ours and (place / name).exists() and not (name == INDEX and ours):
            raise ArtefactError(
                f"{place / name} exists and was not written by HyperLens; nothing was written, choose another folder"
            )
        check_file(place / name)


def _join(group: Group) -> go.Figure:
    return join_panels([(panel.title, panel.figure) for panel in group.panels])


def _render(figures: Sequence[tuple[Any, Path]]) -> None:
    """Draw each figure into its file. Raises InputError where what is needed for that is missing."""
    try:
        import kaleido
        from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError
    except ImportError:
        raise InputError(f"{INSTALL}; install them with: pip install 'hyperlens[figures]', and a Chromium") from None
    wanted = [
        {
            "fig": figure,
            "path": str(file),
            "opts": {
                "format": file.suffix[1:],
                "width": figure.layout.width,
                "height": figure.layout.height,
                "scale": SHARPNESS if file.suffix == ".png" else 1,
            },
        }
        for figure, file in figures
    ]
    try:
        kaleido.write_fig_from_object_sync(wanted, kopts={"mathjax": False})
    except ChromeNotFoundError:
        raise InputError(
            f"{INSTALL}, and no browser was found; install Chromium, or name it in the environment variable BROWSER_PATH"
        ) from None
    except (BrowserFailedError, BrowserClosedError):
        raise InputError(
            f"{INSTALL}, and the browser that was found does not start; name another in the environment variable BROWSER_PATH"
        ) from None


def _tasks(data: ReportData, chapter: Chapter) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    rows = data.rows("groups", chapter)
    for task in dict.fromkeys(row["task"] for row in rows):
        yield task, [row for row in rows if row["task"] == task]


def _say_depths(chapter: Chapter, depths: Sequence[int]) -> list[str]:
    return [say_depth(depth, chapter.logit) for depth in depths]


def _level_line(rows: Sequence[dict[str, Any]], chapter: Chapter, depth: int) -> Line:
    efforts = [row["effort"][str(depth)] for row in rows]
    return Line(
        say_depth(depth, chapter.logit),
        [row["level"] for row in rows],
        *([effort[end] for effort in efforts] for end in ("mean", "low", "high")),
    )


def _contrast_line(data: ReportData, chapter: Chapter, labels: Mapping[tuple[str, str], str], depth: int) -> Line:
    """Hard − easy of each contrast of a chapter at one depth."""
    rows = [row for row in data.rows("contrasts", chapter, headline=False) if row["depth"] == depth]
    known = [row for row in rows if row["difference"]["value"] is not None]
    return Line(
        labels[chapter.model, chapter.lens],
        [spell(row["contrast"]) for row in known],
        *([row["difference"][end] for row in known] for end in ("value", "low", "high")),
    )


def _legend(names: Any) -> tuple[tuple[str, Style], ...]:
    listed = list(names)
    return tuple((name, Style(colour)) for name, colour in zip(listed, pick_colours(len(listed)), strict=True))
