"""The tables of docs/lenses.md, made of the numbers that lenses.py has measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from findings_page import DOCS, bracket, fill_tables, tabulate

__all__ = ["DOCS", "fill_page", "make_tables"]

NEAR = (
    "lens|m|KL [95 %]|bias|next-token loss|KL of answers|KL, all its states|prediction depth|resolution|Ω|passes|time|read-outs"
)
INPUTS = "model and texts|texts|tokens|of answers"
SEEN = "level|questions|different chains|asked for in training|an aside in training|prompt as in training"
Found = dict[str, Any]


def fill_page(found: Found) -> None:
    """Put the tables between their marks."""
    fill_tables(DOCS / "lenses.md", make_tables(found))


def make_tables(found: Found) -> dict[str, str]:
    """Markdown tables by name: how near each lens is, on each set of texts; KL state by state; and the separation."""
    tables = {f"near {name}": tabulate(NEAR.split("|"), [make_near(row) for row in one["rows"]]) for name, one in found.items()}
    tables |= {f"states {name}": make_states(one) for name, one in found.items()}
    tables["inputs"] = tabulate(INPUTS.split("|"), [[name, *count_inputs(one)] for name, one in found.items()])
    tables["seen"] = tabulate(SEEN.split("|"), found["reference"]["seen"]["levels"])
    rows = found["reference"]["rows"]
    head = ["domain", "lens", "m", "rho, all its states", "rho, common states", "at matched confidence", "AUROC, 5 against 1"]
    parts = [(row, number) for number in range(len(rows[0]["separation"])) for row in rows]
    tables["separation"] = tabulate(head, [make_separation(row, row["separation"][number]) for row, number in parts])
    return tables


def count_inputs(one: Found) -> list[int]:
    """How much was read: texts, tokens that have a next one, and those of them that belong to answers."""
    return [one["inputs"][name] for name in ("texts", "tokens", "answer_tokens")]


def make_near(row: Mapping[str, Any]) -> list[Any]:
    """One row of a table of nearness and cost."""
    near, cost = row["common"], row["cost"]
    cells = [row["name"], row["focal_depth"], interval(near["kl"]), near["bias"], near["next_token_loss"]]
    cells += [row["answer_kl"]["value"], row["inner"]["kl"]["value"]]
    cells += [row[name]["value"] for name in ("prediction_depth", "resolution", "effort")]
    return [*cells, cost["passes"], cost["measured"], cost["readouts"]]


def make_states(one: Found) -> str:
    """KL state by state, one row per lens and focal depth."""
    head = ["lens", "m", *map(str, range(one["model"]["layers"]))]
    rows = [[row["name"], row["focal_depth"], *row["by_state"]["kl"][: row["states"]]] for row in one["rows"]]
    return tabulate(head, [row + [None] * (len(head) - len(row)) for row in rows])


def make_separation(row: Mapping[str, Any], part: Mapping[str, Any]) -> list[Any]:
    """One row of the table of separation."""
    return [
        part["task"],
        row["name"],
        row["focal_depth"],
        *(interval(part[name]) for name in ("rho", "common", "matched", "auroc")),
    ]


def interval(found: Mapping[str, Any]) -> str:
    """A number and its interval."""
    return bracket(found["value"], found["low"], found["high"])
