"""A run's report gathered: its tables as they are, the rest from its sample rows and one pass over its shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from hyperlens.contrast import estimate_auroc, estimate_mean
from hyperlens.plots import Line, Spread
from hyperlens.report.data import Accuracy, Chapter, Example, ReportData, Spreads
from hyperlens.report.shards import Rows, find_curves, name_level, read_shards
from hyperlens.report.words import say_depth
from hyperlens.runs import Run
from hyperlens.runs.caveats import find_caveats, is_logit, pick_headline, pick_main
from hyperlens.runs.tokens import MOST_TOKENS, Place, Token, find_last, read_task, read_texts

BINS = 40
PARTS, SMALLEST_PART = 5, 8
"""Parts of equal size into which samples are sorted by effort, to see how accuracy goes with it; fewer where they would be
smaller."""
EXAMPLES, MOST_CELLS = 5, 80_000
"""Examples of a task on either end, and cells of all heat maps of a page."""
FEW_TARGETS = 10
"""Kinds of answers up to which always giving the most frequent one is a way to guess."""
TEXTS, NUMBERS = ("model", "lens", "task", "spec", "id", "generated"), ("sample", "level", "correct", "confidence", "read")


def gather_report(run: Run) -> ReportData:
    """All that a report of the run says: its tables, and mean curves, distributions and examples from its shards."""
    rows = _read_rows(run)
    each = _count_examples(run, rows)
    return ReportData(
        run.manifest,
        run.results,
        tuple(
            _gather_chapter(run, model, lens, mine, each)
            for model, of_model in rows.by("model")
            if model in run.models  # one that was refused after some of its shards has rows too
            for lens, mine in of_model.by("lens")
        ),
        tuple(find_caveats(run.results, find_floors(run))),
        {task["name"]: task["read"] for task in run.store.tasks},
    )


def _read_rows(run: Run) -> Rows:
    """What is needed of the run's sample rows."""
    frame = run.samples()
    numbers = [*NUMBERS, *(str(name) for name in frame.columns if str(name).startswith("effort@"))]
    texts = {name: pd.Series(frame[name]).to_numpy(dtype=object, na_value=None) for name in TEXTS}
    return Rows(texts | {name: pd.Series(frame[name]).to_numpy(dtype=float, na_value=np.nan) for name in numbers})


def _gather_chapter(run: Run, model: str, lens: str, rows: Rows, each: int) -> Chapter:
    document = run.models[model]["lenses"][lens]
    depths, main = tuple(document["focal_depths"]), pick_main(document)
    pair = tuple(dict.fromkeys(depth for depth in (0, main) if depth in depths))
    chosen = _choose_examples(rows, main, each)
    sums, tokens = read_shards(run, model, lens, rows, chosen, main)
    return Chapter(
        model,
        lens,
        run.models[model]["layers"],
        depths,
        pick_headline(document),
        main,
        tuple(find_curves(run, sums, depths)),
        tuple(_find_spreads(rows, pair)),
        tuple(_find_accuracies(rows, pair, run.store.study.seed, is_logit(document))),
        tuple(_fill_examples(run, rows, chosen, tokens, main)),
        is_logit(document),
    )


def _find_spreads(rows: Rows, depths: Iterable[int]) -> Iterator[Spreads]:
    """One for each task with levels, and one for all tasks without, at each depth."""
    tasks = {task: list(mine.by_level()) for task, mine in rows.by("task")}
    plain = [(task, mine) for task, levels in tasks.items() if len(levels) == 1 for _, mine in levels]
    named = {"all tasks" if len(plain) == len(tasks) else "tasks without levels": plain} if plain else {}
    named |= {task: [(name_level(level), mine) for level, mine in levels] for task, levels in tasks.items() if len(levels) > 1}
    beside = name_level(None)
    for depth in depths:
        for title, parts in named.items():
            efforts = {name: _known(mine[f"effort@{depth}"]) for name, mine in parts}
            if spreads := tuple(_spread(name, effort, name == beside) for name, effort in efforts.items() if len(effort)):
                yield Spreads(title, depth, spreads)


def _spread(name: str, values: np.ndarray, beside: bool) -> Spread:
    counts = np.histogram(values, BINS, (0, 1))[0]
    first, median, third = np.percentile(values, (25, 50, 75)).tolist()
    return Spread(name, counts.tolist(), (first, median, third), len(values), beside)


def _find_accuracies(rows: Rows, depths: Sequence[int], seed: int, logit: bool) -> Iterator[Accuracy]:
    """Of each task of which it is known what was right."""
    for task, mine in rows.by("task"):
        for depth in depths:
            known = ~np.isnan(mine[f"effort@{depth}"]) & ~np.isnan(mine["correct"])
            effort, correct = mine[f"effort@{depth}"][known], mine["correct"][known]
            if not len(effort):
                continue
            parts = np.array_split(np.argsort(effort, kind="stable"), max(1, min(PARTS, len(effort) // SMALLEST_PART)))
            found = [estimate_mean(correct[part], seed) for part in parts]
            line = Line(
                say_depth(depth, logit),
                [float(effort[part].mean()) for part in parts],
                [one.value for one in found],
                [one.low for one in found],
                [one.high for one in found],
            )
            right, wrong = effort[correct == 1], effort[correct == 0]
            auroc = estimate_auroc(right, wrong, seed)
            yield Accuracy(task, depth, estimate_mean(right, seed), estimate_mean(wrong, seed), auroc, line)


def _count_examples(run: Run, rows: Rows) -> int:
    """How many examples there is room for on either end of each task."""
    cells = sum(1 for _, mine in rows.by("model") for _, read in mine.by("lens") for _ in read.by("task"))
    states = max(document["layers"] + 1 for document in run.models.values())
    read = max(1.0, min(MOST_TOKENS, float(rows["read"].mean())))
    return int(np.clip(MOST_CELLS / (2 * cells * states * read), 1, EXAMPLES))


def _choose_examples(rows: Rows, depth: int, each: int) -> dict[Place, bool]:
    """The samples of most (True) and of least effort of each task, the hardest first, then the easiest."""
    chosen: dict[Place, bool] = {}
    for _, mine in rows.by("task"):
        known = mine.where(~np.isnan(mine[f"effort@{depth}"]))
        order = np.lexsort((known["sample"], known[f"effort@{depth}"]))
        hardest, easiest = order[::-1][: min(each, -(-len(order) // 2))], order[: min(each, len(order) // 2)]
        for places, hard in ((hardest, True), (easiest, False)):
            chosen |= {(str(known["spec"][place]), int(known["sample"][place])): hard for place in places}
    return chosen


def _fill_examples(
    run: Run, rows: Rows, chosen: Mapping[Place, bool], tokens: Mapping[Place, tuple[Token, ...]], depth: int
) -> Iterator[Example]:
    """The chosen samples with their texts."""
    texts, reads = read_texts(run.store, chosen), {task["name"]: task["read"] for task in run.store.tasks}
    for (spec, number), hard in chosen.items():
        (place,) = np.flatnonzero((rows["sample"] == number) & (rows["spec"] == spec))
        row = {name: column[place] for name, column in rows.columns.items()}
        (prompt, target), shown = texts[spec, number], tokens[spec, number]
        left_out = int(row["read"]) - len(shown)
        if shown and not left_out:
            last = find_last(shown, reads[spec], target, bool(row["correct"] == 1))
            shown = (*shown[:-1], replace(shown[-1], follows=last))
        yield Example(
            str(row["task"]),
            reads[spec],
            None if np.isnan(row["level"]) else int(row["level"]),
            str(row["id"]),
            hard,
            float(row[f"effort@{depth}"]),
            float(row["confidence"]),
            None if np.isnan(row["correct"]) else bool(row["correct"]),
            prompt,
            target,
            row["generated"],
            shown,
            left_out,
        )


def find_floors(run: Run) -> dict[str, float]:
    """The accuracy that guessing reaches in each task: 1/K among K options, or the most frequent of few targets."""
    floors = {}
    for place, spec in enumerate(run.store.study.tasks):
        table = read_task(run.store, place, ["options", "target"])
        options = pc.list_value_length(table["options"]).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        targets = pc.value_counts(table["target"].drop_null()).field("counts").to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        by_option = float((1 / options).mean()) if len(options) and options.min() > 0 else 0.0
        common = float(targets.max() / targets.sum()) if 0 < len(targets) <= FEW_TARGETS and targets.max() > 1 else 0.0
        floors[spec.name] = max(by_option, common)
    return floors


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]
