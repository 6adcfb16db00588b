"""The tables and figures of docs/findings.md and README.md, made of the numbers that findings.py has measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from hyperlens.tasks import GRADED, LEVELS

DOCS = Path(__file__).parent.parent / "docs"
DEPTHS = (0, 1, 2, 4, 8)
CONTEXTS = ("jump", "cached")
SEPARATION = ("gain_in_rho", "rho_common", "auroc", "auroc_1_3")
MAGNIFICATION = ("gain", "path_ratio", "monotonicity", "directional")
Found = dict[str, Any]


def fill_pages(found: Found) -> None:
    """Put the tables into the findings page and the README."""
    tables = make_tables(found)
    fill_tables(DOCS / "findings.md", {name: table for name, table in tables.items() if name != "summary"})
    fill_tables(DOCS.parent / "README.md", {"summary": tables["summary"]})


def fill_tables(page: Path, tables: Mapping[str, str]) -> None:
    """Put each table between its marks, `<!-- table: name -->` and `<!-- end -->`."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{page} has no marks for the table {name}")
        text = pattern.sub(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", text)
    page.write_text(text, encoding="utf-8")


def make_tables(found: Found) -> dict[str, str]:
    """Markdown tables by name."""
    jump, cached = found["levels"]["jump"], found["levels"]["cached"]
    trends = {(row["task"], row["depth"]): row for row in jump["trends"]}
    cached_trends = {(row["task"], row["depth"]): row for row in cached["trends"]}
    tables = {
        "summary": tabulate(
            ["domain", "steps", "accuracy", "confidence", "Ω, m = 0 [95 %]", "Ω, m = 2 [95 %]", "commit, m = 0"],
            [
                [
                    *(g[name] for name in ("task", "level", "accuracy", "confidence")),
                    *(mean(g["effort"][m]) for m in ("0", "2")),
                    mean(g["commit"]["0"], 1),
                ]
                for g in jump["groups"]
                if g["level"] in (1, 3, 5)
            ],
        ),
        "levels": tabulate(
            ["domain", "level", "n", "accuracy", "confidence", *(f"Ω, m = {depth}" for depth in DEPTHS)],
            [
                [g["task"], g["level"], g["n"], g["accuracy"], g["confidence"], *(mean(g["effort"][str(m)]) for m in DEPTHS)]
                for g in jump["groups"]
            ],
        ),
        "commit": tabulate(
            ["domain", "level", *(f"{name}, m = {m}" for m in (0, 2) for name in ("commit", "struggle"))],
            [
                [g["task"], g["level"], *(mean(g[name][str(m)], 1) for m in (0, 2) for name in ("commit", "struggle"))]
                for g in jump["groups"]
            ],
        ),
        "trends": tabulate(
            ["domain", "m", "jump", "correct only", "cached", "cached, correct only"],
            [
                [task, depth, rho(row), rho(row["correct"]), rho(other := cached_trends[task, depth]), rho(other["correct"])]
                for (task, depth), row in trends.items()
            ],
        ),
        "matched": tabulate(
            ["domain", "m", "rho", "confidence out", "length out", "both out", "matched confidence", "matched length"],
            [
                [task, depth, rho(row), *(rho(row["partial"][name]) for name in ("confidence", "length", "both"))]
                + [rho(row["matched"][name]) for name in ("confidence", "length")]
                for (task, depth), row in trends.items()
            ],
        ),
        "choices": tabulate(
            ["domain", "context", "chosen m", "its rho on the other half", "rho of m = 0 there"],
            [
                [row["task"], context, row["chosen"], rho(row["held_out"]), rho(row["logit"])]
                for context in CONTEXTS
                for row in found["levels"][context]["choices"]
            ],
        ),
        "depths": tabulate(
            ["domain", "context", "m", "rho − rho at m = 0", "rho, common states", "AUROC, level 5 : 1", "AUROC, level 3 : 1"],
            [
                [row["task"], context, row["depth"], *(value(row[name]) for name in SEPARATION)]
                for context in CONTEXTS
                for row in found["depths"][context]
            ],
        ),
        "length": tabulate(
            [
                "domain",
                "m",
                "n, plain",
                "tokens, plain",
                "rho, plain",
                "tokens, matched",
                "rho, matched",
                "rho of length in a level",
            ],
            [
                [
                    *(row["task"], row["depth"], " ".join(map(str, row["plain"]["n"]))),
                    *(span(row["plain"]["tokens"]), value(row["plain"]["rho"])),
                    *(span(row["matched"]["tokens"]), value(row["matched"]["rho"]), row["length_within_level"]),
                ]
                for row in found["length"]
            ],
        ),
        "written": tabulate(
            ["domain", "m", "accuracy by level", "Ω per token by level", "Ω summed by level", "rho per token"],
            [
                [row["task"], row["depth"], *(run(row[name]) for name in ("accuracy", "mean", "sum")), value(row["rho"])]
                for row in found["written"]
            ],
        ),
        "elsewhere": tabulate(
            ["domain", "variant", "accuracy by level", "confidence by level", "Ω by level, m = 0"],
            [
                [row["task"], row["variant"], *(run(row[name]) for name in ("accuracy", "confidence", "effort"))]
                for row in found["elsewhere"]
            ],
        ),
        "magnification": tabulate(
            ["model", "tokens", "m", "gain", "full-path ratio", "monotonicity", "directional gain"],
            [
                [name, one["tokens"], depth, *(one[key][place] for key in MAGNIFICATION)]
                for name, one in found["magnification"].items()
                if "depths" in one
                for place, depth in enumerate(one["depths"])
            ],
        ),
        "linearity": tabulate(
            ["domain", "context", "m", "mean Ω", "mean Ω, common states", "gain", "ranks kept", "ranks kept within a level"],
            [
                [
                    *(row["task"], context, row["depth"], row["effort"], row["common"], row["gain"]),
                    *(value(row["ranks"]), value(row["ranks_within_level"])),
                ]
                for context in CONTEXTS
                for row in found["linearity"][context]
            ],
        ),
    }
    if "rows" in found["stories"]:
        tables["stories"] = tabulate(
            ["model read", "judged by", "context", "m", "rho", "confidence out", "AUROC, hardest over easiest quarter"],
            [
                [row["read"], row["judge"], row["context"], row["depth"]]
                + [value(row[name]) for name in ("rho", "confidence_out", "auroc")]
                for row in found["stories"]["rows"]
            ],
        )
    return tables


def tabulate(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; numbers with two digits."""
    lines = [head, ["---"] * len(head), *([spell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spell(cell: Any) -> str:
    """A cell as text."""
    return "–" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def bracket(middle: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """A number and its interval."""
    if middle is None:
        return "–"
    ends = "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{middle:.{digits}f}{ends}"


def mean(row: Mapping[str, Any], digits: int = 2) -> str:
    """A mean and its interval."""
    return bracket(row["mean"], row["low"], row["high"], digits)


def rho(row: Mapping[str, Any]) -> str:
    """A correlation and its interval."""
    return bracket(row["rho"], row["low"], row["high"])


def value(row: Mapping[str, Any]) -> str:
    """An estimate and its interval."""
    return bracket(row["value"], row["low"], row["high"])


def span(values: list[float]) -> str:
    """From the first to the last level."""
    return f"{values[0]:.0f} … {values[-1]:.0f}"


def run(values: list[float]) -> str:
    """One number per level."""
    return " ".join(f"{one:.2f}" for one in values)


def draw_figures(found: Found) -> None:
    """docs/effort_by_level.svg, docs/trajectories.svg, docs/magnification.svg."""
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "hyperlens", "svg.fonttype": "path", "font.size": 9}
    matplotlib.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
    draw_effort(found["levels"]["jump"]["groups"])
    draw_trajectories(found["curves"])
    draw_magnification(found)


def colours(count: int) -> Any:
    """`count` colours in order, told apart by the colour-blind."""
    return matplotlib.colormaps["plasma"](np.linspace(0.1, 0.82, count))


def draw_effort(groups: list[Found]) -> None:
    """Ω by level, one panel per domain, one line per focal depth."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(GRADED), figsize=(9.5, 2.7), sharey=True, layout="constrained")
    for panel, task in zip(panels, GRADED, strict=True):
        mine = [group for group in groups if group["task"] == task]
        for depth, colour in zip(DEPTHS, colours(len(DEPTHS)), strict=True):
            efforts = [group["effort"][str(depth)] for group in mine]
            middle = np.array([one["mean"] for one in efforts])
            error = np.abs(np.array([[one["low"], one["high"]] for one in efforts]).T - middle)
            label = "logit lens, m = 0" if depth == 0 else f"m = {depth}"
            panel.errorbar(LEVELS, middle, error, color=colour, marker="o", ms=3, capsize=2, lw=1.4, label=label)
        panel.set_title(task)
        panel.set_xlabel("level (steps)")
        panel.set_xticks(LEVELS)
    panels[0].set_ylabel("effort Ω")
    panels[0].set_ylim(0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(DEPTHS), frameon=False)
    save(figure, "effort_by_level")


def draw_trajectories(curves: list[Found]) -> None:
    """Mean confidence by state: a row of panels per focal depth, a column per domain, a line per level."""
    from matplotlib import pyplot

    shown = (0, 2, 8)
    figure, panels = pyplot.subplots(len(shown), len(GRADED), figsize=(9.5, 6), sharex=True, sharey=True, layout="constrained")
    for row, depth in enumerate(shown):
        for panel, task in zip(panels[row], GRADED, strict=True):
            mine = [curve for curve in curves if curve["task"] == task and curve["depth"] == depth]
            for curve, colour in zip(mine, colours(len(mine)), strict=True):
                states = range(len(curve["mean"]))
                panel.fill_between(states, curve["low"], curve["high"], color=colour, alpha=0.2, lw=0)
                panel.plot(states, curve["mean"], color=colour, lw=1.4, label=f"level {curve['level']}")
            panel.set_title(f"{task}, {'logit lens' if depth == 0 else f'm = {depth}'}", fontsize=9)
        panels[row][0].set_ylabel("confidence")
    for panel in panels[-1]:
        panel.set_xlabel("state")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    save(figure, "trajectories")


def draw_magnification(found: Found) -> None:
    """Against the focal depth: how well effort follows the level, mean Ω over common states, and gain."""
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(9.5, 3), layout="constrained")
    for task, colour in zip(GRADED, colours(len(GRADED)), strict=True):
        for context, style in zip(CONTEXTS, ("-", ":"), strict=True):
            rows = [row for row in found["depths"][context] if row["task"] == task]
            rhos = np.array([[row["rho"][end] for end in ("value", "low", "high")] for row in rows]).T
            name = task if context == "jump" else None
            left.errorbar(DEPTHS, rhos[0], np.abs(rhos[1:] - rhos[0]), color=colour, ls=style, capsize=2, label=name)
            middle.plot(DEPTHS, [row["common"]["value"] for row in rows], color=colour, ls=style, label=name)
    for (name, one), colour in zip(found["magnification"].items(), colours(4), strict=False):
        if "depths" in one:
            gains = [float("nan") if gain is None else gain for gain in one["gain"]]
            right.plot(one["depths"], gains, color=colour, marker="o", ms=3, label=name)
    titles = ("rho of level and Ω (dotted: cached)", "mean Ω over common states", "gain over the logit lens")
    for panel, title in zip((left, middle, right), titles, strict=True):
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("focal depth m")
        panel.legend(fontsize=7, frameon=False)
    save(figure, "magnification")


def save(figure: Any, name: str) -> None:
    """As SVG without a date, so that the same numbers give the same file."""
    figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})
