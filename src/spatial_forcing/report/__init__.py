"""The report of a comparison: one HTML file that holds everything, one JSON file with every number."""

from spatial_forcing.json_record import ResultsError
from spatial_forcing.report.page import write_report

__all__ = ["ResultsError", "write_report"]
