"""The sections of a recipe that go beyond one training: stages, and merging with other models."""

from __future__ import annotations

import difflib
from typing import Any, Literal, TypeVar

from pydantic import Field, field_serializer, model_validator

from distill.schema import PartSpec, Selection
from distill.schema_train import Training
from distill.section import Section

S = TypeVar("S", bound=Section)


DIFFERENCES = (
    *("task_arithmetic", "ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties"),
    *("della", "della_linear", "model_stock", "sce"),
)
"""mergekit's methods that add differences from a base."""
OTHERS = ("slerp", "nuslerp", "multislerp", "arcee_fusion", "karcher")
METHODS = ("linear", *OTHERS, *DIFFERENCES)


class StageStudent(Section):
    """What a stage may change of its student; the rest is the stage before's."""

    method: Literal["full", "lora", "qlora"] = "full"
    positions: int | None = Field(default=None, ge=1)
    rope_theta: float | None = Field(default=None, gt=0)


class StageSpec(Section):
    """One of several trainings in a row (docs/stages.md).

    Each section holds only what differs from the recipe's; a stage trains the student of the stage
    before it.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    select: Selection = Field(default_factory=Selection)
    filters: list[PartSpec] | None = None
    """Instead of the recipe's filters, whole; None: the recipe's."""
    student: StageStudent = Field(default_factory=StageStudent)
    train: Training = Field(default_factory=Training)

    @field_serializer("select", "student", "train")
    def _what_was_said(self, section: Section) -> dict[str, Any]:
        # Defaults written out would override the recipe's own values when they are read again.
        return section.model_dump(mode="json", exclude_unset=True)

    def identity(self) -> dict[str, Any]:
        """Only what was said, for the same reason."""
        return self.model_dump(mode="json")


class MergeSpec(Section):
    """The student's weights with those of other models, between training and evaluation.

    Kimi k1.5's long2short is `{models: [student, SHORT]}`: the plain mean (arXiv 2501.12599).
    """

    models: list[str] = Field(min_length=2)
    """`student`, `base`, a run (`runs/NAME`: its student), a folder or a name of the hub."""
    weights: list[float] = Field(default_factory=list)
    """One for each model; empty: all alike."""
    method: str = "linear"
    """`linear` is ours; any other is mergekit's: slerp, ties, dare_ties, ..."""
    base: str = "base"
    """The model that `ties` and its like take differences from; named as in `models`."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """mergekit's parameters, such as `{t: 0.5}` of slerp or `{density: 0.5}` of ties."""

    @property
    def shares(self) -> list[float]:
        """A weight for each model."""
        return self.weights or [1.0 / len(self.models)] * len(self.models)

    @property
    def named(self) -> list[str]:
        """Every model that is read."""
        return list(dict.fromkeys([*self.models, *([self.base] if self.needs_base else [])]))

    @property
    def needs_base(self) -> bool:
        """Whether the method takes differences from `base`."""
        return self.method in DIFFERENCES

    def identity(self) -> dict[str, Any]:
        """As of any section; what is not used is left out, so that it changes nothing."""
        plain = super().identity()
        return {k: v for k, v in plain.items() if k != "base" or self.needs_base}

    @model_validator(mode="after")
    def _agree(self) -> MergeSpec:
        if self.method not in METHODS:
            close = difflib.get_close_matches(self.method, METHODS, n=1, cutoff=0.5)
            near = f"; did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"merge.method is one of {', '.join(METHODS)}{near}")
        if self.weights and len(self.weights) != len(self.models):
            raise ValueError(
                f"merge has {len(self.models)} models and {len(self.weights)} weights: "
                "give one weight for each model"
            )
        if self.weights and sum(self.weights) == 0:
            raise ValueError("the weights of merge sum to 0, and the mean divides by their sum")
        if self.method == "linear" and self.parameters:
            raise ValueError("merge.parameters are mergekit's; linear takes weights alone")
        if self.method in ("slerp", "nuslerp", "arcee_fusion") and len(self.models) != 2:
            raise ValueError(f"{self.method} is between two models, found {len(self.models)}")
        return self


def laid_over(section: S, changes: Section) -> S:
    """A copy of `section` with the keys that were said in `changes`.

    Sections inside (`train.lora`) are laid over in turn; everything else is replaced. Raises
    pydantic's ValidationError where the result is no valid section.
    """
    plain = section.model_dump()
    for name in changes.model_fields_set:
        new, old = getattr(changes, name), getattr(section, name)
        new = laid_over(old, new) if isinstance(old, Section) else new
        plain[name] = new.model_dump() if isinstance(new, Section) else new
    return type(section).model_validate(plain)
