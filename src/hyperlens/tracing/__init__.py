"""trace(model, samples, lens) -> Trajectory: batched, in bounded memory."""

from hyperlens.tracing.derivatives import differentiate_steps
from hyperlens.tracing.exits import ExitClassifier, fit_exit_classifier, load_exit_classifier, save_exit_classifier
from hyperlens.tracing.limits import Limits
from hyperlens.tracing.traces import resolve_depth, trace, trace_encoded

__all__ = [
    "ExitClassifier",
    "Limits",
    "differentiate_steps",
    "fit_exit_classifier",
    "load_exit_classifier",
    "resolve_depth",
    "save_exit_classifier",
    "trace",
    "trace_encoded",
]
