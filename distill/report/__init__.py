"""The report: one page, one Markdown file and one JSON file that carry the same numbers."""
