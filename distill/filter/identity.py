"""Filters for what a teacher says of itself: refusals, and who it is.

A student that trains on them refuses in the teacher's words, or says that it is another's model.
Both read the whole text, thinking and answer. Patterns are tried only where one of their plain
words occurs, so that mathematics is passed at the speed of a substring search.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from distill.errors import UsageError
from distill.records import Grade, Problem, Trace

MODELS = (
    "ChatGPT", "GPT-?[345o][a-z0-9.-]*", "Claude(?: [23]| Opus| Sonnet| Haiku)?", "Gemini", "Bard",
    "DeepSeek(?:[- ]?(?:R1|V3|Chat|Coder|Reasoner))?[A-Za-z0-9.-]*", "Qwen[A-Za-z0-9.-]*", "QwQ",
    "Tongyi(?: Qianwen)?", "Llama[- ]?[0-9.]*", "Mistral", "Mixtral", "Grok", "Kimi", "ChatGLM",
    "GLM-[0-9.]+", "ERNIE(?: Bot)?", "Doubao", "Hunyuan", "MiniMax", "Nemotron", "Gemma", "Copilot",
    "Phi-[0-9.]+", "Bing", "Vicuna", "Sky-T1", "通义千问", "文心一言", "豆包", "混元", "智谱清言",
)  # fmt: skip
MAKERS = (
    "OpenAI", "Anthropic", "DeepSeek(?:[- ]AI)?", "Google(?: DeepMind)?", "DeepMind",
    "Meta(?: AI)?", "Microsoft", "Alibaba(?: Cloud|'s)?", "Mistral(?: AI)?", "xAI",
    "Moonshot(?: AI)?", "Zhipu", "Baidu", "ByteDance", "Tencent", "NVIDIA", "MiniMax", "NovaSky",
    "深度求索", "阿里巴巴", "阿里云", "月之暗面", "智谱", "百度",
    "字节跳动", "腾讯", "谷歌", "微软",
)  # fmt: skip
_KINDS = (
    r"(?:(?:an? )?(?:(?:large |AI |artificial intelligence |virtual |digital )*"
    r"(?:language model|chatbot|AI model|assistant))|an (?:AI|artificial intelligence)|AI(?=,))"
)
_MADE = "created|made|trained|developed|built|designed|fine-tuned|released"
_I = r"(?:I am|I['’]m|[Mm]y name is|[Yy]ou can call me)"


def _names(names: Sequence[str]) -> str:
    return "(?:" + "|".join(names) + ")"


_SAYS_WHO = (
    rf"\b{_I} (?:called |named |actually |really |just )?{_names(MODELS)}(?![\w’'])",
    rf"\bI(?: am|['’]m) based on (?:the )?{_names(MODELS)}",
    rf"该助手为{_names(MODELS)}",
    rf"\b[Aa]s {_names(MODELS)}, I\b",
    rf"\b(?:I (?:am|was|have been)|I['’]m|me|[Aa]s an?) (?:[^.\n]{{0,60}} )?(?:{_MADE}) "
    rf"(?:and \w+ )?(?:exclusively )?by (?:the )?(?:team at |Chinese company )?"
    rf"(?i:{_names(MAKERS)})(?!\w)",
    rf"我(?:是|叫)[^。\n]{{0,12}}?{_names(MODELS)}",
    rf"(?:我|作为|本模型)[^。\n]{{0,24}}?{_names(MAKERS)}[^。，\n]{{0,8}}?"
    r"(?:开发|训练|研发|创造|打造|推出)",
    rf"\b(?:[Jj]e suis|[Ii]ch bin|[Ss]oy|[Ss]ono|[Ss]ou|[Яя]|[Ii]k ben) {_names(MODELS)}(?!\w)",
    rf"\b(?:[Jj]e suis|[Jj]['’]ai été|[Ss]oy|[Ff]ui|[Ss]ou|[Яя])\b[^.\n]{{0,60}} "
    r"(?:entraîn|développ|cré|entrenad|desarrollad|cread|trein|desenvolv|criad|разработ|созда|обуч)"
    rf"\w* (?:par|por|компанией) {_names(MAKERS)}(?!\w)",
    rf"\b[Ii]ch (?:bin|wurde)\b[^.\n]{{0,60}} von {_names(MAKERS)} "
    r"(?:entwickelt|trainiert|erstellt)",
    rf"私は[^。\n]{{0,12}}?{_names(MODELS)}",
)
_SAYS_WHAT = (
    rf"\b(?:[Aa]s|I am|I['’]m)(?: just| only)? {_KINDS}(?=[ ,.;:]|$)",
    r"(?:作为|我是|我只是)(?:一个|一款|一名|个)?(?:由[^。\n]{0,20})?(?:大型|大)?"
    r"(?:AI|人工智能|语言模型|大模型|聊天机器人)",
    r"(?i:en tant qu['’e] ?(?:IA|intelligence artificielle|modèle de langage|assistant virtuel))",
    r"(?i:als (?:eine? )?(?:KI|künstliche Intelligenz|(?:KI-)?Sprachmodell))\b",
    r"(?i:como (?:una? |um )?(?:IA|inteligencia artificial|inteligência artificial|"
    r"modelo de (?:lenguaje|linguagem)))\b",
    r"(?i:как (?:языковая модель|искусственный интеллект|ИИ))\b",
    r"(?:AI|人工知能|大規模)(?:言語モデル|アシスタント)?として",
    r"저는[^.\n]{0,12}(?:AI|인공지능|언어 모델)",
)
# "Unfortunately I can't write this as a square" is mathematics: only these verbs refuse.
_HELP = (
    r"(?:help|assist|provide|comply|fulfil+|answer (?:that|this|your)|discuss|engage|generate|"
    r"create|participate|respond to|continue (?:with )?this)"
)
_CANNOT = (
    r"(?:can(?:no|['’])t|can not|won['’]t|will not|am (?:not able|unable) to|"
    r"['’]m (?:not able|unable) to)"
)
# (words without which a pattern cannot match, pattern): a word is looked for 30 times as fast.
_REFUSES = (
    (
        ("orry", "pologi"),
        rf"(?i:\b(?:sorry|apologi[sz]e|apologies)[,.]? (?:but )?(?:as {_KINDS},? )?I ?"
        rf"{_CANNOT} {_HELP}\b)",
    ),
    (
        ("AI", "language model", "assistant", "chatbot"),
        rf"(?i:\bas {_KINDS},? (?:[^.\n]{{0,40}}?, ?)?I ?(?:{_CANNOT}|do(?:n['’]t| not) have))",
    ),
    (
        ("ssist", "help with", "help you"),
        rf"(?i:\bI {_CANNOT} (?:help|assist)(?: you)? with (?:that|this|your)\b)",
    ),
    (
        ("request",),
        rf"(?i:\bI {_CANNOT} (?:fulfil+|comply with|satisfy) (?:that|this|your|the) req)",
    ),
    (("not something",), r"(?i:\bthat['’]s not something I can (?:help|assist) with\b)"),
    (("decline to",), r"(?i:\bI must (?:respectfully |politely )?decline to\b)"),
    (
        ("against my", "violate"),
        r"(?i:\b(?:against|violates?) my (?:ethical |content |safety |usage )?"
        r"(?:guidelines|programming|polic(?:y|ies)))",
    ),
    # What two chat services answer instead of their model.
    (("current scope",), r"(?i:\bbeyond my current scope\b)"),
    (("server is busy",), r"(?i:\bthe server is busy\. please try again)"),
    (("ésolé",), r"(?i:désolée?,? (?:mais )?je ne (?:peux|suis) pas )"),
    (
        ("ut mir leid",),
        r"(?i:tut mir leid,? (?:aber )?(?:ich kann|dabei kann ich|das kann ich)[^.\n]{0,40} nicht)",
    ),
    (("o siento",), r"(?i:lo siento,? (?:pero )?no puedo)"),
    (("ão posso",), r"(?i:(?:desculpe|lamento|sinto muito),? (?:mas )?(?:eu )?não posso)"),
)
_REFUSES_IN_OTHER_LETTERS = (
    r"(?:抱歉|对不起|對不起|不好意思|遗憾|遺憾)[，,。！ ]{0,2}(?:但是?)?"
    r"(?:作[为為][^，。\n]{0,16}，?)?我?(?:暂时|暫時)?"
    r"(?:无法|無法|不能|没法|沒法|没有办法|不会)(?:[为為][您你])?"
    r"(?:回答|提供|[帮幫]助|[协協]助|[满滿]足|[继繼][续續]|完成|[处處]理|生成|[讨討][论論]|给出)",
    r"我(?:暂时|目前|暫時)?(?:无法|無法|不能)(?:[满滿]足|[协協]助|[帮幫]助)"
    r"(?:[您你]的?|[该該]|[这這][个個]?|此)",
    r"这个问题我(?:暂时)?(?:无法|不能)回答|换个话题再聊|服务器繁忙，请稍后",
    r"(?i:(?:извините|простите|к сожалению),? (?:но )?я не могу "
    r"(?:помочь|предоставить|ответить|выполнить))",
    r"申し訳(?:ありません|ございません)が[^。\n]{0,30}(?:できません|できかねます|いたしかねます)",
    r"죄송(?:합니다만|하지만)[^.\n]{0,30}(?:할 수 없|드릴 수 없|도와)",
)

# What the patterns begin with or cannot do without: one pass tells whether any can match.
_ANY_NAME = re.compile(
    "AI|IA|KI|GPT|Claude|Gemini|Bard|Deep[SM]|Qwen|QwQ|Tongyi|Llama|Mistral|Mixtral|Grok|Kimi|"
    "Moonshot|GLM|ERNIE|Doubao|Hunyuan|MiniMax|Nemotron|NVIDIA|NovaSky|Gemma|Copilot|Phi-|Bing|"
    "Vicuna|Sky-T1|OpenAI|Anthropic|Google|Meta|Microsoft|Alibaba|Zhipu|Baidu|ByteDance|Tencent"
)
_ANY_KIND = ("language model", "assistant", "chatbot", "modelo de lengua", "modelo de linguagem",
             "modèle de langage", "prachmodell", "ntelig", "ntellig")  # fmt: skip
"""A kind of model, in letters that `_ANY_NAME` does not have."""
_OTHER_LETTERS = re.compile("[\u0400-\u04ff\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
"""Cyrillic, kana, Han and Hangul, in which whole patterns are written."""


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _matches(patterns: tuple[str, ...], text: str) -> Iterator[re.Match[str]]:
    for pattern in patterns:
        yield from _compiled(pattern).finditer(text)


class Refusals:
    """Drops traces that refuse: "I'm sorry, but I can't help with that", and servers' stand-ins.

    English and the main other languages that teachers refuse in. What stands in the question itself
    is no refusal of the teacher's. `allow` are phrases that are no refusals.
    """

    version = "1"

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self.allow = _lowered("refusals", "allow", allow)

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        text = trace.text
        patterns = tuple(
            pattern for words, pattern in _REFUSES if any(word in text for word in words)
        )
        if not text.isascii() and _OTHER_LETTERS.search(text):
            patterns += _REFUSES_IN_OTHER_LETTERS
        if not patterns:
            return None
        question = problem.question.casefold()
        for match in _matches(patterns, text):
            said = match.group().casefold()
            if said not in question and not any(phrase in said for phrase in self.allow):
                return f"a refusal in the {_place(text, match.start())}: {_around(text, match)}"
        return None


class Identity:
    """Drops traces that say which model speaks, or who made it.

    "I am DeepSeek-R1", "trained by OpenAI", and with `generic` also "as an AI". Names of `own` may
    be said. A name, or a kind of model, of which the question itself speaks is exempt.
    """

    version = "1"

    def __init__(self, own: Sequence[str] = (), generic: bool = False) -> None:
        self.own = _lowered("identity", "own", own)
        self.generic = generic

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        text = trace.text
        elsewhere = not text.isascii() and _OTHER_LETTERS.search(text)
        kinds = _ANY_KIND if self.generic else ()
        if not (elsewhere or _ANY_NAME.search(text) or any(part in text for part in kinds)):
            return None
        question = problem.question
        for match in _matches(_SAYS_WHO, text):
            names = [name.casefold() for name in _NAME.findall(match.group())]
            spoken_of = any(name in question.casefold() for name in names)
            own = any(said.startswith(name) for name in self.own for said in names)
            if not spoken_of and not own:
                return (
                    f"says who it is in the {_place(text, match.start())}: {_around(text, match)}"
                )
        if self.generic and not _KIND.search(question):
            for match in _matches(_SAYS_WHAT, text):
                where = _place(text, match.start())
                return f"speaks as a model in the {where}: {_around(text, match)}"
        return None


_NAME = re.compile(_names((*MODELS, *MAKERS)))
_KIND = re.compile(
    r"\b(?:AI|IA|KI|ИИ|LLMs?)\b|(?i:language model|chatbot|artificial|assistant|modèle de langage|"
    r"sprachmodell|modelo de l|人工智能|语言模型|大模型|机器人|言語モデル|인공지능|языковая модель)"
)


def _lowered(name: str, key: str, phrases: Sequence[str]) -> tuple[str, ...]:
    if isinstance(phrases, str) or not all(isinstance(p, str) and p.strip() for p in phrases):
        raise UsageError(f"filter '{name}': {key} = {phrases!r}", "it is a list of strings")
    return tuple(phrase.casefold() for phrase in phrases)


def _place(text: str, at: int) -> str:
    return "thinking" if at < text.rfind("</think>") else "answer"


def _around(text: str, match: re.Match[str], limit: int = 60) -> str:
    """The match and what follows it, on one line."""
    shown = " ".join(text[match.start() : match.start() + 2 * limit].split())
    return f"'{shown if len(shown) <= limit else shown[: limit - 1] + '…'}'"
