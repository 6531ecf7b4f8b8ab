"""The report: one page, one Markdown file and one JSON file that carry the same numbers."""

from distill.report.card import write_model_card
from distill.report.data_card import write_data_card
from distill.report.write import Report, write_report

__all__ = ["Report", "write_data_card", "write_model_card", "write_report"]
