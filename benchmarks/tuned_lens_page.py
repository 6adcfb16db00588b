"""The tables of docs/tuned-lens.md that are about the original package, made of the numbers that tuned_lens.py has measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from findings_page import bracket, tabulate

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, RESULTS = DOCS / "tuned-lens.md", DOCS / "tuned_lens.json"
SIDES = ("original", "original without autocast", "ours")
PARTS = ("equality", "gradients", "memory", "throughput")
Found = dict[str, Any]


def make_tables(found: Found) -> dict[str, str]:
    """Markdown tables by name, one for each part; a part that is not there says so."""
    makers = {"equality": put_equality, "gradients": put_gradients, "memory": put_memory, "throughput": put_throughput}
    return {name: makers[name](found[name]) if found.get(name) else "Not measured yet." for name in PARTS}


def put_equality(found: Found) -> str:
    """Largest differences of logits."""
    names = ("same_translators", "saved_by_it_read_by_us", "exported_by_us_read_by_it")
    head = ["model", "same translators", "saved by it, read by us", "exported by us, read by it", "hash"]
    rows = [[model, *map(tiny, (row[name] for name in names)), _same(row["same_hash"])] for model, row in found.items()]
    return tabulate(head, rows)


def _same(same: bool) -> str:
    return "the same" if same else "another"


def put_gradients(found: Found) -> str:
    """Largest differences of gradients."""
    names = ("ours_to_theirs", "ours_to_float64", "theirs_to_float64")
    head = ["model", "ours to theirs", "ours to float64", "theirs to float64"]
    return tabulate(head, [[model, *map(tiny, (row[name] for name in names))] for model, row in found.items()])


def put_memory(found: Found) -> str:
    """Peak memory of a step of ours and what is in it."""
    names = ("above_forward_mb", "states_mb", "translators_their_gradient_and_adamw_mb", "beside_these_mb", "budget_mb")
    head = ["a step above the model's own pass", "states", "translators, gradient, AdamW", "beside these", "its budget"]
    last = "all_logits_would_take_mb"
    return tabulate([*head, "all logits at once"], [[f"{found[name]:.0f} MB" for name in (*names, last)]])


def put_throughput(found: Found) -> str:
    """Tokens per second of a step, and how far each is above the floor."""
    head = [
        "model",
        "precision",
        "original, tokens/s",
        "without autocast",
        "ours",
        "ours : original",
        "ours : without autocast",
    ]
    head += ["forward pass, s", "floor, s", "original : floor", "without autocast : floor", "ours : floor"]
    return tabulate(head, [put_row(model, kind, row) for model, kinds in found.items() for kind, row in kinds.items()])


def put_row(model: str, kind: str, row: Found) -> list[Any]:
    """One model in one precision; what was not measured is a dash."""
    theirs, ours = [row.get(name) for name in SIDES[:2]], row["ours"]
    return [
        *(model, kind),
        *(one and f"{one['tokens_per_second']:.0f}" for one in (*theirs, ours)),
        *(one and bracket(one["ours_is_faster_by"], *one["spread"]) for one in theirs),
        *(f"{row[name]:.3g}" for name in ("forward_seconds", "floor_seconds")),
        *(one and one["times_the_floor"] for one in (*theirs, ours)),
    ]


def tiny(value: float) -> str:
    """A relative difference."""
    return f"{value:.1e}" if value else "0"
