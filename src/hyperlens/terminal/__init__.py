"""What the command line shows: tables and small drawings, with all that comes from texts and models made harmless."""

from hyperlens.terminal.anomalies import show_anomalies
from hyperlens.terminal.cells import draw_line, make_safe
from hyperlens.terminal.comparing import show_comparison
from hyperlens.terminal.finetuning import show_fine_tuned, show_fine_tuning
from hyperlens.terminal.lenses import show_evaluation
from hyperlens.terminal.monitoring import show_generation, write_prompt, write_token
from hyperlens.terminal.reading import show_certificate, show_neighbours, show_trajectory
from hyperlens.terminal.studies import show_plan, show_study
from hyperlens.terminal.training import show_lens_training, show_training, show_tuning

__all__ = [
    "draw_line",
    "make_safe",
    "show_anomalies",
    "show_certificate",
    "show_comparison",
    "show_evaluation",
    "show_fine_tuned",
    "show_fine_tuning",
    "show_generation",
    "show_lens_training",
    "show_neighbours",
    "show_plan",
    "show_study",
    "show_training",
    "show_trajectory",
    "show_tuning",
    "write_prompt",
    "write_token",
]
