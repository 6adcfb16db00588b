"""Every number of docs/neighbours.md: how other people's numbers go with Ω and with the level of graded questions.

    .venv/bin/python benchmarks/neighbours.py [--limit 100] [--seed 1] [--only draw]

Reads the reference model on its graded tasks, and the models in `$HYPERLENS_SHARED/models` (default `../shared/models`; left
out, with a note, where they are not there) on stories. Writes docs/neighbours.json and puts the tables between their marks
in docs/neighbours.md. `--only draw` does the latter from a neighbours.json that is there.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from findings import as_dict, draw_samples, write_stories
from findings_page import DOCS, Found, fill_tables, rho, tabulate
from scipy import stats

import hyperlens as hl
from hyperlens.artefact import to_json
from hyperlens.contrast import estimate_mean, estimate_trend
from hyperlens.neighbours import NEEDED, NUMBERS, find_exit
from hyperlens.tasks import GRADED, LEVELS

DEPTHS = (0, 2)
CONFIDENCES = {"exit_softmax": ("gap", 1), "exit_state": ("state_cosine", 2), "exit_classifier": ("exit_probability", 1)}
"""CALM's three: the reading of each, and the first state at which it may exit."""
PAGE = DOCS / "neighbours.md"


def main() -> None:
    """Measure, write, fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=100, help="questions per level")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["draw"])
    given = parser.parse_args()
    file = DOCS / "neighbours.json"
    if given.only is None:
        file.write_text(to_json(measure_all(given.limit, given.seed), indent=1) + "\n", encoding="utf-8")
    fill_tables(PAGE, make_tables(json.loads(file.read_text(encoding="utf-8"))))


def measure_all(limit: int, seed: int) -> Found:
    """Graded questions on the reference model, then stories on the shared ones."""
    model = hl.load_model("reference")
    classifier = hl.fit_exit_classifier(model, draw_samples(max(1, limit // 4), seed + 1), "answer")
    readings = (*NEEDED, classifier)
    trajectory = hl.trace(model, draw_samples(limit, seed), hl.HyperLens(DEPTHS), reference="output", readings=readings)
    shared = Path(os.environ.get("HYPERLENS_SHARED", DOCS.parent.parent / "shared")) / "models"
    return {
        "about": {
            "limit": limit,
            "seed": seed,
            "samples": len(trajectory.samples),
            "model": model.fingerprint,
            "classifier": {"positions": classifier.training["positions"], "fingerprint": classifier.fingerprint},
            "versions": trajectory.manifest["versions"],
        },
        "graded": compare_levels(trajectory, seed),
        "exits": compare_exits(trajectory),
        "stories": compare_stories(shared, seed),
    }


def compare_levels(trajectory: hl.Trajectory, seed: int) -> list[Found]:
    """Spearman's rho of each number with the level, with Ω, and with the level once Ω is taken out; Ω itself beside them."""
    pooled, effort = hl.pool_neighbours(trajectory), hl.pool_effort(trajectory)["mean"]
    tasks, levels = trajectory.samples["task"].to_numpy(), trajectory.samples["level"].to_numpy(dtype=float)
    rows = []
    for task in GRADED:
        mine = tasks == task
        for depth in DEPTHS:
            omega = effort.sel(focal_depth=depth).values[mine]
            for name in ("effort", *NUMBERS):
                values = omega if name == "effort" else pooled[name].sel(focal_depth=depth).values[mine]
                row: Found = {"task": task, "depth": depth, "number": name, "n": int(np.isfinite(values).sum())}
                row["means"] = [float(np.nanmean(values[levels[mine] == level])) for level in LEVELS]
                row["level"] = name_rho(estimate_trend(levels[mine], values, seed))
                if name != "effort":
                    row["effort"] = name_rho(estimate_trend(omega, values, seed))
                    row["beyond"] = name_rho(estimate_trend(levels[mine], values, seed, (omega,)))
                rows.append(row)
    return rows


def compare_exits(trajectory: hl.Trajectory) -> list[Found]:
    """CALM's three confidences on the logit lens: how well each tells whether the top token is final, and what exits give."""
    layers, final = trajectory.layers, trajectory.to_numpy("rank")[:, 0] == 0
    rows = []
    for name, (reading, first) in CONFIDENCES.items():
        confidence = trajectory.to_numpy(reading)[:, 0].astype(float)
        values, agrees = confidence[:, first:layers].ravel(), final[:, first:layers].ravel()
        above = stats.mannwhitneyu(values[agrees], values[~agrees]).statistic / (agrees.sum() * (~agrees).sum())
        left = np.array(find_exit(confidence, first=first))
        right = final[np.arange(len(final)), left.astype(int)]
        rows.append({"number": name, "auroc": float(above), "exit": float(left.mean()), "right": float(right.mean())})
    return rows


def compare_stories(shared: Path, seed: int) -> Found:
    """Within texts, over their tokens: Spearman's rho of each number with Ω, averaged over the texts."""
    if not all((shared / name).is_dir() for name in ("stories260K", "bitllama_3M")):
        return {"left_out": "the two story models are not in the shared models"}
    models = {name: hl.load_model(shared / name) for name in ("stories260K", "bitllama_3M")}
    texts = write_stories(models["bitllama_3M"], seed)
    rows: list[Found] = []
    for name, model in models.items():
        depths = tuple(depth for depth in DEPTHS if depth <= model.layers - 2)
        trajectory = hl.trace(model, texts, hl.HyperLens(depths), "all", readings=NEEDED)
        found, effort = hl.measure_neighbours(trajectory), hl.measure_effort(trajectory)["effort"].values
        owners = trajectory.data["sample"].values
        for place, depth in enumerate(depths):
            for number in found.data_vars:
                values = found[number].values[:, place]
                each = [estimate_rho(effort[owners == one, place], values[owners == one]) for one in np.unique(owners)]
                row = {"model": name, "depth": depth, "number": str(number), "mean": float(np.nanmean(values))}
                rows.append({**row, "effort": name_rho(estimate_mean(np.array(each), seed))})
    return {"texts": len(texts), "rows": rows}


def estimate_rho(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rho; NaN where a side never varies."""
    known = np.isfinite(one) & np.isfinite(other)
    varied = known.sum() > 2 and np.ptp(one[known]) > 0 and np.ptp(other[known]) > 0
    return float(stats.spearmanr(one[known], other[known]).statistic) if varied else np.nan


def name_rho(interval: Any) -> Found:
    """An interval around a correlation."""
    row = as_dict(interval)
    return {"rho": next(row.pop(name) for name in ("value", "mean") if name in row), **row}


def make_tables(found: Found) -> dict[str, str]:
    """Markdown tables by name."""
    graded = {(row["task"], row["depth"], row["number"]): row for row in found["graded"]}
    numbers = [name for name in NUMBERS if name not in ("silent", "decisive")]  # of the model's own token: as prediction depth
    names = ("effort", *numbers)
    tables = {
        f"levels_{depth}": tabulate(
            ["number", *(f"{task}, 1 → 5" for task in GRADED), *(f"rho, {task}" for task in GRADED)],
            [
                [
                    spell_name(name),
                    *(span(graded[task, depth, name]["means"]) for task in GRADED),
                    *(rho(graded[task, depth, name]["level"]) for task in GRADED),
                ]
                for name in names
            ],
        )
        for depth in DEPTHS
    }
    tables["effort"] = tabulate(
        ["number", *(f"with Ω, {task}" for task in GRADED), *(f"level, Ω out, {task}" for task in GRADED)],
        [
            [f"`{name}`", *(rho(graded[task, 0, name][kind]) for kind in ("effort", "beyond") for task in GRADED)]
            for name in numbers
        ],
    )
    tables["exits"] = tabulate(
        ["confidence", "AUROC", "mean exit", "right at the exit"],
        [[f"`{row['number']}`", row["auroc"], row["exit"], row["right"]] for row in found["exits"]],
    )
    if "rows" in found["stories"]:
        told = {(row["model"], row["depth"], row["number"]): row for row in found["stories"]["rows"]}
        columns = sorted({(model, depth) for model, depth, _ in told}, reverse=True)
        tables["stories"] = tabulate(
            ["number", *(f"{model}, m = {depth}: {what}" for model, depth in columns for what in ("mean", "rho with Ω"))],
            [
                [
                    f"`{name}`",
                    *(cell for key in columns for cell in (told[*key, name]["mean"], rho(told[*key, name]["effort"]))),
                ]
                for name in numbers
                if (*columns[0], name) in told
            ],
        )
    return tables


def spell_name(name: str) -> str:
    """A number as the tables call it."""
    return "Ω" if name == "effort" else f"`{name}`"


def span(means: list[float]) -> str:
    """The means of the first and the last level."""
    return f"{means[0]:.2f} → {means[-1]:.2f}"


if __name__ == "__main__":
    main()
