"""A report on a result, as one HTML file."""

from .options import ReportOptions
from .page import report

__all__ = ["ReportOptions", "report"]
