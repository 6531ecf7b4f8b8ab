"""Filters: each returns None to keep a trace, or the reason to drop it."""
