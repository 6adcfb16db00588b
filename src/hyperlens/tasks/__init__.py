"""Samples and the tasks that give them."""

from hyperlens.tasks.files import read_samples
from hyperlens.tasks.graded import GRADED, LEVELS, VARIANTS, GradedTask, Variant, check_levels, find_task
from hyperlens.tasks.sample import Sample, Task

__all__ = [
    "GRADED",
    "LEVELS",
    "VARIANTS",
    "GradedTask",
    "Sample",
    "Task",
    "Variant",
    "check_levels",
    "find_task",
    "read_samples",
]
