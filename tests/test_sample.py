"""The sampler with fake teachers: what is asked, what is bought, what an interruption costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import distill.buy
from distill.buy import Budget
from distill.errors import DataError, DistillError, ModelError, StoreError, TeacherError, UsageError
from distill.progress import Progress
from distill.protocols import Capabilities, Completion, OnTokens, Request, Usage
from distill.records import Trace, read_jsonl, read_records, write_jsonl
from distill.sample import SampleResult, request_seed, run_sample, sample, sample_async
from distill.schema import Sampling
from distill.store import TracePool, generation_key
from tests.echo import Batch, Echo, questions


def buy(teacher: Any, root: Path, n: int = 2, count: int = 6, **more: Any) -> SampleResult:
    run_time = {k: more.pop(k) for k in ("prices", "progress", "seed") if k in more}
    return sample(
        questions(count),
        teacher,
        Sampling(n=n, **more),
        seed=run_time.pop("seed", 0),
        pool_root=root,
        **run_time,
    )


def told(result: SampleResult, *names: str) -> list[Any]:
    return [result.summary[name] for name in names]


def bare(trace: Trace) -> Trace:
    return replace(trace, time_s=0.0)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill.buy, "BACKOFF_MOST_S", 0.0)
    monkeypatch.setenv("DISTILL_PROGRESS", "0")


# -- what is asked and what comes out ------------------------------------------------------------


def test_every_wanted_trace_in_the_order_of_problem_and_index(tmp_path: Path) -> None:
    teacher = Echo()
    result = buy(teacher, tmp_path, n=3)
    keys = [(p.id, i, 0) for p in questions(6) for i in range(3)]
    assert [t.key for t in result.traces] == keys
    first = result.traces[0]
    assert first.seed == request_seed(0, first.problem_id, 0)
    assert (first.reasoning, first.answer) == (f"{first.problem_id}/0/0", str(first.seed))
    assert (first.prompt_tokens, first.completion_tokens) == (10, 20)
    assert first.teacher == "echo@1"
    assert first.max_tokens == 32768
    asked = teacher.asked[0]
    assert asked.params.temperature == 0.6
    assert asked.params.top_p == 0.95
    assert asked.prompt == questions(1)[0].messages
    assert [r.key.split("/")[1] for r in teacher.asked] == ["0"] * 6 + ["1"] * 6 + ["2"] * 6


@given(st.integers(), st.text(), st.integers(0, 10_000), st.integers(0, 3))
def test_a_request_seed_has_31_bits_and_depends_on_all_parts(
    seed: int, problem: str, index: int, segment: int
) -> None:
    problem = problem.encode("utf-8", "ignore").decode()
    value = request_seed(seed, problem, index, segment)
    assert 0 <= value < 2**31
    assert value == request_seed(seed, problem, index, segment)
    assert value != request_seed(seed + 1, problem, index, segment)
    assert value != request_seed(seed, problem, index + 1, segment)


def test_request_seeds_of_today_stay_valid() -> None:
    assert request_seed(0, "a387884350c9b7ab", 0) == 158507149


def test_problems_may_be_added_and_reordered(tmp_path: Path) -> None:
    first = buy(Echo(), tmp_path, count=3)
    teacher = Echo()
    result = sample(
        questions(5)[::-1], teacher, Sampling(n=2), seed=0, pool_root=tmp_path, prices=(0, 0)
    )
    assert told(result, "bought", "reused") == [4, 6]
    by_key = {t.key: t for t in result.traces}
    assert all(by_key[t.key] == t for t in first.traces)


def test_a_problem_given_twice_is_sampled_once(tmp_path: Path) -> None:
    result = sample(questions(2) * 2, Echo(), Sampling(n=2), seed=0, pool_root=tmp_path)
    assert told(result, "problems", "wanted", "bought") == [2, 4, 4]
    assert result.summary["notes"] == ["problems given twice and sampled once: 2"]


@pytest.mark.parametrize("kind", [Echo, Batch])
def test_a_higher_n_buys_the_new_ones_only(tmp_path: Path, kind: type[Echo]) -> None:
    few = buy(kind(), tmp_path, n=2)
    teacher = kind()
    many = buy(teacher, tmp_path, n=3)
    assert len(teacher.asked) == 6
    assert told(many, "bought", "reused", "failed", "tokens_bought") == [6, 12, 0, 120]
    assert [t for t in many.traces if t.index < 2] == few.traces
    again = kind()
    fewer = buy(again, tmp_path, n=1)
    assert again.asked == []
    assert told(fewer, "wanted", "bought", "reused", "seconds") == [6, 0, 6, 0.0]


def test_an_undisturbed_run_at_a_higher_n_is_the_same_as_two_steps(tmp_path: Path) -> None:
    buy(Batch(), tmp_path / "steps", n=1, count=7)
    steps = buy(Batch(), tmp_path / "steps", n=3, count=7)
    once = buy(Batch(), tmp_path / "once", n=3, count=7)
    assert list(map(bare, steps.traces)) == list(map(bare, once.traces))


def test_other_sampling_and_other_seeds_have_pools_of_their_own(tmp_path: Path) -> None:
    texts = {
        buy(Echo(), tmp_path, n=1, count=1).summary["generation_key"],
        buy(Echo(), tmp_path, n=1, count=1, temperature=1).summary["generation_key"],
        buy(Echo(), tmp_path, n=1, count=1, seed=5).summary["generation_key"],
    }
    assert {p.name for p in tmp_path.iterdir()} == texts
    assert len(texts) == 3


def test_nothing_to_buy_opens_no_teacher_and_needs_no_lock(tmp_path: Path) -> None:
    class Closed(Echo):
        def open(self) -> None:
            raise AssertionError("opened for nothing")

    done = buy(Echo(), tmp_path)
    folder = tmp_path / done.summary["generation_key"]
    with TracePool.open(folder, write=True):
        assert buy(Closed(), tmp_path).traces == done.traces
        with pytest.raises(StoreError, match="is writing"):
            buy(Closed(), tmp_path, n=3)


def test_open_and_close_may_be_plain_or_coroutines(tmp_path: Path) -> None:
    calls: list[str] = []

    class Plain(Echo):
        def open(self) -> None:
            calls.append("open")

        def close(self) -> None:
            calls.append("close")

    class Coroutines(Batch):
        async def open(self) -> None:
            calls.append("open")

        async def close(self) -> None:
            calls.append("close")

        def complete_batch(self, requests: Any, on_tokens: Any = None) -> list[Any]:
            raise TeacherError("wrong key", fatal=True)

    buy(Plain(), tmp_path)
    with pytest.raises(TeacherError, match="wrong key"):
        buy(Coroutines(), tmp_path)
    assert calls == ["open", "close"] * 2


def test_what_the_engine_does_not_honour_is_said(tmp_path: Path) -> None:
    teacher = Echo()
    teacher.capabilities = Capabilities(seed=False, sampling=False)
    result = buy(teacher, tmp_path, top_k=5)
    assert result.summary["ignored"] == ["seed", "temperature", "top_p", "top_k"]
    assert "does not honour: seed, temperature" in result.summary["notes"][-1]
    assert result.summary["deterministic"] is False


def test_the_step_writes_its_files_without_token_ids(tmp_path: Path) -> None:
    class Ids(Echo):
        def answer(self, request: Request) -> Completion:
            return replace(
                super().answer(request),
                token_ids=(1, 2),
                prompt_ids=(3,),
                prompt="<user>",
                served_model="echo-7b",
            )

    write_jsonl(tmp_path / "problems.jsonl", questions(3))
    run_sample(
        tmp_path / "problems.jsonl",
        Ids(),
        Sampling(n=2),
        seed=0,
        pool_root=tmp_path / "pool",
        prices=(1, 2),
        out=tmp_path / "out",
    )
    rows = list(read_jsonl(tmp_path / "out/traces.jsonl"))
    assert [(r["problem_id"], r["index"]) for r in rows] == [
        (p.id, i) for p in questions(3) for i in range(2)
    ]
    assert not {"token_ids", "prompt_ids", "prompt"} & set(rows[0])
    assert (tmp_path / "out/failures.jsonl").read_text() == ""
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["cost"] == summary["cost_bought"] == pytest.approx(6 * (10 + 2 * 20) / 1e6)
    assert summary["served_models"] == {"echo-7b": 6}
    assert summary["finish_reasons"] == {"stop": 6}
    with TracePool.open(tmp_path / "pool" / summary["generation_key"], write=False) as pool:
        assert all(t.token_ids == (1, 2) and t.prompt_ids == (3,) for t in pool.traces())


# -- hostile texts -------------------------------------------------------------------------------


class Says(Echo):
    identity = "says@1"

    def __init__(self, text: Any, **more: Any) -> None:
        super().__init__()
        self.text, self.more = text, more

    def answer(self, request: Request) -> Completion:
        return Completion(text=self.text, **self.more)


def test_lone_surrogates_are_replaced_and_flagged(tmp_path: Path) -> None:
    result = buy(Says("a\ud83d<think>\udc00", served_model="m\ud800", prompt="\udfff"), tmp_path)
    assert result.traces[0].text == "a\ufffd<think>\ufffd"
    assert result.traces[0].flags == ("surrogates",)
    assert result.summary["notes"] == ["traces with lone surrogates, now U+FFFD: 12"]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec=None, categories=None)))
def test_any_text_survives_the_pool(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = tmp_path_factory.mktemp("pool")
    first = buy(Says(text), root, n=1, count=2)
    again = buy(Says("other"), root, n=1, count=2)
    assert again.traces == first.traces
    assert again.summary["reused"] == 2


def test_a_chain_that_was_never_closed_has_no_answer(tmp_path: Path) -> None:
    result = buy(Says("<think>\nso 4", finish_reason="length"), tmp_path)
    assert (result.traces[0].reasoning, result.traces[0].answer) == ("so 4", "")
    assert told(result, "truncated", "bought", "failed") == [12, 12, 0]


@pytest.mark.parametrize("wrong", ["text", None, Completion(text=None)])  # type: ignore[arg-type]
def test_a_teacher_that_returns_something_else_is_told_so(tmp_path: Path, wrong: Any) -> None:
    class Wrong(Echo):
        def answer(self, request: Request) -> Any:
            return wrong

    with pytest.raises(TeacherError, match="not a Completion with a text"):
        buy(Wrong(), tmp_path)


# -- failures and retries ------------------------------------------------------------------------


class Flaky(Echo):
    """Fails the first `times` attempts of the requests whose key ends as `which`."""

    identity = "flaky@1"

    def __init__(self, error: Exception, times: int = 10**9, which: str = "") -> None:
        super().__init__()
        self.error, self.times, self.which = error, times, which
        self.tries: Counter[str] = Counter()

    def answer(self, request: Request) -> Completion:
        self.tries[request.key] += 1
        if request.key.startswith(self.which) and self.tries[request.key] <= self.times:
            raise self.error
        return super().answer(request)


class FlakyBatch(Flaky):
    capabilities = Capabilities(batch_size=4)

    def complete_batch(self, requests: Any, on_tokens: Any = None) -> list[Any]:
        found: list[Any] = []
        for request in requests:
            try:
                found.append(self.answer(request))
            except Exception as error:
                found.append(error)
        return found


BUSY = TeacherError("server is busy", retry=True)


@pytest.mark.parametrize("kind", [Flaky, FlakyBatch])
@pytest.mark.parametrize("error", [BUSY, TimeoutError("slow"), ConnectionResetError("gone")])
def test_what_may_pass_is_tried_again(tmp_path: Path, kind: type[Flaky], error: Exception) -> None:
    teacher = kind(error, times=2)
    result = buy(teacher, tmp_path, retries=2)
    assert told(result, "bought", "failed") == [12, 0]
    assert set(teacher.tries.values()) == {3}
    assert result.summary["retries"] > 0


@pytest.mark.parametrize("kind", [Flaky, FlakyBatch])
def test_a_failed_request_loses_itself_only(tmp_path: Path, kind: type[Flaky]) -> None:
    lost = questions(6)[2].id
    teacher = kind(TeacherError("prompt too long"), which=lost)
    result = buy(teacher, tmp_path)
    assert told(result, "wanted", "bought", "failed", "traces") == [12, 10, 2, 10]
    assert [(f.problem_id, f.index, f.error, f.attempts) for f in result.failures] == [
        (lost, 0, "prompt too long", 1),
        (lost, 1, "prompt too long", 1),
    ]
    well = kind(BUSY, times=0)
    assert told(buy(well, tmp_path), "bought", "reused", "failed") == [2, 10, 0]


def test_retries_end_and_are_counted(tmp_path: Path) -> None:
    lost = questions(6)[0].id
    result = buy(Flaky(BUSY, which=lost), tmp_path, n=1, retries=3)
    (failure,) = result.failures
    assert (failure.attempts, failure.error) == (4, "server is busy")
    assert result.summary["retries"] == 3


def test_the_servers_own_wish_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(distill.buy.asyncio, "sleep", record)
    buy(Flaky(TeacherError("429", retry=True, retry_after=7), times=1), tmp_path, n=1, count=1)
    assert 7 <= max(waited) <= 7.7


def test_backoff_doubles_up_to_a_limit_with_full_jitter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[float] = []

    def least(low: float, high: float) -> float:
        bounds.append(high)
        return low

    monkeypatch.setattr(distill.buy, "BACKOFF_MOST_S", 60.0)
    monkeypatch.setattr(distill.buy.random, "uniform", least)
    buy(Flaky(BUSY, times=8), tmp_path, n=1, count=1, retries=8)
    assert bounds == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("kind", [Flaky, FlakyBatch])
def test_a_fatal_error_stops_at_once_and_what_arrived_is_kept(
    tmp_path: Path, kind: type[Flaky]
) -> None:
    bad = f"{questions(6)[5].id}/0"
    teacher = kind(TeacherError("wrong key", fatal=True, retry=True), which=bad)
    with pytest.raises(TeacherError, match="wrong key"):
        buy(teacher, tmp_path, n=50, concurrency=2)
    assert len(teacher.tries) < 12
    well = kind(BUSY, times=0)
    assert buy(well, tmp_path, n=1).summary["reused"] == 5


@pytest.mark.parametrize("kind", [Flaky, FlakyBatch])
def test_if_all_fail_the_first_error_is_raised(tmp_path: Path, kind: type[Flaky]) -> None:
    with pytest.raises(TeacherError, match="too long"):
        buy(kind(TeacherError("too long")), tmp_path)
    with pytest.raises(TeacherError, match=r"KeyError: 'answer' \(test_sample.py:\d+\)"):
        buy(kind(KeyError("answer")), tmp_path)


@pytest.mark.parametrize("kind", [Flaky, FlakyBatch])
@pytest.mark.parametrize("error", [BUSY, ValueError("bug")])
def test_a_broken_teacher_is_not_asked_for_ever(
    tmp_path: Path, kind: type[Flaky], error: Exception
) -> None:
    teacher = kind(error)
    with pytest.raises(DistillError, match="in a row failed"):
        buy(teacher, tmp_path, n=200, concurrency=4, retries=0)
    assert len(teacher.tries) <= 40


def test_many_refused_prompts_are_not_a_broken_teacher(tmp_path: Path) -> None:
    teacher = Flaky(TeacherError("prompt too long"), which="")
    teacher.times = 1
    with pytest.raises(TeacherError, match="prompt too long"):
        buy(teacher, tmp_path, n=100, concurrency=1)
    assert len(teacher.tries) == 600


def test_an_engines_refusal_is_not_one_requests_failure(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no template"):
        buy(Flaky(ModelError("no template")), tmp_path)


def test_a_batch_engine_must_answer_all(tmp_path: Path) -> None:
    class Short(Batch):
        def complete_batch(self, requests: Any, on_tokens: Any = None) -> list[Any]:
            return super().complete_batch(requests)[:-1]

    with pytest.raises(DistillError, match="returned 3 results for 4 requests"):
        buy(Short(), tmp_path)


def step(tmp_path: Path, teacher: Any, count: int, n: int) -> dict[str, Any]:
    write_jsonl(tmp_path / "problems.jsonl", questions(count))
    run_sample(
        tmp_path / "problems.jsonl",
        teacher,
        Sampling(n=n),
        seed=0,
        pool_root=tmp_path / "pool",
        prices=(0, 0),
        out=tmp_path / "out",
    )
    found: dict[str, Any] = json.loads((tmp_path / "out/summary.json").read_text())
    return found


def test_a_few_failures_leave_the_step_done_and_many_do_not(tmp_path: Path) -> None:
    one = f"{questions(10)[3].id}/1"
    summary = step(tmp_path, Flaky(TeacherError("too long"), which=one), 10, 2)
    assert (summary["failed"], summary["traces"]) == (1, 19)
    (failure,) = read_jsonl(tmp_path / "out/failures.jsonl")
    assert failure == {
        "problem_id": questions(10)[3].id,
        "index": 1,
        "segment": 0,
        "error": "too long",
        "attempts": 1,
    }
    assert summary["notes"] == ["failed requests, see failures.jsonl: 1"]
    (tmp_path / "out/summary.json").unlink()
    two = questions(10)[4].id
    with pytest.raises(DistillError, match=r"2 of 22 requests failed; 2 of them: \w") as caught:
        step(tmp_path, Flaky(TeacherError("wall"), which=questions(11)[10].id), 11, 2)
    assert "run the same command again" in str(caught.value)
    assert not (tmp_path / "out/summary.json").exists()
    assert len(list(read_jsonl(tmp_path / "out/failures.jsonl"))) == 2
    assert step(tmp_path, Flaky(BUSY, times=0, which=two), 11, 2)["bought"] == 2


# -- money ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Echo, Batch])
def test_the_cap_stops_before_it_is_passed(tmp_path: Path, kind: type[Echo]) -> None:
    prices = (0.0, 1e6 / 20)  # one trace costs 1
    with pytest.raises(DistillError, match=r"sampling.max_cost is 9") as caught:
        buy(kind(), tmp_path, n=5, max_cost=9, prices=prices)
    assert caught.value.exit_code == 1
    with pytest.raises(DistillError, match=r"of it before\), sampling.max_cost is 9"):
        buy(kind(), tmp_path, n=5, max_cost=9, prices=prices)
    done = buy(kind(), tmp_path, n=5, max_cost=30, prices=prices)
    assert done.summary["cost"] == pytest.approx(30)
    assert 6 <= done.summary["reused"] <= 9
    assert done.summary["bought"] == 30 - done.summary["reused"]


def test_a_window_of_requests_is_not_sent_on_the_word_of_the_first_short_one() -> None:
    budget = Budget(cap=100, worst=50)
    budget.add(0.01)
    budget.under_way = 2
    assert not budget.fits()
    for _ in range(1000):
        budget.add(0.01)
    assert budget.fits()


@given(st.lists(st.floats(0, 10), max_size=50), st.floats(0, 100))
def test_one_after_the_other_passes_the_cap_by_one_surprise_at_most(
    costs: list[float], cap: float
) -> None:
    budget = Budget(cap=cap, worst=10)
    for cost in costs:
        if not budget.fits():
            break
        assert budget.spent < cap
        budget.add(cost)
    assert budget.spent <= cap + 10


def test_without_a_token_count_the_cost_is_estimated_and_said(tmp_path: Path) -> None:
    result = buy(Says("x" * 300), tmp_path, prices=(0, 1))
    assert result.traces[0].cost == pytest.approx(100 / 1e6)
    assert result.summary["notes"] == ["traces without a token count, their cost estimated: 12"]
    assert buy(Says("x"), tmp_path, seed=1).traces[0].flags == ()


# -- the limit of tokens -------------------------------------------------------------------------


class Counting(Echo):
    """Counts to 10, one number a token, and can go on from a prefix."""

    identity = "counting@1"
    capabilities = Capabilities(token_ids=True, prefix=True)
    whole = True

    def answer(self, request: Request) -> Completion:
        begin = tuple(request.prefix_ids or ())
        last = min(10, len(begin) + request.params.max_tokens)
        new = tuple(range(len(begin) + 1, last + 1))
        ids = begin + new if self.whole else new
        return Completion(
            text="".join(f"{i} " for i in ids),
            token_ids=ids,
            finish_reason="length" if last < 10 else "stop",
            usage=Usage(prompt_tokens=3, completion_tokens=len(new)),
        )


class CountingBatch(Counting):
    capabilities = Capabilities(token_ids=True, prefix=True, batch_size=4)

    def complete_batch(self, requests: Any, on_tokens: Any = None) -> list[Any]:
        self.asked += requests
        return [self.answer(r) for r in requests]


class PartsOnly(Counting):
    whole = False


@pytest.mark.parametrize("kind", [Counting, CountingBatch, PartsOnly])
def test_a_cut_trace_is_gone_on_with_under_a_higher_limit(
    tmp_path: Path, kind: type[Counting]
) -> None:
    cut = buy(kind(), tmp_path, max_tokens=4, prices=(1, 1))
    assert told(cut, "truncated", "completion_tokens") == [12, 48]
    teacher = kind()
    more = buy(teacher, tmp_path, max_tokens=7, prices=(1, 1))
    assert [r.params.max_tokens for r in teacher.asked] == [3] * 12
    assert teacher.asked[0].prefix_ids == (1, 2, 3, 4)
    assert teacher.asked[0].key.endswith("/0/1")
    assert teacher.asked[0].seed == request_seed(0, more.traces[0].problem_id, 0, 1)
    first = more.traces[0]
    assert (first.segment, first.text, first.token_ids) == (1, "1 2 3 4 5 6 7 ", tuple(range(1, 8)))
    assert (first.completion_tokens, first.prompt_tokens, first.flags) == (7, 3, ("continued",))
    assert first.cost == pytest.approx((3 + 4 + 3 + 3) / 1e6)
    assert told(more, "bought", "truncated", "continued", "tokens_bought") == [12, 12, 12, 36]
    assert more.summary["cost_bought"] == pytest.approx(12 * 6 / 1e6)

    teacher = kind()
    last = buy(teacher, tmp_path, max_tokens=100)
    assert len(teacher.asked) == 12
    assert (last.traces[0].segment, last.traces[0].token_ids) == (2, tuple(range(1, 11)))
    assert told(last, "truncated", "bought", "reused") == [0, 12, 0]
    assert told(buy(kind(), tmp_path, max_tokens=100), "bought", "reused") == [0, 12]

    low = buy(teacher, tmp_path, max_tokens=4)
    assert len(teacher.asked) == 12
    assert [t.text for t in low.traces] == [t.text for t in last.traces]
    assert low.summary["notes"] == ["traces from the pool longer than the present max_tokens: 12"]


def test_an_engine_without_prefix_keeps_what_was_cut(tmp_path: Path) -> None:
    class NoPrefix(Counting):
        capabilities = Capabilities(token_ids=True)

    cut = buy(NoPrefix(), tmp_path, max_tokens=4)
    teacher = NoPrefix()
    same = buy(teacher, tmp_path, max_tokens=9)
    assert teacher.asked == []
    assert same.traces == cut.traces
    assert "traces cut off below the present limit of 9 tokens" in same.summary["notes"][0]


def test_what_the_engine_itself_cut_is_not_asked_for_again_under_the_same_limit(
    tmp_path: Path,
) -> None:
    class Small(Counting):
        def answer(self, request: Request) -> Completion:
            done = super().answer(replace(request, params=replace(request.params, max_tokens=2)))
            return replace(done, flags=("context",) if request.params.max_tokens > 50 else ())

    buy(Small(), tmp_path, max_tokens=50)
    teacher = Small()
    assert buy(teacher, tmp_path, max_tokens=50).summary["bought"] == 0
    assert buy(teacher, tmp_path, max_tokens=60).summary["bought"] == 12
    full = buy(teacher, tmp_path, max_tokens=70)
    assert full.summary["bought"] == 0
    assert full.summary["notes"] == ["traces cut off where the teacher's context ended: 12"]


def test_a_continuation_that_fails_leaves_the_trace_as_it_was(tmp_path: Path) -> None:
    class NoMore(Counting):
        def answer(self, request: Request) -> Completion:
            if request.prefix_ids:
                raise TeacherError("prompt too long")
            return super().answer(request)

    cut = buy(NoMore(), tmp_path, max_tokens=4)
    result = buy(NoMore(), tmp_path, max_tokens=8)
    assert result.traces == cut.traces
    assert told(result, "failed", "reused", "bought", "traces") == [12, 0, 0, 12]
    assert {f.segment for f in result.failures} == {1}


# -- interruptions -------------------------------------------------------------------------------

RUN = """
import sys, time, asyncio, signal
from pathlib import Path
sys.path.insert(0, sys.argv[1])
# A job in a shell's background, as a CI may be one, inherits SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.echo import Batch, Echo, questions
from distill.sample import run_sample
from distill.schema import Sampling

class Slow(Echo):
    async def complete(self, request, on_tokens=None):
        await asyncio.sleep(0.004 * (1 + request.seed % 5))
        return self.answer(request)

class SlowBatch(Batch):
    def complete_batch(self, requests, on_tokens=None):
        time.sleep(0.02)
        return super().complete_batch(requests)

folder, kind = Path(sys.argv[2]), sys.argv[3]

def run():
    teacher = SlowBatch() if "Batch" in kind else Slow()
    run_sample(folder / "problems.jsonl", teacher, Sampling(n=4, concurrency=3), seed=0,
        pool_root=folder / "pool", prices=(0, 1), out=folder)

async def cell():
    run()

print("ready", flush=True)
if "Notebook" in kind:
    asyncio.new_event_loop().run_until_complete(cell())
else:
    run()
"""


def run_in_a_process(folder: Path, kind: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(Path(__file__).parent.parent), str(folder), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stored(folder: Path) -> int:
    return sum(p.read_bytes().count(b"\n") for p in folder.glob("pool/*/*.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Slow", "SlowBatch"])
def test_killed_and_resumed_is_the_same_as_undisturbed(tmp_path: Path, kind: str) -> None:
    folders = [tmp_path / "killed", tmp_path / "whole"]
    for folder in folders:
        write_jsonl(folder / "problems.jsonl", questions(14))
    for _ in range(3):
        with run_in_a_process(folders[0], kind) as process:
            assert process.stdout is not None
            process.stdout.readline()
            begin = stored(folders[0])
            while process.poll() is None and stored(folders[0]) < begin + 7:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
    assert not (folders[0] / "traces.jsonl").exists()
    assert 0 < stored(folders[0]) < 56
    for folder in folders:
        with run_in_a_process(folder, kind) as process:
            assert process.wait() == 0, process.stderr and process.stderr.read()
    killed, whole = ([bare(t) for t in read_records(Trace, f / "traces.jsonl")] for f in folders)
    assert len(whole) == 56
    assert killed == whole
    summary = json.loads((folders[0] / "summary.json").read_text())
    assert summary["reused"] >= 20
    assert summary["bought"] == 56 - summary["reused"]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=5), st.integers(1, 3), st.sampled_from([Echo, Batch]))
def test_stopped_at_any_request_and_resumed_is_the_same_as_undisturbed(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], concurrency: int, kind: type[Echo]
) -> None:
    class Stopped(kind):  # type: ignore[misc, valid-type]
        left = 10**9

        def answer(self, request: Request) -> Completion:
            self.left -= 1
            if self.left < 0:
                raise TeacherError("stop", fatal=True)
            return super().answer(request)

    root = tmp_path_factory.mktemp("runs")
    for left in stops:
        teacher = Stopped()
        teacher.left = left
        with contextlib.suppress(TeacherError):
            buy(teacher, root / "stopped", n=3, concurrency=concurrency)
    resumed = buy(Stopped(), root / "stopped", n=3, concurrency=concurrency)
    whole = buy(Stopped(), root / "whole", n=3)
    assert list(map(bare, resumed.traces)) == list(map(bare, whole.traces))
    assert resumed.summary["bought"] + resumed.summary["reused"] == 18


@pytest.mark.parametrize("kind", ["Slow", "SlowBatch", "SlowNotebook"])
def test_ctrl_c_stops_cleanly_and_keeps_what_arrived(tmp_path: Path, kind: str) -> None:
    write_jsonl(tmp_path / "problems.jsonl", questions(14))
    with run_in_a_process(tmp_path, kind) as process:
        while process.poll() is None and stored(tmp_path) < 8:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
        process.wait()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "never retrieved" not in said
    assert "was never awaited" not in said
    (folder,) = (tmp_path / "pool").iterdir()
    with TracePool.open(folder, write=True) as pool:
        assert len(pool) >= 8
        assert (pool.bad, pool.torn) == (0, 0)


def test_a_damaged_pool_is_said_and_mended(tmp_path: Path) -> None:
    whole = buy(Echo(), tmp_path)
    (segment,) = tmp_path.glob("*/*.jsonl")
    raw = bytearray(segment.read_bytes())
    raw[len(raw) // 2] ^= 1
    segment.write_bytes(raw)
    mended = buy(Echo(), tmp_path)
    assert told(mended, "bought", "reused") == [1, 11]
    assert mended.summary["notes"] == ["damaged lines of the pool, passed over: 1"]
    assert list(map(bare, mended.traces)) == list(map(bare, whole.traces))


# -- loops, threads, many requests ---------------------------------------------------------------


class Measured(Echo):
    """Knows how many requests were under way at once."""

    now = most = 0

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        return self.answer(request)


@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (7, 7), (1_000_000, 60)])
def test_concurrency_is_bounded_and_may_be_huge(
    tmp_path: Path, concurrency: int, most: int
) -> None:
    teacher = Measured()
    result = buy(teacher, tmp_path, n=10, concurrency=concurrency)
    assert result.summary["bought"] == 60
    assert teacher.most == most


def test_a_slow_request_holds_no_other_up(tmp_path: Path) -> None:
    class OneSlow(Echo):
        async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
            if not self.asked:
                self.asked.append(request)
                while len(self.asked) < 12:
                    await asyncio.sleep(0)
            return await super().complete(request)

    assert buy(OneSlow(), tmp_path, concurrency=2).summary["bought"] == 12


@pytest.mark.parametrize("kind", [Echo, Batch])
def test_inside_a_running_loop_as_in_a_notebook(tmp_path: Path, kind: type[Echo]) -> None:
    async def cell() -> tuple[SampleResult, SampleResult]:
        plain = buy(kind(), tmp_path / "plain")
        awaited = await sample_async(
            questions(6), kind(), Sampling(n=2), seed=0, pool_root=tmp_path / "awaited"
        )
        return plain, awaited

    before = threading.active_count()
    plain, awaited = asyncio.run(cell())
    assert list(map(bare, plain.traces)) == list(map(bare, awaited.traces))
    assert threading.active_count() == before


def test_a_cancelled_batch_ends_its_group_and_keeps_it(tmp_path: Path) -> None:
    started = threading.Event()

    class Slow(Batch):
        def complete_batch(self, requests: Any, on_tokens: Any = None) -> list[Any]:
            started.set()
            time.sleep(0.05)
            return super().complete_batch(requests)

    async def cell() -> None:
        work = asyncio.create_task(
            sample_async(questions(40), Slow(), Sampling(n=1), seed=0, pool_root=tmp_path)
        )
        await asyncio.to_thread(started.wait)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(cell())
    kept = buy(Batch(), tmp_path, n=1, count=40).summary["reused"]
    assert 4 <= kept < 40
    assert kept % 4 == 0


def test_progress_counts_traces_and_live_tokens(tmp_path: Path) -> None:
    class Streaming(Echo):
        async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
            assert on_tokens is not None
            for _ in range(20):
                on_tokens(1)
            return await super().complete(request)

    buy(Echo(), tmp_path, n=1)
    with Progress("sample", None, "traces") as progress:
        buy(Streaming(), tmp_path, n=1, progress=progress, seed=3)
        buy(Streaming(), tmp_path, n=2, progress=progress, seed=3)
    assert progress.total == 12
    assert "120 tokens" in progress.line()


def save_model(folder: Path) -> None:
    """A model of random weights over single characters."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<think>", "</think>", *"0123456789 +=?\n"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"</?think>|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = "{{ messages[0].content }}<think>\n"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    ends = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    config = LlamaConfig(
        vocab_size=len(words), num_hidden_layers=1, initializer_range=0.5, **sizes, **ends
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_the_embedded_engine_goes_on_from_what_it_has(tmp_path: Path) -> None:
    from distill.teachers.transformers import TransformersTeacher

    save_model(tmp_path / "model")

    def traces(root: str, n: int, max_tokens: int) -> list[Trace]:
        teacher = TransformersTeacher(str(tmp_path / "model"), batch_size=4)
        done = buy(teacher, tmp_path / root, n=n, max_tokens=max_tokens, temperature=1.0)
        return list(map(bare, done.traces))

    traces("steps", 1, 10)
    short = traces("once", 2, 10)
    assert traces("steps", 2, 10) == short
    longer = traces("once", 2, 20)
    assert longer == traces("steps", 2, 20)
    assert any(t.segment for t in longer)
    for before, after in zip(short, longer, strict=True):
        assert before.token_ids is not None
        assert after.token_ids is not None
        assert after.token_ids[: len(before.token_ids)] == before.token_ids
        assert after.completion_tokens == len(after.token_ids) <= 20


# -- refusals ------------------------------------------------------------------------------------


class Silent:
    identity = "silent"
    capabilities = Capabilities()


def test_no_problems_and_no_identity_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no problems"):
        buy(Echo(), tmp_path, count=0)
    teacher = Echo()
    teacher.identity = ""
    with pytest.raises(UsageError, match="Echo has no identity"):
        buy(teacher, tmp_path)
    with pytest.raises(UsageError, match="cannot be asked"):
        buy(Echo, tmp_path)
    with pytest.raises(UsageError, match="cannot be asked"):
        buy(Silent(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_pools_folder_is_the_generation_key(tmp_path: Path) -> None:
    result = buy(Echo(), tmp_path)
    key, content = generation_key("echo@1", Sampling(), 0)
    assert result.summary["generation_key"] == key
    assert json.loads((tmp_path / key / "pool.json").read_text()) == content


class Torn(Echo):
    """What it waits for is cancelled now and then, by itself and not by the sampler."""

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        if "2 + 1" in str(request.prompt) and (self.asked[-1:] or [None]) != [request]:
            self.asked.append(request)
            task = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(task.cancel)
            await task
        return await super().complete(request)


@pytest.mark.parametrize("want", [None, 1])
def test_a_teacher_that_is_cancelled_by_itself_is_asked_again(
    tmp_path: Path, want: int | None
) -> None:
    result = buy(Torn(), tmp_path, n=1, count=4, want=want, max=1, concurrency=1)
    assert told(result, "traces", "failed", "retries") == [4, 0, 1]


class Shut(Echo):
    opened = 0

    async def open(self) -> None:
        self.opened += 1
        await asyncio.sleep(0.02)
        raise ModelError("no server")


@pytest.mark.parametrize("want", [None, 1])
def test_a_teacher_that_cannot_be_opened_is_opened_once(tmp_path: Path, want: int | None) -> None:
    teacher = Shut()
    with pytest.raises(ModelError, match="no server"):
        buy(teacher, tmp_path, n=1, count=20, want=want)
    assert teacher.opened == 1


class Breaking(Echo):
    """Breaks off in the middle of every first attempt."""

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        assert on_tokens is not None
        on_tokens(20)
        if request not in self.asked:
            self.asked.append(request)
            raise TeacherError("broken off", retry=True)
        return self.answer(request)


def test_tokens_of_an_answer_that_broke_off_are_not_under_way(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "problems.jsonl", questions(3))
    run_sample(
        tmp_path / "problems.jsonl",
        Breaking(),
        Sampling(n=1),
        seed=0,
        pool_root=tmp_path / "pool",
        prices=(0, 0),
        out=tmp_path,
    )
    (*_, last) = read_jsonl(tmp_path / "metrics.jsonl")
    assert (last["tokens"], last["tokens_under_way"]) == (60, 0)
