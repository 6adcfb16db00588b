"""Generated domains with known difficulty; one short file each."""

from hyperlens.errors import InputError
from hyperlens.tasks.graded.code import CODE
from hyperlens.tasks.graded.graded import LEVELS, VARIANTS, Chain, Fragment, GradedTask, Variant, check_levels
from hyperlens.tasks.graded.knowledge import KNOWLEDGE
from hyperlens.tasks.graded.logic import LOGIC
from hyperlens.tasks.graded.mathematics import MATHEMATICS

GRADED: dict[str, GradedTask] = {task.name: task for task in (MATHEMATICS, CODE, LOGIC, KNOWLEDGE)}


def find_task(name: str) -> tuple[GradedTask, str]:
    """The task and the variant of it that `name` means: `logic`, or `logic:plain`. Raises InputError where there is none."""
    task, _, variant = name.partition(":")
    if task not in GRADED:
        raise InputError(f'there is no task "{task}"; choose from {", ".join(GRADED)}')
    if variant and variant not in VARIANTS:
        raise InputError(f'task "{task}" has no variant "{variant}"; choose from {", ".join(VARIANTS)}')
    return GRADED[task], variant or "matched"


__all__ = [
    "CODE",
    "GRADED",
    "KNOWLEDGE",
    "LEVELS",
    "LOGIC",
    "MATHEMATICS",
    "VARIANTS",
    "Chain",
    "Fragment",
    "GradedTask",
    "Variant",
    "check_levels",
    "find_task",
]
