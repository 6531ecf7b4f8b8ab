"""Instruction following: lm-eval's checkers, their data, and what they must not do here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.errors import MissingExtra, UsageError
from distill.grade import Judge
from distill.grade.instructions import PUNKT, Instructions, instructions_of
from distill.records import Grade, Problem, Trace
from distill.schema import Grading

COMMA = {"id": "punctuation:no_comma"}
BULLETS = {"id": "detectable_format:number_bullet_lists", "kwargs": {"num_bullets": 2}}
SENTENCES = {"id": PUNKT[0], "kwargs": {"num_sentences": 2, "relation": "at least"}}


def problem(*asked: Any, **metadata: Any) -> Problem:
    held = {"instructions": list(asked)} if asked else {}
    messages = ({"role": "user", "content": "Write a list."},)
    return Problem(messages=messages, metadata={**held, **metadata})


def trace(of: Problem, text: str, finish: str = "stop") -> Trace:
    whole = f"<think>\nA, b, c.\n</think>\n\n{text}"
    return Trace(problem_id=of.id, index=0, text=whole, finish_reason=finish)


def test_both_forms_of_data_sets_are_read() -> None:
    wanted = [("punctuation:no_comma", {}), (BULLETS["id"], {"num_bullets": 2})]
    columns = {
        "instruction_id_list": [COMMA["id"], BULLETS["id"]],
        "kwargs": [{"num_bullets": None}, {"num_bullets": 2, "relation": None}],
    }
    assert instructions_of(problem(COMMA, BULLETS)) == wanted
    assert instructions_of(problem(**columns)) == wanted
    written = {**columns, "kwargs": ["{}", '{"num_bullets": 2}']}
    assert instructions_of(problem(**written)) == wanted
    assert instructions_of(problem()) == []


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"instructions": ["no commas"]}, "an instruction is {id, kwargs}"),
        ({"instructions": [{"id": "x", "kwargs": [1]}]}, "expected an object"),
        ({"instruction_id_list": ["a", "b"], "kwargs": [{}]}, "2 instructions with 1 kwargs"),
        ({"instructions": "{"}, "metadata.instructions"),
        ({"instructions": 7}, "an instruction is {id, kwargs}"),
        ({"instruction_id_list": 7, "kwargs": [{}]}, "has no len()"),
    ],
)
def test_instructions_in_another_form_are_an_error(metadata: Any, words: str) -> None:
    asked = problem(**metadata)
    grade = Instructions().quick(asked, trace(asked, "x"))
    assert isinstance(grade, Grade)
    assert grade.outcome == "error"
    assert words in grade.detail


def test_outcomes_that_need_no_checker() -> None:
    asked, grader = problem(COMMA), Instructions()
    assert grader(problem(), trace(problem(), "x")).outcome == "ungraded"
    assert grader(asked, trace(asked, "no comma", "length")).outcome == "truncated"
    open_ = Trace(problem_id=asked.id, index=0, text="<think>\nno end")
    assert grader(asked, open_).outcome == "unparsed"
    with pytest.raises(UsageError, match="mode = 'lax'"):
        Instructions(mode="lax")  # type: ignore[arg-type]


def test_what_is_missing_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = Instructions()
    with monkeypatch.context() as patch:
        patch.setattr("distill.grade.instructions.util.find_spec", lambda name: None)
        grader.ready([problem()])
        with pytest.raises(MissingExtra, match=r"pip install 'distill\[ifeval\]'"):
            grader.ready([problem(COMMA)])
    pytest.importorskip("langdetect")
    monkeypatch.setattr("distill.grade.instructions.has_punkt", lambda: False)
    grader.ready([problem(COMMA, BULLETS)])
    with pytest.raises(UsageError, match=r"python -m nltk\.downloader punkt_tab"):
        grader.ready([problem(COMMA, SENTENCES)])


# A sentence splitter with nothing learnt: NLTK wants the files, their content may be empty.
EMPTY = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")
OFFLINE = """
import socket, sys
def no_network(*arguments, **settings):
    raise SystemExit(f"asked for the network: {arguments}")
socket.socket.connect = socket.getaddrinfo = no_network
sys.path.insert(0, sys.argv[1])
from tests.test_grade_instructions import SENTENCES, COMMA, problem, trace
from distill.grade.instructions import Instructions
for asked in (problem(COMMA), problem(SENTENCES)):
    grade = Instructions()(asked, trace(asked, "One sentence here. And a second one."))
    print(grade.outcome, grade.detail)
"""


@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_downloaded_and_most_checkers_need_no_data(tmp_path: Path, there: bool) -> None:
    pytest.importorskip("langdetect")
    if there:
        folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
        folder.mkdir(parents=True)
        for name in EMPTY:
            (folder / name).write_text("")
    root = Path(__file__).parent.parent
    ran = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(root)],
        env={"NLTK_DATA": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = ran.stdout.splitlines()
    assert first == "correct all 1 followed"
    if there:
        assert second == "correct all 1 followed"
    else:
        assert second.startswith("error instruction 'length_constraints:number_sentences' needs")
        assert "python -m nltk.downloader punkt_tab" in second
    assert "Downloaded" not in ran.stdout + ran.stderr


@pytest.mark.slow
def test_checked_in_workers_as_lm_eval_checks(tmp_path: Path) -> None:
    pytest.importorskip("langdetect")
    from distill.grade.instructions import _checkers

    utils, _ = _checkers()
    words = {
        "id": "length_constraints:number_words",
        "kwargs": {"num_words": 5, "relation": "less than"},
    }
    language = {"id": "language:response_language", "kwargs": {"language": "de"}}
    asked = [
        problem(COMMA, BULLETS),
        problem(language),
        problem(words),
        problem({"id": "startend:quotation"}, {"id": "detectable_format:json_format"}),
        problem({"id": "combination:two_responses"}),
    ]
    texts = [
        "* one\n* two",
        "* one, two\n* three",
        "Here it is:\n* one\n* two\n",
        "Das ist ein langer deutscher Satz über das Wetter in Hamburg.",
        '"quoted"',
        "first\n******\nsecond",
        "only *four* words here",
    ]
    pairs = [(p, trace(p, t)) for p in asked for t in texts]
    for mode in ("strict", "loose"):
        config = Grading(graders=[{"instructions": {"mode": mode}}], workers=1)  # type: ignore[list-item]
        with Judge(config, tmp_path) as judge:
            grades = list(judge.grade_many(pairs))
        follows = getattr(utils, f"test_instruction_following_{mode}")
        for (p, t), grade in zip(pairs, grades, strict=True):
            ids = instructions_of(p)
            given = utils.InputExample(
                0, [i for i, _ in ids], p.question, [dict(kwargs) for _, kwargs in ids]
            )
            told = follows(given, t.text.partition("</think>\n\n")[2])
            right = told.follow_instruction_list
            assert grade.correct == all(right), (mode, ids, t.text, grade)
            assert grade.score == pytest.approx(sum(right) / len(right))
    assert {g.outcome for g in grades} == {"correct", "wrong"}


@pytest.mark.slow
def test_what_cannot_be_checked_is_an_error_with_the_reason() -> None:
    pytest.importorskip("langdetect")
    told = {
        "punctuation:no_commas": "did you mean 'punctuation:no_comma'",
        "keywords:existence": "lacks keywords",
        "combination:repeat_prompt": "lacks prompt_to_repeat",
    }
    for one, words in told.items():
        asked = problem({"id": one})
        grade = Instructions()(asked, trace(asked, "text"))
        assert grade.outcome == "error"
        assert words in grade.detail
    asked = problem({**BULLETS, "kwargs": {"num_bullets": 2, "bullets": 3}}, COMMA)
    assert "unexpected keyword" in Instructions()(asked, trace(asked, "text")).detail
    grade = Instructions()(problem(COMMA, BULLETS), trace(asked, "no bullets"))
    assert (grade.outcome, grade.score) == ("wrong", 0.5)
    assert grade.detail == f"1 of 2 followed; not: {BULLETS['id']} {{'num_bullets': 2}}"
