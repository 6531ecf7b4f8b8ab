"""Adaptive sampling with teachers of known pass rates, against the naive way: one by one."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.course import LIKELY, Course, Result
from distill.errors import DistillError, StoreError, TeacherError
from distill.job import Job
from distill.policy import Policy
from distill.protocols import Completion, Request
from distill.recipe import Recipe
from distill.records import Grade, Problem, Trace, read_jsonl, write_jsonl
from distill.sample import SampleResult, run_sample, sample, sample_async
from distill.schema import DEFAULT_FILTERS, PartSpec, Sampling
from distill.step import Workspace
from distill.store import TracePool
from distill.stream import Turns
from tests.coins import Coin, CoinBatch, coins, judge, lands, naive, toss, yes

RATES = [0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_PROGRESS", "0")


def tries_of(result: SampleResult) -> dict[str, int]:
    return dict(Counter(trace.problem_id for trace in result.traces))


def bare(result: SampleResult) -> list[Trace]:
    return [replace(trace, time_s=0.0) for trace in result.traces]


# -- when a problem is done ----------------------------------------------------------


@pytest.mark.parametrize("kind", [Coin, CoinBatch])
@pytest.mark.parametrize("concurrency", [1, 5, 500])
def test_each_problem_gets_what_sampling_one_by_one_would_give(
    tmp_path: Path, kind: type[Coin], concurrency: int
) -> None:
    problems = coins(RATES * 3)
    result = toss(problems, kind(0.003), tmp_path, concurrency=concurrency, give_up=0.3)
    assert tries_of(result) == naive(problems, 2, 12, 0.3)
    keys = [(p.id, i, 0) for p in problems for i in range(tries_of(result)[p.id])]
    assert [trace.key for trace in result.traces] == keys
    summary = result.summary
    assert summary["traces"] == summary["bought"] == summary["wanted"] == len(keys)
    right = sum(lands(p, i) for p in problems for i in range(tries_of(result)[p.id]))
    assert summary["accepted"] == right
    assert sum(summary["stopped"].values()) == 24
    assert {"enough", "hopeless"} <= set(summary["stopped"])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(RATES), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(4, 16),
    st.sampled_from([0.0, 0.02, 0.2]),
    st.integers(1, 20),
    st.sampled_from([Coin, CoinBatch]),
)
def test_whatever_is_asked_ahead_the_naive_way_decides(
    tmp_path_factory: pytest.TempPathFactory,
    rates: list[float],
    want: int,
    most: int,
    give_up: float,
    concurrency: int,
    kind: type[Coin],
) -> None:
    problems, root = coins(rates), tmp_path_factory.mktemp("pool")
    asked = {"want": want, "max": most, "give_up": give_up, "concurrency": concurrency}
    teacher = kind()
    result = toss(problems, teacher, root, **asked)
    assert tries_of(result) == naive(problems, want, most, give_up)
    assert len(teacher.asked) == len(set(teacher.asked))
    surplus = result.summary["surplus"]
    assert surplus["bought"] == surplus["traces"] == len(teacher.asked) - len(result.traces)
    again = kind()
    assert toss(problems, again, root, **asked).traces == result.traces
    assert again.asked == []


def test_fixed_n_is_the_reference(tmp_path: Path) -> None:
    problems = coins(RATES * 2)
    fixed = sample(problems, Coin(), Sampling(n=12), seed=0, pool_root=tmp_path / "fixed")
    adaptive = toss(problems, Coin(), tmp_path / "adaptive")
    ends = naive(problems, 2, 12, 0.02)
    prefix = [trace for trace in fixed.traces if trace.index < ends[trace.problem_id]]
    assert bare(adaptive) == [replace(trace, time_s=0.0) for trace in prefix]
    # The other way round: what fixed n has bought is not bought again.
    teacher = Coin()
    reused = toss(problems, teacher, tmp_path / "fixed")
    assert teacher.asked == []
    assert reused.traces == prefix
    assert reused.summary["surplus"]["bought"] == 0
    assert reused.summary["surplus"]["traces"] == len(fixed.traces) - len(prefix)


def test_what_is_needed_in_any_case_comes_first_and_in_the_order_of_problems() -> None:
    courses = [Course(Policy(want=2, most=12)) for _ in range(3)]
    turns = Turns(courses, LIKELY)
    first = [turns.pop() for _ in range(6)]
    assert first == [(at, (index, 0)) for at in range(3) for index in range(2)]
    assert turns.pop() is None, "nothing more is likely before there is a grade"
    for index in range(2):
        courses[1].tell((index, 0), Result(accepted=False))
        courses[2].tell((index, 0), Result(accepted=index == 0))
    turns.again(2)
    turns.again(1)
    certain = [turns.pop() for _ in range(3)]
    assert certain == [(1, (2, 0)), (1, (3, 0)), (2, (2, 0))]
    ahead = turns.pop()
    assert ahead == (1, (4, 0)), "it has failed twice, so a third is likely to be needed"
    courses[2].tell((2, 0), Result(accepted=True))
    assert courses[2].reason == "enough"
    turns.again(2)
    assert {turns.pop() for _ in range(9)} >= {None}


def test_free_slots_ask_ahead(tmp_path: Path) -> None:
    few = toss(coins([0.1] * 3, 1000), Coin(0.002), tmp_path, concurrency=64, want=1)
    assert few.summary["surplus"]["bought"] > 0


def test_the_pass_rates_are_right_on_the_mean_though_sampling_stops_at_successes(
    tmp_path: Path,
) -> None:
    chance = random.Random(1)
    problems = coins([round(chance.random(), 3) for _ in range(300)])
    truth = sum(float(p.messages[0]["content"].split()[0]) for p in problems) / len(problems)
    summary = toss(problems, CoinBatch(), tmp_path, want=1, max=8, give_up=0).summary
    plain = summary["accepted"] / summary["traces"]
    assert abs(summary["mean_pass_rate"] - truth) < 0.06
    assert abs(plain - truth) > 0.1
    assert sum(summary["pass_rate_histogram"]) == 300


def test_a_grade_is_waited_for_and_a_slow_grader_stops_no_request(tmp_path: Path) -> None:
    result = toss(coins([1.0] * 40), Coin(), tmp_path, want=1, concurrency=40)
    assert tries_of(result) == {p.id: 1 for p in coins([1.0] * 40)}


def test_exact_duplicates_count_once(tmp_path: Path) -> None:
    class Same(Coin):
        def answer(self, request: Request) -> Completion:
            return replace(super().answer(request), text="<think>\nx\n</think>\n\nyes")

    result = toss(coins([1.0]), Same(), tmp_path, want=2, max=4)
    assert (len(result.traces), result.summary["accepted"]) == (4, 1)
    without = [PartSpec(name="correct")]
    result = toss(coins([1.0]), Same(), tmp_path, want=2, max=4, accept=judge(without))
    assert (len(result.traces), result.summary["accepted"]) == (2, 2)


def test_filters_that_need_the_corpus_are_asked_later_and_that_is_said(tmp_path: Path) -> None:
    filters = [PartSpec(name="correct"), PartSpec(name="overlap")]
    summary = toss(coins([1.0]), Coin(), tmp_path, accept=judge(filters)).summary
    assert summary["judged_later"] == ["overlap"]
    assert "may still be dropped: overlap" in summary["notes"][-1]


# -- what changes buys only what is new ----------------------------------------------------------


@pytest.mark.parametrize("kind", [Coin, CoinBatch])
def test_more_wanted_or_other_graders_decide_again_from_the_pool(
    tmp_path: Path, kind: type[Coin]
) -> None:
    problems = coins(RATES * 3)
    asked: list[str] = []

    def run(**more: Any) -> SampleResult:
        teacher = kind()
        result = toss(problems, teacher, tmp_path, **more)
        if kind is Coin:
            assert not set(teacher.asked) & set(asked)
        asked.extend(teacher.asked)
        return result

    first = run(want=1, max=6)
    more = run(want=3, max=6)
    assert tries_of(more) == naive(problems, 3, 6, 0.02)
    longer = run(want=3, max=12)
    assert tries_of(longer) == naive(problems, 3, 12, 0.02)
    assert longer.summary["reused"] > 0

    def no(problem: Problem, trace: Trace) -> Grade:
        return Grade(outcome="wrong" if yes(problem, trace).correct else "correct")

    turned = run(want=1, max=6, accept=judge(grader=no))
    assert tries_of(turned) != tries_of(first)
    assert run(want=1, max=6).traces == first.traces


def test_problems_may_be_added_and_reordered(tmp_path: Path) -> None:
    problems = coins(RATES)
    first = toss(problems, Coin(), tmp_path)
    teacher = Coin()
    both = toss([*coins(RATES, 100), *problems[::-1]], teacher, tmp_path)
    old = {p.id for p in problems}
    assert not any(key.split("/")[0] in old for key in teacher.asked)
    assert {t.key: t for t in both.traces if t.problem_id in old} == {
        t.key: t for t in first.traces
    }


# -- budgets ----------------------------------------------------------


@pytest.mark.parametrize("kind", [Coin, CoinBatch])
def test_a_budget_of_tokens_is_spread_in_rounds_and_ends_the_step(
    tmp_path: Path, kind: type[Coin]
) -> None:
    problems = coins(RATES * 6)
    result = toss(problems, kind(), tmp_path, budget_tokens=4000)
    summary = result.summary
    assert summary["stopped"]["budget"] > 0
    assert 3600 <= summary["completion_tokens"] <= 4000 * 1.1
    assert summary["surplus"]["bought"] == 0
    assert summary["rounds"] > 2
    each = 4000 // 20 // len(problems)
    fixed = [min(2, sum(lands(p, i) for i in range(each))) for p in problems]
    assert summary["accepted"] > sum(fixed)
    again = kind()
    assert toss(problems, again, tmp_path, budget_tokens=4000).traces == result.traces
    assert again.asked == []


@pytest.mark.slow
def test_both_ways_of_asking_spend_a_budget_alike(tmp_path: Path) -> None:
    problems = coins(RATES * 6)
    runs = [
        toss(problems, kind(0.002), tmp_path / str(at), budget_tokens=4000, concurrency=at)
        for at, kind in ((1, Coin), (9, Coin), (99, CoinBatch))
    ]
    assert bare(runs[0]) == bare(runs[1]) == bare(runs[2])


def test_a_budget_of_money_counts_what_was_paid(tmp_path: Path) -> None:
    problems = coins(RATES * 6)
    prices = (2.0, 1e6 / 20)  # a trace costs a little more than 1
    result = toss(problems, Coin(), tmp_path, budget_cost=100.0, prices=prices)
    assert 85 <= result.summary["cost"] <= 110
    assert result.summary["stopped"]["budget"] > 0
    free = toss(problems, Coin(), tmp_path / "free", budget_cost=100.0)
    assert "budget" not in free.summary["stopped"]
    assert "budget_cost has no effect: the teacher has no prices" in free.summary["notes"]


def test_a_larger_budget_goes_on_from_where_the_smaller_ended(tmp_path: Path) -> None:
    problems = coins(RATES * 6)
    small = toss(problems, Coin(), tmp_path, budget_tokens=2000)
    teacher = Coin()
    large = toss(problems, teacher, tmp_path, budget_tokens=6000)
    assert large.summary["reused"] > 0.8 * len(small.traces)
    assert large.summary["accepted"] >= small.summary["accepted"]


# -- failures ----------------------------------------------------------


class Refusing(Coin):
    """Refuses every request whose key begins as `which`."""

    def __init__(self, which: str, error: TeacherError | None = None) -> None:
        super().__init__()
        self.which, self.error = which, error or TeacherError("prompt too long")

    def answer(self, request: Request) -> Completion:
        if request.key.startswith(self.which):
            raise self.error
        return super().answer(request)


class RefusingBatch(Refusing, CoinBatch):
    def complete_batch(self, requests: Any, on_tokens: Any = None) -> list[Any]:
        found: list[Any] = []
        for request in requests:
            try:
                found.append(self.answer(request))
            except TeacherError as error:
                found.append(error)
        return found


@pytest.mark.parametrize("kind", [Refusing, RefusingBatch])
def test_a_problem_that_is_refused_loses_itself_only(tmp_path: Path, kind: type[Refusing]) -> None:
    problems = coins([0.5] * 10)
    result = toss(problems, kind(problems[3].id), tmp_path, concurrency=2)
    expected = naive(problems, 2, 12, 0.02)
    del expected[problems[3].id]
    assert tries_of(result) == expected
    assert result.summary["stopped"]["failed"] == 1
    assert 2 <= result.summary["failed"] <= 3
    assert {f.problem_id for f in result.failures} == {problems[3].id}


def test_one_lost_request_costs_one_index(tmp_path: Path) -> None:
    problems = coins([0.3] * 6)
    lost = f"{problems[2].id}/1/"
    result = toss(problems, Refusing(lost), tmp_path, want=2)
    (failure,) = result.failures
    assert (failure.problem_id, failure.index) == (problems[2].id, 1)
    indices = [t.index for t in result.traces if t.problem_id == problems[2].id]
    assert 1 not in indices
    assert 0 in indices
    assert sum(lands(problems[2], i) for i in indices) == 2 or len(indices) >= 11
    mended = toss(problems, Coin(), tmp_path, want=2)
    assert tries_of(mended) == naive(problems, 2, 12, 0.02)


def test_what_ends_a_run_ends_it_and_keeps_what_arrived(tmp_path: Path) -> None:
    problems = coins([0.3] * 20)
    fatal = TeacherError("wrong key", fatal=True)
    with pytest.raises(TeacherError, match="wrong key"):
        toss(problems, Refusing(f"{problems[15].id}/0", fatal), tmp_path, concurrency=2)
    teacher = Coin()
    assert toss(problems, teacher, tmp_path).summary["reused"] > 10

    def broken(problem: Problem, trace: Trace) -> Grade:
        raise DistillError("the judge is ill")

    bad = judge()
    bad.judge = broken  # type: ignore[method-assign, assignment]
    with pytest.raises((DistillError, TypeError)):
        toss(coins([0.3] * 20, 50), Coin(), tmp_path, accept=bad)


def test_the_cap_stops_before_it_is_passed(tmp_path: Path) -> None:
    prices = (0.0, 1e6 / 20)  # one trace costs 1
    problems = coins([0.1] * 20)
    with pytest.raises(DistillError, match=r"sampling.max_cost is 30"):
        toss(problems, Coin(), tmp_path, max_cost=30, prices=prices, max_tokens=20)
    teacher = Coin()
    with pytest.raises(DistillError, match=r"of it before"):
        toss(problems, teacher, tmp_path, max_cost=30, prices=prices, max_tokens=20)
    (folder,) = tmp_path.iterdir()
    with TracePool.open(folder, write=False) as pool:
        assert sum(t.cost for t in pool.traces()) <= 31


# -- the step's files, notebooks, locks ----------------------------------------------------------


def test_the_step_writes_its_problems_and_rounds(tmp_path: Path) -> None:
    problems = coins(RATES)
    write_jsonl(tmp_path / "problems.jsonl", problems)
    run_sample(
        tmp_path / "problems.jsonl",
        CoinBatch(),
        Sampling(want=2, max=12, budget_tokens=1500),
        seed=0,
        pool_root=tmp_path / "pool",
        prices=(0, 0),
        out=tmp_path / "out",
        accept=judge(),
    )
    rows = list(read_jsonl(tmp_path / "out/problems_sampled.jsonl"))
    traces = Counter(row["problem_id"] for row in read_jsonl(tmp_path / "out/traces.jsonl"))
    assert [row["problem_id"] for row in rows] == [p.id for p in problems]
    assert {row["problem_id"]: row["tries"] for row in rows if row["tries"]} == dict(traces)
    assert {row["tokens"] for row in rows} == {20 * row["tries"] for row in rows}
    policy = Policy(2, 12, 0.02)
    for row in rows:
        rate = policy.pass_rate(row["tries"], row["accepted"]) if row["tries"] else None
        assert row["pass_rate"] == (None if rate is None else pytest.approx(rate, abs=1e-6))
    rounds = list(read_jsonl(tmp_path / "out/rounds.jsonl"))
    assert [row["round"] for row in rounds] == list(range(1, len(rounds) + 1))
    assert sum(row["tokens"] for row in rounds) == 20 * sum(traces.values())
    assert sum(row["accepted"] for row in rounds) == sum(row["accepted"] for row in rows)
    assert rounds[0]["budget_left"] == 1500
    assert all(row["samples"] >= row["tries"] for row in rounds)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["rounds"] == len(rounds)


@pytest.mark.parametrize("kind", [Coin, CoinBatch])
def test_inside_a_running_loop_as_in_a_notebook(tmp_path: Path, kind: type[Coin]) -> None:
    problems = coins(RATES)

    async def cell() -> SampleResult:
        toss(problems, kind(), tmp_path / "plain")
        return await sample_async(
            problems,
            kind(),
            Sampling(want=2, max=12),
            seed=0,
            pool_root=tmp_path / "awaited",
            accept=judge(),
        )

    assert tries_of(asyncio.run(cell())) == naive(problems, 2, 12, 0.02)


def test_a_locked_pool_refuses_only_whoever_needs_something(tmp_path: Path) -> None:
    problems = coins([1.0] * 3)
    done = toss(problems, Coin(), tmp_path)
    folder = tmp_path / done.summary["generation_key"]
    with TracePool.open(folder, write=True):
        assert toss(problems, Coin(), tmp_path).traces == done.traces
        with pytest.raises(StoreError, match="is writing"):
            toss(problems, Coin(), tmp_path, want=3)


# -- what identifies the step ----------------------------------------------------------


def test_graders_and_filters_identify_the_step_only_where_they_decide(tmp_path: Path) -> None:
    def identity(*overrides: str, variant: str = "") -> Any:
        recipe = Recipe.load("pocket", variant=variant, overrides=overrides)
        asked = Job(recipe, Workspace(tmp_path))._sampling_identity()
        return json.dumps(asked, sort_keys=True)

    strict = "filters=[truncated,correct]"
    assert identity() == identity(strict) == identity("sampling.max=3", "sampling.give_up=0.5")
    assert identity() != identity("sampling.limits=[100]")
    adaptive = identity(variant="adaptive")
    assert adaptive != identity(strict, variant="adaptive")
    assert adaptive != identity("grading.timeout_s=9", variant="adaptive")
    assert adaptive == identity("sampling.n=9", "grading.workers=1", variant="adaptive")
    # What is asked in its own step alone decides nothing here.
    later = f"filters=[{','.join(name for name in DEFAULT_FILTERS if name != 'overlap')}]"
    assert adaptive == identity(later, variant="adaptive")
