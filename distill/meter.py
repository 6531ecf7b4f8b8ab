"""What a sampling job has brought and what it will still take: counted, shown, written down.

`Meter` is told of events by the sampler and decides nothing. Its figures go to `Progress` and,
every 30 seconds and at the end, as a line to `metrics.jsonl`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from distill.metrics import FILE, MetricsFile, view
from distill.progress import Progress
from distill.records import Grade, Trace

EVERY_S = 30.0
TICK_S = 0.5
WINDOW_S, WINDOW_MOST_S = 60.0, 600.0
WINDOW_ARRIVALS = 20
"""Rates look back a minute, or as far as it takes to see so many arrivals, ten minutes at most."""

BUCKET_S = 2.0
Counts = tuple[int, int, int, int]
"""Tokens, traces, graded, accepted."""

ETA_BY = "traces still expected x mean tokens of a trace / tokens per second of the last window_s"


class Meter:
    """Counts events of sampling; every call takes constant time and may come from any thread.

    `problems` are to be done with at most `wanted` traces in all; `want` accepted ones are wanted
    of each problem, None where every problem gets a fixed number. `prices` are money per million
    prompt and completion tokens; without any, no cost is shown. Budgets bound what is to come.

    With `out`, lines are appended to `out/metrics.jsonl`, each in one write, so that a killed run
    leaves whole lines and a resumed one goes on below them. Used as a context manager it also
    ticks twice a second from a thread, so that a stall is seen as one; otherwise call `tick`.

    `clock` gives monotonic seconds (all rates and the time left come from it), `wall` seconds
    since the epoch, which are written down and never computed with.
    """

    def __init__(
        self,
        out: Path | None,
        progress: Progress | None,
        *,
        problems: int,
        wanted: int,
        want: int | None = None,
        prices: tuple[float, float] = (0, 0),
        budget_tokens: float | None = None,
        budget_cost: float | None = None,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.problems, self.wanted, self.want = problems, wanted, want
        self.priced = any(prices)
        self.budget_tokens, self.budget_cost = budget_tokens, budget_cost
        self.progress = progress
        self._every, self._clock, self._wall = every_s, clock, wall
        self._lock = threading.Lock()
        self._begin = self._written = clock()
        self._traces = self._reused = self._stored = self._failed = self._retries = (
            self._truncated
        ) = 0
        self._tokens = self._tokens_reused = self._live = self._broken = 0
        self._cost = self._cost_reused = 0.0
        self._graded = self._accepted = self._surplus = 0
        self._open: dict[str, tuple[int, int]] = {}
        self._open_tries = self._open_accepted = 0
        self._done: set[str] = set()
        self._pass_rates = [0] * 11
        self._reasons: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._servers: list[dict[str, Any]] = []
        self._ask_servers: Callable[[], Any] | None = None
        self._rounds = self._unshown = 0
        self._recent = _Recent(self._begin)
        self._file = MetricsFile(out / FILE) if out is not None else None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        if progress is not None:
            progress.total = problems if want else wanted
            progress.unit = "problems" if want else "traces"
            progress.details = self.lines

    def __enter__(self) -> Meter:
        self._write("start")
        self._thread = threading.Thread(target=self._ticking, name="distill-meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def bought(self, trace: Trace, *, tokens: int | None = None, cost: float | None = None) -> None:
        """A trace came from the teacher and is stored.

        A continuation holds the whole output: give its new `tokens` and `cost` alone.
        """
        new = trace.completion_tokens if tokens is None else tokens
        with self._lock:
            # A further segment completes a sample that is counted already.
            fresh = trace.segment == 0
            self._traces += fresh
            self._unshown += fresh and self.want is None
            self._truncated += trace.finish_reason == "length"
            self._tokens += new
            self._cost += trace.cost if cost is None else cost
        self._moved()

    def reused(self, trace: Trace) -> None:
        """A trace that is needed and was in the pool already: no part of the rates."""
        with self._lock:
            self._reused += 1
            self._tokens_reused += trace.completion_tokens
            self._cost_reused += trace.cost
        if self.progress is not None and self.want is None:
            self.progress.skip(1)

    def stored(self, count: int) -> None:
        """So many wanted traces are in the pool and were not read: not to come, and in no mean."""
        with self._lock:
            self._stored += count
        if self.progress is not None and self.want is None:
            self.progress.skip(count)

    def streamed(self, tokens: int) -> None:
        """So many tokens more are under way, from an engine that tells of them (`on_tokens`)."""
        with self._lock:
            self._live += tokens
        self._moved()

    def broke_off(self, tokens: int) -> None:
        """So many tokens that were under way belong to an answer that failed."""
        with self._lock:
            self._broken += tokens

    def retried(self, count: int = 1) -> None:
        """An attempt failed and is made again."""
        with self._lock:
            self._retries += count
        self._moved()

    def failed(self, count: int = 1) -> None:
        """A request was given up."""
        with self._lock:
            self._failed += count
        self._moved()

    def graded(self, problem_id: str, index: int, grade: Grade, accepted: bool) -> None:
        """A trace was judged. What comes after its problem has stopped is surplus."""
        with self._lock:
            self._outcomes[grade.outcome] += 1
            if problem_id in self._done:
                self._surplus += 1
                return
            tries, good = self._open.get(problem_id, (0, 0))
            self._open[problem_id] = (tries + 1, good + accepted)
            self._open_tries += 1
            self._open_accepted += accepted
            self._graded += 1
            self._accepted += accepted
        self._moved()

    def stopped(self, problem_id: str, reason: str, tries: int, accepted: int) -> None:
        """A problem is done, with `accepted` of its first `tries` traces; the rest is surplus."""
        with self._lock:
            if problem_id in self._done:
                return
            self._done.add(problem_id)
            seen, good = self._open.pop(problem_id, (0, 0))
            self._open_tries -= seen
            self._open_accepted -= good
            # What was graded beyond the stopping point, before it was known, is surplus too.
            self._surplus += max(0, seen - tries)
            self._graded += tries - seen
            self._accepted += accepted - good
            self._unshown += self.want is not None
            self._reasons[reason] += 1
            if tries:  # a problem whose requests all failed has no pass rate
                self._pass_rates[tenth(accepted, tries)] += 1
        self._moved()

    def round(self, **facts: Any) -> None:
        """A round of the allocation begins; its facts are written down at once."""
        with self._lock:
            self._rounds += 1
        self._write("round", facts)

    def watch(self, stats: Callable[[], Any]) -> None:
        """Ask `stats()` at every tick how the servers do: an outage has no events of its own."""
        self._ask_servers = stats

    def servers(self, stats: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """How each server does now, as `ServerPool.stats` has it; how many are `up` is shown."""
        rows = stats.get("servers", []) if isinstance(stats, Mapping) else stats
        with self._lock:
            self._servers = [dict(row) for row in rows]

    def figures(self) -> dict[str, Any]:
        """All figures now. Times in seconds; None is what cannot be known yet.

        `pass_rates` counts finished problems by accepted over tries: none, then each tenth up to
        1.0 (11 counts). This plain share leans upwards where sampling stops at an acceptance.
        """
        with self._lock:
            span, grown, arrived = self._recent.rates(self._clock(), self._counts())
            tokens = self._tokens + self._tokens_reused
            cost = self._cost + self._cost_reused
            return {
                "problems": self.problems,
                "problems_done": len(self._done),
                "wanted": self.wanted,
                "traces": self._traces,
                "reused": self._reused + self._stored,
                "truncated": self._truncated,
                "failed": self._failed,
                "retries": self._retries,
                "graded": self._graded,
                "accepted": self._accepted,
                "surplus": self._surplus,
                "outcomes": dict(self._outcomes),
                "stopped": dict(self._reasons),
                "pass_rates": list(self._pass_rates),
                "tokens": tokens,
                "tokens_bought": self._tokens,
                "tokens_under_way": self._under_way(),
                "tokens_per_s": round(grown / span, 1) if span else 0.0,
                "traces_per_s": round(arrived / span, 3) if span else 0.0,
                "window_s": round(span, 1),
                "tokens_per_accepted": round(tokens / self._accepted) if self._accepted else None,
                "priced": self.priced,
                "cost": round(cost, 6),
                "cost_bought": round(self._cost, 6),
                **self._to_come(tokens, cost, grown / span if span else 0.0),
                "rounds": self._rounds,
                "servers": list(self._servers),
            }

    def _under_way(self) -> int:
        return max(0, self._live - self._tokens - self._broken)

    def _to_come(self, tokens: int, cost: float, speed: float) -> dict[str, Any]:
        """What is expected still, from the means of the traces that are here and the speed."""
        here = self._traces + self._reused
        left = self._left(here)
        known = {"traces_to_come": None if left is None else round(left), "eta_by": ETA_BY}
        if left is None or not here:
            return {**known, "tokens_to_come": None, "cost_to_come": None, "eta_s": None}
        more = _bounded(left * tokens / here - self._under_way(), self.budget_tokens, tokens)
        money = _bounded(left * cost / here, self.budget_cost, cost)
        return {
            **known,
            "tokens_to_come": round(more),
            "cost_to_come": round(money, 6) if self.priced else None,
            "eta_s": round(more / speed, 1) if speed else None,
        }

    def _left(self, here: int) -> float | None:
        """Traces still expected: what a fixed number lacks, or what the open problems will take.

        The share accepted lately is that of the problems still open: the easy ones have left.
        """
        if self.want is None:
            return float(max(0, self.wanted - here - self._stored - self._failed))
        still = self.problems - len(self._done)
        if still <= 0:
            return 0.0
        most = still * self.wanted / max(1, self.problems) - self._open_tries
        lacking = still * self.want - self._open_accepted
        share = self._recent.share(self._counts())
        if share is None:
            return None
        return max(0.0, min(most, lacking / share if share else most))

    def lines(self) -> list[str]:
        """The live view, four lines at most; the first belongs behind the count of what is done."""
        return view(self.figures(), self._clock() - self._begin)

    def tick(self) -> None:
        """Show what is due to be shown, and write what is due to be written."""
        now = self._clock()
        # A teacher that is not open yet has nothing to tell, and a view must end no run.
        with suppress(Exception):
            if self._ask_servers and isinstance(told := self._ask_servers(), Mapping):
                self.servers(told)
        with self._lock:
            self._recent.note(now, self._counts())
            done, self._unshown = self._unshown, 0
        # Outside the lock: Progress asks for `lines` while it holds its own.
        if self.progress is not None:
            self.progress.update(done)
        if self._file is not None and now - self._written >= self._every:
            self._write("tick")

    def close(self) -> None:
        """Write the last line and end the ticking. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.tick()
        self._write("end")
        if self._file is not None:
            self._file.close()

    def _counts(self) -> Counts:
        return max(self._live, self._tokens), self._traces, self._graded, self._accepted

    def _ticking(self) -> None:
        while not self._stop.wait(TICK_S):
            self.tick()

    def _moved(self) -> None:
        # Thousands of streams tell of every piece: with a thread that ticks they only count.
        if self._thread is None:
            self.tick()

    def _write(self, event: str, facts: Mapping[str, Any] | None = None) -> None:
        if self._file is None:
            return
        now = self._clock()
        self._written = now
        stamp = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="seconds")
        row = {"event": event, "time": stamp, "seconds": round(now - self._begin, 3)}
        self._file.write({**row, **self.figures(), **({"round": dict(facts)} if facts else {})})


class _Recent:
    """Counters as they were, every BUCKET_S seconds or more, for rates over the recent past."""

    def __init__(self, begin: float) -> None:
        self._kept: deque[tuple[float, Counts]] = deque([(begin, (0, 0, 0, 0))])

    def note(self, now: float, counts: Counts) -> None:
        """Remember the counters if the last time is long enough ago."""
        if now - self._kept[-1][0] >= BUCKET_S:
            self._kept.append((now, counts))
            while len(self._kept) > 2 and self._kept[1][0] <= now - WINDOW_MOST_S:
                self._kept.popleft()

    def rates(self, now: float, counts: Counts) -> tuple[float, int, int]:
        """Seconds looked back on, and the tokens and traces of that time."""
        first, then = self._kept[0]
        arrivals = counts[1] - then[1]
        sparse = WINDOW_ARRIVALS * (now - first) / arrivals if arrivals else WINDOW_MOST_S
        since = now - min(max(WINDOW_S, sparse), WINDOW_MOST_S)
        for at, kept in reversed(self._kept):
            first, then = at, kept
            if at <= since:
                break
        return now - first, counts[0] - then[0], counts[1] - then[1]

    def share(self, counts: Counts) -> float | None:
        """Accepted over judged of the last ten minutes, or of all there was before them."""
        then = self._kept[0][1]
        if counts[2] == then[2]:
            then = (0, 0, 0, 0)
        judged = counts[2] - then[2]
        return (counts[3] - then[3]) / judged if judged else None


def tenth(accepted: int, tries: int) -> int:
    """Bin of a pass rate: 0 for none at all, k for a share in ((k-1)/10, k/10]."""
    return 0 if accepted <= 0 or tries <= 0 else min(10, -(-10 * accepted // tries))


def _bounded(left: float, budget: float | None, spent: float) -> float:
    return max(0.0, left if budget is None else min(left, budget - spent))
