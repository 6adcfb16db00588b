"""Runs: what a study is, its folder, how it is measured, and what it found."""

from hyperlens.runs.comparison import Broken, BrokenToken, Comparison, compare_runs
from hyperlens.runs.execute import draw_samples, run_study
from hyperlens.runs.run import Run, open_run
from hyperlens.runs.spec import ContrastSpec, LensSpec, ModelSpec, Study, read_study
from hyperlens.runs.summary import choose_depths, find_trends, group_effort, tabulate_samples
from hyperlens.tasks import TaskSpec

__all__ = [
    "Broken",
    "BrokenToken",
    "Comparison",
    "ContrastSpec",
    "LensSpec",
    "ModelSpec",
    "Run",
    "Study",
    "TaskSpec",
    "choose_depths",
    "compare_runs",
    "draw_samples",
    "find_trends",
    "group_effort",
    "open_run",
    "read_study",
    "run_study",
    "tabulate_samples",
]
