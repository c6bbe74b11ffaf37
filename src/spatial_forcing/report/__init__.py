"""Report of a comparison: one self-contained HTML file, and one JSON file with every number."""

from spatial_forcing.json_record import ResultsError
from spatial_forcing.report.page import write_report

__all__ = ["ResultsError", "write_report"]
