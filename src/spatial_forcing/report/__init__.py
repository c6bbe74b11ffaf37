"""The report of a comparison: one HTML file that holds everything, one JSON file with every number."""

from spatial_forcing.report.check import ReportError
from spatial_forcing.report.page import write_report

__all__ = ["ReportError", "write_report"]
