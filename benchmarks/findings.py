"""Every number and figure of docs/findings.md, from the committed weights.

    .venv/bin/python benchmarks/findings.py [--limit 200] [--seed 1] [--only draw]

Measures the reference model on its graded tasks, the same architecture with random weights, and the models in
`$HYPERLENS_SHARED/models` (default `../shared/models`; left out, with a note, where they are not there). Writes
docs/findings.json and the figures, and puts the tables between their marks in docs/findings.md and README.md. `--only draw`
does the latter two from a findings.json that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from scipy import stats
from transformers import set_seed

import hyperlens as hl
from hyperlens import effort
from hyperlens.artefact import to_json
from hyperlens.contrast import (
    Interval,
    compare_trends,
    estimate_auroc,
    estimate_curve,
    estimate_matched_trend,
    estimate_mean,
    estimate_trend,
)
from hyperlens.runs import choose_depths, find_trends, group_effort, tabulate_samples
from hyperlens.tasks import GRADED, LEVELS
from hyperlens.training.recipe import Recipe, build_model, build_tokenizer
from hyperlens.trajectory import average_tokens, measure_magnification

DOCS = Path(__file__).parent.parent / "docs"
DEPTHS = (0, 1, 2, 4, 8)
CONTEXTS = ("jump", "cached")
STORY_TEXTS, STORY_TOKENS = 40, 120
SEPARATION = ("gain_in_rho", "rho_common", "auroc", "auroc_1_3")
MAGNIFICATION = ("gain", "path_ratio", "monotonicity", "directional")
Found = dict[str, Any]


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=200, help="questions per level")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["draw"])
    given = parser.parse_args()
    file = DOCS / "findings.json"
    if given.only is None:
        found = measure_all(given.limit, given.seed)
        file.write_text(to_json(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(file.read_text(encoding="utf-8"))
    tables = make_tables(found)
    fill_tables(DOCS / "findings.md", {name: table for name, table in tables.items() if name != "summary"})
    fill_tables(DOCS.parent / "README.md", {"summary": tables["summary"]})
    draw_figures(found)


def measure_all(limit: int, seed: int) -> Found:
    """All sections; each says how long it took."""
    began = time.monotonic()
    reference = hl.load_model("reference")
    samples = draw_samples(limit, seed)
    traced = {context: hl.trace(reference, samples, hl.HyperLens(DEPTHS, context), reference="output") for context in CONTEXTS}
    shared = Path(os.environ.get("HYPERLENS_SHARED", DOCS.parent.parent / "shared")) / "models"
    sections: dict[str, Callable[[], Any]] = {
        "levels": lambda: {context: summarise(trajectory, seed) for context, trajectory in traced.items()},
        "depths": lambda: {context: compare_depths(trajectory, seed) for context, trajectory in traced.items()},
        "curves": lambda: draw_curves(traced["jump"], seed),
        "length": lambda: compare_lengths(reference, traced["jump"], limit, seed),
        "written": lambda: compare_written(reference, limit, seed),
        "elsewhere": lambda: compare_elsewhere(reference, limit, seed),
        "magnification": lambda: measure_models(reference, traced["jump"], samples, shared, seed),
        "linearity": lambda: {context: check_linearity(trajectory, seed) for context, trajectory in traced.items()},
        "stories": lambda: compare_stories(shared, seed),
    }
    found: Found = {
        "about": {
            "limit": limit,
            "seed": seed,
            "samples": len(samples),
            "model": reference.fingerprint,
            "versions": traced["jump"].manifest["versions"],
            "threads": torch.get_num_threads(),
        }
    }
    for name, measure in sections.items():
        found[name] = measure()
        print(f"{time.monotonic() - began:6.0f} s  {name}", flush=True)
    return found


def draw_samples(limit: int, seed: int, variant: str = "matched") -> list[hl.Sample]:
    """`limit` questions per domain and level."""
    return [sample for task in GRADED.values() for sample in task.samples(limit, seed, variant)]


def summarise(trajectory: hl.Trajectory, seed: int) -> Found:
    """Does Ω rise with the level, in which domains, at which depth; also once confidence and length are matched?"""
    table = tabulate_samples(trajectory)
    return {
        "groups": group_effort(trajectory, table, seed),
        "trends": find_trends(trajectory, table, seed),
        "choices": choose_depths(trajectory, table, seed),
    }


def compare_depths(trajectory: hl.Trajectory, seed: int) -> list[Found]:
    """Does a deeper focus separate better than the logit lens: over each depth's own and over the common states."""
    table = tabulate_samples(trajectory)
    rows = []
    for task in GRADED:
        mine = table[table["task"] == task]
        levels = mine["level"].to_numpy(dtype=float)
        for depth in DEPTHS:
            own, common = (mine[f"{name}@{depth}"].to_numpy(dtype=float) for name in ("effort", "common_effort"))
            logit = mine["effort@0"].to_numpy(dtype=float)
            rows.append(
                {
                    "task": task,
                    "depth": depth,
                    "effort": as_dict(estimate_mean(own, seed)),
                    "common": as_dict(estimate_mean(common, seed)),
                    "rho": as_dict(estimate_trend(levels, own, seed)),
                    "rho_common": as_dict(estimate_trend(levels, common, seed)),
                    "auroc": as_dict(estimate_auroc(own[levels == 1], own[levels == 5], seed)),
                    "auroc_1_3": as_dict(estimate_auroc(own[levels == 1], own[levels == 3], seed)),
                    "gain_in_rho": as_dict(compare_trends(levels, own, logit, seed)),
                }
            )
    return rows


def draw_curves(trajectory: hl.Trajectory, seed: int) -> list[Found]:
    """Mean confidence at each state by domain, level and depth, with its interval."""
    curves = []
    for depth in DEPTHS:
        confidence = average_tokens(trajectory, trajectory.confidence(depth).astype(float))
        for task in GRADED:
            for level in LEVELS:
                rows = ((trajectory.samples["task"] == task) & (trajectory.samples["level"] == level)).to_numpy()
                mean, low, high = (part.round(4).tolist() for part in estimate_curve(confidence[rows], seed))
                curves.append({"task": task, "level": level, "depth": depth, "mean": mean, "low": low, "high": high})
    return curves


def compare_lengths(model: hl.Model, matched: hl.Trajectory, limit: int, seed: int) -> list[Found]:
    """The control: the same numbers of steps without the aside, and the effect of length alone at each level."""
    plain = hl.trace(model, draw_samples(limit, seed, "plain"), hl.HyperLens(DEPTHS), reference="output")
    tables = {"matched": tabulate_samples(matched), "plain": tabulate_samples(plain)}
    rows = []
    for task in GRADED:
        for depth in DEPTHS:
            found: Found = {"task": task, "depth": depth}
            for name, table in tables.items():
                mine = table[table["task"].str.split(":").str[0] == task]
                levels, values = mine["level"].to_numpy(dtype=float), mine[f"effort@{depth}"].to_numpy(dtype=float)
                lengths = mine["tokens"].to_numpy(dtype=float)
                found[name] = {
                    "rho": as_dict(estimate_trend(levels, values, seed)),
                    "means": [float(np.nanmean(values[levels == level])) for level in LEVELS],
                    "n": [int((levels == level).sum()) for level in LEVELS],
                    "tokens": [float(lengths[levels == level].mean()) for level in LEVELS],
                    "accuracy": [float(mine["correct"][mine["level"] == level].mean()) for level in LEVELS],
                }
                if name == "matched":
                    within = [estimate_trend(lengths[levels == level], values[levels == level], seed) for level in LEVELS]
                    found["length_within_level"] = float(np.nanmean([one.value for one in within]))
                    found["length_taken_out"] = as_dict(estimate_trend(levels, values, seed, (lengths,)))
            rows.append(found)
    return rows


def compare_written(model: hl.Model, limit: int, seed: int) -> list[Found]:
    """Effort per answer token, and over the whole answer, where the steps are written out."""
    written = hl.trace(model, draw_samples(limit, seed, "stepwise"), hl.HyperLens(DEPTHS), reference="output")
    table = tabulate_samples(written)
    pooled = hl.pool_effort(written)
    rows = []
    for task in GRADED:
        mine = (table["task"] == f"{task}:stepwise").to_numpy()
        levels = table["level"].to_numpy(dtype=float)[mine]
        for depth in (0, 2):
            mean, total = (pooled[name].sel(focal_depth=depth).values[mine] for name in ("mean", "sum"))
            rows.append(
                {
                    "task": task,
                    "depth": depth,
                    "accuracy": [float(table["correct"][mine][levels == level].mean()) for level in LEVELS],
                    "mean": [float(np.nanmean(mean[levels == level])) for level in LEVELS],
                    "sum": [float(np.nanmean(total[levels == level])) for level in LEVELS],
                    "rho": as_dict(estimate_trend(levels, mean, seed)),
                }
            )
    return rows


def compare_elsewhere(model: hl.Model, limit: int, seed: int) -> list[Found]:
    """Accuracy, confidence and effort with the operands and in the wording that training shows at level 1 alone."""
    rows = []
    for variant in ("wide", "reworded"):
        table = tabulate_samples(hl.trace(model, draw_samples(limit, seed, variant), hl.LogitLens(), reference="output"))
        for task in GRADED:
            cells = [table[(table["task"] == f"{task}:{variant}") & (table["level"] == level)] for level in LEVELS]
            means = {
                name: [float(cell[column].to_numpy(dtype=float).mean()) for cell in cells]
                for name, column in {"accuracy": "correct", "confidence": "confidence", "effort": "effort@0"}.items()
            }
            rows.append({"task": task, "variant": variant, "n": [len(cell) for cell in cells], **means})
    return rows


def measure_models(
    reference: hl.Model, trajectory: hl.Trajectory, samples: list[hl.Sample], shared: Path, seed: int
) -> dict[str, Found]:
    """Gain, path ratio, monotonicity and directional gain: trained, with random weights, and on models of others."""
    few = samples[:: max(1, len(samples) // 400)]
    set_seed(seed)
    untrained = hl.load_model(build_model(Recipe(), len(build_tokenizer())), build_tokenizer())
    found = {
        "reference": magnify(reference, trajectory, [sample.prompt for sample in few]),
        "random weights": magnify(
            untrained, hl.trace(untrained, few, hl.HyperLens(DEPTHS), reference="output"), [sample.prompt for sample in few]
        ),
    }
    for name in ("stories260K", "bitllama_3M"):
        if (shared / name).is_dir() and (shared / "bitllama_3M").is_dir():
            model = hl.load_model(shared / name)
            texts = write_stories(hl.load_model(shared / "bitllama_3M"), seed)
            depths = tuple(depth for depth in DEPTHS if depth < model.layers - 1)
            traced = hl.trace(model, texts, hl.HyperLens(depths), "all")
            starts = [ids[: 20 + 5 * number % 80] for number, ids in enumerate(texts)]
            found[name] = magnify(model, traced, [str(model.tokenizer.decode(ids, skip_special_tokens=True)) for ids in starts])
        else:
            found[name] = {"left_out": f"{name}, or bitllama_3M which writes the stories, is not in the shared models"}
    return found


def magnify(model: hl.Model, trajectory: hl.Trajectory, prompts: Iterable[str]) -> Found:
    """The four numbers of METHOD §6 at each depth."""
    magnification = measure_magnification(trajectory)
    depths = tuple(trajectory.focal_depths)
    slopes = hl.differentiate_steps(model, list(prompts), depths)
    return {
        "tokens": int(trajectory.data.sizes["token"]),
        "prompts": int(slopes.sizes["sample"]),
        "depths": list(depths),
        "gain": magnification["gain"].values.tolist(),
        "path_ratio": magnification["path_ratio"].values.tolist(),
        "monotonicity": [nanmean(magnification["monotonicity"].values[place]) for place in range(len(depths))],
        "directional": [
            float(effort.measure_directional_gain(slopes.values[:, place, : model.layers - depth], slopes.values[:, 0]))
            for place, depth in enumerate(depths)
        ],
    }


def check_linearity(trajectory: hl.Trajectory, seed: int) -> list[Found]:
    """Ω and gain against m, and whether samples keep their ranks across m, over all levels and within each."""
    table = tabulate_samples(trajectory)
    rows = []
    for task in GRADED:
        mine = (table["task"] == task).to_numpy()
        owners = np.flatnonzero(mine)
        tokens = np.isin(trajectory.data["sample"].values, owners)
        levels = table["level"].to_numpy(dtype=float)[mine]
        logit = table["effort@0"].to_numpy(dtype=float)[mine]
        for depth in DEPTHS:
            values = table[f"effort@{depth}"].to_numpy(dtype=float)[mine]
            rows.append(
                {
                    "task": task,
                    "depth": depth,
                    "effort": float(np.nanmean(values)),
                    "common": float(np.nanmean(table[f"common_effort@{depth}"].to_numpy(dtype=float)[mine])),
                    "gain": float(effort.measure_gain(*(trajectory.confidence(m)[tokens].astype(float) for m in (depth, 0)))),
                    "ranks": as_dict(estimate_trend(logit, values, seed)),
                    "ranks_within_level": as_dict(estimate_matched_trend(logit, values, levels, strata=len(LEVELS), seed=seed)),
                }
            )
    return rows


def compare_stories(shared: Path, seed: int) -> Found:
    """Do story tokens that another model finds hard have more effort? Each of the two models is read, the other one judges."""
    if not all((shared / name).is_dir() for name in ("stories260K", "bitllama_3M")):
        return {"left_out": "the two story models are not in the shared models"}
    models = {name: hl.load_model(shared / name) for name in ("stories260K", "bitllama_3M")}
    texts = write_stories(models["bitllama_3M"], seed)
    rows = []
    for read, judge in (("stories260K", "bitllama_3M"), ("bitllama_3M", "stories260K")):
        depths = tuple(depth for depth in (0, 1, 2, 3, 4) if depth <= models[read].layers - 2)
        hardness = hl.trace(models[judge], texts, hl.LogitLens(), "all", readings=("entropy",)).to_numpy("entropy")[:, 0, -1]
        for context in CONTEXTS:
            trajectory = hl.trace(models[read], texts, hl.HyperLens(depths, context), "all")
            owners, omega = trajectory.data["sample"].values, hl.measure_effort(trajectory)["effort"].values
            confidence = trajectory.data["probability"].values[:, 0, -1].astype(float)
            for place, depth in enumerate(depths):
                plain, partial, auroc = [], [], []
                for owner in np.unique(owners):
                    mine = owners == owner
                    hard, values = hardness[mine].astype(float), omega[mine, place]
                    plain.append(stats.spearmanr(hard, values).statistic)
                    partial.append(partial_rho(hard, values, confidence[mine]))
                    low, high = np.quantile(hard, [0.25, 0.75])
                    auroc.append(
                        stats.mannwhitneyu(values[hard >= high], values[hard <= low]).statistic
                        / ((hard >= high).sum() * (hard <= low).sum())
                    )
                rows.append(
                    {
                        "read": read,
                        "judge": judge,
                        "context": context,
                        "depth": depth,
                        "tokens": len(owners),
                        "rho": as_dict(estimate_mean(np.array(plain), seed)),
                        "confidence_out": as_dict(estimate_mean(np.array(partial), seed)),
                        "auroc": as_dict(estimate_mean(np.array(auroc), seed)),
                    }
                )
    return {"texts": len(texts), "rows": rows}


def partial_rho(first: np.ndarray, second: np.ndarray, control: np.ndarray) -> float:
    """Spearman's rho with the ranks of the control taken out."""
    a, b, c = (stats.spearmanr(*pair).statistic for pair in ((first, second), (first, control), (second, control)))
    return float((a - b * c) / np.sqrt((1 - b**2) * (1 - c**2)))


def write_stories(model: hl.Model, seed: int) -> list[list[int]]:
    """Stories sampled from a model, as token ids; both story models share their vocabulary."""
    set_seed(seed)
    network: Any = model.network
    start = torch.full((STORY_TEXTS, 1), int(model.tokenizer.bos_token_id))
    made = network.generate(
        start,
        do_sample=True,
        temperature=0.9,
        top_k=0,
        max_new_tokens=STORY_TOKENS,
        min_new_tokens=STORY_TOKENS,
        pad_token_id=0,
    )
    return made.tolist()


def nanmean(values: np.ndarray) -> float:
    """Mean of what is not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def as_dict(interval: Interval) -> Found:
    """An interval as JSON."""
    return asdict(interval)


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


if __name__ == "__main__":
    main()
