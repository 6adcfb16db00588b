"""The tables of a report as texts, for every format alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hyperlens.report.data import Chapter, ReportData
from hyperlens.report.words import join, name_chapter, say_clear, say_depth, say_p
from hyperlens.runs.caveats import describe_lens
from hyperlens.runs.summary import CLEAR
from hyperlens.spelling import NOTHING, say_interval, say_number, spell

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Texts in columns, the first `left` of which are words; `spans` are titles over several columns, with their number."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    spans: tuple[tuple[str, int], ...] = ()

    @property
    def sections(self) -> tuple[bool, ...]:
        """Whether each row begins a new group of rows: its first text is another one. None does where all would."""
        firsts = [row[0] for row in self.rows]
        found = tuple(not place or firsts[place - 1] != first for place, first in enumerate(firsts))
        return (False,) * len(found) if all(found) else found


def tabulate_overview(data: ReportData) -> Table | None:
    """Like the paper's: a row for each model, columns for each contrast; None without contrasts."""
    contrasts = list(dict.fromkeys(row["contrast"] for row in data.results["contrasts"]))
    rows = []
    for chapter in data.chapters:
        found = {(row["contrast"], row["depth"]): row for row in data.rows("contrasts", chapter, headline=False)}
        for depth in sorted(chapter.pair, reverse=True):
            cells = [text for name in contrasts for text in _contrast_cells(found.get((name, depth)))]
            if set(cells) - {NOTHING}:
                rows.append((spell(name_chapter(data, chapter)), say_depth(depth, chapter.logit), *cells))
    if not rows:
        return None
    return Table(
        "Mean Ω of the easy and of the hard task, and their difference with its interval: ▲ clearly more effort on the hard "
        f"side, ▼ clearly less (the interval excludes 0, and p (Holm) is at most {CLEAR}). Ω itself is not comparable between "
        "models, lenses or focal depths; the differences and their signs are.",
        ("model", "focal depth", *(name for _ in contrasts for name in ("easy", "hard", "hard − easy"))),
        tuple(rows),
        2,
        (("", 2), *((spell(name), 3) for name in contrasts)),
    )


def tabulate_signs(data: ReportData) -> Table | None:
    """In how many cells the hard side takes more effort; None where there are fewer than two cells."""
    logit = {chapter.lens: chapter.logit for chapter in data.chapters}
    several = len(logit) > 1
    rows = [
        (
            *((spell(row["lens"]),) if several else ()),
            "each model's own" if row["depth"] == "chosen" else say_depth(row["depth"], logit[row["lens"]]),
            *(str(row[name]) for name in ("models", "cells", "positive", "negative")),
            say_p(row["p"]),
            f"{row['clear']['positive']} / {row['clear']['negative']}",
            say_p(row["clear"]["p"]),
        )
        for row in data.results["signs"]
        if row["cells"] > 1 and (row["depth"] != "chosen" or len(data.results["models"]) > 1)
    ]
    columns = ("focal depth", "models", "cells", "hard more", "hard less", "p", "clearly more / less", "p of the clear")
    caption = "Sign test over cells, one for each model and contrast: how often the hard side takes more effort."
    return Table(caption, (*(("lens",) if several else ()), *columns), tuple(rows), 1 + several) if rows else None


def tabulate_chapter(data: ReportData, chapter: Chapter) -> Iterator[tuple[str, Table]]:
    """All tables of one chapter that have rows, by name: those of TABLES."""
    for name, make in TABLES.items():
        table = make(data, chapter)
        if table.rows:
            yield name, table


def tabulate_models(data: ReportData) -> Table:
    """What was measured, model by model, and how it was proved."""
    rows = []
    for name, model in data.results["models"].items():
        proof = model["certificate"]
        lenses = "; ".join(
            f"{lens} ({describe_lens(one)}): m = {join(one['focal_depths'])}" for lens, one in model["lenses"].items()
        )
        rows.append(
            tuple(
                spell(text)
                for text in (
                    name,
                    f"{model['architecture']}, {model['layers']} layers, {model['parameters']:,} parameters",
                    f"{model['dtype']} on {model['device']}",
                    lenses,
                    f"{join(proof['contexts'])}; cached as {proof['cached_form'] or NOTHING}; {proof['way']}",
                    NOTHING if proof["max_error"] is None else f"{proof['max_error']:.1e}",
                    model["fingerprint"],
                )
            )
        )
    columns = ("model", "what it is", "loaded as", "lens and focal depths", "proved", "largest error", "fingerprint")
    caption = "Each model was proved at load: read-outs equal its own output, react to changes, and lead from layer to layer."
    return Table(caption, columns, tuple(rows), len(columns))


def tabulate_tasks(data: ReportData) -> Table:
    """What was read of each task."""
    kinds = {
        "target": "the right answer is fed; at each of its tokens, the one that the model itself finds most likely",
        "generated": "the model's own greedy answer",
        "options": "the answer options, of which it takes one",
    }
    drawn = data.results["drawn"].items()
    rows = [(spell(name), kinds.get(data.reads[name], data.reads[name]), str(count)) for name, count in drawn]
    return Table("Tasks, what was read, and the samples drawn of each.", ("task", "what is read", "samples"), tuple(rows), 2)


def _contrast_cells(row: Row | None) -> tuple[str, str, str]:
    if row is None or row["difference"]["value"] is None:
        return NOTHING, NOTHING, NOTHING
    value, _, interval = say_interval(row["difference"]).partition(" ")
    difference = f"{value} {say_clear(row)}".strip() + f"\n{interval}".rstrip()
    return say_number(row["easy"]["mean"]), say_number(row["hard"]["mean"]), difference


def _tabulate_groups(data: ReportData, chapter: Chapter) -> Table:
    """Groups by task and level: Ω at each headline depth."""
    order = sorted(chapter.headline)
    rows = []
    for group in data.rows("groups", chapter):
        cells = [*_name_group(group), say_number(group["tokens"], 1), say_number(group["read"], 1)]
        cells += [say_number(group[name]) for name in ("accuracy", "confidence")]
        rows.append((*cells, *(say_interval(group["effort"][str(depth)]) for depth in order)))
    return Table(
        "Means over samples: tokens of the text, tokens that were read, accuracy, the model's final confidence, and effort "
        "with its interval.",
        ("task", "level", "n", "tokens", "read", "accuracy", "confidence", *("Ω" for _ in order)),
        tuple(rows),
        1,
        (("", 7), *((say_depth(depth, chapter.logit), 1) for depth in order)),
    )


def _tabulate_phases(data: ReportData, chapter: Chapter) -> Table:
    """Groups by task and level: correct only, struggle and commit, at the headline depths, or of many at the pair."""
    wide = sorted(depth for depth in chapter.headline if depth in chapter.pair or len(chapter.headline) < 3)
    rows = []
    for group in data.rows("groups", chapter):
        cells = list(_name_group(group))
        for depth in map(str, wide):
            cells.append(say_number(group["correct"]["effort"][depth]["mean"]))
            cells += [say_number(group[name][depth]["mean"], 1) for name in ("struggle", "commit")]
        rows.append(tuple(cells))
    return Table(
        "Effort over correct answers alone, layers of struggle, and the state of commitment: means over samples.",
        ("task", "level", "n", *(name for _ in wide for name in ("Ω if correct", "struggle", "commit"))),
        tuple(rows),
        1,
        (("", 3), *((say_depth(depth, chapter.logit), 3) for depth in wide)),
    )


def _name_group(group: Row) -> tuple[str, str, str]:
    return spell(group["task"]), NOTHING if group["level"] is None else str(group["level"]), str(group["n"])


def _tabulate_contrasts(data: ReportData, chapter: Chapter) -> Table:
    rows = []
    for row in data.rows("contrasts", chapter):
        rows.append(
            (
                spell(row["contrast"]),
                str(row["depth"]),
                f"{row['easy']['n']} / {row['hard']['n']}",
                say_interval(row["difference"]),
                say_interval(row["auroc"]),
                say_interval(row["cliff"]),
                say_p(row["p"]),
                say_p(row["p_holm"]),
            )
        )
    names = ("contrast", "m", "n", "hard − easy", "AUROC", "Cliff's delta", "p", "p (Holm)")
    compared = {row["compared"] for row in data.rows("contrasts", chapter)}
    return Table(
        f"Hard − easy. p (Holm) is adjusted for all {join(compared)} comparisons of this lens.",
        names,
        tuple(rows),
    )


def _tabulate_controls(data: ReportData, chapter: Chapter) -> Table:
    rows = []
    for row in data.rows("contrasts", chapter):
        found = (row["difference"], row["correct"], *(row["matched"][name] for name in ("confidence", "length", "read")))
        rows.append((spell(row["contrast"]), str(row["depth"]), *map(say_interval, found)))
    return Table(
        "What is left of hard − easy over correct answers alone, and among samples that are alike in confidence, in length of "
        "the text, in number of answer tokens. These intervals are not adjusted for the number of comparisons.",
        ("contrast", "m", "hard − easy", "correct only", "like confidence", "like length", "like answer length"),
        tuple(rows),
    )


def _tabulate_sides(data: ReportData, chapter: Chapter) -> Table:
    rows = []
    for row in data.rows("contrasts", chapter):
        if row["depth"] != chapter.main:
            continue
        for side in ("easy", "hard"):
            one, levels = row[side], row[f"{side}_levels"]
            what = row[f"{side}_task"] + (f", level {join(levels)}" if levels else "")
            rows.append(
                (
                    spell(row["contrast"]),
                    f"{side}: {spell(what)}",
                    str(one["n"]),
                    *(say_number(one[name]) for name in ("accuracy", "confidence")),
                    *(say_number(one[name], 1) for name in ("tokens", "read")),
                )
            )
    columns = ("contrast", "side", "n", "accuracy", "confidence", "tokens", "read")
    return Table("In what else the two sides differ: means over samples.", columns, tuple(rows), 2)


def _tabulate_trends(data: ReportData, chapter: Chapter) -> Table:
    rows = [
        (
            spell(row["task"]),
            str(row["depth"]),
            *map(say_interval, (row, row["correct"], *(row["partial"][name] for name in ("confidence", "length", "both")))),
            *(say_interval(row["matched"][name]) for name in ("confidence", "length")),
        )
        for row in data.rows("trends", chapter)
    ]
    columns = ("task", "m", "rho", "correct only", "confidence out", "length out", "both out", "like confidence", "like length")
    caption = (
        "Spearman's rho of level and effort: 1 means that effort always rises with the level, 0 that it does not follow it. "
        "Then what is left when the ranks of confidence, of length, of both are taken out, and among samples alike in them."
    )
    return Table(caption, columns, tuple(rows))


def _tabulate_choices(data: ReportData, chapter: Chapter) -> Table:
    rows = [
        (spell(row["task"]), str(row["chosen"]), say_interval(row["held_out"]), say_interval(row["logit"]))
        for row in data.rows("choices", chapter)
    ]
    beside = "logit lens" if chapter.logit else "m = 0"
    caption = (
        "With labels: the depth that follows the levels best on one half of the samples, measured on the other half, beside "
        f"{'the ' * chapter.logit}{beside} there."
    )
    return Table(caption, ("task", "chosen m", "its rho, other half", f"{beside}, other half"), tuple(rows))


def _tabulate_resolution(data: ReportData, chapter: Chapter) -> Table:
    auto = data.results["models"][chapter.model]["lenses"][chapter.lens]["auto"]
    if auto is None:
        return Table("", (), ())
    rows = [
        (say_depth(int(depth), chapter.logit), say_number(row["resolution"]), "chosen" if int(depth) == auto["chosen"] else "")
        for depth, row in auto["candidates"].items()
    ]
    caption = (
        "Without labels: the depth of highest resolution, the effective number of steps in which confidence arrives, over "
        f"{auto['positions']} positions."
    )
    return Table(caption, ("focal depth", "resolution", ""), tuple(rows))


def _tabulate_accuracies(data: ReportData, chapter: Chapter) -> Table:
    rows = [
        (
            spell(one.task),
            str(one.depth),
            f"{one.right.n} / {one.wrong.n}",
            say_interval(one.right),
            say_interval(one.wrong),
            say_interval(one.auroc),
        )
        for one in chapter.accuracies
    ]
    caption = (
        "Ω of right and of wrong answers. AUROC: the chance that a wrong answer took more effort than a right one; 0.5 is "
        "none. Ω is not made to tell them apart."
    )
    return Table(caption, ("task", "m", "right / wrong", "Ω of right", "Ω of wrong", "AUROC"), tuple(rows))


TABLES: dict[str, Callable[[ReportData, Chapter], Table]] = {
    "groups": _tabulate_groups,
    "phases": _tabulate_phases,
    "contrasts": _tabulate_contrasts,
    "controls": _tabulate_controls,
    "sides": _tabulate_sides,
    "trends": _tabulate_trends,
    "choices": _tabulate_choices,
    "resolution": _tabulate_resolution,
    "accuracy": _tabulate_accuracies,
}
"""The tables of a chapter, in the order in which they are shown."""
