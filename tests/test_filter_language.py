"""The filter for chains that mix languages: scripts, the detector, and what is in no language."""

from __future__ import annotations

import json
import pickle
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import MissingExtra, UsageError
from distill.filter import latin
from distill.filter.language import Language
from distill.filter.scripts import SCRIPTS, WRITTEN_IN, count_words, language_code, prose, script_of
from distill.filter.target import target_of
from distill.records import Grade, Problem, Trace

GRADE = Grade(outcome="correct")
needs_detector = pytest.mark.skipif(
    latin.installed() is None, reason="py3langid is not installed: pip install 'distill[language]'"
)

QUESTIONS = {
    "en": "Find the sum of all integers $n$ such that the number $n^2+1$ divides $n+3$.",
    "zh": "已知三角形ABC中，AB=AC，角A等于40度，求角B的大小。",
    "ru": "Найдите сумму всех целых чисел $n$, для которых число $n^2+1$ делит $n+3$.",
    "fr": "Trouver la somme de tous les entiers $n$ tels que le nombre $n^2+1$ divise $n+3$.",
    "de": "Bestimme die Summe aller ganzen Zahlen $n$, für die $n^2+1$ die Zahl $n+3$ teilt.",
    "ja": "二等辺三角形ABCにおいて、AB=ACで角Aが40度のとき、角Bの大きさを求めなさい。",
    "ko": "삼각형 ABC에서 AB=AC이고 각 A가 40도일 때 각 B의 크기를 구하시오.",
    "el": "Να βρεθεί το άθροισμα όλων των ακεραίων για τους οποίους ο αριθμός διαιρεί τον άλλο.",
}
CHAINS = {
    "en": "Okay, let me think about the problem. First, I need to find all integers that satisfy "
    "the condition. So the number divides three, and that means we can check the cases.",
    "zh": "好的，我们来思考这道题。首先，因为AB=AC，所以这是一个等腰三角形，两个底角相等。"
    "等等，我再检查一遍这个结果是不是正确的。",
    "ru": "Хорошо, давайте подумаем об этой задаче. Сначала нужно найти все целые "
    "числа, которые удовлетворяют условию. Подождите, надо проверить этот случай ещё раз.",
    "fr": "Bon, réfléchissons à ce problème. D'abord, il faut trouver tous les entiers qui "
    "vérifient la condition. Attendez, je dois vérifier ce cas encore une fois avant de continuer.",
    "de": "Gut, denken wir über diese Aufgabe nach. Zuerst müssen wir alle ganzen Zahlen finden, "
    "die die Bedingung erfüllen. Moment, ich sollte diesen Fall noch einmal prüfen.",
    "ja": "では、この問題を考えましょう。まず、AB=ACなので二等辺三角形です。"
    "底角は等しいので、角Bは70度になります。念のためもう一度確認します。",
    "ko": "자, 이 문제를 생각해 봅시다. 먼저 AB=AC이므로 이등변삼각형이고 두 밑각의 크기가 "
    "같습니다. 따라서 각 B는 70도입니다. 다시 한번 확인해 보겠습니다.",
    "el": "Ας σκεφτούμε το πρόβλημα. Πρώτα πρέπει να βρούμε όλους τους ακέραιους που ικανοποιούν "
    "τη συνθήκη. Περίμενε, πρέπει να ελέγξω ξανά αυτή την περίπτωση.",
}
MATHS = "$x_1 = 3$, \\frac{1}{2} and \\( \\alpha \\)"
LATIN = {"en", "fr", "de"}


def asked(question: str, **metadata: Any) -> Problem:
    return Problem(messages=({"role": "user", "content": question},), metadata=metadata)


def trace(text: str) -> Trace:
    return Trace(problem_id="p", index=0, text=text)


def judge(question: str, text: str, filter_: Language | None = None, **metadata: Any) -> str | None:
    return (filter_ or Language())(asked(question, **metadata), trace(text), GRADE)


def consistency(question: str, text: str, filter_: Language | None = None) -> float:
    return (filter_ or Language()).measure(asked(question), trace(text))["consistency"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_and_chains_in_every_language(question: str) -> None:
    for told, chain in CHAINS.items():
        if {question, told} <= LATIN and question != told and latin.installed() is None:
            continue
        text = f"<think>\n{chain}\n\n{chain} {MATHS}\n</think>\n\n\\boxed{{70}}"
        share = consistency(QUESTIONS[question], text)
        assert share == 1.0 if question == told else share < 0.6
        assert (judge(QUESTIONS[question], text) is None) == (question == told)


def test_the_reason_names_share_language_and_place() -> None:
    text = CHAINS["en"] + "\n\n等等，我再检查一遍。\n\n" + CHAINS["en"]
    reason = judge(QUESTIONS["en"], text)
    assert reason == "12% of 68 words are not English: Chinese '等等，我再检查一遍'"
    assert consistency(QUESTIONS["en"], text) == 1 - 8 / 68
    assert judge(QUESTIONS["en"], text, Language(min_consistency=0.8)) is None


NO_MIXING = {
    "a name in brackets": "This is a theorem of Liu Hui (刘徽), and it helps.",
    "a quoted word": 'The word "你好" is a greeting.',
    "Greek letters": "α + β = γ, sin αβγ, Δ ABC, λ μ ν ξ, αβ γδ εζ, ∠θφ",
    "accented names": "Poincaré, Erdős, Gödel, Łukasiewicz, Đoković and Hôpital said so.",
    "full-width signs": "So，we have：（１２３）＋ＡＢＣ。",
    "code": "```python\n# 计算结果\nprint('你好世界，这是一个测试')\n```",
    "inline code": "The key is `名字` here.",
    "LaTeX": "$x = \\text{如果这是中文}$ and \\[ y = \\text{另外的中文内容} \\] and \\(文\\)",
    "an address": "See https://example.org/中文/路径 for more.",
    "numbers": "١٢٣ + ٤٥٦ = 579, ½, x², ₁₂, ⅷ, 𝑥 ∈ ℝ, ℵ₀",
}


@pytest.mark.parametrize("name", NO_MIXING)
def test_what_is_in_no_language(name: str) -> None:
    assert consistency(QUESTIONS["en"], f"{CHAINS['en']}\n\n{NO_MIXING[name]}") == 1.0


def test_names_and_terms_in_a_chinese_chain_are_no_english() -> None:
    text = (
        CHAINS["zh"] + "用 Cauchy-Schwarz 不等式，这是 Massachusetts Institute of Technology 的题。"
    )
    assert consistency(QUESTIONS["zh"], text) == 1.0
    assert consistency(QUESTIONS["zh"], text + "So let me check this again with care.") < 0.95


def test_what_the_question_says_may_be_repeated() -> None:
    question = (
        "How many strokes has the character 永 in the phrase 永远的朋友, and why are there so many?"
    )
    text = f"{CHAINS['en']} The character 永 is the first of 永远的朋友, 永远的朋友 has five."
    assert consistency(question, text) == 1.0
    assert consistency(QUESTIONS["en"], text) < 1.0
    both = "Translate this to English: 我们再检查一遍这个结果是不是正确的"
    assert judge(both, CHAINS["en"]) is None
    assert judge("Translate into English: 我们再检查一遍", CHAINS["en"]) is None
    assert judge(both, CHAINS["zh"]) is None


def test_chinese_in_a_japanese_answer() -> None:
    reason = judge(QUESTIONS["ja"], CHAINS["ja"] + "\n等等，我再检查一遍这个结果是不是正确的。")
    assert reason is not None
    assert "Chinese" in reason
    assert judge(QUESTIONS["ja"], CHAINS["ja"] + "\n【東京大学理学部】") is None


def test_metadata_wins_over_the_question() -> None:
    assert judge(QUESTIONS["zh"], CHAINS["en"], language="English") is None
    assert judge(QUESTIONS["en"], CHAINS["en"], language="zh-CN")
    with pytest.raises(UsageError, match="'Klingon'"):
        judge(QUESTIONS["en"], CHAINS["en"], language="Klingon")


def test_allowed_languages() -> None:
    assert judge(QUESTIONS["zh"], CHAINS["en"], Language(allow=["en"])) is None
    assert judge(QUESTIONS["zh"], CHAINS["zh"], Language(allow=["English"])) is None
    assert judge(QUESTIONS["zh"], CHAINS["ru"], Language(allow=["en"]))
    assert judge(QUESTIONS["fr"], CHAINS["en"], Language(allow=["en"])) is None
    assert judge(QUESTIONS["zh"], CHAINS["zh"] + CHAINS["ja"], Language(allow=["ja"])) is None
    assert judge(QUESTIONS["ja"], CHAINS["ja"] + CHAINS["zh"], Language(allow=["zh"])) is None


@needs_detector
def test_a_german_paragraph_in_an_english_chain() -> None:
    text = "\n\n".join([CHAINS["en"]] * 6 + [CHAINS["de"]] + [CHAINS["en"]] * 6)
    reason = judge(QUESTIONS["en"], text)
    assert reason is not None
    assert "German 'Gut, denken wir" in reason


def test_a_question_that_is_too_short_is_told_by_its_message() -> None:
    short = Problem(
        messages=({"role": "user", "content": "$5^5$\n\nGive the answer in a box, and be brief."},),
        statement="$5^5$",
    )
    assert Language()(short, trace(CHAINS["zh"]), GRADE)
    assert Language()(short, trace(CHAINS["en"]), GRADE) is None
    assert target_of("$5^5$", "$5^5$", "", frozenset(), False).scripts == frozenset()
    assert judge("$5^5$", CHAINS["zh"]) is None


def test_without_the_detector_the_notes_say_what_could_not_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = Language(detector=yaml.safe_load("off"))
    assert "the detector is off" in off.notes[0]
    assert judge(QUESTIONS["en"], CHAINS["de"] * 3, off) is None
    assert judge(QUESTIONS["en"], CHAINS["zh"], off)
    monkeypatch.setattr(latin, "installed", lambda: None)
    auto = Language()
    assert "py3langid is not installed" in auto.notes[0]
    assert "pip install 'distill[language]'" in auto.notes[0]
    assert judge(QUESTIONS["en"], CHAINS["de"] * 3, auto) is None
    with pytest.raises(MissingExtra, match="py3langid"):
        Language(detector="required")


@needs_detector
def test_with_the_detector_there_is_nothing_to_say() -> None:
    assert Language().notes == []
    assert latin.installed() in Language.version


def test_wrong_parameters() -> None:
    with pytest.raises(UsageError, match="min_consistency = 2"):
        Language(min_consistency=2)
    with pytest.raises(UsageError, match="allow = 'en'"):
        Language(allow="en")
    with pytest.raises(UsageError, match=r"allow = \[False\]"):
        Language(allow=yaml.safe_load("[no]"))
    with pytest.raises(UsageError, match="'Elvish'"):
        Language(allow=["Elvish"])
    with pytest.raises(UsageError, match="detector = 'yes'"):
        Language(detector="yes")  # type: ignore[arg-type]


def test_codes_and_scripts() -> None:
    assert [language_code(n) for n in ("zh", "zh-CN", "Chinese", "pt_BR")] == [
        "zh",
        "zh",
        "zh",
        "pt",
    ]
    assert {script for scripts in WRITTEN_IN.values() for script in scripts} <= SCRIPTS.keys()
    assert [script_of(t) for t in ("12 é", "ж", "あ", "字", "…")] == [
        "Latin", "Cyrillic", "Kana", "Han", ""]  # fmt: skip
    assert count_words("two words, x = 3; 三个字 и ещё") == 6
    assert prose("a `b` $c$ \\[d\\] \\frac ```e\nf``` https://g.h").split() == ["a"]


@needs_detector
def test_the_detector_is_asked_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = latin._detector("fr")

    class Counting:
        def classify(self, text: str) -> Any:
            calls.append(text)
            return real.classify(text)

    monkeypatch.setattr(latin, "_detector", lambda code: Counting())
    text = "\n\n".join(f"{CHAINS['fr' if i % 4 else 'de']} {i}" for i in range(400))
    found, _ = latin.foreign({"fr"}, text, "")
    assert len(calls) == latin.CALLS
    assert found / count_words(prose(text)) == pytest.approx(0.25, abs=0.2)


@settings(max_examples=50)
@given(st.text(max_size=300), st.text(max_size=60))
def test_any_text_has_a_share(text: str, question: str) -> None:
    share = consistency(question, text, Language(detector="off"))
    assert 0.0 <= share <= 1.0


MARKS = st.sampled_from(
    [
        "$",
        "$$",
        "\\[",
        "\\]",
        "\\(",
        "```",
        "`",
        "the ",
        "字",
        "。",
        "привет ",
        "αβγ ",
        "word ",
        "\n",
        "(",
    ]
)


@settings(max_examples=50)
@given(st.lists(MARKS, max_size=60).map("".join), st.sampled_from(sorted(QUESTIONS)))
def test_any_marks_have_a_share(text: str, code: str) -> None:
    assert 0.0 <= consistency(QUESTIONS[code], text) <= 1.0


@pytest.mark.parametrize(
    "unit",
    ["\\[", "$ ", "`a", "a", "字", "字 a ", "αβγ ", "ж", "the word ", "</", "http://", "(字)"],
)
def test_time_is_linear(unit: str) -> None:
    """Four times the text may take twelve times as long on a busy machine, not sixteen times."""

    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        runs = []
        for code in ("en", "zh"):
            start = time.process_time()
            consistency(QUESTIONS[code], text)
            runs.append(time.process_time() - start)
        return max(runs)

    seconds(1000)
    assert seconds(40_000) < 12 * max(seconds(10_000), 0.004)


def test_a_filter_can_be_pickled() -> None:
    copied = pickle.loads(pickle.dumps(Language(allow=["en"])))
    assert judge(QUESTIONS["zh"], CHAINS["en"], copied) is None


def rows(shared: Path, name: str) -> list[dict[str, Any]]:
    path = shared / "traces" / f"{name}.jsonl"
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def test_sound_real_chains_are_in_one_language(shared: Path) -> None:
    """Of 251 chains of R1 and QwQ one has a foreign word in it, and that is too little."""
    names = ("topology_r1_math500", "misguided_attention_r1_qwq", "rasbt_distill_samples")
    sound = [row for name in names for row in rows(shared, name)]
    shares = [consistency(row["problem"], row["trace"]) for row in sound]
    (glitch,) = (share for share in shares if share < 1.0)
    assert 0.998 < glitch < 0.9995


def test_a_real_chain_that_fell_into_chinese(shared: Path) -> None:
    long = rows(shared, "skythought_sky_t1_long")
    (row,) = (row for row in long if re.search("[一-鿿]", row["trace"]))
    reason = judge(row["problem"], row["trace"])
    assert reason is not None
    assert re.match("48% of 2.,?... words are not English: Chinese '也许我需要", reason), reason


def test_real_questions_are_english(shared: Path) -> None:
    """None is taken for another language; where nothing is told, scripts alone are judged."""
    names = []
    for line in (shared / "problems" / "math500.jsonl").open(encoding="utf-8"):
        question = json.loads(line)["problem"]
        names.append(target_of(question, question, "", frozenset(), False).name)
    assert set(names) <= {"English", "in Latin letters"}
    assert names.count("English") > 490
