"""The report: one page, one Markdown file and one JSON file that carry the same numbers."""

from distill.report.card import write_model_card
from distill.report.write import Report, write_report

__all__ = ["Report", "write_model_card", "write_report"]
