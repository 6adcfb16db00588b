"""A run as Markdown: the sentences, tables and caveats of the page, no figures but links to those that were written."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hyperlens.report.data import Example, ReportData
from hyperlens.report.figures import figures_beside, read_index
from hyperlens.report.tables import Table, tabulate_chapter, tabulate_models, tabulate_overview, tabulate_signs, tabulate_tasks
from hyperlens.report.words import DEFINITIONS, MARKS, describe_findings, name_chapter
from hyperlens.spelling import say_number, shorten, spell

MARK_MD = "<!-- HyperLens -->"
"""What tells a Markdown file of ours, its first line."""
SPECIAL = re.compile(r"[\\`*_{}|~$@^]|!(?=\[)|\](?=[(\[:])|:(?=//)|(?<=www)\.|^(?:[-+#=]|\d+(?=[.)](?: |$)))", re.IGNORECASE)
"""Signs that could become markup: anywhere, in front of what makes them so, or at the beginning."""
TITLES = {
    "groups": "The numbers",
    "phases": "Struggle and commitment",
    "contrasts": "Easy against hard",
    "controls": "What is left of it",
    "sides": "The two sides",
    "trends": "Is it difficulty, or something else?",
    "choices": "Which focal depth, with levels",
    "resolution": "Which focal depth",
    "accuracy": "Effort and correctness",
}


def render_markdown(data: ReportData, folder: Path, out: Path) -> str:
    """The report of the run in `folder` as Markdown that is to stand at `out`."""
    return "\n\n".join(part for part in _write_parts(data, folder, out)) + "\n"


def escape(text: object, most: int = 0) -> str:
    """A text that Markdown shows as it is, on one line: nothing in it is markup, ends a cell of a table, or becomes a link.

    >>> escape("a|b <i>*c*")
    'a\\\\|b &lt;i&gt;\\\\*c\\\\*'
    """
    said = shorten(text, most) if most else spell(text)
    flat = " ".join(said.split())
    return html.escape(SPECIAL.sub(_escape_sign, flat), quote=False)


def _escape_sign(found: re.Match[str]) -> str:
    """The sign behind a backslash; of a number at the beginning, which would begin a list, what follows it."""
    return f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}"


def _write_parts(data: ReportData, folder: Path, out: Path) -> Iterator[str]:
    study = data.manifest["study"]["name"]
    yield f"{MARK_MD}\n# {escape(study)}: how hard do the models work?"
    models, drawn = data.results["models"], data.results["drawn"]
    yield (
        f"Models: {escape(', '.join(models))}. Tasks: {escape(', '.join(drawn))}. Samples: {sum(drawn.values())}. "
        f"Measured {escape(data.manifest['created'][:10])}."
    )
    yield list_sentences(describe_findings(data))
    yield "## What is shown here"
    yield "\n".join(f"- **{escape(name)}** ({MARKS[mark]}): {escape(text)}" for name, mark, text in DEFINITIONS)
    for title, table in (("Is the hard side more effort?", tabulate_overview(data)), ("Sign test", tabulate_signs(data))):
        if table:
            yield f"## {title}"
            yield from write_table(table)
    yield "## What to keep in mind"
    yield list_sentences([*data.caveats, LAST_CAVEAT])
    for chapter in data.chapters:
        yield f"## {escape(name_chapter(data, chapter))}"
        for name, table in tabulate_chapter(data, chapter):
            yield f"### {TITLES[name]}"
            yield from write_table(table)
        if chapter.examples:
            yield "### The hardest and the easiest samples"
            yield f"By Ω at m = {chapter.main}."
            yield "\n".join(map(_write_example, chapter.examples))
    if links := list(_link_figures(folder, out)):
        yield "## Figures"
        yield "\n".join(links)
    yield "## How it was measured"
    for table in (tabulate_models(data), tabulate_tasks(data)):
        yield from write_table(table)
    yield f"Largest error in the run: {data.results['largest_error']:.1e} of the largest logit. Seed {data.manifest['seed']}."
    yield "Versions: " + escape(", ".join(f"{name} {text}" for name, text in data.manifest["versions"].items())) + "."


LAST_CAVEAT = (
    "Ω describes how confidence moves through the layers. It is not correctness and not calibrated to it. Compare it within "
    "one model, context, focal depth and vocabulary."
)


def write_table(table: Table) -> Iterator[str]:
    """The caption, and the table; titles over several columns go into the columns' own."""
    spans = [title for title, count in table.spans for _ in range(count)] or [""] * len(table.columns)
    heads = [f"{title}: {column}" if title else column for title, column in zip(spans, table.columns, strict=True)]
    lines = [heads, *table.rows]
    rule = "|".join(["", *(":--" if place < table.left else "--:" for place in range(len(heads))), ""])
    written = ["| " + " | ".join(escape(cell) or " " for cell in line) + " |" for line in lines]
    yield escape(table.caption)
    yield "\n".join([written[0], rule, *written[1:]])


def _write_example(example: Example) -> str:
    kind = "hardest" if example.hardest else "easiest"
    level = "" if example.level is None else f", level {example.level}"
    right = {True: ", right", False: ", wrong", None: ""}[example.correct]
    said = "" if example.generated is None else f"; said: {escape(example.generated, 200)}"
    target = "" if example.target is None else f" → {escape(example.target, 200)}"
    what = f"{kind} of {escape(example.task)}{level}, Ω {say_number(example.effort)}{right}"
    return f"- {what}: {escape(example.prompt, 400)}{target}{said}"


def _link_figures(folder: Path, out: Path) -> Iterator[str]:
    """Links to the figures that were written beside the run."""
    place = figures_beside(folder)
    for name in read_index(place):
        if (place / name).is_file():
            near = os.path.relpath(place / name, out.parent).replace(os.sep, "/")
            yield f"- [{escape(name)}](<{html.escape(near)}>)"


def list_sentences(sentences: Iterable[str]) -> str:
    """Sentences as a list."""
    return "\n".join(f"- {escape(sentence)}" for sentence in sentences)
