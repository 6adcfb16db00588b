"""Runs: studies and their folders."""

from hyperlens.runs.study import Run, Study, open_run, run_study
from hyperlens.runs.summary import choose_depths, find_trends, group_effort, tabulate_samples

__all__ = ["Run", "Study", "choose_depths", "find_trends", "group_effort", "open_run", "run_study", "tabulate_samples"]
