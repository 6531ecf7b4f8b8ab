"""Refusals, and models that say who they are; quotations and mathematics are neither."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UsageError
from distill.filter.identity import MAKERS, MODELS, Identity, Refusals
from distill.records import Grade, Problem, Trace

GRADE = Grade(outcome="correct")
QUESTION = "What is 2 + 2?"


def judge(filter_: Any, text: str, question: str = QUESTION) -> str:
    """What the filter says, "" if nothing."""
    problem = Problem(messages=({"role": "user", "content": question},))
    return filter_(problem, Trace(problem_id=problem.id, index=0, text=text), GRADE) or ""


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "Sorry, I cannot provide this.",
    "I apologize, but I am unable to assist with that.",
    "As an AI language model, I cannot browse.",
    "As an AI, I don't have personal opinions.",
    "I cannot fulfill your request.",
    "I must respectfully decline to answer.",
    "This goes against my guidelines.",
    "Sorry, that's beyond my current scope. Let’s talk about something else.",
    "The server is busy. Please try again later.",
    "很抱歉，我无法回答这个问题。",
    "对不起，我不能提供相关信息。",
    "你好，这个问题我暂时无法回答，让我们换个话题再聊聊吧。",
    "我无法满足您的请求。",
    "抱歉，我無法協助處理這類請求。",
    "I apologize, but that's not something I can help with.",
    "I cannot help you with that request.",
    "Je suis désolé, mais je ne peux pas vous aider.",
    "Es tut mir leid, aber ich kann dabei nicht helfen.",
    "Lo siento, pero no puedo ayudar con eso.",
    "Desculpe, mas não posso ajudar com isso.",
    "Извините, но я не могу помочь с этим.",
    "申し訳ありませんが、その質問にはお答えできません。",
    "죄송하지만 그 요청은 도와드릴 수 없습니다.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text: str) -> None:
    assert judge(Refusals(), text).startswith("a refusal in the answer: '")
    thought = f"<think>\nHm. {text}\n</think>\n\n4"
    assert judge(Refusals(), thought).startswith("a refusal in the thinking: '")
    assert not judge(Refusals(), thought, f"Translate: {text}")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, I made a mistake. 3 - 4 can't be positive.",
        "Unfortunately, I can't write this as a sum of two squares.",
        "I can't help but notice a pattern: it grows.",
        "Wait, sorry, there's only one defective.",
        "The server is busy with probability 0.8, and a request waits.",
        "I cannot factor it, so I must decline this approach.",
        "Sorry, I can't see why x > 3.",
        "Let AI be the bisector; as AI, I mean the segment, is longest, we are done.",
        "我无法确定x的值，所以要继续。抱歉，算错了。",
        "Ich kann das nicht kürzen.",
    ],
)
def test_what_is_no_refusal(text: str) -> None:
    assert not judge(Refusals(), text)


def test_phrases_that_are_allowed() -> None:
    text = "Sorry, that's beyond my current scope."
    assert judge(Refusals(), text)
    assert not judge(Refusals(allow=["Current Scope"]), text)


LEAKS = [
    "I am DeepSeek-R1, an AI assistant created exclusively by the Chinese Company DeepSeek.",
    "Hi! I'm DeepSeek-R1-Distill.",
    "I'm ChatGPT, a large language model trained by OpenAI.",
    "as an AI made by OpenAI, I think so",
    "I was trained by Anthropic.",
    "I am a model developed and maintained by Alibaba Cloud.",
    "My name is Claude.",
    "I am Qwen, so 4.",
    "As GPT-4, I can say 4.",
    "Greetings! I'm DeepSeek-R1, an artificial intelligence assistant created by DeepSeek.",
    "I should confirm that I'm based on the GPT-3.5 architecture.",
    "我是通义千问。",
    "您好，我是由深度求索（DeepSeek）开发的智能助手DeepSeek-R1。",
    "你好呀！我是 **DeepSeek Chat**，由深度求索打造的智能AI助手",
    "该助手为DeepSeek-R1，由深度求索公司创造。",
    "我是由深度求索公司开发的智能助手。",
    "我是DeepSeek-R1。",
    "作为阿里云研发的语言模型，我认为是4。",
    "Je suis ChatGPT.",
    "Je suis un modèle entraîné par OpenAI.",
    "Ich wurde von OpenAI trainiert.",
    "Soy un modelo entrenado por Google.",
    "Я GigaChat? Нет, я Qwen.",
    "私はDeepSeekです。",
]


@pytest.mark.parametrize("text", LEAKS)
def test_identity_leaks(text: str) -> None:
    assert judge(Identity(), text).startswith("says who it is in the answer: '")
    assert judge(Identity(), f"<think>\n{text}\n</think>\n4").startswith(
        "says who it is in the thinking: '"
    )
    assert not judge(Identity(), text, f"Is this true? {text}")


@pytest.mark.parametrize(
    "text",
    [
        "Claude has 5 apples and Gemini has 3.",
        "I am claudicating. As Claude said, 4.",
        "BERT is a model developed by Google, GPT-4 one by OpenAI.",
        "We use a lemma made famous by DeepMind.",
        "百度地图由百度开发。",
        "DeepSeek 系列大模型是由深度求索（DeepSeek Inc.）研发的高效开源语言模型。",
        "AI is perpendicular to BC, and KI = 3.",
        "I am Philip. I'm Barden.",
        "Je suis d'accord, par Google on trouve 4.",
    ],
)
def test_what_is_no_leak(text: str) -> None:
    assert not judge(Identity(), text)


def test_own_names_may_be_said() -> None:
    text = "I am Qwen, made by Alibaba Cloud."
    assert judge(Identity(), text)
    assert not judge(Identity(own=["qwen", "Alibaba"]), text)
    assert judge(Identity(own=["DeepSeek"]), text)


def test_speaking_as_a_model_counts_if_wanted() -> None:
    for text in (
        "I'm an AI, so I reason.",
        "As a large language model, I think 4.",
        "作为一个人工智能语言模型，我认为是4。",
        "En tant qu'IA, je pense que 4.",
        "Als KI-Sprachmodell denke ich 4.",
        "Como modelo de lenguaje, digo 4.",
        "Как языковая модель, я думаю, что 4.",
    ):
        assert not judge(Identity(), text)
        assert judge(Identity(generic=True), text).startswith("speaks as a model in the answer: ")
        assert not judge(Identity(generic=True), text, "What can an AI do?")
    assert not judge(Identity(generic=True), "As AI is the bisector, IK = KI.")


def test_wrong_parameters() -> None:
    with pytest.raises(UsageError, match="filter 'identity': own = 'Qwen'"):
        Identity(own="Qwen")
    with pytest.raises(UsageError, match=r"filter 'refusals': allow = \[''\]"):
        Refusals(allow=[""])


def test_every_name_is_found() -> None:
    """Nothing in the lists is out of reach of the quick search before them."""
    for pattern in MODELS:
        name = pattern.split("(")[0].split("[")[0].rstrip("-?")
        name += "-4" if name in ("GPT", "GLM", "Phi") else ""
        said = f"我是{name}" if name > "z" else f"I am {name}"
        assert judge(Identity(), said), said
    for pattern in MAKERS:
        name = pattern.split("(")[0]
        said = f"我是由{name}开发的" if name > "z" else f"I was made by {name}"
        assert judge(Identity(), said), said


WORDS = st.sampled_from(
    ["I am ", "I'm ", "as an AI ", "sorry, ", "but ", "I can't ", "help ", "Qwen", "made by ",
     "OpenAI", "我是", "由", "百度", "开发", "抱歉，", "无法", "</think>", "\n", "."]
)  # fmt: skip


@settings(max_examples=60)
@given(st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=30).map("".join)))
def test_any_text_gets_a_reason_or_none(text: str) -> None:
    for filter_ in (Refusals(), Identity(generic=True)):
        assert len(judge(filter_, text)) < 200


@pytest.mark.parametrize(
    "unit", ["I am an AI ", "as an ", "sorry ", "Qwen ", "我", "由百", "I was ", "me "]
)
def test_time_is_linear(unit: str) -> None:
    def seconds(size: int) -> float:
        start = time.process_time()
        for filter_ in (Refusals(), Identity(own=["AI"], generic=True)):
            judge(
                filter_, "AI language model sorry " + unit * (size // len(unit)), "AI " + QUESTION
            )
        return time.process_time() - start

    seconds(1000)
    assert seconds(40_000) < 12 * max(seconds(10_000), 0.004)


def test_real_traces(shared: Path) -> None:
    """No sound chain refuses or says its name; three of R1's say "I'm an AI"."""
    generic = 0
    for name in ("topology_r1_math500", "misguided_attention_r1_qwq", "rasbt_distill_samples"):
        for line in (shared / "traces" / f"{name}.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            assert not judge(Refusals(), row["trace"], row["problem"])
            reason = judge(Identity(generic=True), row["trace"], row["problem"])
            assert not reason or "'I'm an AI, I should rea" in reason or "'I'm AI, I sh" in reason
            generic += bool(reason)
    assert generic == 3
