"""Two models on the same samples, such as a base and its fine-tuned self: what changed, from saved runs alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd

from hyperlens.artefact import to_json
from hyperlens.diagnosis import (
    MEASURES,
    OUTCOMES,
    PATTERNS,
    QUADRANTS,
    Change,
    diagnose,
    estimate_changes,
    find_outcomes,
    find_quadrants,
    name_pattern,
)
from hyperlens.runs.caveats import describe_lens
from hyperlens.runs.display import show_comparison
from hyperlens.runs.pairing import (
    BY_DEPTH,
    LABELS,
    Side,
    check_comparable,
    choose_sides,
    find_other_makes,
    find_turned,
    pair_samples,
    pick_depth,
    take_columns,
)
from hyperlens.runs.run import Run, open_run
from hyperlens.runs.tokens import Place, Reading, Token, find_last, gather_readings, read_texts

Row = dict[str, Any]
Columns = Mapping[str, np.ndarray]
Group = tuple[str | None, int | None, np.ndarray]
"""A task, a level (None where all of them are meant), and the places of its pairs."""
MOST_BROKEN = 20
"""Samples that broke which are kept with their trajectories; all are counted."""
_ALARMS = {"alarm": 0, "warning": 1}
_BROKEN_NUMBERS = ("confidence_before", "confidence_after", "effort_before", "effort_after")


@dataclass(frozen=True)
class BrokenToken:
    """One place of an answer: the token of the target there (None where answers were written freely, so that they differ), the
    top token of each model (what each wrote), and its confidence at the states 0 … L at the main depth; empty where a model's
    own answer was shorter."""

    text: str | None
    top_before: str | None
    top_after: str | None
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class Broken:
    """A sample that was answered rightly before and wrongly after, with both trajectories. `left_out` tokens are not shown."""

    task: str
    spec: str
    sample: int
    level: int | None
    id: str
    prompt: str
    target: str | None
    generated_before: str | None
    generated_after: str | None
    confidence_before: float
    confidence_after: float
    effort_before: float
    effort_after: float
    tokens: tuple[BrokenToken, ...]
    left_out: int


@dataclass(frozen=True, repr=False)
class Comparison:
    """What changed from one model to another on the same samples, which are drawn again in pairs.

    `before` and `after` say which models: `folder`, `model`, `source`, `fingerprint`, `base` (that of an adapter's base, or
    None), `dtype`, `layers`, `versions`, `created`, `seed`. `lens` has `name`, `said` (in words), `context`, `depths` (those
    of both) and `depth`, the main one.

    `changes` has a row for each depth and group: over all (`task` and `level` None), by task, by task and level where a task
    has several. `accuracy`, `confidence`, `effort`, `struggle`, `commit` and `read` (answer tokens) each have the means
    `before` and `after` over the samples that have both, and of the `difference` after − before, as an interval (`value`,
    `low`, `high`, `n`), and its `direction`: up, down, or not shown; `verdict` is the name of the pattern (see
    `hyperlens.diagnosis.PATTERNS`).

    `quadrants`: at the main depth, over all and by task, how many samples of each `quadrant` stayed right, broke, mended,
    stayed wrong, or are unknown. `verdicts`: over all and by task, the pattern's `name`, `tone` and `sentence`, what has
    `weakened` it in sentences, ΔΩ among samples whose confidence changed little (`alike`) and at `matched` confidence.
    `samples` has a row per pair. `broken` are the samples that broke, those that gained most confidence first, at most 20 of
    `count_broken`.
    """

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    lens: Mapping[str, Any]
    changes: tuple[Row, ...]
    quadrants: tuple[Row, ...]
    verdicts: tuple[Row, ...]
    samples: pd.DataFrame
    broken: tuple[Broken, ...]
    count_broken: int

    def describe(self) -> dict[str, Any]:
        """All of it as JSON has it, but for the rows of `samples`, which are only counted."""
        document = {one.name: getattr(self, one.name) for one in fields(self)}
        document |= {"samples": len(self.samples), "broken": [asdict(one) for one in self.broken]}
        return json.loads(to_json(document))

    def __repr__(self) -> str:
        said = ", ".join(f"{row['task'] or 'all samples'}: {row['name']}" for row in self.verdicts[:5])
        return f"Comparison({self.before['model']} → {self.after['model']}, {len(self.samples)} samples; {said})"

    def _repr_html_(self) -> str:
        return show_comparison(self.describe(), rank_verdicts(self.verdicts))


def compare_runs(
    base: Run | str | os.PathLike[str],
    tuned: Run | str | os.PathLike[str] | None = None,
    base_model: str | None = None,
    tuned_model: str | None = None,
    lens: str | None = None,
    focal_depth: int | None = None,
) -> Comparison:
    """Compare what two models did on the same samples: two runs, or two models of one (the first is the base by default).

    Runs, or their folders, are enough: no model is needed. Models, and a `lens` that both runs call so, are named where a run
    has several. `focal_depth` is the one that verdicts are given at: by default that chosen for the base. Samples that only
    one of the models could read are left out, and counted. Raises InputError where the runs are not of the same samples, read
    through the same lens in the same context at a common focal depth, or an adapter is of another base than the one that it is
    compared with; ArtefactError for a folder that holds no finished run.
    """
    base, tuned = _open(base), None if tuned is None else _open(tuned)
    before, after = choose_sides(base, tuned, base_model, tuned_model, lens)
    depths = check_comparable(before, after)
    depth, seed = pick_depth(before, after, depths, focal_depth), base.store.study.seed
    first, second, lonely = pair_samples(before, after, depths)
    sides = take_columns(first, depths), take_columns(second, depths)
    groups = list(_list_groups(first))
    changes = [estimate_changes(_pick(sides[0], rows), _pick(sides[1], rows), seed) for _, _, rows in groups]
    samples = _tabulate(first, *(_at_depth(side, depth) for side in sides))
    described = before.describe(), after.describe()
    shared = [*find_turned(*described), *find_other_makes(*described), *_find_lonely(lonely)]
    return Comparison(
        *described,
        {
            "name": before.lens,
            "said": describe_lens(before.lens_document),
            "context": before.lens_document["context"],
            "depths": list(depths),
            "depth": depth,
        },
        tuple(_describe_changes(groups, changes, depths)),
        tuple(_count_quadrants(groups, samples, depth)),
        tuple(_give_verdicts(groups, changes, sides, depth, seed, shared)),
        samples,
        tuple(_gather_broken(before, after, samples, depth)),
        int(np.count_nonzero(samples["outcome"] == "broke")),
    )


def rank_verdicts(verdicts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The verdicts, the most alarming one first: blind confidence, other alarms, warnings; else in their order."""
    return sorted(verdicts, key=lambda row: (_ALARMS.get(row["tone"], len(_ALARMS)), row["name"] != PATTERNS[0].name))


def _open(run: Run | str | os.PathLike[str]) -> Run:
    return run if isinstance(run, Run) else open_run(run)


def _list_groups(frame: pd.DataFrame) -> Iterator[Group]:
    """All pairs, those of each task in the order of the study, and those of each level of a task that has several."""
    yield None, None, np.arange(len(frame))
    codes, tasks = pd.factorize(frame["task"])
    levels = frame["level"].to_numpy(dtype=float, na_value=np.nan)
    for code, task in enumerate(tasks):
        mine = np.flatnonzero(codes == code)
        yield str(task), None, mine
        known = np.unique(levels[mine][~np.isnan(levels[mine])])
        for level in known if len(known) > 1 else ():
            yield str(task), int(level), mine[levels[mine] == level]


def _pick(columns: Columns, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[rows] for name, column in columns.items()}


def _at_depth(found: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The measures at one focal depth, by their plain names, of columns or of their changes."""
    return {name: found[f"{name}@{depth}" if name in BY_DEPTH else name] for name in MEASURES}


def _describe_changes(groups: Sequence[Group], changes: Sequence[Mapping[str, Change]], depths: Sequence[int]) -> Iterator[Row]:
    for depth in depths:
        for (task, level, rows), change in zip(groups, changes, strict=True):
            mine = _at_depth(change, depth)
            means = {name: asdict(one) for name, one in mine.items()}
            yield {
                "task": task,
                "level": level,
                "depth": depth,
                "n": len(rows),
                **means,
                "verdict": name_pattern(mine).name,
            }


def _tabulate(frame: pd.DataFrame, before: Columns, after: Columns) -> pd.DataFrame:
    """A row per pair: its labels, its measures before and after, its quadrant and its outcome."""
    renamed = {"accuracy": "correct"}
    measured = {
        f"{renamed.get(name, name)}_{when}": side[name]
        for name in MEASURES
        for when, side in (("before", before), ("after", after))
    }
    quadrants = find_quadrants(after["confidence"] - before["confidence"], after["effort"] - before["effort"])
    outcomes = find_outcomes(before["accuracy"], after["accuracy"])
    return frame[list(LABELS)].assign(
        **measured,
        quadrant=pd.Categorical.from_codes(quadrants, QUADRANTS),  # pyright: ignore[reportArgumentType]
        outcome=pd.Categorical.from_codes(outcomes, OUTCOMES),  # pyright: ignore[reportArgumentType]
    )


def _count_quadrants(groups: Sequence[Group], samples: pd.DataFrame, depth: int) -> Iterator[Row]:
    """Of all pairs and of each task, how many of each outcome are in each quadrant."""
    places = samples["quadrant"].cat.codes.to_numpy() * len(OUTCOMES) + samples["outcome"].cat.codes.to_numpy()
    for task, level, rows in groups:
        if level is None:
            counts = np.bincount(places[rows], minlength=len(QUADRANTS) * len(OUTCOMES)).reshape(len(QUADRANTS), -1)
            for quadrant, row in zip(QUADRANTS, counts.tolist(), strict=True):
                yield {"task": task, "depth": depth, "quadrant": quadrant, **dict(zip(OUTCOMES, row, strict=True))}


def _give_verdicts(
    groups: Sequence[Group],
    changes: Sequence[Mapping[str, Change]],
    sides: tuple[Columns, Columns],
    depth: int,
    seed: int,
    shared: Sequence[str],
) -> Iterator[Row]:
    """The verdict on all pairs and on those of each task; `shared` is what weakens all of them."""
    wanted = [(task, rows, change) for (task, level, rows), change in zip(groups, changes, strict=True) if level is None]
    several = [f"{len(wanted)} verdicts are given, and no interval is adjusted for their number."] if len(wanted) > 2 else []
    for task, rows, change in wanted:
        before, after = (_pick(_at_depth(side, depth), rows) for side in sides)
        found = diagnose(before, after, _at_depth(change, depth), seed)
        yield {
            "task": task,
            "depth": depth,
            "n": len(rows),
            "name": found.pattern.name,
            "tone": found.pattern.tone,
            "sentence": found.sentence,
            "weakened": [*found.weakened, *shared, *several],
            "alike": asdict(found.alike),
            "matched": asdict(found.matched),
        }


def _find_lonely(count: int) -> Iterator[str]:
    if count:
        yield f"{count} samples were read by one of the models only; they are left out."


def _gather_broken(before: Side, after: Side, samples: pd.DataFrame, depth: int) -> Iterator[Broken]:
    """The samples that broke, those that gained most confidence first, with what was read of their first tokens."""
    broke = samples[samples["outcome"] == "broke"]
    gain = np.subtract(*(np.asarray(broke[f"confidence_{when}"], dtype=float) for when in ("after", "before")))
    chosen = broke.iloc[np.argsort(-gain, kind="stable")[:MOST_BROKEN]]
    places: list[Place] = [(str(spec), int(number)) for spec, number in zip(chosen["spec"], chosen["sample"], strict=True)]
    readings = [gather_readings(side.run.store, side.model, side.lens, set(places), depth) for side in (before, after)]
    texts = read_texts(before.run.store, places)
    reads = {task["name"]: task["read"] for task in before.run.store.tasks}
    for place, row in zip(places, chosen.to_dict("records"), strict=True):
        first, second = (found[place] for found in readings)
        prompt, target = texts[place]
        yield Broken(
            task=str(row["task"]),
            spec=place[0],
            sample=place[1],
            level=None if pd.isna(row["level"]) else int(row["level"]),
            id=str(row["id"]),
            prompt=prompt,
            target=target,
            generated_before=first.generated,
            generated_after=second.generated,
            **{name: float(row[name]) for name in _BROKEN_NUMBERS},
            tokens=tuple(_join_tokens(first, second, None if reads[place[0]] == "generated" else target)),
            left_out=max(first.left_out, second.left_out),
        )


def _join_tokens(before: Reading, after: Reading, target: str | None) -> Iterator[BrokenToken]:
    """What both models say at each place of an answer; `target` is None where they wrote their own, place by place."""
    texts: list[str | None] = [token.follows for token in before.tokens] if target is not None else []
    if texts and not before.left_out:
        texts[-1] = find_last(before.tokens, "target", target, False)
    for text, first, second in zip_longest(texts, before.tokens, after.tokens):
        sides: tuple[Token | None, ...] = (first, second)
        tops = [side.reference if side else None for side in sides]
        trajectories = [side.confidence if side else () for side in sides]
        yield BrokenToken(text, tops[0], tops[1], trajectories[0], trajectories[1])
