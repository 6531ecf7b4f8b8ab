"""Grading: is a trace's final answer right? `extract` finds it, graders judge it, `run` does all.

from distill.grade import grade_math
grade_math("1/2", "<think>...</think> so \\\\boxed{0.5}").correct
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Judge", "grade_code", "grade_math", "grade_traces", "grading_identity"]

if TYPE_CHECKING:
    from distill.grade.one import grade_code, grade_math
    from distill.grade.run import grade_traces, grading_identity
    from distill.grade.service import Judge

_WHERE = {
    "Judge": "distill.grade.service",
    "grade_code": "distill.grade.one",
    "grade_math": "distill.grade.one",
    "grade_traces": "distill.grade.run",
    "grading_identity": "distill.grade.run",
}


def __getattr__(name: str) -> Any:
    # On first use: a grading worker imports this package and must stay small.
    import importlib

    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'distill.grade' has no attribute {name!r}")
