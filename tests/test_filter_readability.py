"""The filter for what nobody should have to read: every rule, and what only looks like one."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UsageError
from distill.filter.readability import SPECIAL, Readability, about_code
from distill.records import Grade, Problem, Trace

GRADE = Grade(outcome="correct")
QUESTION = "What is the sum of the first ten odd numbers?"
ROOT = Path(__file__).parent.parent


def judge(text: str, question: str = QUESTION, metadata: Any = None, **parameters: Any) -> str:
    """What the filter says, "" if nothing."""
    problem = Problem(messages=({"role": "user", "content": question},), metadata=metadata or {})
    trace = Trace(problem_id=problem.id, index=0, text=text)
    return Readability(**parameters)(problem, trace, GRADE) or ""


def test_long_paragraphs() -> None:
    wall = "So we go on and on. " * 300
    assert judge(f"Fine.\n{wall}\nFine.") == (
        "a paragraph of 6000 characters, more than 4000: "
        "'So we go on and on. So we go on and on. So we go on and on.…'"
    )
    assert not judge(wall.replace("on. So", "on.\nSo"))
    assert not judge(wall, max_paragraph=None)
    assert judge("x" * 21, max_paragraph=20)


CODE = "```python\nprint(sum(range(1, 20, 2)))\n```"


def test_code_in_mathematics() -> None:
    assert judge(f"Let me see.\n{CODE}\nSo 100.") == (
        "program code: '```python print(sum(range(1, 20, 2))) ```'"
    )
    assert judge("```\nfor i in range(3):\n    print(i)\n```")
    assert not judge("```\n  A\n / \\\nB---C\n```")
    assert not judge("```latex\n\\frac{1}{2}\n```")
    assert not judge(CODE, code="keep")


@pytest.mark.parametrize(
    ("question", "metadata"),
    [
        (QUESTION, {"tests": {"inputs": ["1"]}}),
        (QUESTION, {"domain": "code"}),
        ("Write a Python function that adds two numbers.", {}),
        ("What does this print?\n```\nprint(1)\n```", {}),
        ("Give an algorithm in C++.", {}),
    ],
)
def test_code_where_code_is_asked_for(question: str, metadata: dict[str, Any]) -> None:
    assert not judge(CODE, question, metadata)
    assert judge(CODE, question, metadata, code="drop")


def test_a_problem_of_mathematics_is_not_about_code() -> None:
    for question in (
        QUESTION,
        "Let f be a function that encodes 5.",
    ):
        assert not about_code(Problem(messages=({"role": "user", "content": question},)))


SPECIAL_TOKENS = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>",
    "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>",
    "<｜Assistant｜>", "[INST]", "[/INST]",
    "<<SYS>>", "</s>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<0x0A>",
    "[gMASK]", "<eos>",
    "<extra_id_0>", "ĠtheĠsum", "▁the▁sum",
]  # fmt: skip


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_leftover_special_tokens(token: str) -> None:
    reason = judge(f"The sum is 100.{token}")
    assert reason.startswith("a special token: ")
    assert token.replace("Ġsum", "").replace("sum", "")[:6] in reason
    assert not judge(f"The sum is 100.{token}", special_tokens=False)


def test_tokens_that_are_allowed() -> None:
    assert not judge("a <|x1|> b", allow_tokens=["<|x1|>"])
    assert judge("a <|x1|> b <|x2|>", allow_tokens=["<|x1|>"])


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nSo.\n</think>\n\n100",
        "<|begin_of_thought|>\nSo.\n<|end_of_thought|>\n<|begin_of_solution|>1<|end_of_solution|>",
        "If a <b> c and |x| < 3 > |y|, then <x, y> = 0 and |<a|b>| = 1, <|x|>.",
        "The segment [AB] and the interval [0, 1[, the class [INSTANCE].",
        "f <| x |> g and a || b",
    ],
)
def test_what_is_no_special_token(text: str) -> None:
    assert not judge(text)


def test_the_catalogs_tokens_are_known() -> None:
    """Every token of the students' templates and families, and the tags that are none."""
    catalog = yaml.safe_load((ROOT / "students" / "catalog.yaml").read_text(encoding="utf-8"))
    tokens = {t for entry in catalog["templates"].values() for t in entry.get("needs", [])}
    tokens |= {family[key] for family in catalog["families"].values() for key in ("eos", "pad")}
    tokens -= {""}  # a family whose tokenizers' own are right
    tokens |= {t for base in catalog["bases"].values() for t in base.get("untrained", [])}
    assert len(tokens) > 6
    assert [token for token in sorted(tokens) if not SPECIAL.fullmatch(token)] == []
    teachers = yaml.safe_load((ROOT / "teachers" / "catalog.yaml").read_text(encoding="utf-8"))
    tags = {t for entry in teachers.values() for t in entry.get("tags", [])}
    assert [tag for tag in sorted(tags | {"<think>", "</think>"}) if SPECIAL.search(tag)] == []


@pytest.mark.parametrize(
    "line",
    ["Human: And now?", "User: And now?", "**User:** And now?", "Assistant: Sure!",
     "用户：然后呢？", "### Instruction:", "### Response:", "System: You are a helpful assistant."],
)  # fmt: skip
def test_turns_that_the_model_made_up(line: str) -> None:
    reason = judge(f"The sum is 100.\n\n{line}")
    assert reason.startswith("a further turn: 'The sum is 100.")
    assert not judge(f"The sum is 100.\n\n{line}", turns=False)
    assert not judge(f"The sum is 100.\n{line}", question=f"Who says this?\n{line}")


def test_what_is_no_turn() -> None:
    assert not judge("System: x + y = 3.\nAnswer: 100\nProblem: none.\nthe user: 5 clicks.")
    assert not judge("### Response to the objection\n\nThe assistant: ...")


@pytest.mark.parametrize(
    "text",
    ["The cafÃ© is open.", "Itâ€™s 100.", "ï¿½ is here.", "aÂ²", "Â°C is Â°C: 20Â°C", "ðŸ˜€ 100",
     "a â‰¤ b", "â\x80\x93", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "ä½\xa0å¥½ä¸–ç•Œ", "Ã¼ber", "seÃ±or"],
)  # fmt: skip
def test_mojibake(text: str) -> None:
    assert "mojibake" in judge(text, max_broken=None)
    assert not judge(text, mojibake=False, max_broken=None)


@pytest.mark.parametrize(
    "word", ["déjà", "Straße", "привет", "你好", "πρόβλημα", "naïve", "≤", "😀"]
)
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_utf8_that_was_read_wrongly(word: str, encoding: str) -> None:
    raw = word.encode()
    try:
        wrong = raw.decode(encoding)
    except UnicodeDecodeError:
        pytest.skip(f"{encoding} has no character for a byte of it")
    assert "mojibake" in judge(f"So {wrong} and {wrong}.", max_broken=None, max_invisible=None)
    assert not judge(f"So {word} and {word}.")


@pytest.mark.parametrize(
    "text",
    ["1 Å³ = 10⁻³⁰ m³, 5 Å² and 3 Å°", "2×½ = 1, 3×² and 5×¼", "«\xa0là\xa0»",
     "ÃO, NÃO, SÃO", "Â = 3 and Â² = 9, so (Â²)", "Ø² and 20 °C ± 0.5 °C",
     "«allé…»", "x² − y² ≥ 0, ½·¾, £5, §3, ©"],
)  # fmt: skip
def test_what_is_no_mojibake(text: str) -> None:
    assert not judge(text)


def test_broken_and_invisible_characters() -> None:
    assert judge("So \ufffd\ufffd it is.") == (
        "2 broken characters, more than 0: U+FFFD after 'So'"
    )
    assert judge("The \x00 end") == "1 broken characters, more than 0: U+0000 after 'The'"
    assert "U+E000" in judge("A \ue000 B")
    assert not judge("So \ufffd\ufffd it is.", max_broken=2)
    assert not judge("So \ufffd\ufffd it is.", max_broken=None)
    assert not judge("Lines\r\nand\ttabs\n")
    assert "U+200B" in judge("a" + "\u200b" * 11)
    assert not judge("a" + "\u200b" * 10)
    assert not judge("a" + "\u200b" * 99, max_invisible=None)
    assert not judge("می\u200cخواهم " * 50)


def test_fences_and_formulas_that_never_close() -> None:
    assert judge("So\n```\nA / B").startswith("a code fence that never closes: '``` A / B'")
    assert judge("So $$x = 3$$ and $$y = 4.").startswith("a $$ that never closes: ")
    assert not judge("So $$x = 3$$ and $$y = 4.", balanced=False)
    assert not judge("Since $x,$$y,$ and $z$ are positive")
    assert not judge("So:$$x = 3$$.")
    assert not judge("It costs $5 and \\$$3$, so $x$.")


def test_wrong_parameters() -> None:
    with pytest.raises(UsageError, match="max_paragraph = 0"):
        Readability(max_paragraph=0)
    with pytest.raises(UsageError, match="code = True"):
        Readability(code=True)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="allow_tokens = '<s>'"):
        Readability(allow_tokens="<s>")


PIECES = st.sampled_from(
    ["<|", "|>", "im_end", "```", "$$", "\n", "User:", "Ã", "©", "â€", "\ufffd",
     "\x00", "Ġ", "▁", "a ",
     "[INST"]
)  # fmt: skip


@settings(max_examples=60)
@given(st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=40).map("".join)))
def test_any_text_gets_a_reason_or_none(text: str) -> None:
    assert len(judge(text)) < 300


@pytest.mark.parametrize(
    "unit", ["<|", "<|a", "```", "```a", "$$", "\n", "\n ", "\n**", "Ġa", "▁a", "Ã", "âa",
     "Ð¿Ñ", "[",
     "=", "a"]
)  # fmt: skip
def test_time_is_linear(unit: str) -> None:
    def seconds(size: int) -> float:
        start = time.process_time()
        for check in Readability()._checks:
            check(unit * (size // len(unit)), PROBLEM)
        return time.process_time() - start

    seconds(1000)
    assert seconds(40_000) < 12 * max(seconds(10_000), 0.004)


PROBLEM = Problem(messages=({"role": "user", "content": QUESTION},))


def test_real_traces(shared: Path) -> None:
    """Three walls of text among 251 sound chains, and the one that went on as "Human:"."""
    found: Counter[str] = Counter()
    names = ("topology_r1_math500", "misguided_attention_r1_qwq", "rasbt_distill_samples")
    for name in names:
        for line in (shared / "traces" / f"{name}.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            found[judge(row["trace"], row["problem"]).split(":")[0].partition(" of ")[0]] += 1
    assert found == {"": 247, "a paragraph": 3, "a further turn": 1}


def test_real_answers_of_base_models(shared: Path) -> None:
    """A base model that writes programs, invents an "Assistant:" and begins with <|im_start|>."""
    found: Counter[str] = Counter()
    path = shared / "traces" / "skythought_shortcot_and_base.jsonl"
    for line in path.open(encoding="utf-8"):
        row = json.loads(line)
        found[judge(row["trace"], row["problem"]).split(":")[0].partition(" of ")[0]] += 1
    assert found["program code"] > 90
    assert found["a further turn"] == 8
    assert found["a special token"] == 1
    assert found[""] > 450
