"""The tables of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from findings_page import tabulate
from peers_ways.environments import TITLES

Found = Mapping[str, Any]


def make_tables(found: Found) -> dict[str, str]:
    """Markdown tables by name, of those parts that were measured."""
    tables = {}
    if "versions" in found:
        rows = [[TITLES[peer], spell_versions(one)] for peer, one in found["versions"].items()]
        tables["versions"] = tabulate(["", "what ran"], rows)
    for name in ("read", "deep", "speak", "train"):
        if any(row["table"] == name for row in found.get("rows", {}).values()):
            tables[name] = tabulate_rows([row for row in found["rows"].values() if row["table"] == name])
    if "memory" in found:
        tables["memory"] = tabulate_memory(found["memory"])
    if "imports" in found:
        rows = [[TITLES[one["peer"]], f"`{one['statement']}`", one["seconds"]] for one in found["imports"]]
        tables["imports"] = tabulate(["", "statement", "seconds"], rows)
    if "correctness" in found:
        tables["correctness"] = tabulate_checks(found["correctness"])
    return tables


def spell_versions(one: Any) -> str:
    """Packages and versions, or why there are none."""
    return one if isinstance(one, str) else ", ".join(f"{name} {number}" for name, number in one.items())


def name_way(label: str) -> str:
    """A peer, and which of its ways where it has two."""
    peer, _, way = label.partition(", ")
    return TITLES[peer] + (f", `{way}`" if way else "")


def tabulate_rows(rows: list[Found]) -> str:
    """A line for each way of each peer."""
    lines = []
    for row in rows:
        refused: dict[str, list[str]] = {}
        for label, one in row["ways"].items():
            start = [row["title"], name_way(label)]
            if "cannot" in one:
                refused.setdefault(one["cannot"], []).append(name_way(label))
                continue
            near = "–" if one.get("difference") is None else f"{one['difference']:.0e}"
            lines.append([*start, f"{one['seconds']:.3g}", f"{one['in_units']:.2f}", spell_ratio(one["ratio"]), near])
        lines += [[row["title"], ", ".join(who), f"cannot: {why}", "", "", ""] for why, who in refused.items()]
    return tabulate(["what is read", "with", "seconds", "in units", "times ours", "differs by"], lines)


def spell_ratio(ratio: Found | None) -> str:
    """The median of the rounds and its interval, which a single round does not have."""
    if ratio is None:
        return "–"
    ends = "" if ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return f"{ratio['value']:.2f}{ends}"


def tabulate_memory(memory: Found) -> str:
    """MB above the plain pass, all imports left aside."""
    rows = []
    for label, one in memory["ways"].items():
        rows.append([name_way(label), *(spell_memory(one.get(name)) for name in ("last", "all"))])
    return tabulate(["", "last token, MB", "all tokens, MB"], rows)


def spell_memory(one: Found | None) -> str:
    """A number, or why there is none."""
    if one is None:
        return "–"
    return f"cannot: {one['cannot']}" if "cannot" in one else f"{one['above_mb']:.0f}"


def tabulate_checks(checks: Found) -> str:
    """The largest difference of probability for each model, peer and padding."""
    rows = []
    for model, peers in checks.items():
        for peer, one in peers.items():
            rows.append([model, TITLES[peer], *(spell_check(one[name]) for name in ("single", "default", "right", "left"))])
    return tabulate(
        ["model", "", "one text at a time", "batch, nothing said", "batch, padded on the right", "batch, padded on the left"],
        rows,
    )


def spell_check(one: Found) -> str:
    """A difference, or what the peer said."""
    return f"cannot: {one['cannot']}" if "cannot" in one else f"{one['difference']:.1e}"
