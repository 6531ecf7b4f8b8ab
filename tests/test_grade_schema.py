"""JSON answers: found strictly, validated with paths, compared, and nothing ever fetched."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import MissingExtra
from distill.grade import Judge
from distill.grade.schema_json import JsonSchema, NoJson, difference, last_json, same
from distill.records import OUTCOMES, Grade, Problem, Trace
from distill.schema import Grading

pytest.importorskip("jsonschema")

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "items": {"type": "array", "items": {"properties": {"price": {"type": "number"}}}},
    },
    "required": ["a"],
}


def judged(
    text: str, gold: str | None = None, schema: Any = SCHEMA, finish: str = "stop", **settings: bool
) -> Grade:
    problem = Problem(
        messages=({"role": "user", "content": "?"},), gold=gold, metadata={"schema": schema}
    )
    whole = f'<think>\n{{"a": "within the thinking"}}\n</think>\n{text}'
    trace = Trace(problem_id=problem.id, index=0, text=whole, finish_reason=finish)
    return JsonSchema(**settings)(problem, trace)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        'Here you are:\n```json\n{"a": 1}\n```\nHave fun {really}!',
        '```\n{"a": 1}\n```',
        'First {"a": "no"}, then {"a": 1}.',
        'So {"a": 1}, as in [1] and [2, 3].',
        '\\boxed{{"a": 1}}',
        '<answer>{"a": 1}</answer>',
        "In the set {x} we find {\"a\": 1} and {y}",
        '  \n{"a": 1, "items": [{"price": 1.5}]}\n',
    ],
)  # fmt: skip
def test_the_last_value_is_found_and_valid(text: str) -> None:
    grade = judged(text)
    assert grade.outcome == "correct", grade.detail
    assert json.loads(grade.extracted or "")["a"] == 1


@pytest.mark.parametrize(
    ("text", "outcome", "detail"),
    [
        ('{"a": "x"}', "wrong", "$.a: 'x' is not of type 'integer'"),
        ("{}", "wrong", "$: 'a' is a required property"),
        ('{"a": 1, "items": [{"price": 1}, {"price": "2"}]}', "wrong",
         "$.items[1].price: '2' is not of type 'number'"),
        ("5", "wrong", "$: 5 is not of type 'object'"),
        ("I cannot.", "unparsed", "no JSON value"),
        ('{"a": 1,}', "unparsed", "Expecting property name"),
        ('{"a": NaN}', "unparsed", "NaN is not JSON"),
        ('{"a": 1, "items": [{"a": 1}', "unparsed", "Expecting ',' delimiter"),
        ('{"a": 1, "b": {"a": 2},}', "unparsed", "Expecting property name"),
        ("{'a': 1}", "unparsed", "Expecting property name"),
        ("", "unparsed", "no answer after the thinking"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_path(text: str, outcome: str, detail: str) -> None:
    grade = judged(text)
    assert grade.outcome == outcome
    assert detail in grade.detail
    assert len(judged(text.replace("x", "x" * 10_000)).detail) < 400


def test_a_cut_answer_is_no_answer() -> None:
    assert judged('{"a": 1, "items": [{"a": 1}', finish="length").outcome == "truncated"
    assert judged('{"a": 1}', finish="length").outcome == "correct"


def test_the_gold_is_compared_as_json() -> None:
    gold = '{"b": [1, true], "a": 1}'
    assert judged('{"a": 1.0, "b": [1, true]}', gold).correct
    wrong = judged('{"a": 1, "b": [1, 1]}', gold)
    assert (wrong.outcome, wrong.detail) == ("wrong", "fits the schema; $.b[1]: 1 instead of true")
    assert judged('{"a": 7}', gold, compare=False).correct
    bad = judged('{"a": 1}', "{a: 1}")
    assert bad.outcome == "error"
    assert "is not JSON" in bad.detail


def test_formats_are_checked_where_the_recipe_wants_it() -> None:
    schema = {"type": "object", "properties": {"ip": {"format": "ipv4"}}}
    assert judged('{"ip": "1.2.3"}', schema=schema).correct
    assert "is not a 'ipv4'" in judged('{"ip": "1.2.3"}', schema=schema, formats=True).detail


def test_wrong_schemas_are_the_data_sets_fault() -> None:
    grade = judged('{"a": 1}', schema={"type": "objekt"})
    assert grade.outcome == "error"
    assert grade.detail.startswith("the schema is wrong at $.type")
    assert judged('{"a": 1}', schema="{").outcome == "error"
    assert judged('{"a": 1}', schema=json.dumps(SCHEMA)).correct
    none = Problem(messages=(), id="x")
    assert JsonSchema()(none, Trace(problem_id="x", index=0, text="{}")).outcome == "ungraded"


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"type": "object"}')

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def test_no_reference_is_fetched(server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = server
    (tmp_path / "s.json").write_text('{"type": "object"}')
    for ref in (f"{address}/s.json", f"file://{tmp_path}/s.json", "#/$defs/none"):
        grade = judged('{"a": 1}', schema={"$ref": ref})
        assert grade.outcome == "error"
        assert "nothing is fetched" in grade.detail
    assert judged('{"a": 1}', schema={"$schema": f"{address}/s.json", "type": "object"}).correct
    assert asked == []
    inside = {"$defs": {"x": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}
    assert judged('{"a": 1}', schema=inside).outcome == "wrong"


@pytest.mark.slow
def test_a_pattern_that_backtracks_is_killed() -> None:
    schema = {"type": "string", "pattern": "^(a+)+$"}
    problem = Problem(messages=({"role": "user", "content": "?"},), metadata={"schema": schema})
    texts = ['"' + "a" * 60 + 'b"', '"aa"']
    config = Grading(graders=["json_schema"], timeout_s=0.5, workers=1)  # type: ignore[list-item]
    with Judge(config, Path()) as judge:
        grades = list(
            judge.grade_many(
                (problem, Trace(problem_id=problem.id, index=i, text=text))
                for i, text in enumerate(texts)
            )
        )
    assert [grade.outcome for grade in grades] == ["error", "correct"]


def test_a_missing_package_is_said_before_anything_is_graded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distill.grade.schema_json.util.find_spec", lambda name: None)
    grader = JsonSchema()
    grader.ready([Problem(messages=())])
    with pytest.raises(MissingExtra, match=r"pip install 'distill\[schema\]'"):
        grader.ready([Problem(messages=(), metadata={"schema": SCHEMA})])


@pytest.mark.parametrize(
    "text", ["{" * 200_000, '["' * 100_000, '{"a":' * 50_000, "[1," * 100_000, "{}" * 50_000 + "{"]
)
def test_deep_and_broken_texts_take_linear_time(text: str) -> None:
    started = time.process_time()
    assert judged(text).outcome in ("unparsed", "wrong")
    assert time.process_time() - started < 5


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=40)
@given(values, values)
def test_equality_and_difference_agree(a: Any, b: Any) -> None:
    assert same(a, json.loads(json.dumps(a)))
    if not same(a, b):
        assert difference(a, b).startswith("$")


@settings(max_examples=40)
@given(st.text(max_size=40, alphabet="abc .,\n"), st.dictionaries(st.text(), values))
def test_a_value_in_any_prose_is_found(prose: str, value: dict[str, Any]) -> None:
    assert same(last_json(f"{prose} {json.dumps(value)} {prose}"), value)


@given(st.text(alphabet='{}[]":,\\ an1`\n', max_size=80))
def test_any_text_gets_a_grade(text: str) -> None:
    assert judged(text).outcome in OUTCOMES
    with contextlib.suppress(NoJson):
        json.dumps(last_json(text))
