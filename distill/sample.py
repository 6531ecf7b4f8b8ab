"""Samples a teacher: what is wanted, less what the pool has, is bought and listed in order.

`docs/sampling.md` says what is promised about seeds, interruptions and money.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill.buy import Budget, Buyer, Failure, settle
from distill.errors import DataError, DistillError, UsageError
from distill.progress import Progress
from distill.protocols import BatchTeacher, Capabilities, Teacher
from distill.records import Problem, Trace, read_records, write_jsonl
from distill.schema import Sampling
from distill.store import PoolLocked, TracePool, generation_key
from distill.wanted import lack, latest, request_seed

__all__ = ["Failure", "SampleResult", "request_seed", "run_sample", "sample", "sample_async"]

FAILED_SHARE = 0.05
DEFAULT_BATCH = 32


@dataclass(frozen=True, slots=True)
class SampleResult:
    """All wanted traces, ordered by problem and index; what failed; the step's summary."""

    traces: list[Trace]
    failures: list[Failure]
    summary: dict[str, Any]


def sample(
    problems: Sequence[Problem],
    teacher: Teacher | BatchTeacher,
    sampling: Sampling,
    *,
    seed: int,
    pool_root: Path,
    prices: tuple[float, float] = (0, 0),
    progress: Progress | None = None,
) -> SampleResult:
    """`sampling.n` traces of every problem, bought where `pool_root` does not hold them yet.

    `prices` are money per million prompt and completion tokens. Works inside a running event
    loop (a notebook) too. Raises the first error if there is no trace at all, DistillError at
    the spending cap, TeacherError where every request would fail; what was bought is kept.
    """
    with _session(problems, teacher, sampling, seed, pool_root, prices, progress) as session:
        _buy(session)
        return session.result()


async def sample_async(
    problems: Sequence[Problem],
    teacher: Teacher | BatchTeacher,
    sampling: Sampling,
    *,
    seed: int,
    pool_root: Path,
    prices: tuple[float, float] = (0, 0),
    progress: Progress | None = None,
) -> SampleResult:
    """`sample` as a coroutine. A batch engine computes in a thread."""
    with _session(problems, teacher, sampling, seed, pool_root, prices, progress) as session:
        if session.lack.groups and session.batch_size:
            work = asyncio.ensure_future(asyncio.to_thread(session.buy_groups))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                # The group under way ends first: a thread cannot be stopped from outside.
                session.stopping = True
                await work
                raise
        elif session.lack.groups:
            await session.buy()
        return session.result()


def run_sample(
    problems_file: Path,
    teacher: Teacher | BatchTeacher,
    sampling: Sampling,
    *,
    seed: int,
    pool_root: Path,
    prices: tuple[float, float],
    out: Path,
) -> None:
    """The step: `traces.jsonl`, `failures.jsonl` and `summary.json` in `out`.

    Raises DistillError, with the failures written, when more than 5% of the traces are missing.
    """
    problems = list(read_records(Problem, problems_file))
    with (
        Progress("sample", len(problems) * sampling.n, "traces") as progress,
        _session(problems, teacher, sampling, seed, pool_root, prices, progress) as session,
    ):
        _buy(session)
        write_jsonl(out / "failures.jsonl", session.failures)
        session.refuse_if_incomplete(out / "failures.jsonl")
        tally = Tally()
        write_jsonl(
            out / "traces.jsonl", map(_light, tally.over(session.traces(), sampling.max_tokens))
        )
        text = json.dumps(summarise(session, tally), ensure_ascii=False, indent=1)
        (out / "summary.json").write_text(text + "\n", encoding="utf-8")


@dataclass(slots=True)
class Tally:
    """Sums over the traces of the output, taken while they pass."""

    count: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    longer: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    served_models: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)

    def over(self, traces: Iterable[Trace], max_tokens: int) -> Iterator[Trace]:
        """Pass the traces on, counting them."""
        for trace in traces:
            self.count += 1
            self.prompt_tokens += trace.prompt_tokens
            self.completion_tokens += trace.completion_tokens
            self.cost += trace.cost
            self.longer += trace.completion_tokens > max_tokens
            self.finish_reasons[trace.finish_reason] += 1
            self.served_models[trace.served_model] += 1
            self.flags.update(trace.flags)
            yield trace


class Session:
    """One call: the open pool, what it lacks, and the buyer."""

    def __init__(
        self, problems: Sequence[Problem], pool: TracePool, key: str, buyer: Buyer
    ) -> None:
        self.pool, self.key, self.buyer, self.sampling = pool, key, buyer, buyer.sampling
        unique: dict[str, Problem] = {}
        for problem in problems:
            unique.setdefault(problem.id, problem)
        self.problems = list(unique.values())
        self.repeated = len(problems) - len(self.problems)
        self.can = buyer.teacher.capabilities
        self.batch_size = None
        if hasattr(buyer.teacher, "complete_batch"):
            alone = None if hasattr(buyer.teacher, "complete") else DEFAULT_BATCH
            self.batch_size = self.can.batch_size or alone
        self.seconds = 0.0
        self.stopping = False
        self.lack = lack(self.problems, self.sampling, pool, self.can, self.batch_size)
        if buyer.progress:
            buyer.progress.total = self.wanted
            buyer.progress.skip(self.wanted - len(self.lack.keys))

    @property
    def wanted(self) -> int:
        return len(self.problems) * self.sampling.n

    @property
    def failures(self) -> list[Failure]:
        """What was given up and is not in the pool all the same, from an earlier group."""
        return [
            f for f in self.buyer.failures if (f.problem_id, f.index, f.segment) not in self.pool
        ]

    async def buy(self) -> None:
        """Buy what is lacking, request by request."""
        teacher = self.buyer.teacher
        await settle(getattr(teacher, "open", _nothing)())
        try:
            with self._timed():
                await self.buyer.buy([job for group in self.lack.groups for job in group])
        finally:
            await settle(getattr(teacher, "close", _nothing)())

    def buy_groups(self) -> None:
        """Buy what is lacking from a batch engine, in the caller's thread."""
        teacher = self.buyer.teacher
        _run(settle(getattr(teacher, "open", _nothing)()))
        try:
            with self._timed():
                for group in self.lack.groups:
                    if self.stopping:
                        return
                    self.buyer.buy_group(group)
        finally:
            _run(settle(getattr(teacher, "close", _nothing)()))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds = time.monotonic() - begin

    def traces(self) -> Iterator[Trace]:
        """Every wanted trace there is, by problem and index, its last segment."""
        for problem in self.problems:
            for index in range(self.sampling.n):
                trace = latest(self.pool, problem.id, index)
                if trace is not None:
                    yield trace

    def result(self) -> SampleResult:
        """All of it in memory. Raises the first error if there is no trace at all."""
        self.refuse_if_empty()
        tally = Tally()
        traces = list(tally.over(self.traces(), self.sampling.max_tokens))
        return SampleResult(traces, self.failures, summarise(self, tally))

    def refuse_if_empty(self) -> None:
        """Raise the first error where not a single trace is there."""
        first = self.buyer.first_error
        if first is None or any(True for _ in self.traces()):
            return
        raise first

    def refuse_if_incomplete(self, listed: Path) -> None:
        """Raise DistillError when more than FAILED_SHARE of the traces are missing."""
        self.refuse_if_empty()
        failures = self.failures
        if len(failures) > FAILED_SHARE * self.wanted:
            (worst, count), *_ = Counter(f.error for f in failures).most_common(1)
            raise DistillError(
                f"{len(failures):,} of {self.wanted:,} requests failed; {count:,} of them: {worst}",
                f"all are listed in {listed}; what was bought is kept: run the same command again",
            )


def summarise(session: Session, tally: Tally) -> dict[str, Any]:
    """The step's `summary.json`. `bought` + `reused` + `failed` = `wanted`."""
    buyer, failed = session.buyer, len(session.failures)
    bought = sum(key in session.pool for key in session.lack.keys)
    seconds = session.seconds
    return {
        "problems": len(session.problems),
        "wanted": session.wanted,
        "traces": tally.count,
        "bought": bought,
        "reused": session.wanted - len(session.lack.keys),
        "failed": failed,
        "retries": buyer.retried,
        "truncated": tally.finish_reasons["length"],
        "continued": tally.flags["continued"],
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "tokens_bought": buyer.tokens,
        "cost": round(tally.cost, 6),
        "cost_bought": round(buyer.budget.new, 6),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(buyer.tokens / seconds, 1) if seconds else 0.0,
        "generation_key": session.key,
        "teacher": buyer.teacher.identity,
        "served_models": dict(tally.served_models.most_common()),
        "ignored": ignored(session.can, session.sampling),
        "finish_reasons": dict(tally.finish_reasons.most_common()),
        "deterministic": session.can.deterministic,
        "notes": notes(session, tally),
    }


def ignored(can: Capabilities, sampling: Sampling) -> list[str]:
    """What was asked for and the engine does not honour."""
    found = [] if can.seed else ["seed"]
    if not can.sampling:
        asked = {"temperature": True, "top_p": True, "top_k": sampling.top_k is not None}
        found += [name for name, wished in asked.items() if wished]
    return found


def notes(session: Session, tally: Tally) -> list[str]:
    """What a reader of the report must know, in sentences."""
    sampling, pool = session.sampling, session.pool
    not_honoured = ignored(session.can, sampling)
    counted = [
        (session.repeated, "problems given twice and sampled once"),
        (
            session.lack.kept_cut,
            f"traces cut off below the present limit of {sampling.max_tokens:,} tokens that stay"
            " so, because this engine cannot go on from them",
        ),
        (session.lack.full, "traces cut off where the teacher's context ended"),
        (tally.longer, "traces from the pool longer than the present max_tokens"),
        (tally.flags["surrogates"], "traces with lone surrogates, now U+FFFD"),
        (tally.flags["cost_estimated"], "traces without a token count, their cost estimated"),
        (len(session.failures), "failed requests, see failures.jsonl"),
        (pool.bad, "damaged lines of the pool, passed over"),
    ]
    said = [f"{text}: {count:,}" for count, text in counted if count]
    if not_honoured:
        said.append(f"the engine does not honour: {', '.join(not_honoured)}")
    if sampling.temperature == 0 and sampling.n > 1:
        said.append("at temperature 0 the samples of a problem are alike")
    if sampling.max_cost is not None and not any(session.buyer.prices):
        said.append("max_cost has no effect: the teacher has no prices")
    return said


@contextmanager
def _session(
    problems: Sequence[Problem],
    teacher: Teacher | BatchTeacher,
    sampling: Sampling,
    seed: int,
    pool_root: Path,
    prices: tuple[float, float],
    progress: Progress | None,
) -> Iterator[Session]:
    if not problems:
        raise DataError("there are no problems to sample", "see the summary of the problems step")
    identity = getattr(teacher, "identity", "")
    if not isinstance(identity, str) or not identity:
        raise UsageError(
            f"the teacher {type(teacher).__name__} has no identity",
            "give it a string `identity` that names its weights and its template",
        )
    if isinstance(teacher, type) or not isinstance(teacher, Teacher | BatchTeacher):
        raise UsageError(
            f"the teacher {teacher!r} cannot be asked",
            "pass an object with `identity`, `capabilities` and `complete` or `complete_batch`",
        )
    key, content = generation_key(identity, sampling, seed)
    locked: PoolLocked | None = None
    try:
        pool = TracePool.open(pool_root / key, write=True, content=content)
    except PoolLocked as error:
        # Whoever needs nothing new need not wait for another run.
        locked, pool = error, TracePool.open(pool_root / key, write=False, content=content)
    with pool:
        budget = Budget(sampling.max_cost, sampling.max_tokens * prices[1] / 1e6)
        buyer = Buyer(teacher, sampling, pool, seed, prices, budget, progress)
        session = Session(problems, pool, key, buyer)
        if locked and session.lack.keys:
            raise locked
        if sampling.max_cost is not None:
            costs = [trace.cost for trace in session.traces()]
            budget.spent, budget.returned = sum(costs), len(costs)
        yield session


def _buy(session: Session) -> None:
    if not session.lack.groups:
        return
    if session.batch_size:
        session.buy_groups()
    else:
        _run(session.buy())


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, in a thread of its own where a loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    started: dict[str, Any] = {}

    async def begin() -> None:
        started.update(loop=asyncio.get_running_loop(), task=asyncio.current_task())
        await work

    with concurrent.futures.ThreadPoolExecutor(1, "distill-sample") as threads:
        future = threads.submit(asyncio.run, begin())
        try:
            future.result()
        except KeyboardInterrupt:
            if started:
                started["loop"].call_soon_threadsafe(started["task"].cancel)
            raise


def _nothing() -> None:
    """Stands for the `open` or `close` that a teacher does not have."""


def _light(trace: Trace) -> Trace:
    # Token ids are as long again as the text; whoever needs them reads the pool.
    return replace(trace, token_ids=None, prompt_ids=None, prompt=None)
