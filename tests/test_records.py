"""Records: identity of a problem, and the JSONL form."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import DataError
from distill.records import (
    BadLines,
    Problem,
    Trace,
    from_row,
    problem_id,
    read_jsonl,
    read_records,
    to_row,
    write_jsonl,
)


def ask(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def test_a_problems_id_is_its_question_and_nothing_else() -> None:
    one = Problem(messages=ask("What is 1 + 1?"), gold="2", source="a")
    assert one.id == Problem(messages=ask("What is\n 1 + 1? "), gold="3").id
    assert one.id != Problem(messages=ask("What is 1 + 2?")).id
    assert one.id == problem_id(ask("What is 1 + 1?"))
    assert len(one.id) == 16


texts = st.text(alphabet=st.characters(blacklist_categories=["Cs"]))


@given(texts, texts, st.lists(st.integers(0, 2**31), max_size=4))
def test_a_trace_survives_its_row(text: str, answer: str, ids: list[int]) -> None:
    trace = Trace(problem_id="p", index=3, text=text, answer=answer, token_ids=tuple(ids))
    assert from_row(Trace, to_row(trace)) == trace


def test_unknown_keys_are_ignored_so_that_newer_files_can_be_read() -> None:
    assert from_row(Trace, {"problem_id": "p", "index": 0, "new_field": 1}).index == 0


def test_jsonl_round_trip(tmp_path: Path) -> None:
    problems = [Problem(messages=ask(f"{i}\u2028\n{i}"), gold=str(i)) for i in range(5)]
    path = tmp_path / "deep" / "problems.jsonl"
    assert write_jsonl(path, problems) == 5
    assert list(read_records(Problem, path)) == problems
    assert [p.name for p in path.parent.iterdir()] == ["problems.jsonl"]


def test_bad_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n\xff\xfe\n[1]\n\n{"a":2}\n{"a":')
    bad = BadLines()
    assert [row["a"] for row in read_jsonl(path, bad)] == [1, 2]
    assert bad.count == 3
    assert "rows.jsonl:2" in bad.samples[0]
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        list(read_jsonl(path))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])

    def rows():  # type: ignore[no-untyped-def]
        yield {"a": 2}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())
    assert list(read_jsonl(path)) == [{"a": 1}]
    assert len(list(tmp_path.iterdir())) == 1


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"problem": "half \ud83d a pair"}])
    assert list(read_jsonl(path)) == [{"problem": "half \ufffd a pair"}]
