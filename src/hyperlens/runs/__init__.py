"""Runs: studies and their folders."""

from hyperlens.runs.study import Run, Study, find_trends, group_effort, open_run, run_study

__all__ = ["Run", "Study", "find_trends", "group_effort", "open_run", "run_study"]
