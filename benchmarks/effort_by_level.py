"""The README's figure and table: confidence and effort of the reference model by level of difficulty.

    .venv/bin/python benchmarks/effort_by_level.py [--limit 200] [--figure docs/effort_by_level.svg]

Prints one JSON object with the groups and trends of the study, and draws the mean confidence trajectory of each level.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

import hyperlens as hl
from hyperlens.artefact import to_json

DEPTHS = (0, 2)


def main() -> None:
    """Run the study in a folder that is thrown away, draw it, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=200, help="questions per level")
    parser.add_argument("--figure", type=Path, default=Path("docs/effort_by_level.svg"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = hl.Study(limit=chosen.limit, seed=1, focal_depths=DEPTHS)
        run = hl.run_study(hl.load_model("reference"), study, Path(folder) / "run")
        draw_figure(run, chosen.figure)
    print(to_json({"groups": run.groups, "trends": run.trends}))


def draw_figure(run: hl.Run, file: Path) -> None:
    """One panel per task and focal depth, one line per level: mean probability of the answer by state."""
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "hyperlens", "svg.fonttype": "path", "font.size": 9}
    from matplotlib import pyplot

    trajectory, tasks = run.trajectory, list(dict.fromkeys(group["task"] for group in run.groups))
    figure, panels = pyplot.subplots(len(DEPTHS), len(tasks), figsize=(8, 5.2), sharex=True, sharey=True)
    owners = trajectory.samples.iloc[trajectory.data["sample"].values].reset_index(drop=True)
    colours = pyplot.get_cmap("viridis")(np.linspace(0.85, 0.1, 4))
    for row, depth in enumerate(DEPTHS):
        for column, task in enumerate(tasks):
            panel = panels[row][column]
            for level in sorted(owners["level"][owners["task"] == task].unique()):
                mine = ((owners["task"] == task) & (owners["level"] == level)).to_numpy()
                panel.plot(
                    trajectory.confidence(depth)[mine].mean(0),
                    color=colours[level - 1],
                    label=f"{level} steps"[: 6 + (level > 1)],
                )
            name = "logit lens, m = 0" if depth == 0 else f"HyperLens, m = {depth}"
            panel.set_title(f"{task}, {name}", fontsize=9)
            panel.grid(alpha=0.25)
            panel.set_xlim(0, trajectory.layers)
            panel.legend(fontsize=7, loc="lower right")
    figure.supxlabel("state (0: embedding)", fontsize=9)
    figure.supylabel("probability of the model's answer", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
