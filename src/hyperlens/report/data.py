"""What a report says of a run, as values: its own tables, and what was gathered from its shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperlens.contrast import Interval
from hyperlens.plots import Line, Spread
from hyperlens.runs.tokens import Token


@dataclass(frozen=True)
class Curves:
    """Mean confidence at the states 0 … L − m of one focal depth: one line for each level, or the easy and the hard side."""

    title: str
    depth: int
    lines: tuple[Line, ...]
    pair: bool = False


@dataclass(frozen=True)
class Spreads:
    """How effort is distributed at one focal depth: for each level of a task, or for each task without levels."""

    title: str
    depth: int
    spreads: tuple[Spread, ...]


@dataclass(frozen=True)
class Accuracy:
    """Effort of right and of wrong answers to a task at one focal depth, and the accuracy of samples of like effort.

    `auroc` is P(Ω of a wrong one > Ω of a right one) + ½ P(equal); `line` goes over samples sorted by effort into parts.
    """

    task: str
    depth: int
    right: Interval
    wrong: Interval
    auroc: Interval
    line: Line


@dataclass(frozen=True)
class Example:
    """One of the samples of least or most effort, with what was read of its first tokens: `read` says of what kind that is,
    target, generated or options."""

    task: str
    read: str
    level: int | None
    id: str
    hardest: bool
    effort: float
    confidence: float
    correct: bool | None
    prompt: str
    target: str | None
    generated: str | None
    tokens: tuple[Token, ...]
    left_out: int


@dataclass(frozen=True)
class Chapter:
    """One model read through one lens. Tables show the `headline` depths; `main` stands for them."""

    model: str
    lens: str
    layers: int
    depths: tuple[int, ...]
    headline: tuple[int, ...]
    main: int
    curves: tuple[Curves, ...]
    spreads: tuple[Spreads, ...]
    accuracies: tuple[Accuracy, ...]
    examples: tuple[Example, ...]
    logit: bool = True
    """Whether m = 0 is the logit lens."""

    @property
    def pair(self) -> tuple[int, ...]:
        """Focal depth 0, where it was read, and the depth that stands for the others."""
        return tuple(dict.fromkeys(depth for depth in (0, self.main) if depth in self.depths))


@dataclass(frozen=True)
class ReportData:
    """All that a report says of a run."""

    manifest: Mapping[str, Any]
    results: Mapping[str, Any]
    chapters: tuple[Chapter, ...]
    caveats: tuple[str, ...]
    reads: Mapping[str, str]
    """What is read of each task: target, generated or options."""

    def rows(self, kind: str, chapter: Chapter, headline: bool = True) -> list[dict[str, Any]]:
        """The rows of one kind of one chapter; those with a depth at its headline depths, or at all."""
        return [
            row
            for row in self.results[kind]
            if (row["model"], row["lens"]) == (chapter.model, chapter.lens)
            and not (headline and "depth" in row and row["depth"] not in chapter.headline)
        ]
