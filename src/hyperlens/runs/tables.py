"""The rows of a run's results as a flat table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

Row = Mapping[str, Any]
KINDS = ("groups", "trends", "contrasts", "choices", "signs")
MIDDLES = ("mean", "value", "rho")
"""What the estimate itself is called beside the ends of its interval."""


def flatten_results(results: Row, kind: str) -> pd.DataFrame:
    """One row per group and focal depth, trend, contrast, choice or sign; `effort_low` and `effort_high` are the ends of
    `effort`, and so with every estimate."""
    rows: Sequence[Row] = results[kind]
    if kind == "groups":
        rows = [one for row in rows for one in _spread_depths(row)]
    frame = pd.DataFrame([dict(_flatten(row)) for row in rows])
    return frame.astype({name: "Int64" for name in ("level",) if name in frame})


def _spread_depths(group: Row) -> Iterator[dict[str, Any]]:
    """A group of samples, once for each focal depth."""
    for depth in group["effort"]:
        row = dict(_pick(group, depth))
        labels = {name: row.pop(name) for name in ("model", "lens", "task", "level")}
        yield {**labels, "depth": int(depth), **row}


def _pick(values: Row, depth: str) -> Iterator[tuple[str, Any]]:
    """`values` with what is told by depth as it is at this one."""
    for name, value in values.items():
        inside = isinstance(value, Mapping)
        yield name, value[depth] if inside and depth in value else dict(_pick(value, depth)) if inside else value


def _flatten(row: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        name = name.removesuffix("_interval")
        path = prefix if prefix and name in MIDDLES else f"{prefix}_{name}" if prefix else name
        yield from _flatten(value, path) if isinstance(value, Mapping) else [(path, value)]
