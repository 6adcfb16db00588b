"""Effort while a model speaks: the trajectory of each token as it is generated, without changing what is generated."""

from hyperlens.monitoring.generation.generated import Generated
from hyperlens.monitoring.generation.monitor import Monitor
from hyperlens.monitoring.generation.token import LiveToken

__all__ = ["Generated", "LiveToken", "Monitor"]
