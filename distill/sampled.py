"""What the sample step says about itself: `summary.json`, and the table of problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distill.adaptive import Adaptive
from distill.fixed import Fixed
from distill.meter import tenth
from distill.protocols import Capabilities
from distill.records import Trace
from distill.schema import Sampling
from distill.store import TracePool
from distill.wanted import barred, next_limit

if TYPE_CHECKING:
    from distill.sample import Session


@dataclass(slots=True)
class Tally:
    """Sums over the traces of the output, taken while they pass."""

    count: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    longer: int = 0
    empty: int = 0
    kept_cut: int = 0
    full: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    served_models: Counter[str] = field(default_factory=Counter)
    fingerprints: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    limits: dict[int, Counter[str]] = field(default_factory=dict)
    tokens_of: Counter[str] = field(default_factory=Counter)
    """Completion tokens by problem."""

    def over(self, traces: Iterable[Trace], session: Session) -> Iterator[Trace]:
        """Pass the traces on, counting them."""
        for trace in traces:
            self.count += 1
            self.prompt_tokens += trace.prompt_tokens
            self.completion_tokens += trace.completion_tokens
            self.cost += trace.cost
            self.longer += trace.completion_tokens > session.sampling.max_tokens
            self.empty += trace.finish_reason == "stop" and not trace.text.strip()
            self.finish_reasons[trace.finish_reason] += 1
            self.served_models[trace.served_model] += 1
            self.fingerprints[trace.fingerprint or ""] += 1
            self.flags.update(trace.flags)
            self.tokens_of[trace.problem_id] += trace.completion_tokens
            self._cut(trace, session)
            self._by_limit(trace, session.pool)
            yield trace

    def _cut(self, trace: Trace, session: Session) -> None:
        if trace.finish_reason == "length" and next_limit(trace, session.sampling) is not None:
            bar = barred(trace, session.can)
            self.full += bar == "full"
            self.kept_cut += bar == "engine"

    def _by_limit(self, trace: Trace, pool: TracePool) -> None:
        """Count each segment under the limit that it was asked with."""
        last: Trace | None = trace
        while last is not None:
            problem_id, index, segment = last.key
            before = pool.get((problem_id, index, segment - 1)) if segment else None
            row = self.limits.setdefault(last.max_tokens or 0, Counter())
            row["asked"] += 1
            row["cut" if last.finish_reason == "length" else "ended"] += 1
            row["tokens"] += last.completion_tokens - (before.completion_tokens if before else 0)
            last = before


def summarise(session: Session, tally: Tally) -> dict[str, Any]:
    """The step's `summary.json`. `bought` + `reused` + `failed` = `wanted`."""
    buyer, plan, seconds = session.buyer, session.plan, session.seconds
    failures = session.failures
    failed = len(failures)
    # What counts are samples: one that could not be continued failed, though it has a trace.
    if isinstance(plan, Fixed):
        new = {key[:2] for key in plan.keys}
        bought, reused = len(new) - failed, plan.wanted - len(new)
    else:
        new_ones = plan.bought()[0]
        reused = tally.count - new_ones
        bought = new_ones - sum(failure.segment > 0 for failure in failures)
    found = {
        "problems": len(session.problems),
        "wanted": bought + reused + failed if isinstance(plan, Adaptive) else plan.wanted,
        "traces": tally.count,
        "bought": bought,
        "reused": reused,
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
        "fingerprints": {name: count for name, count in tally.fingerprints.most_common() if name},
        "ignored": ignored(session.can, session.sampling),
        "finish_reasons": dict(tally.finish_reasons.most_common()),
        "limits": limits(tally),
        "deterministic": session.can.deterministic,
    }
    if isinstance(plan, Adaptive):
        found |= adaptive_figures(plan, tally)
    return found | {"notes": notes(session, tally)}


def adaptive_figures(plan: Adaptive, tally: Tally) -> dict[str, Any]:
    """What adaptive sampling adds to the summary."""
    accepted = sum(course.accepted for course in plan.courses)
    surplus = surplus_of(plan)
    tokens = tally.completion_tokens
    return {
        "want": plan.policy.want,
        "accepted": accepted,
        "stopped": dict(Counter(course.reason or "" for course in plan.courses).most_common()),
        "surplus": surplus,
        "tokens_per_accepted": round(tokens / accepted, 1) if accepted else None,
        "pass_rate_histogram": histogram(plan),
        "mean_pass_rate": mean_pass_rate(plan),
        "rounds": len(plan.rows),
        "judged_later": plan.accept.later,
    }


def surplus_of(plan: Adaptive) -> dict[str, int]:
    """Traces beyond the stopping points that the pool has, and how many this run bought."""
    counted, all_bought = plan.bought()
    found = {"traces": 0, "tokens": 0, "bought": max(0, all_bought - counted)}
    for problem_id, index, segment in plan.surplus():
        trace = plan.pool.get((problem_id, index, segment))
        before = plan.pool.get((problem_id, index, segment - 1)) if segment else None
        assert trace is not None
        found["traces"] += not segment
        found["tokens"] += trace.completion_tokens - (before.completion_tokens if before else 0)
    return found


def histogram(plan: Adaptive) -> list[int]:
    """Problems by accepted share of what was tried: none, then each tenth up to 1 (11 counts)."""
    bins = [0] * 11
    for course in plan.courses:
        if course.tries:
            bins[tenth(course.accepted, course.tries)] += 1
    return bins


def mean_pass_rate(plan: Adaptive) -> float | None:
    """The mean over problems of the estimate that the stopping rule does not bias."""
    rates = [rate for row in problem_rows(plan, {}) if (rate := row["pass_rate"]) is not None]
    return round(sum(rates) / len(rates), 6) if rates else None


def problem_rows(plan: Adaptive, tokens: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """The rows of `problems_sampled.jsonl`: what was tried, why it ended, the unbiased pass rate.

    `pass_rate` is null where nothing was decided. `cut` counts samples that were cut off and not
    continued, because the problem was done without them.
    """
    for problem, course in zip(plan.problems, plan.courses, strict=True):
        rate = plan.policy.pass_rate(course.tries, course.accepted) if course.tries else None
        yield {
            "problem_id": problem.id,
            "tries": course.tries,
            "accepted": course.accepted,
            "reason": course.reason,
            "pass_rate": None if rate is None else round(rate, 6),
            "cut": course.aside,
            "failed": course.lost,
            "tokens": tokens.get(problem.id, 0),
        }


def limits(tally: Tally) -> list[dict[str, int]]:
    """What each limit of tokens brought: requests, how many ended or were cut off, new tokens."""
    return [
        {"limit": limit, **{name: row[name] for name in ("asked", "ended", "cut", "tokens")}}
        for limit, row in sorted(tally.limits.items())
    ]


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
            tally.kept_cut,
            f"traces cut off below the present limit of {sampling.max_tokens:,} tokens that stay"
            " so, because this engine cannot go on from them",
        ),
        (tally.full, "traces cut off where the teacher's context ended"),
        (tally.longer, "traces from the pool longer than the present max_tokens"),
        (tally.flags["prefilled"], "traces continued from text, whose tokens may differ"),
        (tally.flags["surrogates"], "traces with lone surrogates, now U+FFFD"),
        (tally.flags["cost_estimated"], "traces without a token count, their cost estimated"),
        (tally.empty, "empty answers that ended by themselves"),
        (len(session.failures), "failed requests, see failures.jsonl"),
        (pool.bad, "damaged lines of the pool, passed over"),
    ]
    said = [f"{text}: {count:,}" for count, text in counted if count]
    if not_honoured:
        said.append(f"the engine does not honour: {', '.join(not_honoured)}")
    if sampling.temperature == 0 and max(sampling.n, sampling.want or 0) > 1:
        said.append("at temperature 0 the samples of a problem are alike")
    for name in ("max_cost", "budget_cost"):
        if getattr(sampling, name) is not None and not any(session.buyer.prices):
            said.append(f"{name} has no effect: the teacher has no prices")
    if isinstance(session.plan, Adaptive) and session.plan.accept.later:
        names = ", ".join(session.plan.accept.later)
        said.append(f"judged after sampling, so that accepted traces may still be dropped: {names}")
    said += getattr(session.buyer.teacher, "notes", ())
    return said + session.buyer.watch.changes
