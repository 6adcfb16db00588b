"""The tables and the figure of docs/blind_confidence.md, made of the numbers that blind_confidence.py has measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from findings_page import DOCS, bracket, colours, fill_tables, save, tabulate

from hyperlens.tasks import GRADED

PAGE: Path = DOCS / "blind_confidence.md"
SHOWN = {"accuracy": "accuracy", "confidence": "confidence", "effort": "Ω, m = 2", "effort@0": "Ω, m = 0"}
Found = dict[str, Any]


def fill_page(found: Found) -> None:
    """Put the tables into the page, and draw its figure."""
    fill_tables(PAGE, make_tables(found))
    draw_runs(found)


def make_tables(found: Found) -> dict[str, str]:
    """Markdown tables by name."""
    return {
        "before": tabulate(
            ["domain", "questions", "n", *SHOWN.values(), "accuracy by level"],
            [
                [domain, test, side["n"], *(side[name] for name in SHOWN), " ".join(f"{one:.2f}" for one in side["by_level"])]
                for domain, tests in found["base"].items()
                for test, side in tests.items()
            ],
        ),
        "grid": tabulate(
            ["domain", "levels", "rate", "epochs", *(f"Δ {name}" for name in SHOWN.values()), "pattern", "of each seed"],
            [[cell["domain"], *grid_row(cell)] for cell in found["cells"] if is_plain(cell)],
        ),
        "cures": tabulate(
            [
                "domain",
                "training",
                "seeds",
                *(f"Δ {name}" for name in SHOWN.values()),
                "pattern",
                "Δ accuracy, old",
                "Δ accuracy, others",
            ],
            [[cell["domain"], name_training(cell, found), cell["seeds"], *cure_row(cell)] for cell in list_cures(found)],
        ),
        "causal": tabulate(
            ["domain", "training", *(f"Δ {name}" for name in SHOWN.values())],
            [[row["domain"], row["method"], *(bracket(*row[name]) for name in SHOWN)] for row in found["causal"]],
        ),
        "warning": tabulate(
            ["domain", "trainings", "Δ confidence", "Δ Ω, m = 2", "Δ Ω, m = 0"],
            [
                [domain, row["runs"], *(bracket(*row[name]) for name in SHOWN if name != "accuracy")]
                for domain, row in found["warning"].items()
            ],
        ),
    }


def is_plain(cell: Found) -> bool:
    """Whether a cell is one of the grid."""
    return cell["method"] == "plain" and cell["data"] != "steps" and cell["tuning"] == "full"


def grid_row(cell: Found) -> list[Any]:
    """A cell of the grid: its settings, changes and patterns."""
    new = cell["tests"]["new"]
    levels = "1, 2" if cell["data"] == "easy" else "1 … 5"
    return [levels, f"{cell['rate']:.0e}", cell["epochs"], *changes(new), new["pattern"], count_patterns(new["each"])]


def changes(test: Found) -> list[str]:
    """The change of each measure, with its interval."""
    return [bracket(*test[name]["change"]) for name in SHOWN]


def count_patterns(names: Sequence[str]) -> str:
    """How often each pattern was found."""
    return ", ".join(f"{count} × {name}" for name, count in Counter(names).most_common())


def list_cures(found: Found) -> list[Found]:
    """What was trained at the worst place of the grid, or instead of it: domain by domain."""
    worst = found["worst"]
    kept = [cell for cell in found["cells"] if not is_plain(cell) or cell["data"] == worst["data"]]
    beside = [cell for cell in kept if not is_plain(cell) or worst["rate"] == cell["rate"] or worst["epochs"] == cell["epochs"]]
    return sorted(beside, key=lambda cell: list(GRADED).index(cell["domain"]))


def name_training(cell: Found, found: Found) -> str:
    """How a cell was trained, beside the worst place of the grid."""
    worst = found["worst"]
    if cell["data"] == "steps":
        return "answers with their steps"
    if cell["tuning"] == "lora":
        return f"LoRA, rate {cell['rate']:.0e}"
    if cell["method"] != "plain":
        return cell["method"]
    if cell["rate"] != worst["rate"]:
        return f"lower rate, {cell['rate']:.0e}"
    return "plain" if cell["epochs"] == worst["epochs"] else f"fewer epochs, {cell['epochs']}"


def cure_row(cell: Found) -> list[Any]:
    """The changes where it was tuned for, their pattern, and what became of the accuracy elsewhere."""
    tests = cell["tests"]
    elsewhere = [bracket(*tests[name]["accuracy"]["change"]) for name in ("old", "others")]
    return [*changes(tests["new"]), tests["new"]["pattern"], *elsewhere]


def draw_runs(found: Found) -> None:
    """docs/blind_confidence.svg: every fine-tuning by its change of effort and of accuracy, and what each term does to both."""
    from matplotlib import pyplot

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "hyperlens", "svg.fonttype": "path", "font.size": 9}
    matplotlib.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained", width_ratios=(1, 1))
    for domain, marker, colour in zip(GRADED, "os^D", colours(len(GRADED)), strict=True):
        for plain in (True, False):
            runs = [run["change"] for run in found["runs"] if run["domain"] == domain and is_plain(run) == plain]
            points = [run["effort"] for run in runs], [run["accuracy"] for run in runs]
            face = colour if plain else "none"
            left.scatter(*points, s=16, marker=marker, facecolors=face, edgecolors=colour, label=domain if plain else None)
    left.set_xlabel("change of effort Ω, m = 2")
    left.set_ylabel("change of accuracy")
    left.set_title("every fine-tuning (filled: plain)", fontsize=9)
    left.legend(fontsize=7, frameon=False)
    rows = [row for row in found["causal"] if row["domain"] == "all"]
    for offset, (name, colour) in enumerate(zip(("effort", "accuracy", "confidence"), colours(3), strict=True)):
        middle = [row[name][0] for row in rows]
        error = [[row[name][0] - row[name][1] for row in rows], [row[name][2] - row[name][0] for row in rows]]
        places = [place + 0.22 * (offset - 1) for place in range(len(rows))]
        right.errorbar(middle, places, xerr=error, fmt="os^"[offset], ms=4, capsize=2, color=colour, label=SHOWN[name])
    right.set_yticks(range(len(rows)), [row["method"] for row in rows])
    right.invert_yaxis()
    right.axvline(0, color="grey", lw=0.8)
    right.set_title("beside plain fine-tuning on the same data, all domains", fontsize=9)
    right.legend(fontsize=7, frameon=False)
    save(figure, "blind_confidence")
