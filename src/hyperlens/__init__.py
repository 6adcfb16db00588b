"""HyperLens: how hard a language model works on a text, and where in its depth it makes up its mind.

The public names are loaded on first use, so that `import hyperlens` is quick and the half that reads saved results never
imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperlens.anomalies import compare_with_normal, fit_detector, gather_features
    from hyperlens.causal import (
        Ablation,
        CausalBasis,
        Responses,
        align_responses,
        average_alignment,
        correlate_influences,
        draw_directions,
        extract_causal_basis,
        find_components,
        measure_influence,
    )
    from hyperlens.certificate import Certificate
    from hyperlens.errors import HyperLensError, HyperLensWarning
    from hyperlens.evaluation import Evaluation, evaluate_lenses
    from hyperlens.lenses import HyperLens, Lens, LogitLens, TunedLens, export_lens, load_lens, save_lens
    from hyperlens.models import Model, check_model, disable_adapters, load_model
    from hyperlens.monitoring import EffortCallback
    from hyperlens.monitoring.generation import Generated, LiveToken, Monitor
    from hyperlens.neighbours import measure_neighbours, pool_neighbours
    from hyperlens.report import write_comparison, write_report
    from hyperlens.runs import (
        Comparison,
        ContrastSpec,
        LensSpec,
        ModelSpec,
        Run,
        Study,
        TaskSpec,
        compare_runs,
        open_run,
        read_study,
        run_study,
    )
    from hyperlens.tasks import Sample, read_samples
    from hyperlens.tracing import (
        ExitClassifier,
        Limits,
        differentiate_steps,
        fit_exit_classifier,
        load_exit_classifier,
        save_exit_classifier,
        trace,
    )
    from hyperlens.training.finetuning.recipe import FineTuneRecipe
    from hyperlens.training.finetuning.tuning import FineTuned, fine_tune
    from hyperlens.training.lens_recipe import LensRecipe
    from hyperlens.training.tuning import tune_lens
    from hyperlens.trajectory import Trajectory, measure_effort, measure_magnification, pool_effort

_HOMES = {
    "Ablation": "causal",
    "CausalBasis": "causal",
    "Certificate": "certificate",
    "Comparison": "runs",
    "ContrastSpec": "runs",
    "EffortCallback": "monitoring",
    "Evaluation": "evaluation",
    "ExitClassifier": "tracing",
    "FineTuneRecipe": "training.finetuning.recipe",
    "FineTuned": "training.finetuning.tuning",
    "Generated": "monitoring.generation",
    "HyperLens": "lenses",
    "HyperLensError": "errors",
    "HyperLensWarning": "errors",
    "Lens": "lenses",
    "LensRecipe": "training.lens_recipe",
    "LensSpec": "runs",
    "Limits": "tracing",
    "LiveToken": "monitoring.generation",
    "LogitLens": "lenses",
    "Model": "models",
    "ModelSpec": "runs",
    "Monitor": "monitoring.generation",
    "Responses": "causal",
    "Run": "runs",
    "Sample": "tasks",
    "Study": "runs",
    "TaskSpec": "runs",
    "Trajectory": "trajectory",
    "TunedLens": "lenses",
    "align_responses": "causal",
    "average_alignment": "causal",
    "check_model": "models",
    "compare_runs": "runs",
    "compare_with_normal": "anomalies",
    "correlate_influences": "causal",
    "differentiate_steps": "tracing",
    "disable_adapters": "models",
    "draw_directions": "causal",
    "evaluate_lenses": "evaluation",
    "export_lens": "lenses",
    "extract_causal_basis": "causal",
    "find_components": "causal",
    "fine_tune": "training.finetuning.tuning",
    "fit_detector": "anomalies",
    "fit_exit_classifier": "tracing",
    "gather_features": "anomalies",
    "load_exit_classifier": "tracing",
    "load_lens": "lenses",
    "load_model": "models",
    "measure_effort": "trajectory",
    "measure_influence": "causal",
    "measure_magnification": "trajectory",
    "measure_neighbours": "neighbours",
    "open_run": "runs",
    "pool_effort": "trajectory",
    "pool_neighbours": "neighbours",
    "read_samples": "tasks",
    "read_study": "runs",
    "run_study": "runs",
    "save_exit_classifier": "tracing",
    "save_lens": "lenses",
    "trace": "tracing",
    "tune_lens": "training.tuning",
    "write_comparison": "report",
    "write_report": "report",
}

__all__ = [
    "Ablation",
    "CausalBasis",
    "Certificate",
    "Comparison",
    "ContrastSpec",
    "EffortCallback",
    "Evaluation",
    "ExitClassifier",
    "FineTuneRecipe",
    "FineTuned",
    "Generated",
    "HyperLens",
    "HyperLensError",
    "HyperLensWarning",
    "Lens",
    "LensRecipe",
    "LensSpec",
    "Limits",
    "LiveToken",
    "LogitLens",
    "Model",
    "ModelSpec",
    "Monitor",
    "Responses",
    "Run",
    "Sample",
    "Study",
    "TaskSpec",
    "Trajectory",
    "TunedLens",
    "align_responses",
    "average_alignment",
    "check_model",
    "compare_runs",
    "compare_with_normal",
    "correlate_influences",
    "differentiate_steps",
    "disable_adapters",
    "draw_directions",
    "evaluate_lenses",
    "export_lens",
    "extract_causal_basis",
    "find_components",
    "fine_tune",
    "fit_detector",
    "fit_exit_classifier",
    "gather_features",
    "load_exit_classifier",
    "load_lens",
    "load_model",
    "measure_effort",
    "measure_influence",
    "measure_magnification",
    "measure_neighbours",
    "open_run",
    "pool_effort",
    "pool_neighbours",
    "read_samples",
    "read_study",
    "run_study",
    "save_exit_classifier",
    "save_lens",
    "trace",
    "tune_lens",
    "write_comparison",
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
