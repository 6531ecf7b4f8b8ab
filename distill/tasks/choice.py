"""Grader of multiple-choice tasks: the same as the recipe's `choice`."""

from __future__ import annotations

from distill.grade.choice import Choice

__all__ = ["Choice"]
