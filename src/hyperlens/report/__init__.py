"""Reports: a finished run as one HTML page, as Markdown, and as figures for papers."""

from hyperlens.report.comparison import write_comparison
from hyperlens.report.data import ReportData
from hyperlens.report.figures import write_figures
from hyperlens.report.gather import gather_report
from hyperlens.report.page import render_report, write_report

__all__ = ["ReportData", "gather_report", "render_report", "write_comparison", "write_figures", "write_report"]
