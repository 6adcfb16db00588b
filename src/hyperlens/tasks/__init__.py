"""Samples and the tasks that give them."""

from hyperlens.tasks.files import read_samples
from hyperlens.tasks.graded import GRADED, GradedTask
from hyperlens.tasks.sample import Sample, Task

__all__ = ["GRADED", "GradedTask", "Sample", "Task", "read_samples"]
