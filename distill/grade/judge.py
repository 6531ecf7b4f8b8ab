"""A model as a judge, for traces that no rule can grade.

DeepSeek-R1 gave part of its rejection sampling to a model that saw the reference answer and the
response (arXiv 2501.12948v1, section 2.3.3); its general prompts have no checkable answer at all.
The judge sees the question, the reference where there is one, and the final answer: never the
thinking, whose self-praise would sway it. What it says is kept in the trace pool like a teacher's
traces, so it is bought once and survives any interruption.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, field_validator

from distill import models
from distill.errors import DistillError, TeacherError, UsageError
from distill.grade.base import UNDECIDED
from distill.grade.extract import answer_text, was_cut, without_answer
from distill.grade.verdict import PROMPT_VERSION, WORDING, prompt_for, settle
from distill.records import Grade, Outcome, Problem, Trace
from distill.resolve import code_version, resolve
from distill.schema import RUNTIME, PartSpec, Sampling, TeacherSpec

if TYPE_CHECKING:
    from distill.sample import Failure, SampleResult

NAME = "judge"
EMBEDDED = ("transformers", "vllm")
SERVED = ("openai", "replay")
FAILED_SHARE = 0.05


class JudgeSpec(TeacherSpec):
    """Who judges, written like a teacher, and how often it is asked."""

    samples: int = Field(default=1, ge=1, le=64)
    """Replies to each question; the majority decides."""
    temperature: float | None = Field(default=None, ge=0, le=5)
    """None: 0, or 0.6 with several samples, which would be alike otherwise."""
    max_tokens: int = Field(default=8192, ge=16)
    """Room for a judge that thinks before it speaks."""
    criteria: str = ""
    """What makes a response correct, instead of our words for it."""
    when: list[Outcome] = Field(default=["ungraded"])
    """Asked about traces that the graders before it left with one of these outcomes."""
    concurrency: Annotated[int, RUNTIME] = Field(default=128, ge=1)
    retries: Annotated[int, RUNTIME] = Field(default=5, ge=0)
    timeout_s: Annotated[float, RUNTIME] = Field(default=1800, gt=0)
    silence_s: Annotated[float, RUNTIME] = Field(default=120, gt=0)
    max_cost: Annotated[float | None, RUNTIME] = Field(default=None, ge=0)
    """Spending cap of this judge in the currency of its prices."""

    @field_validator("when")
    @classmethod
    def _undecided(cls, when: list[Outcome]) -> list[Outcome]:
        decided = [name for name in when if name not in UNDECIDED]
        if decided or not when:
            raise ValueError(f"a judge is asked after {', '.join(UNDECIDED)}; found {when}")
        return when

    @classmethod
    def of(cls, part: PartSpec) -> JudgeSpec:
        """The spec of a recipe's `{judge: {...}}`. Raises UsageError."""
        try:
            spec = cls.model_validate(part.params)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "its parameters"
            raise UsageError(
                f"grader 'judge': {key}: {first['msg']}",
                f"its keys: {', '.join(cls.model_fields)}",
            ) from None
        if not (spec.engine or spec.model):
            raise UsageError(
                "grader 'judge' names no model",
                "{judge: {engine: openai, model: NAME, base_urls: [http://HOST:8000/v1]}}",
            )
        return spec

    def sampling(self) -> Sampling:
        """How the judge is sampled."""
        temperature = self.temperature
        if temperature is None:
            temperature = 0.0 if self.samples == 1 else 0.6
        return Sampling(
            n=self.samples,
            temperature=temperature,
            top_p=0.95 if temperature else 1.0,
            max_tokens=self.max_tokens,
            concurrency=self.concurrency,
            retries=self.retries,
            timeout_s=self.timeout_s,
            silence_s=self.silence_s,
        )

    @property
    def version(self) -> str:
        """What stands for the prompt, the model and its sampling in a grade."""
        told = [*WORDING, self.identity()]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
        name = (self.model or self.engine).rpartition("/")[2]
        return f"{PROMPT_VERSION}; {name}; {digest}"


def engine_of(spec: JudgeSpec) -> str:
    """The engine's name: the spec's own, or the catalog's for its model."""
    return spec.engine or str(models.teacher_entry(spec.model).engine)


def embedded(spec: JudgeSpec) -> bool:
    """Whether this judge may hold a model in memory, so that it needs a process of its own."""
    return engine_of(spec) not in SERVED


def judge_identity(spec: JudgeSpec, folder: Path, hashes: Path | None = None) -> dict[str, Any]:
    """What a judge's grades depend on: spec and prompt, and the weights or the code behind it.

    `hashes` is the cache of `models.fingerprint`. Raises ModelError for a missing model.
    """
    engine = engine_of(spec)
    identity: dict[str, Any] = {**spec.identity(), "engine": engine, "version": spec.version}
    identity |= models.text_options(spec.options)
    if engine in EMBEDDED:
        entry = models.teacher_entry(models.local(spec.model, folder))
        cache = hashes or Path(tempfile.gettempdir()) / "distill-hashes.json"
        identity["weights"] = models.fingerprint(entry.model, spec.revision, cache)
    elif engine == "replay" and (recorded := folder / Path(spec.model).expanduser()).is_file():
        identity["weights"] = models.file_sha256(recorded)
    elif ":" in engine:
        kind = resolve(engine, {}, what="judge engine", folder=folder)
        identity |= {"code": code_version(kind), "options": spec.options}
    return identity


class ModelJudge:
    """A judge model at work: `ModelJudge(spec, folder, pool_root=...).grade_many(pairs)`.

    `teacher` is an object to ask instead of building the spec's. Its engine is opened and closed
    once for each call of `grade_many`.
    """

    def __init__(
        self, spec: JudgeSpec, folder: Path, *, pool_root: Path, seed: int = 0, teacher: Any = None
    ) -> None:
        self.spec, self.folder, self.pool_root, self.seed = spec, folder, pool_root, seed
        self.version = spec.version
        self._teacher = teacher
        self.counts: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.by_share = [0] * 11
        """Answers by the share of their verdicts that say `correct`: 0, 0.1, ... 1."""
        self.cost = self.cost_bought = 0.0
        self.generation_key = ""
        self._told: Counter[str] = Counter()

    def wants(self, grade: Grade) -> bool:
        """Whether a trace with this grade is put before the judge."""
        return grade.outcome in self.spec.when

    def grade_many(self, pairs: Sequence[tuple[Problem, Trace]]) -> list[Grade]:
        """One grade for each pair, in order; equal answers to a question are judged once.

        Raises TeacherError where the judge cannot be asked, DistillError where it left more than
        5% of the replies out. What was bought is in the pool.
        """
        asked: list[Problem | Grade] = [self._ask(problem, trace) for problem, trace in pairs]
        questions = {item.id: item for item in asked if isinstance(item, Problem)}
        verdicts = self._verdicts(list(questions.values()))
        return [item if isinstance(item, Grade) else verdicts[item.id] for item in asked]

    def _ask(self, problem: Problem, trace: Trace) -> Problem | Grade:
        answer = answer_text(trace)
        if not answer:
            return without_answer(trace, NAME, self.version)
        if was_cut(trace):
            return self._grade("truncated", 0.0, "the answer was cut off at the token limit")
        return Problem(messages=prompt_for(problem, answer, self.spec.criteria))

    def _grade(self, outcome: Outcome, score: float, detail: str) -> Grade:
        return Grade(outcome=outcome, score=score, grader=NAME, version=self.version, detail=detail)

    def _verdicts(self, questions: list[Problem]) -> dict[str, Grade]:
        if not questions:
            return {}
        replies: dict[str, list[str]] = {question.id: [] for question in questions}
        failed: dict[str, str] = {}
        cut: Counter[str] = Counter()
        traces, failures = self._sampled(questions)
        for trace in traces:
            replies[trace.problem_id].append(answer_text(trace))
            cut[trace.problem_id] += was_cut(trace)
            self.served[trace.served_model] += 1
        for failure in failures:
            failed.setdefault(failure.problem_id, f"the judge gave no reply: {failure.error}")
        grades = {}
        for question in questions:
            told = settle(replies[question.id], failed.get(question.id, ""), cut[question.id])
            grade = self._grade(*told)
            self.counts[grade.outcome] += 1
            tied = grade.outcome == "error" and grade.score > 0
            self.counts["undecided"] += tied
            if tied or grade.outcome != "error":
                self.by_share[round(grade.score * 10)] += 1
            self.counts["disagreed"] += 0 < grade.score < 1
            grades[question.id] = grade
        return grades

    def _sampled(self, questions: list[Problem]) -> tuple[list[Trace], list[Failure]]:
        """Replies and failures. Raises what ends the step."""
        from distill.sample import Failure

        wanted = len(questions) * self.spec.samples
        try:
            result = self._bought(questions)
        except TeacherError as error:
            # A last batch may be a single question, too long for the judge.
            if error.fatal or not self._bears(wanted, wanted):
                raise
            return [], [Failure(q.id, 0, 0, error.message, 1) for q in questions]
        failures = result.failures
        if not self._bears(len(failures), wanted):
            counts = self.counts
            raise DistillError(
                f"{counts['failed']:,} of {counts['wanted']:,} replies of the judge could not be "
                f"had: {failures[0].error}",
                "what was bought is kept: run the same command again",
            )
        return result.traces, failures

    def _bears(self, failed: int, wanted: int) -> bool:
        """Count a batch's replies; whether enough of all so far could be had."""
        self.counts.update(failed=failed, wanted=wanted)
        self.counts["questions"] += wanted // self.spec.samples
        return self.counts["failed"] <= FAILED_SHARE * self.counts["wanted"]

    def _bought(self, questions: list[Problem]) -> SampleResult:
        from distill.progress import Progress
        from distill.sample import sample

        sampling = self.spec.sampling()
        if self.spec.max_cost is not None:
            left = max(0.0, self.spec.max_cost - self.cost)
            sampling = sampling.model_copy(update={"max_cost": left})
        with Progress("judge", len(questions) * self.spec.samples, "replies") as progress:
            result = sample(
                questions,
                self._engine(),
                sampling,
                seed=self.seed,
                pool_root=self.pool_root,
                prices=(self.spec.price_in, self.spec.price_out),
                progress=progress,
            )
        summary = result.summary
        for key in ("bought", "reused", "completion_tokens", "tokens_bought"):
            self.counts[key] += summary[key]
        self.cost += summary["cost"]
        self.cost_bought += summary["cost_bought"]
        for note in summary["notes"]:
            text, _, number = note.rpartition(": ")
            counted = number.replace(",", "").isdigit()
            self._told[text if counted else note] += int(number.replace(",", "")) if counted else 0
        self.generation_key = summary["generation_key"]
        return result

    def _engine(self) -> Any:
        if self._teacher is None:
            from distill.lineup import ModelRef, build_engine

            spec = self.spec
            given = spec.model_dump(mode="json", include=set(TeacherSpec.model_fields))
            self._teacher = build_engine(
                ModelRef(
                    role=NAME,
                    path=models.local(spec.model, self.folder),
                    revision=spec.revision,
                    engine=engine_of(spec),
                    options=spec.options,
                    spec={**given, "timeout_s": spec.timeout_s, "silence_s": spec.silence_s},
                ),
                self.folder,
            )
        return self._teacher

    @property
    def notes(self) -> list[str]:
        """What the sampler said, over all batches, and on how much the replies disagree."""
        counts = self.counts
        found = [
            f"{text.partition(', see ')[0]}: {number:,}" if number else text
            for text, number in self._told.items()
        ]
        if counts["disagreed"]:
            found.append(
                f"its replies disagree on {counts['disagreed']:,} of {counts['questions']:,} "
                "answers"
            )
        return found

    def summary(self) -> dict[str, Any]:
        """What the grade step's summary says about this judge."""
        counts = self.counts
        return {
            "model": self.spec.model or self.spec.engine,
            "version": self.version,
            "samples": self.spec.samples,
            **{key: counts[key] for key in ("questions", "correct", "wrong", "error")},
            **{key: counts[key] for key in ("disagreed", "undecided")},
            "by_share": self.by_share,
            **{key: counts[key] for key in ("wanted", "bought", "reused", "failed")},
            **{key: counts[key] for key in ("completion_tokens", "tokens_bought")},
            "cost": round(self.cost, 6),
            "cost_bought": round(self.cost_bought, 6),
            "served_models": dict(self.served.most_common()),
            "generation_key": self.generation_key,
        }
