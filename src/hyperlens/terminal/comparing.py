"""What changed from one model to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hyperlens.diagnosis import DOWN, OUTCOMES, UP
from hyperlens.resampling import count_digits
from hyperlens.runs.comparison import Broken, Comparison, rank_verdicts
from hyperlens.terminal.cells import draw_line, make_safe, spell, spell_whole

Row = Mapping[str, Any]
SHOWN_BROKEN, SHOWN_TOKENS = 5, 4
STYLES = {"alarm": "bold red", "warning": "bold yellow", "gain": "bold green", "plain": "bold"}
DIGITS = {"struggle": 1, "commit": 1, "read": 1}
SIGNS = {UP: "▲", DOWN: "▼"}


def show_comparison(console: Console, comparison: Comparison) -> None:
    """What changed, over all, by task and by level; the verdicts and what weakens them; where samples went; and which broke."""
    before, after, lens = comparison.before, comparison.after, comparison.lens
    console.print(make_safe(f"{before['model']} → {after['model']}, {lens['said']}, m = {lens['depth']}", 300))
    _show_changes(console, [row for row in comparison.changes if row["depth"] == lens["depth"]])
    verdicts = _drop_twin(comparison.verdicts)
    _show_quadrants(console, [row for row in comparison.quadrants if row["task"] in [one["task"] for one in verdicts]])
    _show_verdicts(console, rank_verdicts(verdicts))
    _show_broken(console, comparison)


def _drop_twin(rows: Sequence[Row]) -> list[Row]:
    """Rows over all and by task; of a single task, which is all, the first alone."""
    tasks = {row["task"] for row in rows} - {None}
    return [row for row in rows if row["task"] is None or len(tasks) > 1]


def _show_changes(console: Console, rows: Sequence[Row]) -> None:
    """The means before and after, and their difference, of each group."""
    table = Table(
        title="What changed: before → after, after − before [95 %]; ▲ ▼ where it counts as shown", title_justify="left"
    )
    for name in ("task", "level", "n", "accuracy", "confidence", "effort Ω", "struggle", "commit"):
        table.add_column(name, justify="left" if name == "task" else "right")
    table.add_column("pattern")
    alone = len({row["task"] for row in rows}) == 2
    shown = [row for row in rows if not (alone and row["task"] and row["level"] is None)]
    for number, row in enumerate(shown):
        if number and row["task"] != shown[number - 1]["task"]:
            table.add_section()
        measures = (_spell_change(row[name], DIGITS.get(name, 3)) for name in ("accuracy", "confidence", "effort"))
        layers = (_spell_change(row[name], 1) for name in ("struggle", "commit"))
        table.add_row(
            make_safe(row["task"] or "all samples"),
            spell_whole(row["level"]),
            str(row["n"]),
            *measures,
            *layers,
            row["verdict"],
        )
    console.print(table)


def _spell_change(change: Row, digits: int) -> str:
    """Both means on one line, the difference below."""
    difference = change["difference"]
    means = " → ".join(spell(change[when]["value"], digits) for when in ("before", "after"))
    sign, digits = SIGNS.get(change["direction"], " "), count_digits((difference["low"], difference["high"]), digits)
    value, low, high = (spell(difference[name], digits) for name in ("value", "low", "high"))
    return f"{means}\n{sign} {value} [{low}, {high}]"


def _show_quadrants(console: Console, rows: Sequence[Row]) -> None:
    """How many samples of each outcome are in each quadrant."""
    table = Table(title="Where samples went", title_justify="left")
    for name in ("task", "quadrant", *OUTCOMES):
        table.add_column(name, justify="left" if name in ("task", "quadrant") else "right")
    shown = [row for row in rows if any(row[name] for name in OUTCOMES)]
    for number, row in enumerate(shown):
        if number and row["task"] != shown[number - 1]["task"]:
            table.add_section()
        table.add_row(make_safe(row["task"] or "all samples"), row["quadrant"], *(str(row[name]) for name in OUTCOMES))
    console.print(table)


def _show_verdicts(console: Console, verdicts: Sequence[Row]) -> None:
    """Each verdict in words with what weakens it, in this order; what weakens all of them comes last, once."""
    shared = [one for one in verdicts[0]["weakened"] if all(one in row["weakened"] for row in verdicts[1:])]
    for row in verdicts:
        place, name = make_safe(f"{row['task'] or 'all samples'}: "), Text(row["name"], STYLES[row["tone"]])
        console.print(place, name, make_safe(f". {row['sentence']}", 400), sep="")
        for sentence in row["weakened"]:
            if len(verdicts) == 1 or sentence not in shared:
                console.print(make_safe(f"  weakened: {sentence}", 500))
    for sentence in shared if len(verdicts) > 1 else ():
        console.print(make_safe(f"All of them are weakened: {sentence}", 500))


def _show_broken(console: Console, comparison: Comparison) -> None:
    """The samples that broke and gained most confidence: what was asked, and both trajectories of the first answer tokens."""
    if not comparison.count_broken:
        return
    shown = comparison.broken[:SHOWN_BROKEN]
    console.print(f"{comparison.count_broken} samples broke: right before, wrong after. Those that gained most confidence:")
    for one in shown:
        for line in _describe_broken(one):
            console.print(line)


def _describe_broken(one: Broken) -> Iterator[Text]:
    level = "" if one.level is None else f", level {one.level}"
    yield make_safe(f"  {one.task}{level}: {one.prompt[-100:]} → {one.target or ''}", 200)
    confidence = f"confidence {spell(one.confidence_before)} → {spell(one.confidence_after)}"
    yield make_safe(f"    {confidence}, Ω {spell(one.effort_before)} → {spell(one.effort_after)}", 200)
    for token in one.tokens[:SHOWN_TOKENS]:
        sides = (("before", token.top_before, token.before), ("after ", token.top_after, token.after))
        for when, top, trajectory in sides:
            if top is not None:
                yield make_safe(f"    {when} {draw_line(trajectory)} {top!r}", 200)
