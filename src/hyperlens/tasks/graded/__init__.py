"""Generated domains with known difficulty; one short file each."""

from hyperlens.tasks.graded.arithmetic import ARITHMETIC
from hyperlens.tasks.graded.graded import GradedTask, is_held_out
from hyperlens.tasks.graded.knowledge import KNOWLEDGE

GRADED: dict[str, GradedTask] = {task.name: task for task in (KNOWLEDGE, ARITHMETIC)}

__all__ = ["ARITHMETIC", "GRADED", "KNOWLEDGE", "GradedTask", "is_held_out"]
