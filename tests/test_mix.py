"""Mixing sources: by share, by count, deterministically, and with nothing silently left out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distill import Recipe
from distill.agreement import check_agreement
from distill.choose import Candidate, choose
from distill.errors import DataError, UsageError
from distill.mix import R1_EXAMPLES, balance_of, by_share, quotas
from distill.plan import plan_lines
from distill.records import Example, Problem, Trace, Verdict, read_records, write_jsonl
from distill.schema import Problems, Selection, SourceSpec
from distill.select import select_traces
from distill.sources import load_source

NAMES = ("a", "b", "c")


def candidates(**sizes: int) -> list[Candidate]:
    return [
        Candidate(f"{name}{i}", j, 1, True, 0, name)
        for name, size in sizes.items()
        for i in range(size)
        for j in range(2)
    ]


def counts(chosen: list[Candidate]) -> dict[str, int]:
    return dict(Counter(c.source for c in chosen))


@pytest.mark.parametrize(
    "mix", [{"a": 0.5, "b": 0.4}, {"a": 0.5, "b": 2}, {"a": -1}, {"a": 1.5}, {"a": 0.0, "b": 1.0}]
)
def test_what_is_neither_shares_nor_counts_is_refused(mix: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="shares below 1 that sum to 1"):
        Selection(mix=mix)
    assert by_share(Selection(mix={"a": 0.75, "b": 0.25}).mix)
    assert not by_share(Selection(mix={"a": 600_000, "b": 1}).mix)


def test_shares_take_as_much_as_the_scarcest_source_allows() -> None:
    mix = {"reasoning": 0.75, "general": 0.25}
    assert quotas({"reasoning": 900, "general": 200}, mix, None) == {
        "reasoning": 600,
        "general": 200,
    }
    assert quotas({"reasoning": 90, "general": 200}, mix, None) == {"reasoning": 90, "general": 30}
    assert quotas({"reasoning": 900, "general": 200, "other": 9}, mix, 100) == {
        "reasoning": 75,
        "general": 25,
        "other": 0,
    }
    with pytest.raises(DataError, match="source 'general' has no example left"):
        quotas({"reasoning": 900}, mix, None)


@given(
    st.fixed_dictionaries({name: st.integers(1, 5000) for name in NAMES}),
    st.lists(st.integers(1, 97), min_size=3, max_size=3),
    st.none() | st.integers(1, 3000),
)
def test_shares_are_kept_to_within_one_example(
    available: dict[str, int], weights: list[int], most: int | None
) -> None:
    mix = {name: weight / sum(weights) for name, weight in zip(NAMES, weights, strict=True)}
    found = quotas(available, mix, most)
    whole = sum(found.values())
    assert most is None or whole <= most
    for name in NAMES:
        assert 0 <= found[name] <= available[name]
        assert abs(found[name] - whole * mix[name]) < 1
    if most is None:  # one example more, and some source could not give its share
        assert any((whole + 1) * mix[name] > available[name] - 1e-6 for name in NAMES)


def test_counts_bind_the_sources_that_are_named() -> None:
    assert quotas({"a": 50, "b": 50, "c": 5}, {"b": 20, "c": 10}, None) == {
        "a": 50,
        "b": 20,
        "c": 5,
    }
    chosen = choose(candidates(a=50, b=50), Selection(mix={"b": 20}, per_problem=2), 0).chosen
    assert counts(chosen) == {"a": 100, "b": 20}
    assert len({c.problem_id for c in chosen if c.source == "b"}) == 10


def test_a_larger_share_only_adds_and_the_seed_decides() -> None:
    pool = candidates(a=40, b=40)
    few = choose(pool, Selection(mix={"a": 10, "b": 20}), 1).chosen
    more = choose(pool, Selection(mix={"a": 15, "b": 20}), 1).chosen
    assert set(few) < set(more)
    assert choose(pool, Selection(mix={"a": 10, "b": 20}), 1).chosen == few
    assert set(choose(pool, Selection(mix={"a": 10, "b": 20}), 2).chosen) != set(few)


def select(folder: Path, **config: Any) -> tuple[dict[str, Any], list[Verdict], list[Example]]:
    asked = [
        Problem(
            messages=({"role": "user", "content": f"{source} {i}"},),
            source=source,
            metadata={"domain": ("Even ", "odd")[i % 2]},
        )
        for source, size in (("reasoning", 30), ("general", 8), ("other", 3))
        for i in range(size)
    ]
    traces = [
        Trace(problem_id=p.id, index=i, text=f"t{p.id}{i}", completion_tokens=5)
        for p in asked
        for i in range(2)
    ]
    write_jsonl(folder / "problems.jsonl", asked)
    write_jsonl(folder / "traces.jsonl", traces)
    write_jsonl(folder / "grades.jsonl", [])
    write_jsonl(
        folder / "verdicts.jsonl",
        [Verdict(problem_id=t.problem_id, index=t.index, kept=True) for t in traces],
    )
    files = {k: folder / f"{k}.jsonl" for k in ("problems", "traces", "grades", "verdicts")}
    select_traces(Selection(**config), seed=0, **files, out=folder / "out")
    return (
        json.loads((folder / "out" / "summary.json").read_text()),
        list(read_records(Verdict, folder / "out" / "verdicts.jsonl")),
        list(read_records(Example, folder / "out" / "dataset.jsonl")),
    )


def test_what_the_mix_leaves_out_is_a_verdict_and_a_note(tmp_path: Path) -> None:
    summary, verdicts, examples = select(tmp_path, mix={"reasoning": 0.75, "general": 0.25})
    assert Counter(e.source for e in examples) == {"reasoning": 24, "general": 8}
    assert summary["mix"] == {
        "reasoning": {"wanted": 0.75, "available": 30, "selected": 24},
        "general": {"wanted": 0.25, "available": 8, "selected": 8},
        "other": {"wanted": None, "available": 3, "selected": 0},
    }
    dropped = [v for v in verdicts if not v.kept]
    assert len(dropped) == 82 - 32
    assert {v.filter for v in dropped} == {"select"}
    reasons = Counter(v.reason for v in dropped)
    assert reasons["not among the 24 examples of source 'reasoning' (mix)"] == 6
    assert reasons["not among the 0 examples of source 'other' (mix)"] == 3
    assert reasons["not among the 1 chosen per problem (random)"] == 41
    notes = " / ".join(summary["notes"])
    assert "source 'other' has no share: its 3 examples were left out" in notes
    assert "as large as source 'general' allows: 6 examples of the others" in notes


def test_a_count_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    summary, _, examples = select(tmp_path, mix={"reasoning": 12, "general": 200})
    assert Counter(e.source for e in examples) == {"reasoning": 12, "general": 8, "other": 3}
    assert "source 'general' gave 8 of the 200 examples that are wanted of it" in summary["notes"]


def test_r1s_shares_are_those_of_its_table() -> None:
    assert sum(R1_EXAMPLES.values()) == 804_745
    shares = balance_of("r1")
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["math"] == pytest.approx(0.4912, abs=1e-4)
    assert quotas(R1_EXAMPLES, shares, None) == R1_EXAMPLES
    assert balance_of({" Math": 0.4, "CODE": 0.6}) == {"math": 0.4, "code": 0.6}


def domains(**sizes: int) -> list[Candidate]:
    return [
        Candidate(f"{name}{i}", 0, 1, True, 0, "s", name)
        for name, size in sizes.items()
        for i in range(size)
    ]


def test_domains_are_balanced_like_sources() -> None:
    pool = domains(math=100, code=60, logic=5)
    found = choose(pool, Selection(balance={"Math": 0.5, "code": 0.5}), 0)
    assert Counter(c.domain for c in found.chosen) == {"math": 60, "code": 60}
    assert found.shares["math"] == {"wanted": 0.5, "available": 100, "selected": 60}
    assert found.shares["logic"] == {"wanted": None, "available": 5, "selected": 0}
    with pytest.raises(DataError, match=r"domain 'stem' has no example") as caught:
        choose(pool, Selection(balance="r1"), 0)
    assert "math (100), code (60), logic (5)" in caught.value.hint


def test_fill_makes_up_for_what_is_scarce() -> None:
    pool = domains(math=1000, code=500, stem=2)
    found = choose(pool, Selection(balance="r1", fill=True, max_examples=600), 0)
    counts = Counter(c.domain for c in found.chosen)
    assert counts.total() == 600
    assert counts["stem"] == 2
    assert counts["math"] / counts["code"] == pytest.approx(395_285 / 211_129, rel=0.01)
    assert any("domain 'stem' gave all it had, 2 examples" in note for note in found.notes)
    assert any("domain 'logic' gave all it had, 0 examples" in note for note in found.notes)
    everything = choose(pool, Selection(balance="r1", fill=True, max_examples=9999), 0)
    assert len(everything.chosen) == 1502


@given(
    st.fixed_dictionaries({name: st.integers(0, 500) for name in NAMES}),
    st.lists(st.integers(1, 97), min_size=3, max_size=3),
    st.integers(1, 2000),
)
def test_fill_takes_all_there_is_or_all_that_is_wanted(
    available: dict[str, int], weights: list[int], most: int
) -> None:
    mix = {name: weight / sum(weights) for name, weight in zip(NAMES, weights, strict=True)}
    found = quotas(available, mix, most, fill=True)
    assert sum(found.values()) == min(most, sum(available.values()))
    assert all(0 <= found[name] <= available[name] for name in NAMES)
    short = [n for n in NAMES if found[n] < mix[n] * most - 1]
    assert all(found[n] == available[n] for n in short)


def planned(**sections: Any) -> Recipe:
    sources = [
        {"task": "chain_sum", "size": 9, "name": "sums", "domain": "Math"},
        {"task": "gcd", "size": 9, "name": "code", "domain": "code"},
    ]
    return Recipe.from_dict({"name": "p", "problems": {"sources": sources}, **sections})


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ({"balance": {"maths": 0.5, "code": 0.5}}, "'maths' that no source has; did you mean"),
        ({"balance": "r1"}, "'stem' that no source has"),
        ({"per_source": {"sum": 3}}, "select.per_source names a source 'sum'"),
    ],
)
def test_names_that_nothing_has_are_found_before_sampling(
    select: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        check_agreement(planned(select=select))


def test_domains_that_there_are_or_may_be_are_accepted() -> None:
    check_agreement(planned(select={"balance": {"math": 0.5, "code": 0.5}}))
    check_agreement(planned(select={"balance": "r1", "fill": True, "max_examples": 9}))


def test_the_plan_says_what_the_selection_throws_away() -> None:
    wanted = {"sampling": {"want": 4}}
    text = "\n".join(plan_lines(planned(**wanted)))
    assert "sampling.want is 4, and select.per_problem keeps 1 of them" in text
    assert "note:" not in "\n".join(plan_lines(planned(**wanted, select={"by": "shortest"})))
    assert "no judge is among" in "\n".join(plan_lines(planned(select={"by": "judge"})))


def test_a_source_says_its_domain_or_the_column_that_holds_it(tmp_path: Path) -> None:
    rows = [{"problem": f"p{i}", "answer": "1", "kind": k} for i, k in enumerate(["Logic", ""])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"file": "rows.jsonl", "domain": "=kind"}
    found = [p.metadata for p in load_source(SourceSpec(**spec), Problems(), tmp_path)]
    assert found == [{"domain": "Logic"}, {}]
    spec["domain"] = "math"
    found = [p.metadata for p in load_source(SourceSpec(**spec), Problems(), tmp_path)]
    assert found == [{"domain": "math"}] * 2


def test_the_step_balances_by_the_problems_domains(tmp_path: Path) -> None:
    summary, verdicts, examples = select(
        tmp_path, balance={"even": 0.5, "odd": 0.5}, max_examples=10
    )
    assert summary["balance"]["even"] == {"wanted": 0.5, "available": 21, "selected": 5}
    assert summary["by_domain"] == {"even": 5, "odd": 5}
    assert len(examples) == 10
    assert any(v.reason == "not among the 5 examples of domain 'odd' (balance)" for v in verdicts)
