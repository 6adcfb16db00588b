"""The lenses side by side on identical inputs."""

from hyperlens.evaluation.evaluation import Cost, Evaluation, Nearness, Row, Separation
from hyperlens.evaluation.lenses import evaluate_lenses, list_depths

__all__ = ["Cost", "Evaluation", "Nearness", "Row", "Separation", "evaluate_lenses", "list_depths"]
