"""Recorded traces come back under their keys, and nothing else does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from distill.errors import DataError, TeacherError
from distill.protocols import Completion, Request, Teacher
from distill.records import Problem, Trace, write_jsonl
from distill.teachers.replay import ReplayTeacher

CHAT = [{"role": "user", "content": "What is 1+2?"}]


def ask(teacher: ReplayTeacher, key: str, prompt: Any = CHAT) -> Completion:
    return asyncio.run(teacher.complete(Request(key=key, prompt=prompt)))


def plain(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    traces = [
        Trace(
            problem_id=f"a/{p}",
            index=i,
            text=f"<think>\n{p}{i}\n</think>\n\n\u221a{i}",
            reasoning=f"{p}{i}",
            answer=f"\u221a{i}",
            finish_reason="length" if i else "stop",
            completion_tokens=7,
            served_model="r1",
        )
        for p in range(3)
        for i in range(2)
    ]
    write_jsonl(tmp_path / "traces.jsonl", traces)
    return tmp_path / "traces.jsonl"


def test_traces_come_back_by_key(recorded: Path) -> None:
    teacher = ReplayTeacher(recorded)
    assert isinstance(teacher, Teacher)
    assert len(teacher) == 6
    found = ask(teacher, "a/2/1/0")
    assert found.text == "<think>\n21\n</think>\n\n\u221a1"
    assert (found.reasoning, found.finish_reason, found.served_model) == ("21", "length", "r1")
    assert found.usage.completion_tokens == 7
    assert ask(teacher, "a/2/1/0") == found
    told: list[int] = []
    asyncio.run(teacher.complete(Request(key="a/0/0/0", prompt=CHAT), told.append))
    assert told == [7]


def test_what_was_not_recorded_fails_for_good(recorded: Path) -> None:
    teacher = ReplayTeacher(recorded)
    for key in ("a/2/2/0", "a/9/0/0", "a/2/1/1"):
        with pytest.raises(TeacherError, match="not recorded") as error:
            ask(teacher, key)
        assert not error.value.retry
        assert not error.value.fatal
    with pytest.raises(TeacherError, match="'odd' is not problem_id/index/segment"):
        ask(teacher, "odd")


def test_plain_rows_are_keyed_by_what_was_asked(tmp_path: Path) -> None:
    rows = [
        {"prompt": "What is 1+2?", "text": "<think>a</think>3"},
        {"messages": [*CHAT, {"role": "assistant", "content": "4"}]},
        {"messages": CHAT, "text": "<think>never closed", "finish_reason": "length"},
    ]
    teacher = ReplayTeacher(plain(tmp_path / "x.jsonl", rows))
    name = Problem(messages=tuple(CHAT)).id
    first = ask(teacher, f"{name}/0/0")
    assert (first.text, first.reasoning) == ("<think>\na\n</think>\n\n3", "a")
    assert ask(teacher, f"{name}/1/0").text == "4"
    last = ask(teacher, f"{name}/2/0")
    assert (last.text, last.finish_reason) == ("<think>\nnever closed", "length")
    # A problem with an id of its own is found by its messages.
    assert ask(teacher, "own-id/1/0").text == "4"
    assert ask(teacher, "own-id/1/0", "What is  1+2?").text == "4"
    with pytest.raises(TeacherError):
        ask(teacher, "own-id/1/0", [1, 2, 3])


def test_bad_rows_are_counted_and_the_first_of_two_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.jsonl"
    good = {"problem_id": "p", "index": 0, "text": "one"}
    lines = [
        json.dumps(good),
        json.dumps({**good, "text": "two"}),
        "{torn",
        "[1]",
        json.dumps({"prompt": "q"}),
        json.dumps({"problem_id": "p", "index": "x", "text": "t"}),
        json.dumps({"problem_id": "p", "index": 5, "text": None}),
        json.dumps({"messages": CHAT}),
        "",
        json.dumps({**good, "index": 1, "text": "last"}),
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    teacher = ReplayTeacher(path)
    assert ask(teacher, "p/0/0").text == "one"
    assert ask(teacher, "p/1/0").text == "last"
    assert teacher.bad.count == 7
    assert "7 unusable rows" in caplog.text
    assert "1 rows with a key seen before" in caplog.text


def test_identity_is_the_content(recorded: Path, tmp_path: Path) -> None:
    identity = ReplayTeacher(recorded).identity
    assert ReplayTeacher(recorded).identity == identity
    with recorded.open("a", encoding="utf-8") as file:
        file.write('{"problem_id": "z", "index": 0, "text": "t"}\n')
    assert ReplayTeacher(recorded).identity != identity


def test_from_spec_and_unusable_files(recorded: Path, tmp_path: Path) -> None:
    assert len(ReplayTeacher.from_spec({"engine": "replay", "model": str(recorded)})) == 6
    assert len(ReplayTeacher.from_spec({"options": {"file": str(recorded)}})) == 6
    relative = {"model": recorded.name, "folder": str(tmp_path)}
    assert len(ReplayTeacher.from_spec(relative)) == 6
    with pytest.raises(DataError, match="no file of recorded traces"):
        ReplayTeacher(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="holds no recorded trace"):
        ReplayTeacher(tmp_path / "empty.jsonl")
