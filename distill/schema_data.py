"""The sections of a recipe that say where problems and published traces come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.section import RUNTIME, Section

R1_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""DeepSeek-R1's own advice for mathematics (arXiv 2501.12948; model card)."""


class CodeTests(Section):
    """Which columns of a data set hold a program's tests: those of a published one, by name."""

    kind: Literal["humaneval", "mbpp", "livecodebench", "apps"]
    columns: dict[str, str] = Field(default_factory=dict)
    """Columns that are named otherwise than in the published one: `{prompt: problem}`."""
    most: int | None = Field(default=None, ge=1)
    """No more tests than this for a problem: LiveCodeBench has some with hundreds of megabytes."""


class SourceSpec(Section):
    """Where problems come from: exactly one of `task`, `dataset`, `file` or `call`."""

    name: str = ""
    task: str | None = None
    """A reasoning-gym task, with `config`, `seed` and `size`."""
    config: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    dataset: str | None = None
    """A data set on the hub or a local folder, with `subset`, `split`, `revision`."""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    file: str | None = None
    """A JSONL or Parquet file."""
    call: str | None = None
    """`pkg.mod:function` or `file.py:function` that returns problems."""
    question: str = "problem"
    """Column with the question's text, or with a list of messages."""
    gold: str | None = "answer"
    """Column with the reference answer; null: they have none, and are wanted all the same."""
    tests: CodeTests | str | None = None
    """Tests of programs: `{kind: humaneval}` and the like, or the column that holds them."""
    carry: dict[str, str] = Field(default_factory=dict)
    """Columns that a grader needs, by the name it looks for them under: `{choices: options}`,
    `{schema: json_schema}`, `{instruction_id_list: instruction_id_list, kwargs: kwargs}`."""
    instruction: str | None = None
    """Appended to this source's questions instead of `problems.instruction`."""
    size: int | None = Field(default=None, ge=1)
    rows: Annotated[int | None, RUNTIME] = Field(default=None, ge=1)
    """About how many there are, for a plan made before the data is here."""
    difficulty: str | None = None
    """A label for the report, or with a leading `=` the column that holds it."""
    domain: str = ""
    """Its field (math, code, stem, logic, general ...), which `select.balance` counts; or with a
    leading `=` the column that holds it."""
    licence: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> SourceSpec:
        given = [k for k in ("task", "dataset", "file", "call") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError(
                f"a source needs exactly one of task, dataset, file, call; found {given or 'none'}"
            )
        if self.task and not self.size:
            raise ValueError(f"source task '{self.task}' needs a size")
        return self

    @property
    def without_gold(self) -> bool:
        """Whether this source says that its problems have no reference answers."""
        return self.gold is None and not self.task

    @property
    def label(self) -> str:
        """The name under which the report and `select.mix` count this source."""
        return self.name or self.task or self.dataset or self.file or self.call or ""


class Problems(Section):
    """The questions, and how they are asked."""

    sources: list[SourceSpec] = Field(default_factory=list)
    instruction: str = R1_INSTRUCTION
    """Appended to every question on a line of its own."""
    system: str | None = None
    """R1 was used without a system prompt (model card)."""
    limit: int | None = Field(default=None, ge=1)
    heldout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the problems, chosen by hash of the problem, that is kept for evaluation."""
    require_gold: bool = True
    """Leave out problems without a reference answer, unless their source says `gold: null`."""


class ImportSpec(Section):
    """Published traces to start from instead of a teacher."""

    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    file: str | None = None
    format: Literal["auto", "generations", "single", "messages", "sharegpt"] = "auto"
    question: str = "problem"
    gold: str | None = "answer"
    trace: str | None = None
    """Column with the trace or the list of traces; found by `format` where not given."""
    teacher: str = ""
    """Who made them, for the report."""
    open_tag: str = "<think>"
    close_tag: str = "</think>"
    limit: int | None = Field(default=None, ge=1)
    domain: str = ""
    """As of a source of problems."""
    licence: str = ""
    heldout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_kind(self) -> ImportSpec:
        if bool(self.dataset) == bool(self.file):
            raise ValueError("traces need exactly one of dataset, file")
        return self
