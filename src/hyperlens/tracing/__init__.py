"""trace(model, samples, lens) -> Trajectory: batched, in bounded memory."""

from hyperlens.tracing.limits import Limits
from hyperlens.tracing.traces import resolve_depth, trace

__all__ = ["Limits", "resolve_depth", "trace"]
