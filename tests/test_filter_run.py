"""The filter step on files: order, solo counts, corpus filters, users' filters, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distill.errors import DataError, DistillError, UsageError
from distill.filter import KNOWN
from distill.filter.run import filter_traces, filters_identity
from distill.records import Grade, Problem, Trace, read_jsonl, to_row, write_jsonl
from distill.schema import DEFAULT_FILTERS, PartSpec

GOOD = (
    "<think>\nFirst I put both numbers together: two and two are {}.\n</think>\n\n"
    "The answer is \\boxed{{4}}."
)


def ask(question: str, **more: Any) -> Problem:
    return Problem(messages=({"role": "user", "content": question},), gold="4", **more)


class Corpus:
    """Problem, trace and grade files of a test, and a way to filter them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.problems: dict[str, Problem] = {}
        self.traces: list[Trace] = []
        self.grades: list[dict[str, Any]] = []

    def add(
        self, problem: Problem, text: str, outcome: Any = "correct", tokens: int = 20, **more: Any
    ) -> None:
        self.problems[problem.id] = problem
        index = sum(t.problem_id == problem.id for t in self.traces)
        trace = Trace(
            problem_id=problem.id, index=index, text=text, completion_tokens=tokens, **more
        )
        self.traces.append(trace)
        grade = to_row(Grade(outcome=outcome))
        self.grades.append({"problem_id": problem.id, "index": index, **grade})

    def filter(self, *filters: Any, tasks: Sequence[Path] = ()) -> dict[str, Any]:
        files = [self.folder / f"{name}.jsonl" for name in ("problems", "traces", "grades")]
        write_jsonl(files[0], self.problems.values())
        write_jsonl(files[1], self.traces)
        write_jsonl(files[2], self.grades)
        specs = [PartSpec.model_validate(f) for f in filters]
        filter_traces(specs, *files, tasks, self.out, folder=self.folder)
        summary: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return summary

    def verdicts(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.out / "verdicts.jsonl"))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def test_default_filters_drop_each_what_it_is_for(corpus: Corpus, tmp_path: Path) -> None:
    task = tmp_path / "tasks" / "exam.jsonl"
    leaked = "How many apples are left when Ann eats two of the six red apples she bought?"
    write_jsonl(task, [ask(leaked + " Show your work.")])
    for number in range(30):
        corpus.add(ask(f"What is 2 + 2, asked {number} times?"), GOOD.format(number))
    first = ask("What is 2 + 2?")
    corpus.add(first, GOOD.format("four"))
    corpus.add(first, "<think>\nTwo", finish_reason="length")
    corpus.add(first, GOOD.format("five"), "wrong")
    corpus.add(first, "The answer is \\boxed{4}.")
    corpus.add(first, "<think>\nOkay.\n</think>\n\n\\boxed{4}")
    corpus.add(first, GOOD.format("a few"), tokens=3)
    corpus.add(first, GOOD.format("round and round and " * 60))
    corpus.add(first, GOOD.format("我们把两个数加在一起，得到四，" * 2))
    corpus.add(first, GOOD.format("four <|im_end|>"))
    corpus.add(first, GOOD.format("four. I'm sorry, but I can't assist with that request"))
    corpus.add(first, GOOD.format("four, and I am ChatGPT, a language model trained by OpenAI"))
    corpus.add(first, GOOD.format("four").replace("\n", " \n"))
    corpus.add(ask(leaked), GOOD.format("four"))
    summary = corpus.filter(*DEFAULT_FILTERS, tasks=[task])
    assert summary["traces"] == 43
    assert summary["kept"] == 31
    assert summary["dropped"] == dict.fromkeys(DEFAULT_FILTERS, 1)
    verdicts = corpus.verdicts()
    assert [(v["problem_id"], v["index"]) for v in verdicts] == [
        (t.problem_id, t.index) for t in corpus.traces
    ]
    assert [v["filter"] for v in verdicts[31:]] == DEFAULT_FILTERS
    assert all(v["reason"] for v in verdicts if not v["kept"])
    # The cut-off trace is not well-formed either, the looping one is fine but for its loop.
    assert summary["solo"]["format"] == 2
    assert summary["solo"]["repetition"] == 1
    assert summary["marginal"]["language"] == 1
    example = summary["examples"]["overlap"][0]
    assert "exam" in example["reason"]
    assert "apples are left when ann" in example["reason"]
    assert summary["by_source"] == {"": {"traces": 43, "kept": 31}}


def test_first_objection_wins_and_solo_counts_all(corpus: Corpus) -> None:
    problem = ask("q")
    corpus.add(problem, "no thinking", "wrong", finish_reason="length")
    corpus.add(problem, GOOD.format("4"), "wrong")
    summary = corpus.filter("truncated", "correct", "format")
    assert summary["dropped"] == {"truncated": 1, "correct": 1, "format": 0}
    assert summary["solo"] == {"truncated": 1, "correct": 2, "format": 1}


def test_duplicates_are_prepared_with_what_reached_them(corpus: Corpus) -> None:
    problem = ask("q")
    corpus.add(problem, GOOD.format("four"), finish_reason="length")
    corpus.add(problem, GOOD.format("four"))
    corpus.add(problem, GOOD.format("four"))
    summary = corpus.filter("truncated", "duplicates")
    assert [v["kept"] for v in corpus.verdicts()] == [False, True, False]
    assert corpus.verdicts()[2]["reason"] == "same text as sample 1"
    assert summary["solo"] == {"truncated": 1, "duplicates": 2}


def test_no_filters_keep_everything(corpus: Corpus) -> None:
    corpus.add(ask("q"), "x")
    assert corpus.filter()["kept"] == 1


def test_users_function_with_and_without_parameters(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def no_four(problem, trace, grade, *, word='four'):\n"
        "    return f'says {word}' if word in trace.text else None\n"
        "def at_least(count):\n"
        "    def judge(problem, trace, grade):\n"
        "        return None if len(trace.text) >= count else 'short'\n"
        "    return judge\n"
        "class Seen:\n"
        "    version = '1'\n"
        "    def prepare(self, items):\n"
        "        self.count = sum(1 for _ in items)\n"
        "    def begin(self, problems, tasks):\n"
        "        self.problems = len(problems)\n"
        "    def __call__(self, problem, trace, grade):\n"
        "        return f'{self.count} traces of {self.problems} problems'\n"
    )
    problem = ask("q")
    corpus.add(problem, "four")
    corpus.add(problem, "five")
    summary = corpus.filter(
        "./mine.py:no_four",
        {"./mine.py:no_four": {"word": "seven"}},
        {"./mine.py:at_least": {"count": 3}},
        "./mine.py:Seen",
    )
    assert summary["dropped"] == {
        "./mine.py:no_four": 1,
        "./mine.py:no_four#2": 0,
        "./mine.py:at_least": 0,
        "./mine.py:Seen": 1,
    }
    assert corpus.verdicts()[1]["reason"] == "1 traces of 1 problems"


def test_one_raising_record_is_dropped_and_counted(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def fragile(problem, trace, grade):\n    return None if trace.index else 1 / 0\n"
    )
    problem = ask("q")
    for _ in range(5):
        corpus.add(problem, "x")
    summary = corpus.filter("./mine.py:fragile")
    assert summary["kept"] == 4
    assert summary["errors"] == {"./mine.py:fragile": 1}
    assert "division by zero" in summary["notes"][0]
    assert corpus.verdicts()[0]["reason"] == "error: ZeroDivisionError: division by zero"


def test_a_filter_that_keeps_raising_stops_the_run(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def yes(problem, trace, grade):\n    return True\n")
    for number in range(3):
        corpus.add(ask(f"q{number}"), "x")
    with pytest.raises(DistillError, match=r"raised on 3 of 3 traces.*None to keep"):
        corpus.filter("./mine.py:yes")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("lenght", "did you mean 'length'"),
        ({"length": {"minimum": 3}}, "min_tokens"),
        ({"length": {"min_tokens": 9, "max_tokens": 3}}, "below min_tokens"),
        ({"correct": {"allow": ["right"]}}, "ungraded"),
        ({"repetition": {"max_share": 0}}, "max_share"),
        ({"overlap": {"n": 1}}, "n >= 2"),
    ],
)
def test_wrong_specs_are_users_mistakes(corpus: Corpus, spec: Any, words: str) -> None:
    corpus.add(ask("q"), "x")
    with pytest.raises(UsageError) as caught:
        corpus.filter(spec)
    assert words in str(caught.value)


def test_grades_of_other_traces_are_refused(corpus: Corpus) -> None:
    corpus.add(ask("q"), "x")
    corpus.grades[0]["index"] = 7
    with pytest.raises(DataError, match="sample 0 of problem"):
        corpus.filter("correct")
    corpus.grades.clear()
    with pytest.raises(DataError, match="no further grade"):
        corpus.filter("correct")


def test_identity_changes_with_parameters_and_users_code(tmp_path: Path) -> None:
    def identity(*filters: Any) -> list[dict[str, Any]]:
        return filters_identity([PartSpec.model_validate(f) for f in filters], tmp_path)

    assert identity("length") != identity({"length": {"min_tokens": 9}})
    assert identity("truncated")[0]["version"] == "1"
    (tmp_path / "a.py").write_text("def f(p, t, g):\n    return None\n")
    (tmp_path / "b.py").write_text("def f(p, t, g):\n    return 'no'\n")
    assert identity("./a.py:f")[0]["version"] != identity("./b.py:f")[0]["version"]


def test_every_filter_is_documented() -> None:
    folder = Path(__file__).parent.parent / "docs"
    pages = [folder / name for name in ("filters.md", "filters-text.md", "decontamination.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages if page.is_file())
    assert not [name for name in KNOWN if f"`{name}`" not in text]


def test_the_filters_of_the_documentation_work(corpus: Corpus, tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "filters.md").read_text(encoding="utf-8")
    convert, *blocks = [block.partition("\n```\n")[0] for block in page.split("```python\n")[1:]]
    assert len(blocks) == 2
    exec(convert, {})
    (tmp_path / "mine.py").write_text("\n\n".join(blocks), encoding="utf-8")
    problem = ask("q")
    for text in ("a", "b", "c", "```x```", "```x``````"):
        corpus.add(problem, text)
    summary = corpus.filter("./mine.py:no_code", {"./mine.py:TwoPerLength": {"count": 2}})
    assert summary["dropped"] == {"./mine.py:no_code": 1, "./mine.py:TwoPerLength": 1}
    assert corpus.filter({"./mine.py:no_code": {"marks": 1}})["kept"] == 3
    assert corpus.verdicts()[3]["reason"] == "2 code marks"
