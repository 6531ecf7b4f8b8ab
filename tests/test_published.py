"""Published traces in, training sets out: layouts, tags, and what other trainers read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import DataError, UsageError
from distill.export import export
from distill.imports import import_traces
from distill.problems import is_heldout
from distill.published import BadRow, detect, read_row, read_trace
from distill.records import Example, Problem, Trace, read_jsonl, read_records, write_jsonl
from distill.schema import R1_INSTRUCTION, ImportSpec, Problems
from distill.sources import ask
from distill.thinking import DEFAULT_TAGS, split

THOUGHT = "<|begin_of_thought|>\n\nWait.\n\n<|end_of_thought|>\n\n"
SOLUTION = "<|begin_of_solution|>\n\n\\boxed{4}\n\n<|end_of_solution|>"

OPEN_R1 = {
    "problem": "2+2?",
    "solution": "by hand",
    "answer": "4",
    "source": "olympiads",
    "uuid": "u1",
    "generations": ["<think>\na\n</think>\n\n4", "<think>\nb"],
    "correctness_math_verify": [True, False],
    "correctness_count": 1,
    "finish_reasons": None,
    "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
}
DEEP_MATH = {
    "question": "2+2?",
    "final_answer": "4",
    "r1_solution_1": "<think>\na\n</think>\n\n4",
    "r1_solution_2": "<think>\nb\n</think>\n\n4",
    "r1_solution_3": None,
}
OPEN_THOUGHTS = {
    "problem": "2+2?",
    "deepseek_reasoning": "a",
    "deepseek_solution": "It is 4.",
    "ground_truth_solution": "4",
}
STRATOS = {
    "system": "Think long.",
    "conversations": [
        {"from": "user", "value": "2+2?"},
        {"from": "assistant", "value": THOUGHT + SOLUTION},
    ],
}
MIXTURE = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>\na\n</think>\n\n4"},
    ],
    "num_tokens": 12,
}
SHARED = {"id": "x", "model": "r1", "problem": "2+2?", "answer": 4, "trace": "<think>a</think>4"}


@pytest.mark.parametrize(
    ("row", "form", "traces", "gold"),
    [
        (OPEN_R1, "generations", 2, "4"),
        (DEEP_MATH, "generations", 2, "4"),
        (OPEN_THOUGHTS, "single", 1, None),
        (STRATOS, "sharegpt", 1, None),
        (MIXTURE, "messages", 1, None),
        (SHARED, "single", 1, "4"),
    ],
)
def test_layouts_are_found_from_the_columns(
    row: dict[str, Any], form: str, traces: int, gold: str | None
) -> None:
    layout = detect(row, ImportSpec(file="x.jsonl"))
    asked = read_row(row, layout)
    assert layout.form == form
    assert (asked.question, asked.gold, len(asked.traces)) == ("2+2?", gold, traces)
    first = read_trace(asked.traces[0], None, (), DEFAULT_TAGS)
    assert first.parts.reasoning in ("a", "Wait.")
    assert first.parts.answer in ("4", "It is 4.", "\\boxed{4}")
    assert split(first.text).closed == 1


def test_published_verdicts_become_flags_of_their_own_trace() -> None:
    asked = read_row(OPEN_R1, detect(OPEN_R1, ImportSpec(file="x.jsonl")))
    assert asked.flags == [
        ("published:correctness_math_verify=true",),
        ("published:correctness_math_verify=false",),
    ]
    assert asked.metadata == {"origin": "olympiads", "row_id": "u1"}


def test_named_columns_must_exist() -> None:
    with pytest.raises(DataError, match="no column 'text' for the trace"):
        detect(SHARED, ImportSpec(file="x.jsonl", trace="text"))
    with pytest.raises(DataError, match="no column 'q' for the question"):
        detect(SHARED, ImportSpec(file="x.jsonl", question="q"))
    with pytest.raises(DataError, match="no column 'g' for the gold"):
        detect(SHARED, ImportSpec(file="x.jsonl", gold="g"))
    with pytest.raises(DataError, match="format 'sharegpt'"):
        detect(SHARED, ImportSpec(file="x.jsonl", format="sharegpt"))
    with pytest.raises(DataError, match="no column with traces; the columns are: problem"):
        detect({"problem": "q"}, ImportSpec(file="x.jsonl"))
    assert detect(SHARED, ImportSpec(file="x.jsonl", gold=None)).gold is None


def test_named_trace_column_decides_the_form() -> None:
    rows = {"text": "single", "many": "generations", "chat": "messages", "share": "sharegpt"}
    row = {
        "problem": "q",
        "answer": "1",
        "text": "t",
        "many": ["t"],
        "chat": [{"role": "user", "content": "q"}],
        "share": [{"from": "human", "value": "q"}],
    }
    for name, form in rows.items():
        layout = detect(row, ImportSpec(file="x.jsonl", trace=name))
        assert (layout.form, layout.traces) == (form, (name,))


@pytest.mark.parametrize(
    ("text", "style", "reasoning", "answer", "finish"),
    [
        ("<think>a</think>b", "think", "a", "b", "stop"),
        ("a</think>b", "think", "a", "b", "stop"),
        ("<think>a", "think", "a", "", "length"),
        (THOUGHT + SOLUTION, "begin_of_thought", "Wait.", "\\boxed{4}", "stop"),
        ("<|begin_of_thought|>x", "begin_of_thought", "x", "", "length"),
        ("<reasoning>a</reasoning>b", "reasoning", "a", "b", "stop"),
        ("◁think▷a◁/think▷b", "kimi", "a", "b", "stop"),
        ("just an answer", "none", None, "just an answer", "stop"),
    ],
)
def test_tag_styles(text: str, style: str, reasoning: str | None, answer: str, finish: str) -> None:
    found = read_trace(text, None, (), DEFAULT_TAGS)
    assert (found.style, found.parts.reasoning, found.parts.answer) == (style, reasoning, answer)
    assert found.finish_reason == finish
    assert ("unclosed" in found.flags) == (finish == "length")
    again = split(found.text)
    assert (again.reasoning, again.answer) == (reasoning, answer)


def test_the_makers_finish_reason_is_believed() -> None:
    assert read_trace("<think>a</think>b", "length", (), DEFAULT_TAGS).finish_reason == "length"


def test_tags_left_inside_stay_for_the_format_filter() -> None:
    found = read_trace("<reasoning>a</reasoning>b<reasoning>c</reasoning>d", None, (), DEFAULT_TAGS)
    assert split(found.text).closed == 2


@given(st.text(), st.text(min_size=1))
def test_two_columns_give_back_their_parts(thinking: str, answer: str) -> None:
    tags = ("think", "thought", "reasoning", "◁", "<|")
    if not answer.strip() or any(tag in thinking + answer for tag in tags):
        return
    found = read_trace((thinking, answer), None, (), DEFAULT_TAGS)
    parts = split(found.text)
    assert (parts.reasoning, parts.answer) == (thinking.strip(), answer.strip())


@given(st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text(), max_size=2)))
def test_any_value_is_a_trace_or_a_bad_row(raw: Any) -> None:
    try:
        found = read_trace(raw, None, (), DEFAULT_TAGS)
    except BadRow:
        return
    assert found.text.strip()


@pytest.mark.parametrize(
    "turns",
    [
        None,
        [],
        [{"role": "user", "content": "q"}],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] * 2,
        ["q", "a"],
    ],
)
def test_chats_that_are_not_one_exchange_are_bad_rows(turns: Any) -> None:
    layout = detect(MIXTURE, ImportSpec(file="x.jsonl"))
    with pytest.raises(BadRow):
        read_row({"messages": turns}, layout)


EXAMPLES = [
    Example(
        problem_id=str(i),
        index=0,
        messages=(
            *([{"role": "system", "content": "S"}] if i == 1 else []),
            {"role": "user", "content": f"q{i} ü"},
            {"role": "assistant", "content": f"<think>\n{i}\n</think>\n\n{i}"},
        ),
    )
    for i in range(3)
]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", ["messages", "sharegpt"])
def test_exports_load_with_datasets(tmp_path: Path, form: Any, suffix: str) -> None:
    from datasets import load_dataset

    write_jsonl(tmp_path / "dataset.jsonl", EXAMPLES)
    out = tmp_path / "deep" / f"set.{suffix}"
    assert export(tmp_path / "dataset.jsonl", out, form) == 3
    kind = "json" if suffix == "jsonl" else suffix
    rows = list(
        load_dataset(kind, data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    )
    if form == "messages":
        assert [row["messages"] for row in rows] == [list(e.messages) for e in EXAMPLES]
        assert set(rows[0]) == {"messages"}
    else:
        assert [row["system"] for row in rows] == ["", "S", ""]
        assert rows[0]["conversations"] == [
            {"from": "human", "value": "q0 ü"},
            {"from": "gpt", "value": "<think>\n0\n</think>\n\n0"},
        ]


@pytest.mark.parametrize("form", ["messages", "sharegpt"])
def test_what_was_exported_can_be_imported(tmp_path: Path, form: Any) -> None:
    write_jsonl(tmp_path / "dataset.jsonl", EXAMPLES)
    export(tmp_path / "dataset.jsonl", tmp_path / "set.jsonl", form)
    rows = list(read_jsonl(tmp_path / "set.jsonl"))
    layout = detect(rows[0], ImportSpec(file="set.jsonl"))
    for row, example in zip(rows, EXAMPLES, strict=True):
        asked = read_row(row, layout)
        assert asked.question == example.messages[-2]["content"]
        trace = read_trace(asked.traces[0], None, (), DEFAULT_TAGS)
        assert trace.text == example.messages[-1]["content"]


def test_export_refuses_other_endings(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "dataset.jsonl", EXAMPLES)
    with pytest.raises(UsageError, match=r"set\.csv"):
        export(tmp_path / "dataset.jsonl", tmp_path / "set.csv")
    with pytest.raises(UsageError, match="alpaca"):
        export(tmp_path / "dataset.jsonl", tmp_path / "set.jsonl", "alpaca")  # type: ignore[arg-type]


class Imported:
    """What `import_traces` wrote."""

    def __init__(self, folder: Path, rows: Any, spec: dict[str, Any], **problems: Any) -> None:
        path = folder / "rows.jsonl"
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        else:
            write_jsonl(path, rows)
        out = folder / "out"
        import_traces(
            ImportSpec(file="rows.jsonl", **spec), Problems(**problems), folder=folder, out=out
        )
        self.problems = list(read_records(Problem, out / "problems.jsonl"))
        self.heldout = list(read_records(Problem, out / "heldout.jsonl"))
        self.traces = list(read_records(Trace, out / "traces.jsonl"))
        self.bad = list(read_jsonl(out / "bad.jsonl"))
        self.summary: dict[str, Any] = json.loads((out / "summary.json").read_text())


def test_import_writes_what_problems_and_sample_would(tmp_path: Path) -> None:
    found = Imported(tmp_path, [OPEN_R1], {"teacher": "R1", "licence": "Apache-2.0"}, system="S")
    (problem,) = found.problems
    assert [m["role"] for m in problem.messages] == ["system", "user"]
    assert problem.messages == ask("2+2?", Problems(system="S"))
    assert (problem.statement, problem.gold, problem.source) == ("2+2?", "4", "rows.jsonl")
    assert [(t.problem_id, t.index) for t in found.traces] == [(problem.id, 0), (problem.id, 1)]
    assert [t.finish_reason for t in found.traces] == ["stop", "length"]
    assert found.traces[0].text == "<think>\na\n</think>\n\n4"
    assert found.traces[1].flags == ("published:correctness_math_verify=false", "unclosed")
    summary = found.summary
    assert (summary["wanted"], summary["bought"], summary["reused"]) == (2, 0, 2)
    assert summary["finish_reasons"] == {"stop": 1, "length": 1}
    assert summary["sources"]["rows.jsonl"] == {
        "rows": 1,
        "problems": 1,
        "duplicates": 0,
        "without_gold": 0,
        "bad": 0,
        "heldout": 0,
        "licence": "Apache-2.0",
    }
    assert "1 traces were never closed and count as cut off" in summary["notes"]


def rows_of(*questions: str) -> list[dict[str, Any]]:
    return [
        {"problem": q, "answer": "1", "trace": f"<think>{i}</think>1"}
        for i, q in enumerate(questions)
    ]


def test_rows_of_one_problem_come_together_and_count_on(tmp_path: Path) -> None:
    found = Imported(tmp_path, rows_of("a", "b", "a", "c", "b", "a"), {})
    assert [p.statement for p in found.problems] == ["a", "b", "c"]
    ids = {p.id: p.statement for p in found.problems}
    assert [(ids[t.problem_id], t.index, t.reasoning) for t in found.traces] == [
        ("a", 0, "0"),
        ("a", 1, "2"),
        ("a", 2, "5"),
        ("b", 0, "1"),
        ("b", 1, "4"),
        ("c", 0, "3"),
    ]
    assert found.summary["sources"]["rows.jsonl"]["duplicates"] == 3


def test_limits_count_rows_and_problems(tmp_path: Path) -> None:
    rows = rows_of("a", "b", "b", "c", "b")
    assert len(Imported(tmp_path, rows, {"limit": 2}).traces) == 2
    found = Imported(tmp_path, rows, {}, limit=2)
    assert [p.statement for p in found.problems] == ["a", "b"]
    assert len(found.traces) == 3


def test_heldout_problems_keep_no_traces(tmp_path: Path) -> None:
    found = Imported(tmp_path, rows_of(*map(str, range(60))), {}, heldout=0.3)
    assert 5 < len(found.heldout) < 35
    assert len(found.problems) + len(found.heldout) == 60
    assert {t.problem_id for t in found.traces} == {p.id for p in found.problems}
    assert all(is_heldout(p.id, 0.3) for p in found.heldout)


def test_bad_rows_and_traces_are_written_out(tmp_path: Path) -> None:
    good = {"problem": "q", "answer": "1", "generations": ["<think>a</think>1", None, "  "]}
    rows = [good, {**good, "problem": None}, {**good, "generations": "x"}, {**good, "answer": None}]
    text = "\n".join(json.dumps(row) for row in rows).encode() + b"\n\xff\n[1]\n"
    found = Imported(tmp_path, text, {})
    assert len(found.traces) == 1
    assert [row["reason"].partition(":")[0] for row in found.bad] == [
        "trace 1",
        "trace 2",
        "no question in the column 'problem'",
        "'generations' is not a list of traces",
        "no reference answer",
        "'utf-8' codec can't decode byte 0xff in position 0",
        "expected an object, found list",
    ]
    source = found.summary["sources"]["rows.jsonl"]
    assert (source["rows"], source["bad"], source["without_gold"]) == (6, 4, 1)
    assert found.summary["failed"] == 2


def test_instructions_of_the_publisher_are_replaced(tmp_path: Path) -> None:
    said = "Return your final response within \\boxed{}. What is 2+2?"
    found = Imported(tmp_path, rows_of(said, f"What is 3+3?\n\n{R1_INSTRUCTION}"), {})
    assert [p.statement for p in found.problems] == ["What is 2+2?", "What is 3+3?"]
    assert found.problems[1].messages == ask("What is 3+3?", Problems())
    assert any("1 instructions inside questions" in note for note in found.summary["notes"])


def test_rows_without_reference_answers_are_refused_or_allowed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Imported(tmp_path, [STRATOS], {})
    assert "no row of rows.jsonl has a reference answer" in caught.value.message
    assert "traces.gold: null" in caught.value.hint
    found = Imported(tmp_path, [STRATOS], {}, require_gold=False)
    assert found.problems[0].gold is None
    assert found.traces[0].text == "<think>\nWait.\n</think>\n\n\\boxed{4}"
    notes = " / ".join(found.summary["notes"])
    assert "no column with reference answers" in notes
    assert "system prompt, which is not kept" in notes
    assert "begin_of_thought" in notes


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the trace is empty"):
        Imported(tmp_path, [{"problem": "q", "answer": "1", "trace": ""}], {})
    with pytest.raises(DataError, match="no rows that can be read"):
        Imported(tmp_path, b"", {})
    with pytest.raises(DataError, match="held-out"):
        Imported(tmp_path, rows_of("a"), {"heldout": 0.999999})


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", ["messages", "sharegpt"])
def test_export_and_import_are_a_round_trip(tmp_path: Path, form: Any, suffix: str) -> None:
    examples = [
        Example(
            problem_id=str(i),
            index=0,
            messages=(
                *ask(f"q{i}", Problems()),
                {"role": "assistant", "content": f"<think>\n{i}\n</think>\n\n{i}"},
            ),
        )
        for i in range(5)
    ]
    write_jsonl(tmp_path / "dataset.jsonl", examples)
    export(tmp_path / "dataset.jsonl", tmp_path / f"set.{suffix}", form)
    out = tmp_path / "out"
    spec = ImportSpec(file=f"set.{suffix}")
    import_traces(spec, Problems(require_gold=False), folder=tmp_path, out=out)
    asked = {p.id: p.messages for p in read_records(Problem, out / "problems.jsonl")}
    back = [
        (*asked[t.problem_id], {"role": "assistant", "content": t.text})
        for t in read_records(Trace, out / "traces.jsonl")
    ]
    assert back == [e.messages for e in examples]


def test_real_traces_import(shared: Path, tmp_path: Path) -> None:
    for name, allowed in (("topology_r1_math500", 0), ("skythought_sky_t1_long", 0)):
        spec = ImportSpec(file=str(shared / "traces" / f"{name}.jsonl"))
        import_traces(spec, Problems(), folder=tmp_path, out=tmp_path / name)
        rows = sum(1 for _ in read_jsonl(shared / "traces" / f"{name}.jsonl"))
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["wanted"] == rows
        assert summary["sources"][f"{name}.jsonl"]["bad"] == allowed
        for trace in read_records(Trace, tmp_path / name / "traces.jsonl"):
            assert "begin_of_" not in trace.text
            parts = split(trace.text)
            assert (parts.reasoning, parts.answer) == (trace.reasoning, trace.answer)
