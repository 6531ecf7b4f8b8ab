"""The sections of a recipe: every key there is, its default, and where the default is from.

Those that say where problems come from are in `schema_data`, those of training in `schema_train`;
their base is in `section`.

Unknown keys are refused. A field marked `RUNTIME` cannot change the result (concurrency, batch
size of an engine, number of workers): it stays out of a step's identity, so that changing it
never repeats work. This module imports no model library.
"""

from __future__ import annotations

import itertools
import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from distill.schema_data import R1_INSTRUCTION, ImportSpec, Problems, SourceSpec
from distill.schema_train import Lora, StudentSpec, Training
from distill.section import RUNTIME, Section


class About(Section):
    """What a reader wants to know before running it. Changes nothing."""

    summary: str = ""
    hardware: str = ""
    verified: Literal["real weights", "planned only"] = "planned only"
    data: str = ""
    sources: list[str] = Field(default_factory=list)


Count = Annotated[int, Field(ge=1)]


def _replicated(value: Any) -> Any:
    """A section in which `replicas` without an engine means vllm."""
    if not isinstance(value, dict) or not value.get("replicas"):
        return value
    if value.get("engine") not in (None, "", "vllm"):
        raise ValueError(f"replicas are local vllm servers, and the engine is '{value['engine']}'")
    return {**value, "engine": "vllm"}


class TeacherSpec(Section):
    """Who is sampled. `engine` is transformers, vllm, openai, replay or `file.py:Class`."""

    engine: str = ""
    """Empty: the catalog's engine for `model`."""
    model: str = ""
    revision: str | None = None
    base_urls: Annotated[list[str], RUNTIME] = Field(default_factory=list)
    api_key_env: Annotated[str, RUNTIME] = "OPENAI_API_KEY"
    """NAME of the environment variable with the key. The key itself never enters a recipe."""
    options: Annotated[dict[str, Any], RUNTIME] = Field(default_factory=dict)
    """Arguments of the engine (tensor_parallel_size, max_model_len, gpu_memory_utilization)."""
    quantization: str | None = None
    """Changes the text, hence not among the options."""
    price_in: Annotated[float, RUNTIME] = Field(default=0.0, ge=0)
    """Money per million prompt tokens."""
    price_out: Annotated[float, RUNTIME] = Field(default=0.0, ge=0)
    """Money per million completion tokens."""
    trust_remote_code: bool = False
    replicas: Annotated[Count | Literal["auto"] | None, RUNTIME] = None
    """With engine vllm: so many local servers, `auto` as many as the visible GPUs bear. None: one
    engine in the sampling process itself."""

    @model_validator(mode="before")
    @classmethod
    def _replicas_are_vllm(cls, value: Any) -> Any:
        return _replicated(value)


class BaselineSpec(TeacherSpec):
    """Another model to evaluate in the same go: `model` alone, or any key of a teacher's section.

    Without an engine it is sampled by the evaluation's.
    """

    name: str = Field(default="", pattern=r"^[\w.+-]*$")
    """What its rows are called; empty: the last part of the model's name."""
    template: str = ""
    """Empty: its own chat template. `student` is the student's; else a name or a .jinja file."""

    @property
    def role(self) -> str:
        """The name of its rows."""
        named = self.name or (self.model or self.engine).rstrip("/").rpartition("/")[2]
        return re.sub(r"[^\w.+-]+", "-", named)


class Sampling(Section):
    """How the teacher is sampled. R1's evaluation values by default.

    With `want` sampling is adaptive: a problem is done once it has `want` accepted traces (correct,
    and passed by the filters that look at one trace), after `max` samples, or when its posterior
    pass rate says that going on is not worth the tokens. Without `want` every problem gets `n`.
    """

    n: int = Field(default=4, ge=1, le=1024)
    want: int | None = Field(default=None, ge=1, le=16)
    """Accepted traces wanted of each problem; None: exactly `n` samples, judged afterwards."""
    max: int = Field(default=16, ge=1, le=1024)
    """With `want`: at most so many samples of a problem."""
    give_up: float = Field(default=0.02, ge=0, lt=1)
    """With `want`: a problem whose pass rate is very likely below this is given up early."""
    budget_tokens: int | None = Field(default=None, ge=1)
    """With `want`: completion tokens that all problems share, spread at round barriers."""
    budget_cost: float | None = Field(default=None, gt=0)
    """The same in money; when it is spent the step is done with what there is."""
    floor: float = Field(default=0.1, ge=0, le=1)
    """With a budget: the share of each round that is spread evenly over unfinished problems."""
    temperature: float = Field(default=0.6, ge=0, le=5)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=32768, ge=1)
    limits: list[int] = Field(default_factory=list)
    """Growing limits below `max_tokens`: what is cut off at one is continued under the next."""
    stop: list[str] = Field(default_factory=list)
    concurrency: Annotated[int, RUNTIME] = Field(default=128, ge=1)
    retries: Annotated[int, RUNTIME] = Field(default=5, ge=0)
    timeout_s: Annotated[float, RUNTIME] = Field(default=1800, gt=0)
    """Longest wait for the first byte of an answer: servers queue requests."""
    silence_s: Annotated[float, RUNTIME] = Field(default=120, gt=0)
    """Longest silence between two pieces of one answer, not the length of the answer."""
    max_cost: Annotated[float | None, RUNTIME] = Field(default=None, ge=0)
    """Spending cap in the currency of the prices; the run stops before it is passed."""
    accept_model_change: Annotated[bool, RUNTIME] = False
    """Go on where a server begins to answer with another model in the middle of a run."""

    @model_validator(mode="after")
    def _growing(self) -> Sampling:
        steps = [*self.limits, self.max_tokens]
        if any(a >= b for a, b in itertools.pairwise(steps)) or min(steps) < 1:
            raise ValueError(f"limits must grow and stay below max_tokens; found {steps}")
        budgets = [k for k in ("budget_tokens", "budget_cost") if getattr(self, k) is not None]
        if budgets and self.want is None:
            raise ValueError(f"{budgets[0]} is shared by adaptive sampling: set want too")
        if self.want is not None and self.want > self.max:
            raise ValueError(f"want ({self.want}) is more than max ({self.max}) can bring")
        return self


class PartSpec(Section):
    """A grader or filter by name with its parameters; written `name` or `{name: {key: value}}`."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and len(value) == 1 and not {"name", "params"} & set(value):
            ((name, params),) = value.items()
            return {"name": name, "params": params or {}}
        return value


class Grading(Section):
    """Who judges. `auto`: a reasoning-gym problem by its task, any other with gold by `math`."""

    graders: list[PartSpec] = Field(default_factory=lambda: [PartSpec(name="auto")])
    timeout_s: float = Field(default=5.0, gt=0)
    """Hard limit per answer; a check that takes longer is killed and counted as `error`."""
    workers: Annotated[int | None, RUNTIME] = Field(default=None, ge=1)
    combine: Literal["first", "all", "any"] = "first"
    """Of several graders the first that decides, `correct` only if all that apply say so, or if any
    does (docs/grading.md has the table)."""
    by_source: dict[str, list[PartSpec]] = Field(default_factory=dict)
    """Source -> the graders of its problems, instead of `graders`. A problem's own come first:
    `metadata["grader"]`."""

    @model_validator(mode="after")
    def _rules_by_source(self) -> Grading:
        for source, parts in self.by_source.items():
            if not parts:
                raise ValueError(f"by_source: '{source}' has no grader; leave it out for `graders`")
            if any(part.name == "judge" for part in parts):
                raise ValueError(
                    f"by_source: '{source}' names a judge, which is asked about what the rules of "
                    "all sources left open: name it last in graders"
                )
        return self

    def identity(self) -> dict[str, Any]:
        """As of any section; what is not used is left out, so that it changes nothing."""
        plain = super().identity()
        unused = {"combine"} if self.combine == "first" else set()
        unused |= set() if self.by_source else {"by_source"}
        return {key: value for key, value in plain.items() if key not in unused}


DEFAULT_FILTERS = [
    "truncated",
    "correct",
    "format",
    "thinking",
    "length",
    "repetition",
    "language",
    "readability",
    "refusals",
    "identity",
    "duplicates",
    "overlap",
]


class Selection(Section):
    """Which of the kept traces are trained on (docs/selection.md)."""

    pass_rate: tuple[float, float] | None = None
    """Only problems that the teacher solves so often, bounds included: `[0.0, 0.5]` are the hard
    half. Counted over all graded traces of a problem."""
    min_tries: int = Field(default=4, ge=1)
    """With `pass_rate`: problems with fewer graded traces are left out, for theirs is no rate."""
    per_problem: int = Field(default=1, ge=1)
    by: Literal["shortest", "longest", "random", "different", "judge"] = "random"
    """Which of a problem's traces: `shortest` of n is Kimi k1.5's (arXiv 2501.12599), `different`
    the least alike, `judge` those with the highest score of their grade."""
    per_source: Count | dict[str, Count] | None = None
    """At most so many examples of every source, or of the sources named."""
    max_examples: int | None = Field(default=None, ge=1)
    mix: dict[str, float] = Field(default_factory=dict)
    """Source -> its share of the examples (numbers below 1 that sum to 1), or source -> at most so
    many examples of it (whole numbers). R1: `{reasoning: 0.75, general: 0.25}` (v1, 2.3.3)."""
    balance: Literal["r1"] | dict[str, float] = Field(default_factory=dict)
    """The same by domain of the problems; `r1`: the shares of R1's own data (v2, Table 5)."""
    fill: bool = False
    """What cannot give its share gives all it has, and the others fill up to `max_examples`."""
    validation: float = Field(default=0, ge=0)
    """Share of the chosen problems that is kept from training, or (1 and more) their number."""

    @field_validator("mix", "balance")
    @classmethod
    def _shares_or_counts(cls, value: Any, info: ValidationInfo) -> Any:
        values = value.values() if isinstance(value, dict) else ()
        shares = all(0 < v < 1 for v in values) and abs(sum(values) - 1) < 1e-3
        counts = all(v >= 1 and v == int(v) for v in values)
        if values and not shares and not counts:
            raise ValueError(
                f"{info.field_name} holds shares below 1 that sum to 1, or whole numbers of "
                f"examples; found {dict(value)}"
            )
        return value

    @model_validator(mode="after")
    def _agree(self) -> Selection:
        if self.mix and self.balance:
            raise ValueError("give mix (by source) or balance (by domain), not both")
        if self.fill and not (self.max_examples and (self.mix or self.balance)):
            raise ValueError("fill needs shares in mix or balance, and max_examples to fill up to")
        if self.validation >= 1 and self.validation != int(self.validation):
            raise ValueError(
                "validation is a share below 1 or a whole number of problems; "
                f"found {self.validation:g}"
            )
        low, high = self.pass_rate or (0, 1)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"pass_rate is [low, high] within 0 and 1; found [{low:g}, {high:g}]")
        return self

    def identity(self) -> dict[str, Any]:
        """As of any section; what is not used is left out, so that it changes nothing."""
        plain = super().identity()
        unused = set() if self.pass_rate else {"pass_rate", "min_tries"}
        return {key: value for key, value in plain.items() if key not in unused}


class TaskSpec(Section):
    """One evaluation: `heldout` (this recipe's own), or a task of distill/tasks or lm-eval."""

    name: str
    file: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str | None = None
    limit: int | None = Field(default=None, ge=1)
    samples: int | None = Field(default=None, ge=1)
    since: date | None = None
    """Only problems of this day or later, where the task knows their dates (livecodebench)."""
    until: date | None = None
    """Only problems before this day."""
    task: str | None = None
    """A reasoning-gym task, with `size`, `seed` and `config`: `{name: sums, task: chain_sum}`."""
    size: int = Field(default=100, ge=1)
    seed: int = 1_000_000_000
    """reasoning-gym makes problem i from seed + i: far from the seeds of training problems."""
    config: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_kind(self) -> TaskSpec:
        given = [k for k in ("task", "dataset", "file") if getattr(self, k)]
        if len(given) > 1:
            raise ValueError(f"task '{self.name}' has {' and '.join(given)}: give one of them")
        return self


class Evaluation(Section):
    """Base and student under the same settings. R1's: temperature 0.6, top-p 0.95, k samples."""

    tasks: list[TaskSpec] = Field(default_factory=lambda: [TaskSpec(name="heldout")])
    samples: int = Field(default=4, ge=1)
    limit: int | None = Field(default=None, ge=1)
    """At most so many problems of each task, unless the task says otherwise."""
    temperature: float = Field(default=0.6, ge=0, le=5)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=32768, ge=1)
    base_at_best: bool = True
    """A second row for the base: its own template or few-shot, and its native context."""
    fewshot: int = Field(default=3, ge=0)
    teacher: bool = False
    """Evaluate the teacher too."""
    baselines: list[BaselineSpec] = Field(default_factory=list)
    """Other models, asked the same under the same settings."""
    engine: Annotated[str, RUNTIME] = "transformers"
    options: Annotated[dict[str, Any], RUNTIME] = Field(default_factory=dict)
    replicas: Annotated[Count | Literal["auto"] | None, RUNTIME] = None
    """With engine vllm: so many local servers for each model, as for the teacher."""

    @model_validator(mode="before")
    @classmethod
    def _replicas_are_vllm(cls, value: Any) -> Any:
        return _replicated(value)

    @field_validator("baselines", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return [as_teacher(item) for item in value] if isinstance(value, list) else value

    @field_validator("baselines")
    @classmethod
    def _told_apart(cls, value: list[BaselineSpec]) -> list[BaselineSpec]:
        taken = {"base", "base-best", "student", "teacher"}
        for spec in value:
            if not spec.role:
                raise ValueError("a baseline needs a model or an engine")
            if spec.role in taken:
                raise ValueError(f"a second row would be called '{spec.role}': give it a name")
            taken.add(spec.role)
        return value


FilterList = Annotated[list[PartSpec], Field(default_factory=lambda: _parts(DEFAULT_FILTERS))]


def _parts(names: list[str]) -> list[PartSpec]:
    return [PartSpec(name=name) for name in names]


def as_teacher(value: Any) -> Any:
    """`teacher: ./mine.py:Mine` means that engine; any other word means that model."""
    if isinstance(value, str):
        return {"engine": value} if ":" in value else {"model": value}
    return value


def as_student(value: Any) -> Any:
    """`student: Qwen/Qwen2.5-1.5B` means that base; with a colon, a trainer."""
    if isinstance(value, str):
        return {"trainer": value} if ":" in value else {"base": value}
    return value


__all__ = [
    "DEFAULT_FILTERS",
    "R1_INSTRUCTION",
    "RUNTIME",
    "About",
    "BaselineSpec",
    "Evaluation",
    "FilterList",
    "Grading",
    "ImportSpec",
    "Lora",
    "PartSpec",
    "Problems",
    "Sampling",
    "Section",
    "Selection",
    "SourceSpec",
    "StudentSpec",
    "TaskSpec",
    "TeacherSpec",
    "Training",
    "as_student",
    "as_teacher",
]
