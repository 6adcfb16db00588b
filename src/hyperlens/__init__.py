"""HyperLens: how hard a language model works on a text, and where in its depth it makes up its mind.

The public names are loaded on first use, so that `import hyperlens` is quick and the half that reads saved results never
imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperlens.certificate import Certificate
    from hyperlens.errors import HyperLensError, HyperLensWarning
    from hyperlens.lenses import HyperLens, Lens, LogitLens, TunedLens, load_lens, save_lens
    from hyperlens.models import Model, check_model, disable_adapters, load_model
    from hyperlens.report import write_report
    from hyperlens.runs import ContrastSpec, LensSpec, ModelSpec, Run, Study, TaskSpec, open_run, read_study, run_study
    from hyperlens.tasks import Sample, read_samples
    from hyperlens.tracing import Limits, differentiate_steps, trace
    from hyperlens.trajectory import Trajectory, measure_effort, measure_magnification, pool_effort

_HOMES = {
    "Certificate": "certificate",
    "ContrastSpec": "runs",
    "HyperLens": "lenses",
    "HyperLensError": "errors",
    "HyperLensWarning": "errors",
    "Lens": "lenses",
    "LensSpec": "runs",
    "Limits": "tracing",
    "LogitLens": "lenses",
    "Model": "models",
    "ModelSpec": "runs",
    "Run": "runs",
    "Sample": "tasks",
    "Study": "runs",
    "TaskSpec": "runs",
    "Trajectory": "trajectory",
    "check_model": "models",
    "TunedLens": "lenses",
    "differentiate_steps": "tracing",
    "disable_adapters": "models",
    "load_lens": "lenses",
    "load_model": "models",
    "measure_effort": "trajectory",
    "measure_magnification": "trajectory",
    "open_run": "runs",
    "pool_effort": "trajectory",
    "read_samples": "tasks",
    "read_study": "runs",
    "run_study": "runs",
    "save_lens": "lenses",
    "trace": "tracing",
    "write_report": "report",
}

__all__ = [
    "Certificate",
    "ContrastSpec",
    "HyperLens",
    "HyperLensError",
    "HyperLensWarning",
    "Lens",
    "LensSpec",
    "Limits",
    "LogitLens",
    "Model",
    "ModelSpec",
    "Run",
    "Sample",
    "Study",
    "TaskSpec",
    "Trajectory",
    "TunedLens",
    "check_model",
    "differentiate_steps",
    "disable_adapters",
    "load_lens",
    "load_model",
    "measure_effort",
    "measure_magnification",
    "open_run",
    "pool_effort",
    "read_samples",
    "read_study",
    "run_study",
    "save_lens",
    "trace",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hyperlens")
    if name in _HOMES:
        return getattr(import_module(f"hyperlens.{_HOMES[name]}"), name)
    raise AttributeError(f"module hyperlens has no attribute {name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
