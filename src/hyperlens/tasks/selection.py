"""From rows to the samples that are read: made, named, selected, drawn and put."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyperlens.errors import InputError
from hyperlens.tasks.datasets import DataSet
from hyperlens.tasks.options import letter_options, strip_cue
from hyperlens.tasks.rows import Row
from hyperlens.tasks.sample import Sample
from hyperlens.tasks.spec import TaskSpec


@dataclass(frozen=True)
class Skipped:
    """A row that gave no sample, and why."""

    row: str
    reason: str


Numbered = list[tuple[int, Sample]]
Left = list[tuple[int, Skipped]]


def make_samples(rows: Sequence[Row], task: str, data_set: DataSet, seed: int) -> tuple[Numbered, Left]:
    """The samples of all rows, named and with their row's number, and the rows that gave none."""
    samples: Numbered = []
    skipped: Left = []
    names: set[str] = set()
    for number, row in enumerate(rows, 1):
        made = data_set.make(row)
        if isinstance(made, str):
            skipped.append((number, Skipped(f"{task}/{number}", made)))
            continue
        name = _new_name(f"{task}/{made.id or number}", names)
        made = replace(made, task=task, id=name)
        samples.append((number, _shuffle_options(made, seed) if data_set.shuffled else made))
    return samples, skipped


def _new_name(name: str, names: set[str]) -> str:
    """The name, with a number behind it where there is one already."""
    new, count = name, 1
    while new in names:
        count += 1
        new = f"{name}-{count}"
    names.add(new)
    return new


def _shuffle_options(sample: Sample, seed: int) -> Sample:
    options = list(sample.options)
    random.Random(f"{seed}/{sample.id}").shuffle(options)
    return replace(sample, options=tuple(options))


def select_samples(samples: Numbered, read: str) -> tuple[Numbered, Left]:
    """The samples that can be read so, all with the same number of options where these are read; and the others, with why."""
    counts = Counter(len(sample.options) for _, sample in samples if sample.options)
    usual = max(counts, key=lambda number: (counts[number], number), default=0)
    kept: Numbered = []
    left: Left = []
    for number, sample in samples:
        if reason := refuse_sample(sample, read, usual):
            left.append((number, Skipped(sample.id, reason)))
        else:
            kept.append((number, sample))
    return kept, left


def refuse_sample(sample: Sample, read: str, usual: int) -> str:
    """Why a sample cannot be read so; nothing where it can."""
    if any("\ud800" <= sign <= "\udfff" for text in (sample.prompt, sample.target or "", *sample.options) for sign in text):
        return "with half a character (a lone surrogate)"
    if read == "options" and not sample.options:
        return "without answer options"
    if read != "generated" and not (sample.target or "").strip():
        return "without an answer"
    if read == "options" and len(sample.options) != usual:
        return f"with {len(sample.options)} answer options, where most rows have {usual}"
    return ""


def draw_levels(samples: Sequence[Sample], spec: TaskSpec, limit: int, seed: str) -> list[Sample]:
    """Up to `limit` samples of each wanted level, in their order; those of a smaller limit are among them."""
    there = sorted({sample.level for sample in samples if sample.level is not None})
    if missing := sorted(set(spec.levels) - set(there)):
        levels = f"its levels are {', '.join(map(str, there))}" if there else "it has no levels"
        raise InputError(f'"{spec.name}" has no row of level {missing[0]}; {levels}')
    drawn: list[int] = []
    for level in spec.levels or (*there, None):
        places = [place for place, sample in enumerate(samples) if sample.level == level]
        random.Random(f"{seed}/{level}").shuffle(places)
        drawn += places[:limit]
    return [samples[place] for place in sorted(set(drawn))]


def put_sample(sample: Sample, read: str, lettered: bool, chat: bool) -> Sample:
    """The sample as it is read: with options to be lettered, with lettered options that a generated answer chooses from, or
    with no options at all; a chat stays one."""
    if read == "options":
        return replace(sample, prompt=strip_cue(sample.prompt), chat=chat or sample.chat)
    if read == "generated" and lettered and sample.options:
        sample = letter_options(replace(sample, prompt=strip_cue(sample.prompt)))
    return replace(sample, options=(), chat=chat or sample.chat)
