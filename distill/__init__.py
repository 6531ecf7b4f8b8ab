"""distill: from a reasoning teacher to a small reasoning student, with a report that proves it.

from distill import Recipe, run
report = run(Recipe.load("pocket"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Recipe", "__version__", "run"]

if TYPE_CHECKING:
    from distill.pipeline import run
    from distill.recipe import Recipe


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import distill` and `distill --help` stay instant.
    if name == "Recipe":
        from distill.recipe import Recipe

        return Recipe
    if name == "run":
        from distill.pipeline import run

        return run
    raise AttributeError(f"module 'distill' has no attribute {name!r}")
