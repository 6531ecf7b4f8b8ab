"""Problems: every kind of source, what becomes of bad rows, and the held-out split."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import DataError, UsageError
from distill.problems import is_heldout, load_source, make_problems, problems_identity
from distill.records import Problem, read_jsonl, read_records, write_jsonl
from distill.schema import Problems, SourceSpec
from distill.sources import BadRow, ask, gold_text, read_source

IDS = """
import sys
from pathlib import Path
from distill.schema import Problems, SourceSpec
from distill.sources import load_source
source = SourceSpec.model_validate_json(sys.argv[1])
print(*(p.id for p in load_source(source, Problems(sources=[source]), Path())))
"""
CHAIN = {"task": "chain_sum", "size": 20, "config": {"min_terms": 2, "max_terms": 2}}


def config(*sources: dict[str, Any], **rest: Any) -> Problems:
    return Problems(sources=list(sources), **rest)  # type: ignore[arg-type]


def made(
    folder: Path, *sources: dict[str, Any], **rest: Any
) -> tuple[list[Problem], list[Problem], list[dict[str, Any]], dict[str, Any]]:
    out = folder / "out"
    make_problems(config(*sources, **rest), folder=folder, out=out)
    return (
        list(read_records(Problem, out / "problems.jsonl")),
        list(read_records(Problem, out / "heldout.jsonl")),
        list(read_jsonl(out / "bad.jsonl")),
        json.loads((out / "summary.json").read_text()),
    )


def test_a_file_of_problems(tmp_path: Path) -> None:
    rows = [{"problem": f"{i}+{i}?", "answer": 2 * i, "level": i} for i in range(4)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    source = {"file": "p.jsonl", "name": "sums", "difficulty": "=level", "licence": "MIT"}
    problems, heldout, bad, summary = made(tmp_path, source, system="Be brief.")
    first = problems[0]
    assert [m["role"] for m in first.messages] == ["system", "user"]
    assert first.messages[1]["content"].startswith("0+0?\nPlease reason step by step")
    assert (first.statement, first.gold, first.source) == ("0+0?", "0", "sums")
    assert first.metadata["difficulty"] == "0"
    assert (len(problems), heldout, bad) == (4, [], [])
    assert summary["sources"]["sums"] == {
        "rows": 4,
        "problems": 4,
        "duplicates": 0,
        "without_gold": 0,
        "open": 0,
        "bad": 0,
        "heldout": 0,
        "licence": "MIT",
    }


def test_duplicates_conflicts_and_bad_rows_are_counted_and_written_out(tmp_path: Path) -> None:
    rows = [
        {"problem": "1+1?", "answer": "2"},
        {"problem": "1+1? ", "answer": "3"},
        {"problem": "  ", "answer": "1"},
        {"problem": 7, "answer": "1"},
        {"answer": "1"},
        {"problem": "no gold", "answer": None},
        {"problem": "2+2?", "answer": "4"},
    ]
    write_jsonl(tmp_path / "p.jsonl", rows)
    with (tmp_path / "p.jsonl").open("ab") as file:
        file.write(b'{"problem": "torn')
    problems, _, bad, summary = made(tmp_path, {"file": "p.jsonl"})
    assert [p.gold for p in problems] == ["2", "4"]
    reasons = [(row["row"], row["reason"]) for row in bad]
    assert reasons[0] == (2, "the question is empty")
    assert "int" in reasons[1][1]
    assert reasons[2] == (4, "no column 'problem'")
    assert reasons[3][1] == "no reference answer"
    assert "p.jsonl:8" in str(reasons[4][0])
    counts = summary["sources"]["p.jsonl"]
    assert (counts["duplicates"], counts["bad"], counts["without_gold"]) == (1, 4, 1)
    assert counts["rows"] == 8
    assert any("another reference answer" in note for note in summary["notes"])


def test_problems_without_gold_are_refused_or_allowed(tmp_path: Path) -> None:
    rows = [{"problem": "Why?", "answer": None}, {"problem": "How?", "answer": ""}]
    write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError) as caught:
        made(tmp_path, {"file": "p.jsonl"})
    assert "gold: null" in caught.value.hint
    write_jsonl(tmp_path / "p.jsonl", [{"problem": "Why?"}, {"problem": "How?"}])
    with pytest.raises(DataError, match="no column 'answer'"):
        made(tmp_path, {"file": "p.jsonl"})
    problems, *_ = made(tmp_path, {"file": "p.jsonl", "gold": None}, require_gold=False)
    assert [p.gold for p in problems] == [None, None]


def test_a_source_without_gold_beside_one_with_it(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "open.jsonl", [{"problem": f"Why {i}?"} for i in range(40)])
    sums = [{"problem": f"{i}+{i}?", "answer": str(2 * i)} for i in range(40)]
    write_jsonl(tmp_path / "sums.jsonl", [*sums, {"problem": "no gold", "answer": None}])
    general = {"file": "open.jsonl", "gold": None, "name": "general", "instruction": ""}
    problems, heldout, bad, summary = made(
        tmp_path, {"file": "sums.jsonl", "name": "sums"}, general, heldout=0.5
    )
    by_source = {name: [p for p in problems if p.source == name] for name in ("sums", "general")}
    assert len(by_source["general"]) == 40  # none of them could be evaluated
    assert {p.source for p in heldout} == {"sums"}
    assert len(by_source["sums"]) + len(heldout) == 40
    assert by_source["general"][0].messages[0]["content"] == "Why 0?"
    assert "\\boxed" in by_source["sums"][0].messages[0]["content"]
    assert [row["reason"] for row in bad] == ["no reference answer"]
    counts = summary["sources"]
    assert (counts["general"]["open"], counts["general"]["without_gold"]) == (40, 0)
    assert (counts["sums"]["open"], counts["sums"]["without_gold"]) == (0, 1)


def test_wrong_column_names_the_nearest_and_empty_data_is_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"problems": "1?", "answer": "1"}] * 3)
    with pytest.raises(DataError, match="did you mean 'problems'"):
        made(tmp_path, {"file": "p.jsonl"})
    write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        made(tmp_path, {"file": "empty.jsonl"})


def test_messages_as_the_question(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "own"},
        {"role": "user", "content": "3*3?"},
        {"role": "assistant", "content": "9"},
    ]
    write_jsonl(tmp_path / "p.jsonl", [{"problem": talk, "answer": ["9"]}])
    problems, *_ = made(tmp_path, {"file": "p.jsonl"}, system="recipe's", instruction="Box it.")
    assert problems[0].messages == (
        {"role": "system", "content": "own"},
        {"role": "user", "content": "3*3?\nBox it."},
    )
    assert problems[0].statement == "3*3?"
    assert problems[0].gold == "9"


def test_reasoning_gym_keeps_what_its_scorer_needs(tmp_path: Path) -> None:
    source = {**CHAIN, "difficulty": "easy"}
    problems, *_ = made(tmp_path, source)
    held = problems[0].metadata["reasoning_gym"]
    assert held["task"] == "chain_sum"
    assert held["config"] == CHAIN["config"]
    assert held["entry"]["answer"] == problems[0].gold
    assert problems[0].metadata["difficulty"] == "easy"
    again = list(load_source(config(source).sources[0], config(source), tmp_path))
    assert [p.id for p in again[:5]] == [p.id for p in problems[:5]]


@pytest.mark.slow
def test_problems_of_a_seed_are_the_same_in_every_process(tmp_path: Path) -> None:
    source = SourceSpec(task="zebra_puzzles", size=2, seed=3)
    ids = set()
    for hash_seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", IDS, source.model_dump_json()],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        ids.add(told.stdout)
    assert len(ids) == 1
    assert len(next(iter(ids)).split()) == 2


def test_columns_that_a_grader_needs_are_carried(tmp_path: Path) -> None:
    rows = [
        {"problem": "What is 2 + 2?", "answer": "B", "options": ["3", "4"]},
        {"problem": "Which?\nA) ice\nB) steam", "answer": "A", "options": ["ice", "steam"]},
        {"problem": "No options", "answer": "A"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = SourceSpec(file=str(file), carry={"choices": "options"})
    found = list(read_source(source, Problems(sources=[source]), tmp_path))
    first, second, third = found
    assert isinstance(first, Problem)
    assert isinstance(second, Problem)
    assert first.statement == "What is 2 + 2?\n\nA) 3\nB) 4"
    assert first.messages[-1]["content"].startswith(first.statement)
    assert first.metadata["choices"] == ["3", "4"]
    assert second.statement == rows[1]["problem"], "it has its options already"
    assert isinstance(third, BadRow)
    assert "options" in third.reason


def test_reasoning_gym_mistakes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'chain_sum'"):
        made(tmp_path, {"task": "chain_sums", "size": 2})
    with pytest.raises(UsageError) as caught:
        made(tmp_path, {"task": "chain_sum", "size": 2, "config": {"terms": 3}})
    assert "min_terms" in caught.value.hint


def test_a_function_as_source(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from distill.records import Problem\n"
        "def problems(seed, top=2):\n"
        "    yield {'question': f'{seed}+{top}?', 'gold': seed + top, 'metadata': {'a': 1}}\n"
        "    yield Problem(messages=({'role': 'user', 'content': 'as it is'},), gold='x')\n"
        "    yield 5\n"
        "def broken():\n"
        "    raise ValueError('no luck')\n"
    )
    source = {"call": "./mine.py:problems", "seed": 3, "config": {"top": 4}}
    problems, _, bad, _ = made(tmp_path, source)
    assert problems[0].statement == "3+4?"
    assert problems[0].gold == "7"
    assert problems[0].metadata == {"a": 1}
    assert problems[1].messages[0]["content"] == "as it is"
    assert problems[1].source == "./mine.py:problems"
    assert bad[0]["row"] == 2
    with pytest.raises(DataError, match="no luck") as caught:
        made(tmp_path, {"call": "./mine.py:broken"})
    assert "mine.py:7" in caught.value.hint


def test_a_limit_takes_from_all_sources_in_turn(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"problem": "x?", "answer": "1"}])
    problems, _, _, summary = made(tmp_path, CHAIN, {"file": "p.jsonl"}, limit=7)
    assert len(problems) == 7
    assert [t["problems"] for t in summary["sources"].values()] == [6, 1]
    fewer, _, _, _ = made(tmp_path, CHAIN, {"file": "p.jsonl"}, limit=3)
    assert fewer == problems[:3]


def test_heldout_side_does_not_depend_on_other_problems(tmp_path: Path) -> None:
    few, few_held, _, _ = made(tmp_path, CHAIN, heldout=0.3)
    more, more_held, _, summary = made(tmp_path, {**CHAIN, "size": 60}, heldout=0.3)
    assert few_held
    assert {p.id for p in few_held} <= {p.id for p in more_held}
    assert {p.id for p in few} <= {p.id for p in more}
    assert not {p.id for p in more} & {p.id for p in more_held}
    assert summary["sources"]["chain_sum"]["heldout"] == summary["heldout"] == len(more_held)


@given(st.text(max_size=20), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_share_only_adds(name: str, a: float, b: float) -> None:
    small, large = sorted((a, b))
    assert not is_heldout(name, small) or is_heldout(name, large)
    assert not is_heldout(name, 0)


def test_share_is_about_right() -> None:
    share = sum(is_heldout(f"{i:016x}", 0.1) for i in range(5000)) / 5000
    assert 0.08 < share < 0.12


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        ("Natalia sold 24 clips.\n#### 72", "72"),
        ("So the answer is $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        (["1", "2"], "1, 2"),
        (3.0, "3.0"),
        (True, "True"),
        ("  ", None),
        (None, None),
        ([], None),
    ],
)
def test_gold_of_a_column(value: Any, gold: str | None) -> None:
    assert gold_text(value) == gold


def test_ask_refuses_what_is_no_conversation() -> None:
    for wrong in ([{"role": "assistant", "content": "hi"}], [{"role": "user"}], ["text"], ""):
        with pytest.raises(ValueError, match=r"question|message"):
            ask(wrong, Problems())  # type: ignore[arg-type]


def test_identity_follows_files_and_functions(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"problem": "x?", "answer": "1"}])
    (tmp_path / "mine.py").write_text("def problems():\n    return []\n")
    sections = config({"file": "p.jsonl"}, {"call": "./mine.py:problems"}, CHAIN)
    first = problems_identity(sections, tmp_path)
    assert first["data"][0].startswith("sha256:")
    assert first["data"][1].startswith("source:")
    assert "reasoning-gym" in first["data"][2]
    write_jsonl(tmp_path / "p.jsonl", [{"problem": "y?", "answer": "1"}])
    assert problems_identity(sections, tmp_path) != first
    json.dumps(first)
