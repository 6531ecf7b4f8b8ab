"""Tokens of adaptive sampling over those of fixed n, for the same accepted traces.

    python -m benchmarks.adaptive_sampling [--problems N] [--seed S]
    python -m benchmarks.adaptive_sampling --record RUNS      (a `distill grade` run's folder)

Both sides read the same outcomes of the same samples in index order and count the first `want`
accepted traces of a problem. Then adaptive sampling with `max` = n ends with the very traces that
fixed n ends with, in every bucket of difficulty; this is checked, and only the tokens differ.

Outcomes are drawn from two mixes of pass rates (`distill.simulate`: where they are from) and
recorded from the pocket teacher (data/pocket_outcomes.jsonl):

- published: problems that R1 solved at least once in two, as those of OpenR1-Math-220k, which the
  shipped recipes sample. This is the stated mix of the last line; every trace's length is drawn
  from one distribution.
- published, hard ones longer: the same with traces up to three times as long where problems are
  hard and answers wrong, which is plausible and an assumption. Then more of all tokens go where
  nothing can be saved.
- raw: NuminaMath 1.5 before that filter, hard ones longer too. A quarter of the problems is hardly
  ever solved, and what is spent on them cannot be saved without losing the few that are.

The ratio of the last line is the worst of `want` 1 and 4 on published and pocket, n = 16; the line
before it has the same for the other two. Samples of a problem are taken one by one, so at equal
coverage no policy takes fewer: a ratio says what the mix allows.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from distill.policy import Policy
from distill.records import read_jsonl, write_jsonl
from distill.simulate import (
    HARD_LENGTH,
    WRONG_LENGTH,
    Outcomes,
    Simulated,
    draw,
    simulate,
)

GOAL = 0.5
N = 16
CURVE = (4, 8, 16, 32)
WANTS = (1, 2, 4, 8)
POCKET = Path(__file__).with_name("data") / "pocket_outcomes.jsonl"


def ratio(outcomes: Outcomes, want: int, n: int) -> float:
    """Tokens of adaptive over fixed n. Raises AssertionError unless both end with the same."""
    fixed = simulate(Policy(most=n), outcomes, want=want)
    adaptive = simulate(Policy(want=want, most=n), outcomes)
    for label, bucket in fixed.buckets.items():
        other = adaptive.buckets[label]
        same = (bucket.accepted, bucket.covered, bucket.complete)
        assert (other.accepted, other.covered, other.complete) == same, label
    return adaptive.whole.tokens / fixed.whole.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, metavar="RUNS")
    options = parser.parse_args()
    if options.record:
        print(f"{record(options.record)} problems -> {POCKET}")
        return
    longer, alike = (HARD_LENGTH, WRONG_LENGTH), (1.0, 1.0)
    sets = {
        name: draw(
            options.problems,
            max(CURVE),
            kept=kept,
            hard_length=hard,
            wrong_length=wrong,
            seed=options.seed,
        )
        for name, kept, (hard, wrong) in (
            ("published", 2, alike),
            ("published, hard ones longer", 2, longer),
            ("raw", 0, longer),
        )
    }
    sets["pocket"] = Outcomes.read(POCKET).by_pass_rate()
    for name, outcomes in sets.items():
        describe(name, outcomes)
        curve(outcomes)
        by_bucket(outcomes)
        ahead(outcomes)
        budgets(outcomes)
    others = [
        f"{name} {ratio(sets[name], 1, N):.3f} and {ratio(sets[name], 4, N):.3f}"
        for name in ("published, hard ones longer", "raw")
    ]
    print(f"\nnot in the last line, want 1 and 4: {'; '.join(others)}")
    worst = max(ratio(sets[name], want, N) for name in ("published", "pocket") for want in (1, 4))
    print(f"adaptive_sampling ratio={worst:.3f} goal={GOAL}")


def describe(name: str, outcomes: Outcomes) -> None:
    problems, samples = outcomes.accepted.shape
    print(
        f"\n== {name}: {problems:,} problems x {samples} samples, "
        f"{outcomes.accepted.mean():.0%} accepted, {outcomes.tokens.mean():,.0f} tokens each"
    )


def curve(outcomes: Outcomes) -> None:
    """The ratio for other n and want."""
    print("tokens over fixed n   " + "".join(f"  want {want}" for want in WANTS))
    for n in CURVE:
        if n <= outcomes.accepted.shape[1]:
            cells = [f"{ratio(outcomes, w, n):8.3f}" if w <= n else " " * 8 for w in WANTS]
            print(f"          n = {n:<4}      " + "".join(cells))


def by_bucket(outcomes: Outcomes) -> None:
    """Where the tokens go at n = 16, and what is covered: the same on both sides."""
    print(f"n = {N}: bucket   problems  solved   fixed tokens   want 1   want 4")
    whole = {w: simulate(Policy(want=w, most=N), outcomes) for w in (1, 4)}
    fixed = simulate(Policy(most=N), outcomes, want=1)
    for label, bucket in fixed.buckets.items():
        if bucket.problems:
            cells = [whole[w].buckets[label].tokens / bucket.tokens for w in (1, 4)]
            print(
                f"  {label:>12} {bucket.problems:>12,} {bucket.covered / bucket.problems:7.1%}"
                f" {bucket.tokens / fixed.whole.tokens:14.1%} {cells[0]:8.3f} {cells[1]:8.3f}"
            )


def ahead(outcomes: Outcomes) -> None:
    """What asking ahead costs where problems are fewer than slots: an upper bound."""
    for want in (1, 4):
        policy = Policy(want=want, most=N)
        fixed = simulate(Policy(most=N), outcomes, want=want).whole.tokens
        cells = []
        for likely in (1.0, 0.75, 0.5):
            found = simulate(policy, outcomes, likely=likely)
            surplus = found.whole.surplus_tokens / found.whole.tokens
            cells.append(
                f"{likely:g}: {found.whole.tokens / fixed:.3f} "
                f"({surplus:.0%} surplus, {found.rounds} waves)"
            )
        print(f"asking ahead what is needed with probability, want {want}   " + ", ".join(cells))


def budgets(outcomes: Outcomes) -> None:
    """The same tokens as fixed n = 2 and 4, as a shared budget."""
    for n in (2, 4):
        fixed = simulate(Policy(most=n), outcomes)
        lines = [(f"fixed n = {n}", fixed)]
        for want in (1, 4):
            policy = Policy(want=want, most=N)
            mean = float(outcomes.tokens.mean())
            lines.append(
                (
                    f"want {want}",
                    simulate(
                        policy, outcomes, budget=fixed.whole.tokens, sample_tokens=mean, least=8
                    ),
                )
            )
        for name, found in lines:
            print(f"budget of fixed n = {n}: {name:<14} {_brought(found)}")


def _brought(found: Simulated) -> str:
    whole = found.whole
    shares = ", ".join(
        f"{label} {bucket.covered / bucket.problems:.1%}"
        for label, bucket in found.buckets.items()
        if bucket.problems
    )
    return (
        f"{whole.tokens / 1e6:10,.2f}M tokens, {whole.accepted:>7,} accepted, solved "
        f"{whole.covered / whole.problems:.1%} ({shares}), {found.rounds} rounds"
    )


def record(runs: Path) -> int:
    """Write data/pocket_outcomes.jsonl from the steps of one `distill grade`. The count."""
    step = {name: next(runs.glob(f"steps/{name}-*")) for name in ("problems", "sample", "grade")}
    tokens = {
        (row["problem_id"], row["index"]): row["completion_tokens"]
        for row in read_jsonl(step["sample"] / "traces.jsonl")
    }
    samples: dict[str, list[tuple[int, bool, int]]] = defaultdict(list)
    for row in read_jsonl(step["grade"] / "grades.jsonl"):
        key = (row["problem_id"], row["index"])
        samples[key[0]].append((key[1], row["outcome"] == "correct", tokens[key]))
    rows: list[dict[str, Any]] = []
    for problem in read_jsonl(step["problems"] / "problems.jsonl"):
        found = sorted(samples[problem["id"]])
        rows.append(
            {
                "bucket": f"{problem['source']} {problem['metadata']['difficulty']}",
                "accepted": "".join("01"[correct] for _, correct, _ in found),
                "tokens": [count for _, _, count in found],
            }
        )
    assert len({len(row["tokens"]) for row in rows}) == 1, json.dumps(rows[0])
    return write_jsonl(POCKET, rows)


if __name__ == "__main__":
    main()
