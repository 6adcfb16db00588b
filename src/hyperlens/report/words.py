"""How a report says things: numbers, texts made harmless, and what was found as sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hyperlens.report.data import Chapter, ReportData
from hyperlens.runs.summary import CLEAR, is_clear
from hyperlens.spelling import say_number

Row = Mapping[str, Any]

DEFINITIONS: tuple[tuple[str, str, str], ...] = (
    (
        "Confidence trajectory",
        "paper",
        "After each layer one can ask: if the model stopped thinking here, how sure would it be of the answer it ends up with? "
        "That probability is the confidence at this state, and its course from state 0 (the embedding) to the last one is the "
        "trajectory. That the lens used here magnifies its small changes in deep layers, and that harder questions take more "
        "effort, is what the paper claims; here it is measured.",
    ),
    (
        "Focal depth m",
        "summary",
        "How many of the model's deepest layers a state passes through before it is read: the layers between are skipped. "
        "m = 0 reads at once (the logit lens). A larger m lets the last layers bring out small differences; it is a "
        "counterfactual, since the model itself never skips layers.",
    ),
    (
        "Effort Ω, from 0 to 1",
        "ours",
        "The area above the trajectory: the mean share of the final confidence that is still missing, over the states before "
        "L − m. 0: sure from the first state. 1: all of it comes in the last step. It says nothing about whether the answer is "
        "right. The paper calls Ω a refinement area, and does not publish its formula.",
    ),
    (
        "Struggle and commit",
        "ours",
        "The model commits at the state from which at least 90 % of the final confidence stays. The struggle is the number of "
        "layers from the first 10 % to there. The paper names such a phase, not its thresholds.",
    ),
    (
        "Attention context",
        "ours",
        "jump: the states of all positions at one depth enter the deepest layers together. cached: only the positions that are "
        "read jump, and see what the model itself computed for the others.",
    ),
    (
        "Level, easy and hard",
        "ours",
        "The level is the number of steps that a question needs one after the other, known by construction or from the data. A "
        "contrast compares the effort of a hard task with that of an easy one.",
    ),
    (
        "Intervals and p",
        "ours",
        "Intervals are 95 % bootstrap intervals over samples. AUROC is the chance that a hard sample takes more effort than an "
        "easy one: 0.5 is none. p is of a permutation test; p (Holm) is adjusted for all comparisons of the run. A difference "
        f"is called clear where its interval excludes 0 and p (Holm) is at most {CLEAR}.",
    ),
)
MARKS = {
    "paper": "the paper's",
    "summary": "after a summary of the paper",
    "ours": "HyperLens's own",
}
"""Who a definition is from."""


def say_p(value: float | None) -> str:
    """A p-value."""
    return say_number(value, 3 if value is not None and value >= 0.001 else 4)


def say_depth(depth: int | str, logit: bool = True) -> str:
    """A focal depth by its name; `logit` where m = 0 is the logit lens."""
    return "logit lens (m = 0)" if depth == 0 and logit else f"m = {depth}"


def say_direction(value: Row) -> str:
    """▲ where an interval lies above 0, ▼ where it lies below, nothing where it does not exclude 0."""
    if value["low"] is None or value["high"] is None:
        return ""
    return "▲" if value["low"] > 0 else "▼" if value["high"] < 0 else ""


def say_clear(contrast: Row) -> str:
    """▲ where the hard side of a contrast takes clearly more effort, ▼ clearly less, by `is_clear`."""
    return say_direction(contrast["difference"]) if is_clear(contrast) else ""


def name_chapter(data: ReportData, chapter: Chapter) -> str:
    """A model, and the lens where there are several."""
    several = len({one.lens for one in data.chapters}) > 1
    return f"{chapter.model}, lens {chapter.lens}" if several else chapter.model


def describe_findings(data: ReportData) -> list[str]:
    """The sentences one should read if one reads nothing else."""
    return [*_describe_trends(data), *_describe_contrasts(data), *_describe_signs(data)] or [_describe_nothing(data)]


def _describe_trends(data: ReportData) -> Iterator[str]:
    """One sentence for each kind of depth: in which tasks effort rises with the level, falls, or neither; behind the first, by
    what that is judged, since a trend has no p."""
    count = sum(len(data.rows("trends", chapter)) for chapter in data.chapters)
    rule = " “Rises” and “falls”: their interval excludes 0" + (
        f", not corrected for the {count} trends shown." * (count > 1) or "."
    )
    for label, rows in _by_kind_of_depth(data, "trends"):
        known = [row for row in rows if row["rho"] is not None]
        kinds = {
            "rises with the level in": [row for row in known if say_direction(row) == "▲"],
            "falls in": [row for row in known if say_direction(row) == "▼"],
            "does neither in": [row for row in known if not say_direction(row)],
        }
        said = [f"{what} {_name_rows(data, mine, 'task', len(known))}" for what, mine in kinds.items() if mine]
        if said:
            yield f"{label}, effort {'; '.join(said)}.{rule}"
            rule = ""


def _describe_contrasts(data: ReportData) -> Iterator[str]:
    """One sentence for each kind of depth: where the hard side takes more effort, less, or neither, and what confidence
    does to that."""
    for label, rows in _by_kind_of_depth(data, "contrasts"):
        known = [row for row in rows if row["difference"]["value"] is not None]
        kinds = {
            "takes clearly more effort in": [row for row in known if say_clear(row) == "▲"],
            "takes clearly less effort in": [row for row in known if say_clear(row) == "▼"],
            "does not clearly differ in": [row for row in known if not say_clear(row)],
        }
        said = [f"{what} {_name_rows(data, mine, 'contrast', len(known))}" for what, mine in kinds.items() if mine]
        if not said:
            continue
        clear = kinds["takes clearly more effort in"] + kinds["takes clearly less effort in"]
        still = [row for row in clear if say_direction(row["matched"]["confidence"]) == say_clear(row)]
        kept = f" {_count_of(len(still), len(clear))}." if clear else ""
        yield f"{label}, the hard side {'; '.join(said)}.{kept}"


def _describe_signs(data: ReportData) -> Iterator[str]:
    """The sign test over cells at each model's own depth."""
    signs = data.results["signs"]
    several = len({row["lens"] for row in signs}) > 1
    for row in signs:
        if row["depth"] == "chosen" and row["cells"] > 1:
            through = f" (lens {row['lens']})" if several else ""
            yield (
                f"Over all {row['cells']} cells of model and contrast{through}, the hard side takes more effort in "
                f"{row['positive']} and less in {row['negative']} (sign test, p = {say_p(row['p'])}); "
                f"{row['clear']['positive']} and {row['clear']['negative']} of them clearly."
            )


def _describe_nothing(data: ReportData) -> str:
    if data.results["trends"] or data.results["contrasts"]:
        return "Nothing can be told apart with these samples; effort by task is below."
    return "These tasks have no levels and nothing is contrasted, so there is no trend to report; effort by task is below."


def _by_kind_of_depth(data: ReportData, kind: str) -> Iterator[tuple[str, list[Row]]]:
    """Of each lens the rows at focal depth 0, then those at each chapter's main depth where that is another one."""
    lenses = list(dict.fromkeys(chapter.lens for chapter in data.chapters))
    for lens in lenses:
        chapters = [chapter for chapter in data.chapters if chapter.lens == lens]
        through = f"Through the lens {lens}, at" if len(lenses) > 1 else "At"
        for first in (True, False):
            rows, depths = [], set()
            for chapter in chapters:
                depth = 0 if first else chapter.main
                if (first and 0 in chapter.depths) or (not first and chapter.main != 0):
                    rows += [row for row in data.rows(kind, chapter, headline=False) if row["depth"] == depth]
                    depths.add(depth)
            if first and chapters[0].logit and len(lenses) == 1:
                yield "With the logit lens (m = 0)", rows
            elif len(depths) == 1:
                yield f"{through} focal depth m = {next(iter(depths))}", rows
            else:
                yield f"{through} each model's own focal depth", rows


def _name_rows(data: ReportData, rows: Sequence[Row], key: str, of: int) -> str:
    """The rows of one lens by name; with several models, their number and the names under each."""
    if len({chapter.model for chapter in data.chapters}) == 1:
        return ", ".join(str(row[key]) for row in rows)
    grouped: dict[str, list[str]] = {}
    for row in rows:
        grouped.setdefault(row["model"], []).append(str(row[key]))
    named = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in grouped.items())
    return f"{len(rows)} of {of} cells" + (f" ({named})" if len(rows) <= 8 else "")


def _count_of(some: int, of: int) -> str:
    """Of how many clear differences the interval lies where it did among samples of like confidence, as a sentence."""
    alike = f"on the same side of 0 among samples of like confidence{' too' if some else ''}"
    if of == 1:
        return f"Its interval {'lies' if some else 'does not lie'} {alike}"
    whose = f"all {of} of them" if some == of else f"{some or 'none'} of these {of} clear differences"
    return f"For {whose}, the interval lies {alike}"


def join(values: Iterable[Any]) -> str:
    """Values behind one another."""
    return ", ".join(map(str, values))
