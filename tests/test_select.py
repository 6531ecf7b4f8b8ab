"""Selection: how many of each problem, which, in what order, and the files it writes."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distill.choose import Candidate, choose, distance, for_validation, shingles
from distill.errors import DataError
from distill.records import Example, Problem, Trace, Verdict, read_jsonl, read_records, write_jsonl
from distill.schema import Selection
from distill.select import quantiles, select_traces


def write_inputs(folder: Path, problems: int = 12, n: int = 4, **trace: Any) -> None:
    rng = random.Random(0)
    asked = [
        Problem(
            messages=(
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"Question {i}? ünïcode"},
            ),
            source=("a", "b")[i % 2],
        )
        for i in range(problems)
    ]
    traces = [
        Trace(
            problem_id=p.id,
            index=i,
            text=f"<think>\n{'ä' * i} {p.id}\n</think>\n\nx",
            **{"completion_tokens": 10 + rng.randrange(90), **trace},
        )
        for p in asked
        for i in range(n)
    ]
    write_jsonl(folder / "problems.jsonl", asked)
    write_jsonl(folder / "traces.jsonl", traces)
    write_jsonl(folder / "grades.jsonl", [])
    write_jsonl(
        folder / "verdicts.jsonl",
        [
            Verdict(problem_id=t.problem_id, index=t.index, kept=True)
            if t.index
            else Verdict(
                problem_id=t.problem_id, index=0, kept=False, filter="correct", reason="wrong"
            )
            for t in traces
        ],
    )


def select(folder: Path, out: str = "out", seed: int = 0, **config: Any) -> dict[str, Any]:
    files = {k: folder / f"{k}.jsonl" for k in ("problems", "traces", "grades", "verdicts")}
    select_traces(Selection(**config), seed=seed, **files, out=folder / out)
    summary: dict[str, Any] = json.loads((folder / out / "summary.json").read_text())
    return summary


def test_examples_hold_the_whole_chat_and_the_files_agree(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    summary = select(tmp_path, per_problem=2)
    examples = list(read_records(Example, tmp_path / "out" / "dataset.jsonl"))
    assert len(examples) == summary["selected"] == 24
    assert [m["role"] for m in examples[0].messages] == ["system", "user", "assistant"]
    assert examples[0].problem_id in examples[0].messages[2]["content"]
    from datasets import load_dataset

    table = load_dataset(
        "parquet",
        data_files=str(tmp_path / "out" / "dataset.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert list(table) == list(read_jsonl(tmp_path / "out" / "dataset.jsonl"))


def test_funnel_adds_up_to_the_last_trace(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    summary = select(tmp_path, per_problem=1, max_examples=7)
    final = list(read_records(Verdict, tmp_path / "out" / "verdicts.jsonl"))
    kept = {(v.problem_id, v.index) for v in final if v.kept}
    examples = read_records(Example, tmp_path / "out" / "dataset.jsonl")
    assert kept == {(e.problem_id, e.index) for e in examples}
    assert len(final) == 48 == summary["traces"]
    assert summary["dropped"] == {"select": 29, "correct": 12}
    assert summary["traces"] == summary["selected"] + sum(summary["dropped"].values())
    assert summary["kept"] == 36
    assert summary["problems"] == 7
    assert sum(s["selected"] for s in summary["by_source"].values()) == 7
    assert summary["left_out"] == {"per_problem": 24, "max_examples": 5}
    reasons = {v.reason for v in final if v.filter == "select"}
    assert reasons == {
        "not among the 1 chosen per problem (random)",
        "not among the 7 examples (max_examples)",
    }
    traces = {(t.problem_id, t.index): t for t in read_records(Trace, tmp_path / "traces.jsonl")}
    assert summary["tokens"] == sum(traces[key].completion_tokens for key in kept)


def test_same_input_gives_the_same_bytes_and_seeds_differ(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    for out, seed in (("one", 3), ("two", 3), ("other", 4)):
        select(tmp_path, out, seed)
    for name in ("dataset.jsonl", "dataset.parquet", "verdicts.jsonl"):
        first, second, other = (
            (tmp_path / out / name).read_bytes() for out in ("one", "two", "other")
        )
        assert first == second != other


def chosen(pool: list[Candidate], config: Selection, seed: int) -> list[Candidate]:
    return choose(pool, config, seed).chosen


def candidate(problem: str, index: int, size: int = 1) -> Candidate:
    return Candidate(problem, index, size, True, 0)


def test_shortest_and_longest_with_ties() -> None:
    group = [candidate("p", i, size) for i, size in enumerate((30, 10, 20, 10, 30))]
    picked = chosen(group, Selection(per_problem=3, by="shortest"), 0)
    assert [c.index for c in picked] == [1, 3, 2]
    picked = chosen(group, Selection(per_problem=2, by="longest"), 0)
    assert [c.index for c in picked] == [0, 4]


def test_random_choice_does_not_depend_on_other_problems() -> None:
    config = Selection(per_problem=2, by="random")
    own = [candidate("p", i) for i in range(8)]
    others = [candidate(f"q{i}", j) for i in range(20) for j in range(8)]
    alone = {c.index for c in chosen(own, config, 5)}
    among = {c.index for c in chosen([*others, *own], config, 5) if c.problem_id == "p"}
    assert alone == among
    spread = {c.index for seed in range(40) for c in chosen(own, config, seed)}
    assert spread == set(range(8))


def test_max_examples_keeps_a_stable_set_of_problems() -> None:
    pool = [candidate(f"p{i}", 0) for i in range(50)]
    ten = {c.problem_id for c in chosen(pool, Selection(max_examples=10), 0)}
    twenty = {c.problem_id for c in chosen(pool, Selection(max_examples=20), 0)}
    assert len(ten) == 10
    assert ten < twenty


def test_quantiles_are_values_that_occur() -> None:
    found = quantiles([5, 1, 3])
    assert found["p50"] == 3
    assert (found["min"], found["max"], found["mean"]) == (1, 5, 3.0)


def test_unknown_token_counts_are_estimated_and_said(tmp_path: Path) -> None:
    write_inputs(tmp_path, completion_tokens=0)
    summary = select(tmp_path)
    assert "12 of 12 traces came without a token count" in summary["notes"][0]
    assert summary["tokens"] > 0


def test_nothing_left_says_who_dropped_it_and_what_to_do(tmp_path: Path) -> None:
    write_inputs(tmp_path, problems=3, n=1)
    with pytest.raises(DataError) as caught:
        select(tmp_path)
    assert "of 3, the filters dropped correct 3" in caught.value.message
    assert "easier problems" in caught.value.hint


def test_verdicts_of_other_traces_are_refused(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    rows = list(read_jsonl(tmp_path / "verdicts.jsonl"))
    write_jsonl(tmp_path / "verdicts.jsonl", rows[1:])
    with pytest.raises(DataError, match="does not fit"):
        select(tmp_path)
    write_jsonl(tmp_path / "verdicts.jsonl", rows[:-1])
    with pytest.raises(DataError, match="more traces"):
        select(tmp_path)


def test_traces_without_a_problem_are_refused(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    rows = list(read_jsonl(tmp_path / "problems.jsonl"))
    write_jsonl(tmp_path / "problems.jsonl", rows[1:])
    with pytest.raises(DataError, match="has no problem"):
        select(tmp_path)


def scored(problem: str, index: int, size: int, score: float) -> Candidate:
    return Candidate(problem, index, size, True, 0, score=score)


def test_best_by_judge_takes_the_highest_score_and_then_the_shortest() -> None:
    group = [scored("p", i, size, s) for i, (size, s) in enumerate([(9, 0.5), (7, 1), (5, 1)])]
    found = choose(group, Selection(by="judge", per_problem=2), 0)
    assert [c.index for c in found.chosen] == [2, 1]
    assert not found.notes
    alike = choose([scored("p", 0, 9, 1), scored("p", 1, 7, 1)], Selection(by="judge"), 0)
    assert [c.index for c in alike.chosen] == [1]
    assert "no problem has traces with different scores" in alike.notes[0]


TEXTS = {
    0: "we add the two numbers and then we double the sum that we found",
    1: "we add the two numbers and then we double the sum that we found again",
    2: "first draw a picture of the circle and mark where the line touches it",
    3: "we add the two numbers and then we halve the sum that we found",
}


def test_most_different_starts_with_the_shortest_and_then_goes_far() -> None:
    group = [candidate("p", i, len(text)) for i, text in TEXTS.items()]
    for number, expected in ((1, [3]), (2, [3, 2]), (3, [3, 2, 1]), (4, [3, 2, 1, 0])):
        config = Selection(by="different", per_problem=number)
        found = choose(group, config, 0, texts=lambda c: TEXTS[c.index])
        assert sorted(c.index for c in found.chosen) == sorted(expected)


def test_distance_is_jaccard_over_shingles_also_without_spaces() -> None:
    assert distance(shingles("a b c d"), shingles("b c d e")) == pytest.approx(2 / 3)
    assert distance(shingles(""), shingles("!")) == 0
    assert len(shingles("设圆的半径")) == 3
    assert len(shingles("one two")) == 1
    with pytest.raises(ValueError, match="compares texts"):
        choose([candidate("p", i) for i in range(3)], Selection(by="different"), 0)


def test_distance_of_long_texts_is_estimated_closely_from_a_fixed_number_of_hashes() -> None:
    words = [f"w{i}" for i in range(9000)]
    for shared in (0, 3000, 6000):
        one, other = words[:6000], words[6000 - shared : 12000 - shared]
        exact = 1 - shared / (len(one) + len(other) - shared)
        sketches = [shingles(" ".join(text)) for text in (one, other)]
        assert max(map(len, sketches)) <= 1024
        assert distance(*sketches) == pytest.approx(exact, abs=0.05)


def test_caps_by_source_bind_all_or_those_named() -> None:
    pool = [Candidate(f"{s}{i}", 0, 1, True, 0, s) for s in "ab" for i in range(9)]
    counts = {
        str(cap): Counter(c.source for c in choose(pool, Selection(per_source=cap), 0).chosen)
        for cap in (4, {"b": 2})
    }
    assert counts == {"4": {"a": 4, "b": 4}, "{'b': 2}": {"a": 9, "b": 2}}
    assert choose(pool, Selection(per_source=4), 0).left_out == {"per_source": 10}


@given(st.sets(st.text(max_size=8), max_size=60), st.floats(0, 0.99), st.integers(1, 70))
def test_a_problem_is_on_one_side_whatever_else_there_is(
    problems: set[str], share: float, number: int
) -> None:
    held = for_validation(problems, share)
    assert held <= problems
    assert held >= for_validation(problems, share / 2)
    for problem in problems:
        assert for_validation([problem], share) == held & {problem}
    assert len(for_validation(problems, number)) == min(number, len(problems))


def test_validation_keeps_the_traces_of_a_problem_together(tmp_path: Path) -> None:
    write_inputs(tmp_path, problems=40)
    summary = select(tmp_path, per_problem=3, validation=0.25)
    out = tmp_path / "out"
    sides = {
        name: [e.problem_id for e in read_records(Example, out / f"{file}.jsonl")]
        for name, file in (("train", "dataset"), ("validation", "validation"))
    }
    assert not set(sides["train"]) & set(sides["validation"])
    assert all(count == 3 for side in sides.values() for count in Counter(side).values())
    for name, side in sides.items():
        assert summary["splits"][name]["examples"] == len(side) > 0
        assert summary["splits"][name]["problems"] == len(set(side))
    assert summary["selected"] == 120 == sum(map(len, sides.values()))
    verdicts = [v for v in read_records(Verdict, out / "verdicts.jsonl") if v.kept]
    held = {v.problem_id for v in verdicts if v.reason == "in the validation split"}
    assert held == set(sides["validation"])
    assert len(verdicts) == 120
    select(tmp_path, "other", seed=9, per_problem=3, validation=0.25)
    again = read_records(Example, tmp_path / "other" / "validation.jsonl")
    assert {e.problem_id for e in again} == held


def test_a_number_of_validation_problems_and_one_too_large(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    assert select(tmp_path, validation=5)["splits"]["validation"]["problems"] == 5
    with pytest.raises(DataError, match="all 12 problems fall into the validation split"):
        select(tmp_path, "all", validation=12)
    assert "into the validation share" in select(tmp_path, "few", validation=1e-9)["notes"][-1]
    assert not (tmp_path / "few" / "validation.jsonl").exists()


def test_by_judge_reads_the_scores_and_refuses_other_grades(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    rows = [
        {"problem_id": v.problem_id, "index": v.index, "score": float(v.index == 2)}
        for v in read_records(Verdict, tmp_path / "verdicts.jsonl")
    ]
    write_jsonl(tmp_path / "grades.jsonl", rows)
    select(tmp_path, by="judge")
    assert {e.index for e in read_records(Example, tmp_path / "out" / "dataset.jsonl")} == {2}
    write_jsonl(tmp_path / "grades.jsonl", rows[1:])
    with pytest.raises(DataError, match="no grade of sample"):
        select(tmp_path, by="judge")


def test_different_reads_the_texts(tmp_path: Path) -> None:
    write_inputs(tmp_path, problems=6)
    assert select(tmp_path, by="different", per_problem=2)["selected"] == 12


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"mix": {"a": 1}, "balance": "r1"}, "not both"),
        ({"fill": True, "balance": "r1"}, "max_examples to fill up to"),
        ({"fill": True, "max_examples": 5}, "needs shares"),
        ({"validation": 1.5}, "found 1.5"),
        ({"balance": {"math": 0.5}}, "balance holds shares"),
    ],
)
def test_what_cannot_be_meant_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Selection(**config)
