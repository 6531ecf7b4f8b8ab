"""Growing limits of tokens, continuations, and a teacher that changes in mid-run."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.answers import OPENING, ModelWatch
from distill.course import Course, Place, Result
from distill.errors import DistillError, TeacherError
from distill.policy import Policy
from distill.protocols import Capabilities, Completion, Request, Usage
from distill.records import Problem, Trace
from distill.sample import SampleResult, sample
from distill.schema import Sampling
from distill.store import TracePool, generation_key
from distill.wanted import lack
from tests.coins import Coin, coins, share, toss


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_PROGRESS", "0")


class Long(Coin):
    """Counts to a length that the seed of the first segment decides, then says yes or no.

    Its tokens are words, so that it can go on from tokens and from text.
    """

    identity = "long@1"
    capabilities = Capabilities(token_ids=True, prefix=True, deterministic=True)
    by_text = whole = False

    def words(self, request: Request) -> list[str]:
        problem_id, index, _ = request.key.split("/")
        rate = float(str(request.prompt[0]["content"]).split()[0])  # type: ignore[index, call-overload]
        length = 4 + int(36 * share(problem_id, index, "length"))
        word = "yes" if share(problem_id, index) < rate else "no"
        return ["<think>", *map(str, range(length)), f"</think>{word}"]

    def answer(self, request: Request) -> Completion:
        words = self.words(request)
        done = len((request.prefix_text or "").split()) if request.prefix_text else 0
        if not self.by_text:
            done = len(request.prefix_ids or ())
        end = min(len(words), done + request.params.max_tokens)
        return Completion(
            text=" ".join(words[0 if self.whole or not self.by_text else done : end]),
            token_ids=None if self.by_text else tuple(range(end)),
            finish_reason="stop" if end == len(words) else "length",
            usage=Usage(prompt_tokens=5 + done, completion_tokens=end - done),
        )


class LongBatch(Long):
    capabilities = Capabilities(token_ids=True, prefix=True, deterministic=True, batch_size=4)

    def complete_batch(self, requests: Any, on_tokens: Any = None) -> list[Any]:
        self.asked += [request.key for request in requests]
        return [self.answer(request) for request in requests]


class ByText(Long):
    """Goes on from text, and answers with the new part alone."""

    capabilities = Capabilities(prefill=True, deterministic=True)
    by_text = True

    def answer(self, request: Request) -> Completion:
        done = super().answer(request)
        return replace(done, text=" " + done.text) if request.prefix_text else done


class ByWholeText(Long):
    """Goes on from text, and answers with the whole."""

    capabilities = Capabilities(prefill=True, deterministic=True)
    by_text = whole = True


class NoWay(Long):
    capabilities = Capabilities(deterministic=True)


def fixed(teacher: Any, root: Path, **asked: Any) -> SampleResult:
    return sample(coins([0.5] * 9), teacher, Sampling(n=2, **asked), seed=0, pool_root=root)


def counts(result: SampleResult) -> tuple[int, ...]:
    return tuple(result.summary[name] for name in ("wanted", "bought", "reused", "failed"))


def row(result: SampleResult, limit: int) -> dict[str, int]:
    (found,) = [r for r in result.summary["limits"] if r["limit"] == limit]
    return dict(found)


# -- fixed n ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Long, LongBatch, ByText, ByWholeText])
def test_what_is_cut_off_is_continued_under_the_next_limit(
    tmp_path: Path, kind: type[Long]
) -> None:
    once = fixed(kind(), tmp_path / "once", max_tokens=100)
    teacher = kind()
    grown = fixed(teacher, tmp_path / "grown", limits=[10, 20], max_tokens=100)
    assert [t.text for t in grown.traces] == [t.text for t in once.traces]
    assert [t.completion_tokens for t in grown.traces] == [t.completion_tokens for t in once.traces]
    assert {t.finish_reason for t in grown.traces} == {"stop"}
    rows = [row(grown, limit) for limit in (10, 20, 100)]
    assert rows[0]["asked"] == 18
    assert [r["cut"] for r in rows[:2]] == [r["asked"] for r in rows[1:]]
    assert sum(r["tokens"] for r in rows) == grown.summary["completion_tokens"]
    assert counts(grown) == (18, 18, 0, 0)
    segments = {t.segment for t in grown.traces}
    assert segments == {0, 1, 2}
    flags = {flag for t in grown.traces if t.segment for flag in t.flags}
    assert flags == ({"continued", "prefilled"} if kind.by_text else {"continued"})
    said = [note for note in grown.summary["notes"] if "continued from text" in note]
    assert len(said) == kind.by_text
    again = kind()
    reused = fixed(again, tmp_path / "grown", limits=[10, 20], max_tokens=100)
    assert (reused.traces, counts(reused)) == (grown.traces, (18, 0, 18, 0))
    assert again.asked == []
    # Every limit is a round: nothing is continued before all was asked under the first.
    first = [key.endswith("/0") for key in teacher.asked]
    assert first == sorted(first, reverse=True)


@pytest.mark.parametrize("kind", [Long, LongBatch, ByText])
def test_a_later_run_goes_on_under_a_higher_limit(tmp_path: Path, kind: type[Long]) -> None:
    cut = fixed(kind(), tmp_path, limits=[10], max_tokens=15)
    assert cut.summary["truncated"] > 5
    teacher = kind()
    more = fixed(teacher, tmp_path, limits=[10], max_tokens=100)
    assert more.summary["truncated"] == 0
    # A group is asked again whole: what is in the pool already comes with what is not.
    if kind is not LongBatch:
        assert not any(key.endswith(("/0", "/1")) for key in teacher.asked)
    assert [t.text for t in more.traces] == [
        t.text for t in fixed(kind(), tmp_path / "once", max_tokens=100).traces
    ]


class Ending(Long):
    """Refuses whatever goes on from an earlier answer."""

    def answer(self, request: Request) -> Completion:
        if request.prefix_ids:
            raise TeacherError("refused")
        return super().answer(request)


def test_a_continuation_that_failed_is_one_sample_that_failed(tmp_path: Path) -> None:
    result = fixed(Ending(), tmp_path / "fixed", limits=[10, 20], max_tokens=100)
    cut = result.summary["truncated"]
    assert cut > 5
    assert counts(result) == (18, 18 - cut, 0, cut)
    assert len(result.failures) == cut
    result = toss(
        coins([0.5] * 9), Ending(), tmp_path / "toss", limits=[10], max_tokens=100, want=1, max=4
    )
    wanted, bought, reused, failed = counts(result)
    assert (wanted, reused) == (result.summary["traces"], 0)
    assert bought + failed == wanted
    assert failed == len(result.failures) > 0


def test_what_is_to_be_continued_is_not_held_in_memory(tmp_path: Path) -> None:
    fixed(Long(), tmp_path, max_tokens=10)
    asked = Sampling(n=2, max_tokens=100)
    key, content = generation_key(Long.identity, asked, 0)
    with TracePool.open(tmp_path / key, write=False, content=content) as pool:
        found = lack(coins([0.5] * 9), asked, pool, Long.capabilities, None, 100)
        assert sum(map(len, found.groups)) > 5
        gc.collect()
        mine = {problem.id for problem in coins([0.5] * 9)}
        traces = (one for one in gc.get_objects() if isinstance(one, Trace))
        assert not any(trace.problem_id in mine for trace in traces)
        assert all(job.before for group in found.groups for job in group)


def test_where_nothing_can_go_on_it_stays_cut_and_that_is_said(tmp_path: Path) -> None:
    teacher = NoWay()
    result = fixed(teacher, tmp_path, limits=[10], max_tokens=100)
    assert len(teacher.asked) == 18
    cut = result.summary["truncated"]
    assert cut > 5
    assert f"because this engine cannot go on from them: {cut}" in result.summary["notes"][0]


# -- adaptive --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Long, LongBatch, ByText])
@pytest.mark.parametrize("more", [{}, {"budget_tokens": 2500}, {"concurrency": 1}])
def test_only_problems_that_still_want_traces_continue_what_was_cut(
    tmp_path: Path, kind: type[Long], more: dict[str, Any]
) -> None:
    problems = coins([0.0, 0.3, 0.7, 1.0] * 5)
    asked = {"limits": [12, 24], "max_tokens": 60, "want": 2, "max": 8, **more}
    teacher = kind()
    result = toss(problems, teacher, tmp_path, **asked)
    cut = [t for t in result.traces if t.finish_reason == "length"]
    right = Counter(t.problem_id for t in result.traces if t.answer == "yes")
    enough = {problem_id for problem_id, count in right.items() if count == 2}
    if not more.get("budget_tokens"):
        assert {t.problem_id for t in cut} <= enough
    assert cut, "an easy problem leaves what ran long"
    assert any(t.segment == 2 for t in result.traces)
    again = kind()
    assert toss(problems, again, tmp_path, **asked).traces == result.traces
    assert again.asked == []
    plain = toss(problems, kind(), tmp_path / "plain", **{**asked, "limits": []})
    if not more.get("budget_tokens"):
        assert result.summary["accepted"] == plain.summary["accepted"]
    rows = result.summary["limits"]
    assert sum(r["tokens"] for r in rows) == result.summary["completion_tokens"]


def test_chains_that_run_long_because_they_are_lost_cost_less(tmp_path: Path) -> None:
    class Rambling(Long):
        def words(self, request: Request) -> list[str]:
            words = super().words(request)
            return [*words, *["round"] * 200, "</think>no"] if len(words) > 30 else words

    problems = coins([0.5, 0.7, 0.9, 1.0] * 5)
    asked = {"limits": [30, 60], "max_tokens": 300, "want": 3, "max": 16}
    grown = toss(problems, Rambling(), tmp_path / "grown", **asked)
    plain = toss(problems, Rambling(), tmp_path / "plain", **{**asked, "limits": []})
    assert grown.summary["accepted"] == plain.summary["accepted"]
    assert grown.summary["completion_tokens"] < 0.7 * plain.summary["completion_tokens"]


@pytest.mark.slow
def test_all_ways_of_asking_continue_the_same(tmp_path: Path) -> None:
    problems = coins([0.1, 0.3, 0.7, 1.0] * 5)
    asked = {"limits": [12, 24], "max_tokens": 60, "want": 3, "max": 8}
    runs = [
        toss(problems, kind(0.002), tmp_path / str(at), concurrency=at, **asked)
        for at, kind in ((1, Long), (5, Long), (50, Long), (99, LongBatch))
    ]
    texts = [[(t.key, t.text) for t in run.traces] for run in runs]
    assert texts[0] == texts[1] == texts[2] == texts[3]


OUTCOMES = st.lists(st.sampled_from(["yes", "no", "cut", "lost"]), min_size=200, max_size=200)


def results(outcomes: list[str], segments: int) -> Iterator[tuple[Place, Result]]:
    """What each request would bring, whenever it is asked."""
    for number, outcome in enumerate(outcomes):
        place = (number // segments, number % segments)
        goes_on = outcome == "cut" and place[1] < segments - 1
        yield place, Result(outcome == "yes", goes_on, lost=outcome == "lost")


@settings(max_examples=60, deadline=None)
@given(OUTCOMES, st.integers(1, 4), st.integers(4, 10), st.randoms(use_true_random=False))
def test_a_course_ends_the_same_in_whatever_order_results_arrive(
    outcomes: list[str], want: int, most: int, chance: Any
) -> None:
    bring = dict(results(outcomes, segments=3))

    def one_by_one() -> Course:
        course = Course(Policy(want, most, 0.02))
        while course.reason is None:
            course.tell(course.next, bring[course.next])
        return course

    def ahead() -> Course:
        course, under_way = Course(Policy(want, most, 0.02)), list[Place]()
        while course.reason is None:
            while (found := course.ask(chance.choice([0.5, 0.9, 1 - 1e-9]))) is not None:
                course.asked.append(found[1])
                under_way.append(found[1])
            place = under_way.pop(chance.randrange(len(under_way)))
            course.tell(place, bring[place])
        return course

    first, other = one_by_one(), ahead()
    assert list(first.places()) == list(other.places())
    for name in ("tries", "accepted", "reason", "aside", "lost", "begun"):
        assert getattr(first, name) == getattr(other, name)
    assert first.begun <= most
    assert first.reason != "enough" or first.accepted == want


@settings(max_examples=60, deadline=None)
@given(OUTCOMES, st.integers(1, 4), st.integers(4, 10))
def test_what_is_certain_is_always_needed(outcomes: list[str], want: int, most: int) -> None:
    bring = dict(results([o if o != "lost" else "no" for o in outcomes], segments=3))
    course = Course(Policy(want, most, 0.05))
    promised: set[Place] = set()
    while course.reason is None:
        while (found := course.ask()) is not None:
            course.asked.append(found[1])
            promised.add(found[1])
        place = course.next
        assert place in promised
        promised.discard(place)
        course.tell(place, bring[place])
    assert not promised


# -- a teacher that changes ------------------------------------------------------------------------


class Changing(Coin):
    """Calls its model otherwise after some answers."""

    identity = "changing@1"

    def __init__(self, names: list[str], after: int, builds: tuple[str, str] = ("", "")) -> None:
        super().__init__()
        self.names, self.after, self.builds = names, after, builds

    def answer(self, request: Request) -> Completion:
        late = len(self.asked) > self.after
        old = self.names[:-1]
        name = self.names[-1] if late else old[len(self.asked) % len(old)]
        return replace(
            super().answer(request), served_model=name, fingerprint=self.builds[int(late)]
        )


def many(teacher: Any, root: Path, n: int = 4, **more: Any) -> SampleResult:
    problems: list[Problem] = coins([0.5] * 40)
    return sample(problems, teacher, Sampling(n=n, **more), seed=0, pool_root=root)


def test_another_model_in_mid_run_stops_it_and_what_was_bought_is_kept(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"is now 'v4', it was 'v3'") as raised:
        many(Changing(["v3", "v4"], 100), tmp_path, concurrency=1)
    assert "accept_model_change=true" in raised.value.hint
    with pytest.raises(DistillError, match=r"is now 'v4', it was 'v3'"):
        many(Changing(["v4", "v4"], 10**9), tmp_path)
    back = Changing(["v3", "v3"], 10**9)
    half = many(back, tmp_path, n=3)
    assert half.summary["reused"] == 100
    on = many(Changing(["v4", "v4"], 10**9), tmp_path, accept_model_change=True)
    assert on.summary["served_models"] == {"v3": 120, "v4": 40}
    assert on.summary["notes"] == ["the served model is now 'v4', it was 'v3'"]


def test_servers_that_name_one_model_differently_are_no_change(tmp_path: Path) -> None:
    result = many(Changing(["a/v3", "v3", "v3"], 10**9), tmp_path)
    assert set(result.summary["served_models"]) == {"a/v3", "v3"}
    assert result.summary["notes"] == []


def test_another_build_in_mid_run_is_a_change_and_a_restart_between_runs_is_none(
    tmp_path: Path,
) -> None:
    with pytest.raises(DistillError, match=r"build \(fingerprint\) is now 'fp2', it was 'fp1'"):
        many(Changing(["m", "m"], 100, ("fp1", "fp2")), tmp_path, concurrency=1)
    result = many(Changing(["m", "m"], 10**9, ("fp2", "")), tmp_path)
    assert result.summary["fingerprints"] == {"fp1": 100, "fp2": 60}
    assert result.traces[0].fingerprint == "fp1"


def test_the_first_answers_may_name_any_model() -> None:
    watch = ModelWatch()
    for number in range(OPENING):
        watch.see(f"m{number % 3}", "")
    watch.see("m1", "")
    watch.see("", "")
    with pytest.raises(DistillError, match="is now 'm9', it was 'm0' or 'm1' or 'm2'"):
        watch.see("m9", "")


def test_empty_answers_are_data_and_are_counted(tmp_path: Path) -> None:
    class Silent(Coin):
        identity = "silent@1"

        def answer(self, request: Request) -> Completion:
            return Completion(text=" \n" if request.key.endswith("/0/0") else "\x00\x1b[2Jx")

    result = many(Silent(), tmp_path, n=2)
    assert result.summary["notes"] == ["empty answers that ended by themselves: 40"]
    assert result.summary["traces"] == 80
