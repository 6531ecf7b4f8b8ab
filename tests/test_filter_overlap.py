"""Decontamination: what counts as the same problem, what as a template, and when to stop."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import DataError, UsageError
from distill.filter.overlap import Overlap
from distill.filter.passages import Asked
from distill.filter.questions import parse, tokens, words
from distill.filter.rewordings import Rewordings, dissect
from distill.filter.run import filter_traces
from distill.records import Problem, Trace, write_jsonl
from distill.schema import PartSpec

LONG = (
    "Janet has $\\frac{3}{4}$ of a cake and eats 1,200 grams of it on every one of the "
    "seven days of the week before her birthday; how much is left?"
)


def ask(question: str, source: str = "train", **metadata: Any) -> Problem:
    return Problem(
        messages=({"role": "user", "content": f"{question}\n\nPlease reason step by step."},),
        statement=question,
        source=source,
        metadata=metadata,
    )


def overlaps(
    train: Sequence[str | Problem], exam: Sequence[str | Problem], **params: Any
) -> tuple[list[str], Overlap]:
    """Questions of `train` that overlap, and the filter for a look at its reasons."""
    found = Overlap(**{"max_share": None, **params})
    problems = [p if isinstance(p, Problem) else ask(p) for p in train]
    found.begin(
        {p.id: p for p in problems},
        {"exam": [p if isinstance(p, Problem) else ask(p, "exam") for p in exam]},
    )
    return [p.question for p in problems if p.id in found.hits], found


@pytest.mark.parametrize(
    "copy",
    [
        LONG,
        LONG.upper().replace("\\FRAC", "\\dfrac"),
        LONG.replace("\\frac{3}{4}", "\\frac34").replace("1,200", "1200"),
        LONG.replace(" ", "\n  "),
        "As every year, " + LONG[:120],
        LONG.replace("Janet", "Mary"),
    ],
)
def test_copies_and_passages_are_found(copy: str) -> None:
    found, overlap = overlaps([copy], [LONG])
    assert found == [copy]
    (hit,) = overlap.hits.values()
    assert hit.asked.task == "exam"
    assert "cake" in hit.reason.lower()


def test_nine_words_in_common_are_not_enough() -> None:
    common = "red blue green grey black white pink brown gold"
    assert overlaps([f"Is {common} all of it?"], [f"Was {common} none at last?"])[0] == []
    assert overlaps([f"Is {common} all of it?"], [f"Was {common} none at last?"], n=9)[0]


@pytest.mark.parametrize(
    ("copy", "same"),
    [
        ("What is $3+4$?", True),
        ("what is 3 + 4", True),
        ("What is \\(3+4\\)?", True),
        ("What is $3-4$?", False),
        ("What is 3 + 4 + 5?", False),
        ("What is (3 + 4)?", False),
    ],
)
def test_short_questions_must_be_equal(copy: str, same: bool) -> None:
    assert bool(overlaps([copy], ["What is $3 + 4$?"])[0]) is same


def test_the_statement_is_compared_not_the_instruction() -> None:
    instruction = "please answer in the usual way with all of your steps written out in full"
    train = [
        Problem(messages=({"role": "user", "content": f"{q} {instruction}"},), statement=q)
        for q in ("What is one?", "What is two?")
    ]
    exam = Problem(
        messages=({"role": "user", "content": f"What is two? {instruction}"},),
        statement="What is two?",
    )
    assert overlaps(train, [exam])[0] == ["What is two?"]


def gym(task: str, question: str) -> Problem:
    entry = {"question": question, "answer": "1", "metadata": {}}
    return ask(question, reasoning_gym={"task": task, "config": {}, "entry": entry})


def test_generated_problems_are_compared_by_instance() -> None:
    text = "State the final answer to the following arithmetic problem, as one number: {} ="
    train = [gym("chain_sum", text.format(f"{i} + 5")) for i in range(40)]
    exam = [gym("chain_sum", text.format(f"{i} + 5")) for i in range(38, 60)]
    assert overlaps(train, exam)[0] == [p.question for p in train[38:]]
    assert overlaps([gym("products", text.format("39 + 5"))], exam)[0] == []


def test_brackets_tell_generated_problems_apart() -> None:
    assert overlaps([gym("brackets", "Close: ( [ {")], [gym("brackets", "Close: ( { [")])[0] == []


def test_real_reasoning_gym_tasks_share_text_and_do_not_overlap() -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    for task in ("chain_sum", "letter_counting", "number_sorting"):
        sets = [reasoning_gym.create_dataset(task, seed=s, size=60) for s in (1, 5000)]
        train, exam = ([gym(task, e["question"]) for e in entries] for entries in sets)
        assert overlaps(train, exam)[0] == []
        assert len(overlaps(train, train[:20])[0]) == 20


def test_runs_that_stand_everywhere_are_templates() -> None:
    text = (
        "A farmer sells {} eggs for {} cents each and wants to know what {} earn. Round the "
        "result to the nearest whole number and write it down as a plain integer."
    )
    numbers = iter(random.Random(0).sample(range(10, 9999), 900))
    questions = [text.format(*islice(numbers, 3)) for _ in range(300)]
    train, exam = questions[:240], [*questions[230:240], *questions[240:]]
    found, overlap = overlaps(train, exam)
    assert found == questions[230:240]
    assert "count as templates" in overlap.notes[0]
    literal, _ = overlaps(train, exam, template_share=1)
    assert literal == train


def test_a_template_filled_with_a_number_is_a_template() -> None:
    text = "Find the greatest common divisor of these numbers: {} and {}. Give the number only."
    draw = random.Random(0)
    questions = [text.format(draw.randint(10, 99), draw.randint(100, 999)) for _ in range(120)]
    asked = list(dict.fromkeys(questions))
    train, exam = asked[:80], asked[60:]
    assert overlaps(train, exam)[0] == train[60:]


def test_a_few_copies_of_one_question_are_no_template() -> None:
    copies = [f"{LONG} Variant {i} of this one." for i in range(8)]
    others = [f"Question {i} about something else entirely, number {i * 7}?" for i in range(200)]
    assert overlaps([*copies, *others], [LONG])[0] == copies


def test_stock_phrases_count_only_where_they_are_most_of_a_question() -> None:
    phrase = "where m and n are relatively prime positive integers find the sum of m and n"
    train = [f"{' '.join(f'w{i}x{j}' for j in range(30))} is m over n {phrase}" for i in range(40)]
    others = [f"Is the number {i} a prime or not, and why so?" for i in range(500)]
    long = "A bag holds nine red and seven blue marbles and a child who cannot see draws two; "
    exam = [f"{long * 2} the chance that both are red is m over n {phrase}"]
    found, overlap = overlaps([*train, *others], exam, template_share=1)
    assert found == []
    assert overlap.notes == []
    assert overlaps([*train, *others], exam, template_share=1, common=100)[0] == train
    found, overlap = overlaps(
        [*train, *others], [f"Rolling is m over n {phrase}"], template_share=1
    )
    assert found == train
    assert "of its words" in next(iter(overlap.hits.values())).reason


def test_code_of_diagrams_is_no_text() -> None:
    asy = '[asy] draw((0,0)--(4,0)--(4,3)--cycle); label("$A$",(0,0),SW); dot((1,1)); [/asy]'
    assert overlaps([f"What is the area? {asy}"], [f"What is the angle at A? {asy}"])[0] == []


def test_too_large_a_share_stops_with_examples() -> None:
    exam = [f"{LONG} Case {i}." for i in range(4)]
    rest = [f"Is {i} a prime number?" for i in range(20)]
    with pytest.raises(DataError) as caught:
        overlaps([*exam, *rest], exam, max_share=0.05)
    assert "4 of 24 problems of the source 'train'" in caught.value.message
    assert "Janet has" in caught.value.message
    assert "max_share: null" in caught.value.hint
    assert len(overlaps([*exam[:2], *rest], exam, max_share=0.05)[0]) == 2


def test_relatives_of_heldout_problems_have_a_limit_of_their_own() -> None:
    exam = [ask(f"{LONG} Case {i}.") for i in range(4)]
    rest = [ask(f"Is {i} a prime number?") for i in range(20)]
    problems = {p.id: p for p in [*exam, *rest]}
    overlap = Overlap()
    overlap.begin(problems, {"heldout": exam})
    assert len(overlap.hits) == 4
    with pytest.raises(DataError, match="max_heldout_share"):
        Overlap(max_heldout_share=0.1).begin(problems, {"heldout": exam})


def test_shares_are_counted_per_source() -> None:
    exam = [f"{LONG} Case {i}." for i in range(4)]
    rest = [f"Is {i} a prime number?" for i in range(200)]
    overlaps([*exam, *rest], exam, max_share=0.05)
    with pytest.raises(DataError, match="source 'tainted'"):
        overlaps([*(ask(q, "tainted") for q in exam), *rest], exam, max_share=0.05)


def test_without_evaluation_problems_nothing_is_compared_and_it_says_so() -> None:
    found, overlap = overlaps([LONG], [])
    assert found == []
    assert "no evaluation problems" in overlap.notes[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$\\left(\\dfrac12\\right)$", ["(", "frac", "1", "2", ")"]),
        ("\\(x\\le 5\\)", ["x", "leq", "5"]),
        ("10{,}000 and 1,000,000 but 1, 2", ["10000", "and", "1000000", "but", "1", "2"]),
        ("a \\cdot b − c", ["a", "*", "b", "-", "c"]),
        ("求和是多少", ["求", "和", "是", "多", "少"]),
        ("\\text{Größe} 2.50", ["grösse", "2.50"]),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@given(st.text())
def test_tokens_of_any_text(text: str) -> None:
    assert set(words(text)) <= set(tokens(text)) or "[asy]" in text
    assert tokens(" ".join(words(text))) == words(text) or not text.isascii() or "\\" in text


CAKE = (
    "Mary bakes 12 cakes with 35 grams of sugar each. She sells 7 of them for $4 a piece and gives "
    "the others to her two neighbours. How much sugar was in the cakes that she sold?"
)
LINES = (
    "The set of points $(x,y,z)$ with \\[5x = 7y = -z\\] is a line, and that with "
    "\\[11x = -y = -4z\\] is another. Find the angle between these lines, in degrees."
)


@pytest.mark.parametrize(
    "copy",
    [
        "Mary has baked twelve cakes, each with 35 grams of sugar. Her 2 neighbours are given what "
        "is left after she sold seven at $4 each. What amount of sugar did the sold cakes have?",
        "Mary bakes 12 caks with 35 grams of suger each. She sells 7 of thm for $4 a peice and "
        "gives tho others to hir two neigbours. How mutch sugar was in tho cakes that sho sold?",
        "Of the 12 cakes, which Mary bakes with 35 grams of sugar each, her two neighbours get "
        "those that she does not sell; she sells 7, for $4 a piece. How much sugar was in these?",
        "１２ cakes，each with ３５ grams of sugar，are baked by Mary． ７ of them she sells "
        "for ＄４ a piece, and the others her two neighbours get． How much sugar did she sell？",
    ],
)
def test_rewordings_with_the_same_numbers_are_found(copy: str) -> None:
    found, overlap = overlaps([copy], [CAKE])
    assert found == [copy]
    (hit,) = overlap.hits.values()
    assert hit.rule == "rewording"
    assert hit.score >= 0.6
    assert "% alike with the same numbers (" in hit.reason
    assert "sugar" in hit.matched or "suger" in hit.matched
    assert overlaps([copy], [CAKE], alike=None)[0] == []


@pytest.mark.parametrize(
    ("train", "exam"),
    [
        # Another number; another order of the numbers in the same words; two of a kind.
        (
            "Mary has baked twelve cakes, each with 36 grams of sugar. Her 2 neighbours are given "
            "what is left after she sold seven at $4 each. How much sugar did the sold ones have?",
            CAKE,
        ),
        (
            "Ann has 12 boxes with 35 pens each. She loses 7 pens. How many has she?",
            "Ann has 35 boxes with 7 pens each. She loses 12 pens. How many has she?",
        ),
        (
            "Kim has 12 boxes with 7 pens each and buys 4. How many pens are there now?",
            "Ann has 12 boxes with 4 pens each and buys 7. How many pens are there now?",
        ),
        (
            "Write a function to convert the decimal number to its binary form.",
            "Write a function to convert the binary number to its decimal form.",
        ),
        (
            "The parabola $y^2 = 8x$ and the circle $x^2 + y^2 - 2x - 4y = 0$ intersect at two "
            "points $A$ and $B.$ Find the distance $AB.$",
            "The circle $x^2 + y^2 = 2$ and the parabola $y^2 = 8x$ have two common tangents, "
            "forming 4 points of tangency. Find the area of the quadrilateral that these form.",
        ),
        (
            "Drew is 5 years older than Maya. Peter is 4 years older than Drew. John is 30 and is "
            "twice as old as Maya. In 2 years, Jacob will be half of Peter's age. How old is he?",
            "Jean is two years older than Mark. Two years ago Mark was 5 years older than half "
            "Jan's age. If Jan is 30 how old is Jean?",
        ),
    ],
)
def test_relatives_that_are_no_rewordings(train: str, exam: str) -> None:
    assert overlaps([train], [exam])[0] == []


@pytest.mark.parametrize(
    ("copy", "same"),
    [
        ("Simplify $(u+3)(u-5)$.", True),
        ("Please simplify (x + 3)(x - 5)", True),
        ("Simplify $(x-3)(x+5)$.", False),
        ("Simplify $(x+5)(x-3)$.", False),
        ("Simplify $(x+3)(y-5)$.", False),
    ],
)
def test_short_questions_with_other_names_or_words(copy: str, same: bool) -> None:
    assert bool(overlaps([copy], ["Simplify $(x+3)(x-5)$."])[0]) is same


def test_questions_without_numbers_need_the_same_words() -> None:
    exam = "Write a function to count the vowels in a sentence that is given as a string."
    same = "Please write a function that can count all vowels in the sentence given as string."
    other = "Write a function to count the consonants in a sentence that is given as a string."
    assert overlaps([same.removeprefix("Please ")], [exam])[0]
    assert overlaps([other], [exam], n=20)[0] == []
    assert overlaps(["What is it and is he there?"], ["He is there and it is what?"])[0] == []


def test_a_translation_with_long_formulas_is_found() -> None:
    copy = (
        "满足 \\[5x = 7y = -z\\] 的点 $(x,y,z)$ 的集合是一条直线。满足 \\[11x = -y = -4z\\] "
        "的点的集合是另一条直线。求这两条直线之间的夹角。"
    )
    found, overlap = overlaps([copy], [LINES])
    assert found == [copy]
    assert next(iter(overlap.hits.values())).rule == "formulas"
    assert overlaps([copy.replace("11x", "13x")], [LINES])[0] == []


def test_siblings_may_stay() -> None:
    sibling = LONG.replace("1,200", "1,300").replace("seven days", "nine days")
    part = LONG.split(";")[0]
    assert overlaps([sibling, part], [LONG])[0] == [sibling, part]
    found, overlap = overlaps([sibling, part, LONG], [LONG], siblings="keep")
    assert found == [part, LONG]
    assert "1 problems share a passage" in overlap.notes[0]


def test_what_is_shared_is_shown(tmp_path: Path) -> None:
    copy = "As ever, " + LONG[:140]
    gone = gym("chain_sum", "1 + 2 =")
    _, overlap = overlaps([copy, gone, "What is this?", CAKE], [LONG, gone])
    overlap.write(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "overlaps.jsonl").open(encoding="utf-8")]
    assert [row["rule"] for row in rows] == ["instance", "passage"]
    row = rows[1]
    assert row["train_text"] == copy
    assert row["eval_text"] == LONG
    assert row["eval_problem_id"] == ask(LONG, "exam").id
    assert row["task"] == "exam"
    assert row["source"] == "train"
    assert len(row["matched"].split()) > 20
    assert row["matched"] in " ".join(words(copy))
    assert 0.5 < row["score"] <= 1
    quote = overlap.hits[row["problem_id"]].reason.split("'")[1]
    assert len(quote) <= 60
    assert row["matched"].startswith(quote[:-1])


def test_the_step_writes_the_overlaps_of_imported_traces(tmp_path: Path) -> None:
    """Traces of others come with a statement; the prompt around it is not compared."""
    framed = Problem(
        messages=({"role": "user", "content": f"Return a number. {CAKE} Think first."},),
        statement=CAKE,
        source="published",
    )
    others = [ask(f"Is {i} a prime number?", "published") for i in range(3)]
    write_jsonl(tmp_path / "problems.jsonl", [framed, *others])
    traces = [Trace(problem_id=p.id, index=0, text="<think>a</think>b") for p in [framed, *others]]
    write_jsonl(tmp_path / "traces.jsonl", traces)
    grades = [
        {"problem_id": t.problem_id, "index": 0, "outcome": "correct", "score": 1.0} for t in traces
    ]
    write_jsonl(tmp_path / "grades.jsonl", grades)
    (tmp_path / "eval").mkdir()
    write_jsonl(tmp_path / "eval" / "heldout.jsonl", [ask(CAKE.replace("Mary", "Noor"))])
    write_jsonl(tmp_path / "eval" / "exam.jsonl", [ask("Is 2 a prime number?")])
    out = tmp_path / "out"
    names = ("problems", "traces", "grades")
    filter_traces(
        [PartSpec(name="overlap")],
        *(tmp_path / f"{name}.jsonl" for name in names),
        sorted((tmp_path / "eval").iterdir()),
        out,
        folder=tmp_path,
    )
    verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").open(encoding="utf-8")]
    assert [v["kept"] for v in verdicts] == [False, True, True, False]
    rows = [json.loads(line) for line in (out / "overlaps.jsonl").open(encoding="utf-8")]
    assert {(row["task"], row["rule"]) for row in rows} == {
        ("heldout", "passage"),
        ("exam", "equal"),
    }


def test_parameters_that_make_no_sense() -> None:
    for params in ({"n": 1}, {"alike": 0.1}, {"siblings": "ignore"}, {"cover": 0}):
        with pytest.raises(UsageError, match="overlap"):
            Overlap(**params)  # type: ignore[arg-type]


@given(st.text(), st.text())
def test_any_texts(one: str, other: str) -> None:
    _, overlap = overlaps([one, other], [other])
    assert ask(other).id in overlap.hits


@given(st.lists(st.sampled_from([*"abxyz+-=(),.", "12", "7", "cake", "sold", " "]), max_size=40))
def test_a_question_is_like_itself(parts: list[str]) -> None:
    text = " ".join(parts)
    rewordings = Rewordings(0.6, 10)
    rewordings.add(Asked("exam", "1", text))
    rewordings.count(parse(text))
    rewordings.settle()
    hit = rewordings.find(parse(text))
    assert hit is not None or not dissect(parse(text)).numbers


def load(shared: Path, name: str) -> list[Problem]:
    path = shared / "problems" / f"{name}.jsonl"
    return [ask(json.loads(line)["problem"], name) for line in path.open(encoding="utf-8")]


@pytest.mark.slow
def test_real_benchmarks(shared: Path) -> None:
    """MATH's train and test parts share problems up to numbers; GSM8K's hardly any."""
    exam = {name: load(shared, name) for name in ("math500", "aime24", "amc23", "gsm8k_test")}
    for name, least, most in (("math_train_2k", 0.01, 0.05), ("gsm8k_train_2k", 0, 0.005)):
        train = [*load(shared, name), *exam["aime24"]]
        overlap = Overlap(max_share=None)
        overlap.begin({p.id: p for p in train}, exam)
        hits = {key for key, (source, _) in overlap.texts.items() if source == name}
        assert least < len(hits) / 2000 < most
        assert {p.id for p in exam["aime24"]} <= set(overlap.hits)
        # None of them is a rewording: whoever has the same numbers there is another problem.
        assert {overlap.hits[key].rule for key in hits} <= {"passage", "equal", "stock phrases"}


@pytest.mark.slow
def test_rewordings_of_real_problems(shared: Path) -> None:
    exam = {name: load(shared, name) for name in ("math500", "amc23", "gsm8k_test")}
    path = Path(__file__).parents[1] / "benchmarks" / "rewordings.jsonl"
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    found, _ = overlaps([row["text"] for row in rows], [p for ps in exam.values() for p in ps])
    by_kind = {
        kind: [row["text"] in found for row in rows if row["kind"] == kind]
        for kind in ("reworded", "reworded later", "translated")
    }
    assert sum(by_kind["reworded"]) >= 31
    assert sum(by_kind["reworded later"]) >= 12
    assert sum(by_kind["translated"]) >= 4
