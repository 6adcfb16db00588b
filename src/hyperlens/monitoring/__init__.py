"""Effort, confidence and accuracy of a frozen probe set while a model is trained."""

from hyperlens.monitoring.callback import EffortCallback
from hyperlens.monitoring.reading import Reading

__all__ = ["EffortCallback", "Reading"]
