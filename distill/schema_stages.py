"""The sections of a recipe that go beyond one training: stages, and merging with other models."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, field_serializer, model_validator

from distill.schema import PartSpec, Selection
from distill.schema_train import Training
from distill.section import Section

S = TypeVar("S", bound=Section)


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

    @model_validator(mode="after")
    def _agree(self) -> MergeSpec:
        if self.weights and len(self.weights) != len(self.models):
            raise ValueError(
                f"merge has {len(self.models)} models and {len(self.weights)} weights: "
                "give one weight for each model"
            )
        if self.weights and sum(self.weights) == 0:
            raise ValueError("the weights of merge sum to 0, and the mean divides by their sum")
        if self.method == "linear" and self.parameters:
            raise ValueError("merge.parameters are mergekit's; linear takes weights alone")
        if self.method == "slerp" and len(self.models) != 2:
            raise ValueError(f"slerp is between two models, found {len(self.models)}")
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
