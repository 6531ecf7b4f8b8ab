"""Adaptive sampling: every problem has a course, grades flow back, rounds spread what is left.

All that is decided follows from the stored traces: a run that was killed decides again what it had
decided, and there is no file of its state. `course.py` says when a problem is done, `policy.py`
what a round gets, `stream.py` buys without rounds.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from distill.accept import Acceptance, Judged
from distill.course import BUDGET, CERTAIN, LIKELY, Course, Place, Result
from distill.meter import Meter
from distill.policy import Policy, allocate
from distill.protocols import Capabilities
from distill.records import Problem, Trace, TraceKey
from distill.schema import Sampling
from distill.store import TracePool
from distill.wanted import Job, barred, next_limit, stages

MEAN_TOKENS = 5355
"""Expected length before anything was sampled: R1's mean (arXiv 2501.12948v2, Table 5)."""
PROBE = 16
"""A budget's first round is never smaller than so many samples, whatever their length may be."""
MOST_INDICES = 1 << 12

At = tuple[int, Place]
"""A request: the position of its problem, and its place in the problem's course."""


class Adaptive:
    """The courses of all problems, and what they ask for.

    `prices` are money per million prompt and completion tokens; `rows` are the lines of
    `rounds.jsonl`.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        sampling: Sampling,
        pool: TracePool,
        can: Capabilities,
        batch_size: int | None,
        accept: Acceptance,
        prices: tuple[float, float] = (0, 0),
        meter: Meter | None = None,
    ) -> None:
        self.problems, self.sampling, self.pool, self.can = problems, sampling, pool, can
        self.batch_size, self.accept, self.meter = batch_size, accept, meter
        self.policy = Policy.from_sampling(sampling)
        self.courses = [Course(self.policy) for _ in problems]
        self.budget = Purse(sampling, prices)
        self.rows: list[dict[str, Any]] = []
        self.least = CERTAIN if self.budget.limited else LIKELY
        """How likely a request must be needed to be asked; a budget is spent on certain ones."""
        self._before_round: Counter[str] = Counter()
        self._bought: set[At] = set()
        self.fresh = array("Q")

    @property
    def open(self) -> list[int]:
        """Positions of the problems that are not done."""
        return [at for at, course in enumerate(self.courses) if course.reason is None]

    def key(self, at: int, place: Place) -> TraceKey:
        return (self.problems[at].id, *place)

    def job(self, at: int, place: Place) -> Job:
        """The request of a place. A continuation's earlier segment is in the pool."""
        problem, (index, segment) = self.problems[at], place
        if not segment:
            return Job(problem, index, stages(self.sampling)[0])
        before = self._before(at, place)
        limit = next_limit(before, self.sampling) if before else None
        assert limit is not None, "a course goes on only from what can be gone on with"
        return Job(problem, index, limit, before)

    # -- grades flow back ----------------------------------------------------------------------

    def replay(self) -> None:
        """Take from the pool what the courses ask for, as far as it goes. Buys nothing.

        Whoever asks ahead does it afterwards: a job that is done must not ask for anything.
        """
        waiting = self.open
        while waiting:
            nexts = [(at, self.courses[at].next) for at in waiting]
            found = [one for one in nexts if self.key(*one) in self.pool]
            self.settle(found)
            waiting = [at for at, _ in found if self.courses[at].reason is None]

    def settle(self, asked: Sequence[At]) -> None:
        """Judge what is in the pool of the places asked, and tell the courses, in that order."""
        there = [found for found in asked if self.key(*found) in self.pool]

        def stored() -> Iterator[tuple[Problem, Trace]]:
            for at, place in there:
                trace = self.pool.get(self.key(at, place))
                assert trace is not None
                traces.append(trace)
                if (at, place) not in self._bought:
                    self.count_reused(trace)
                yield self.problems[at], trace

        traces: deque[Trace] = deque()
        results: dict[At, Result] = {}
        for found, judged in zip(there, self.accept.judge(stored()), strict=True):
            results[found] = self.result(found, traces.popleft(), judged)
        self._bought.clear()
        for found in asked:
            self.tell(found, results.get(found) or Result(lost=True))

    def _before(self, at: int, place: Place) -> Trace | None:
        """What a continuation went on from."""
        index, segment = place
        return self.pool.get(self.key(at, (index, segment - 1))) if segment else None

    def result(self, found: At, trace: Trace, judged: Judged) -> Result:
        """What a judged trace means for its course, and for the shared budget."""
        self.budget.spend(trace, self._before(*found))
        goes_on = (
            trace.finish_reason == "length"
            and barred(trace, self.can) is None
            and next_limit(trace, self.sampling) is not None
        )
        if self.meter and not goes_on:
            self.meter.graded(trace.problem_id, trace.index, judged.grade, judged.accepted)
        return Result(judged.accepted, goes_on, judged.key, trace.completion_tokens)

    def tell(self, found: At, result: Result) -> None:
        """A result reaches its course."""
        at, place = found
        course = self.courses[at]
        over = course.reason is not None
        course.tell(place, result)
        if self.meter and course.reason is not None and not over:
            self.meter.stopped(self.problems[at].id, course.reason, course.tries, course.accepted)

    def count_fresh(self, found: At) -> None:
        """Remember that this run buys a sample (or a further segment of it)."""
        at, (index, _) = found
        self.fresh.append(at * MOST_INDICES + index)

    def count_reused(self, trace: Trace) -> None:
        """Tell the meter of a sample that was in the pool; further segments belong to it."""
        if self.meter and not trace.segment:
            self.meter.reused(trace)

    # -- rounds --------------------------------------------------------------------------------

    def rounds(self) -> Iterator[list[list[Job]]]:
        """Groups of jobs to buy from a batch engine; what each round brought decides the next."""
        while self.begin_round():
            while asked := self._groups():
                every = [found for group in asked for found in group]
                for at, place in every:
                    self.courses[at].asked.append(place)
                yield [jobs for group in asked if (jobs := self._to_buy(group))]
                self.settle(every)
                if not self.budget.limited:
                    break
            self.end_round()

    def begin_round(self) -> bool:
        """Give every open problem its share of the next round. False: there is none.

        Without a shared budget a round is one look at the grades, and shares are not limited.
        """
        open_now = self.open
        left = self.budget.left()
        samples = None
        if left is not None:
            given = self._allocate(left)
            samples = sum(given)
            for at in open_now:
                self.courses[at].allowance = given[at]
            if not samples:
                for at in open_now:
                    self.courses[at].end(BUDGET)
                open_now = []
        if open_now:
            row = {"round": len(self.rows) + 1, "problems": len(open_now), "samples": samples}
            self.rows.append({**row, "budget_left": None if left is None else round(left)})
            self._before_round = self._totals()
            if self.meter:
                self.meter.round(**self.rows[-1])
        return bool(open_now)

    def end_round(self) -> None:
        """Write down what the round brought."""
        brought = self._totals()
        brought.subtract(self._before_round)
        row = self.rows[-1]
        row["stopped"] = stopped = dict[str, int]()
        for name, count in brought.items():
            reason = name.removeprefix("stopped ")
            if reason == name:
                row[name] = count
            elif count:
                stopped[reason] = count

    def _totals(self) -> Counter[str]:
        found = Counter(
            tries=sum(course.tries for course in self.courses),
            accepted=sum(course.accepted for course in self.courses),
            tokens=self.budget.tokens,
        )
        found.update(f"stopped {course.reason}" for course in self.courses if course.reason)
        return found

    def _allocate(self, left: float) -> list[int]:
        """How many samples each problem may have of a budget's next round."""
        first = min(MEAN_TOKENS, stages(self.sampling)[0], left / PROBE)
        states = [course.state for course in self.courses]
        return allocate(self.policy, states, max(0.0, left), sample_tokens=first)

    def _groups(self) -> list[list[At]]:
        """The next requests in whole groups: needed in any case, and likely ones to fill one."""
        plans: dict[int, list[Place]] = {}
        likely: list[tuple[float, int, Place]] = []
        for at in self.open:
            course = self.courses[at]
            for chance, place in zip(course.ahead(), course.upcoming(), strict=False):
                if chance >= CERTAIN:
                    plans.setdefault(at, []).append(place)
                elif chance >= self.least:
                    likely.append((-round(chance, 9), at, place))
        size = self.batch_size or 1
        room = size - sum(map(len, plans.values()))
        for _, at, place in sorted(likely)[: max(0, room)]:
            plans[at].append(place)
        return grouped(plans, size)

    def _to_buy(self, group: Sequence[At]) -> list[Job]:
        """The jobs of a group: all of them if the pool lacks any, for they belong together."""
        missing = [found for found in group if self.key(*found) not in self.pool]
        for found in missing:
            self.count_fresh(found)
        self._bought.update(missing)
        return [self.job(*found) for found in group] if missing else []

    # -- what counts ---------------------------------------------------------------------------

    def listed(self) -> Iterator[TraceKey]:
        """The traces up to each problem's stopping point, in index order."""
        for at, course in enumerate(self.courses):
            for place in course.places():
                yield self.key(at, place)

    @property
    def wanted(self) -> int:
        """Samples that count, with those that failed."""
        return sum(course.begun for course in self.courses)

    def surplus(self) -> Iterator[TraceKey]:
        """What the pool has of these problems beyond their stopping points."""
        for at, course in enumerate(self.courses):
            ends = dict(course.places())
            for index in range(max(self.policy.most, course.begun)):
                segment = ends.get(index, -1) + 1
                while self.key(at, (index, segment)) in self.pool:
                    yield self.key(at, (index, segment))
                    segment += 1

    def bought(self) -> tuple[int, int]:
        """Samples this run bought or continued: those that count, and all."""
        fresh = array("Q", sorted(set(self.fresh)))

        def there(number: int) -> bool:
            place = bisect_left(fresh, number)
            return place < len(fresh) and fresh[place] == number

        count = sum(
            there(at * MOST_INDICES + index)
            for at, course in enumerate(self.courses)
            for index, _ in course.places()
        )
        return count, len(fresh)


class Purse:
    """A shared budget in tokens, in money or both; counted over all rounds, bought or reused."""

    def __init__(self, sampling: Sampling, prices: tuple[float, float]) -> None:
        self.most_tokens = sampling.budget_tokens
        self.most_cost = sampling.budget_cost if any(prices) else None
        self.tokens = 0
        self.cost = 0.0
        self._price = max(prices[1], prices[0]) / 1e6

    @property
    def limited(self) -> bool:
        return self.most_tokens is not None or self.most_cost is not None

    def spend(self, trace: Trace, before: Trace | None) -> None:
        """A round's request came back; `before` is what it went on from."""
        self.tokens += trace.completion_tokens - (before.completion_tokens if before else 0)
        self.cost += trace.cost - (before.cost if before else 0.0)

    def left(self) -> float | None:
        """What is left, in completion tokens; None without a budget."""
        left = []
        if self.most_tokens is not None:
            left.append(float(self.most_tokens - self.tokens))
        if self.most_cost is not None:
            each = self.cost / self.tokens if self.tokens and self.cost else self._price
            left.append((self.most_cost - self.cost) / each)
        return min(left) if left else None


def grouped(plans: dict[int, list[Place]], size: int) -> list[list[At]]:
    """Requests in groups of `size`: the first of all problems, then the second, and so on.

    A depth that fills a group keeps its groups to itself, as fixed n does, so that both make the
    same groups where they ask for the same; what is left over shares groups.
    """
    depth, groups, rest = 0, list[list[At]](), list[At]()
    while True:
        level = [(at, places[depth]) for at, places in plans.items() if len(places) > depth]
        if not level:
            break
        if len(level) >= size and not rest:
            groups += chunks(level, size)
        else:
            rest += level
        depth += 1
    return [*groups, *chunks(rest, size)]


def chunks(items: Sequence[At], size: int) -> Iterable[list[At]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))
