r"""A formula as tokens: LaTeX, Unicode and plain text written in one way.

Sizes, spaces, dollar signs and fonts go, Unicode signs become commands, `1{,}234` becomes
`1234`. What is not understood raises `TooHard` later, in the parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from distill.grade.forms_exact import TooHard

MAX_CHARS = 1200
MAX_TOKENS = 360
MAX_DIGITS = 1000

FUNCTIONS = {
    **{f: f for f in ("sin", "cos", "tan", "cot", "sec", "csc", "ln", "exp", "sinh", "cosh")},
    **{f: f for f in ("tanh", "arcsin", "arccos", "arctan", "log", "sqrt")},
    "lg": "log",
    "abs": "abs",
}
GREEK = frozenset(
    re.findall(
        r"\w+",
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu "
        "xi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma "
        "Upsilon Phi Psi Omega ell hbar pi",
    )
)
_ENGLISH = frozenset(
    ("and", "or", "no", "not", "if", "for", "is", "are", "of", "all", "any", "so", "in", "on",
     "to", "max", "min", "mod", "gcd", "lcm", "det")
)  # fmt: skip
_UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ",
    "∗": "*", "÷": "\\div ", "±": "\\pm ", "∞": "\\infty ", "°": "^\\circ ", "≤": "\\le ",
    "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ", "≠": "\\ne ", "∪": "\\cup ", "∈": "\\in ",
    "√": "\\sqrt ", "（": "(", "）": ")", "，": ",", "；": ";", "：": ":", "％": "%",
    "〈": "(", "〉": ")", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
    "≈": "\\approx ", "∠": "\\angle ", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    "π": "\\pi ", "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "δ": "\\delta ",
    "ε": "\\epsilon ", "θ": "\\theta ", "λ": "\\lambda ", "μ": "\\mu ", "ρ": "\\rho ",
    "σ": "\\sigma ", "τ": "\\tau ", "φ": "\\phi ", "ω": "\\omega ", "Δ": "\\Delta ",
    "Ω": "\\Omega ",
}  # fmt: skip
_TRANSLATE = str.maketrans(_UNICODE)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")

_DROP = re.compile(
    r"\\(?:left|right|middle|bigg?[lr]?|Bigg?[lr]?|displaystyle|textstyle|limits|nolimits"
    r"|mathstrut|Large|large|hfill|rm|bf)(?![a-zA-Z])(?:\s*\.(?!\d))?|\\!"
)
_SPACE = re.compile(
    r"(?<!\\)\\[,;:> ]|\\q?quad(?![a-zA-Z])|\\(?:thinspace|hspace\*?\{[^{}]*\})|~|\s"
)
_FONT = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|mathit|mathcal|mathsf|mathbb|vec|overrightarrow|operatorname\*?)"
    r"(?![a-zA-Z])|\\overline(?=\s*\{\s*[A-Z]{2})"
)
_TEXT = (
    r"\\(?:text|mathrm|mbox|textbf|textit|textrm|textnormal|textup|hbox|emph)\s*"
    r"\{(?P<text>[^{}]*)\}"
)
_RAISED_RUN = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_GLUED = re.compile(r"(?<=[\d)\]}])(or|and)(?=[-\dA-Z(\\])")
_TIMES_TEN = re.compile(r"(?<=[\d.])\s*[xX]\s*(?=10\s*\^)")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:\{,\}|\\!,|,\\!|\\,)\s*\d{3})+(?!\d)")
_REPEATING = re.compile(r"(\d{1,20})\.(\d{0,20})\\(?:overline|bar|dot)\s*(?:\{(\d{1,20})\}|(\d))")
_DERIVATIVE = re.compile(
    r"\\frac\{d(?:\^\{?(?P<n>[23])\}?)?(?P<y>[A-Za-z]|\\[a-zA-Z]+)(?P<sub>_\w|_\{\w+\})?(?P<of>\([a-z]\))?\}"
    r"\{d\s*(?P<x>[a-z])(?:\^\{?[23]\}?)?\}"
)
_SPACED = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d])")
_PLAIN = re.compile(r"\d{1,99}(?:\.\d{1,99})?")
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z])")
_TOKEN = re.compile(
    rf"(?P<space>\s+)|{_TEXT}"
    r"|(?P<number>\d+(?:\.\d+)?|\.\d+)(?P<e>[eE][-+]?\d{1,3}(?![\d.a-zA-Z^_({]))?"
    r"|\\(?P<command>[a-zA-Z]+)|\\(?P<escaped>[{}%$|#&])|(?P<row>\\\\)"
    r"|(?P<word>[a-zA-Z]+)|(?P<sign>.)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    """kind: "number", "e" (scientific notation), "letter", "word", "text", "command" or "sign"."""

    kind: str
    text: str
    spaced: bool = False


def clean(text: str) -> str:
    """The text without what changes no value. Linear in its length."""
    if len(text) > MAX_CHARS:
        raise TooHard
    text = text.strip().strip("*").strip()
    if not re.search(r"(?<!\\)\\[a-zA-Z]", text):
        text = _DOUBLED.sub(r"\\", text)
    text = text.translate(_TRANSLATE)
    text = _RAISED_RUN.sub(lambda m: "^{" + m.group().translate(_RAISED) + "}", text)
    text = text.replace("\\$", " ").replace("$", " ")
    text = text.replace("<=", "\\le ").replace(">=", "\\ge ").replace("!=", "\\ne ")
    text = re.sub(r"\\[()\[\]]", " ", text)
    text = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m.group()), text)
    text = _FONT.sub("", _DROP.sub("", text))
    text = _REPEATING.sub(_repeating, _DERIVATIVE.sub(_derivative, text))
    text = _SPACE.sub(" ", text).strip()
    text = text.rstrip(" .,;:")
    text = _GLUED.sub(r" \1 ", text)
    text = _TIMES_TEN.sub(r"\\times ", text)
    if _SPACED.fullmatch(text.lstrip("-+")):
        text = text.replace(" ", "")
    return text


def _derivative(match: re.Match[str]) -> str:
    r"""`\frac{d^2y}{dt^2}` as `\ddot{y}`."""
    dots = "d" * (int(match["n"] or 1) - 1)
    inner = match["y"] + (match["sub"] or "")
    return f"\\{dots}dot{{{inner}}}" + (match["of"] or "") if match["x"] == "t" else match.group()


def _repeating(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as a fraction."""
    whole, fixed, again = match[1], match[2], match[3] or match[4]
    below = 10 ** len(fixed) * (10 ** len(again) - 1)
    above = int(whole + fixed + again) - int(whole + fixed)
    return f"\\frac{{{above}}}{{{below}}}"


def tokens(text: str) -> list[Token]:
    """The tokens of a cleaned text. Raises TooHard where there are too many."""
    found: list[Token] = []
    spaced = False
    for match in _TOKEN.finditer(text):
        if match["space"]:
            spaced = True
            continue
        found.extend(_of(match, spaced))
        spaced = False
        if len(found) > MAX_TOKENS:
            raise TooHard
    return found


def _of(match: re.Match[str], spaced: bool) -> list[Token]:
    if match["number"]:
        if len(match["number"]) > MAX_DIGITS:
            raise TooHard
        if match["e"]:
            return [Token("e", match.group(), spaced)]
        return [Token("number", match["number"], spaced)]
    if match["command"]:
        return _command(match["command"], spaced)
    if match["escaped"]:
        return [Token("sign", "\\" + match["escaped"], spaced)]
    if match["row"]:
        return [Token("sign", "\\\\", spaced)]
    if match["sign"]:
        return [Token("sign", match["sign"], spaced)]
    if match["word"]:
        return _word(match["word"], spaced)
    text = " ".join(_SPACE.sub(" ", match["text"] or "").split())
    if text in ("e", "i"):
        return [Token("letter", text, spaced)]
    return [Token("number" if _PLAIN.fullmatch(text) else "text", text, spaced)]


_COMMANDS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "leqslant": "le",
    "geq": "ge", "geqslant": "ge", "lt": "<", "gt": ">", "neq": "ne", "times": "cdot",
    "ast": "cdot", "degree": "circ", "lvert": "vert", "rvert": "vert", "mid": "vert",
    "dbinom": "binom", "tbinom": "binom", "lfloor": "lfloor", "lg": "log", "lbrace": "{",
    "rbrace": "}", "arcctg": "arccot", "tg": "tan", "ctg": "cot", "infin": "infty",
}  # fmt: skip


def _command(name: str, spaced: bool) -> list[Token]:
    name = _COMMANDS.get(name, name)
    if name in GREEK or len(name) < 3:
        return [Token("command", name, spaced)]
    for size in (1, 2, 3):
        # `\\pit`: the space after a command was lost on the way.
        head, tail = name[:-size], name[-size:]
        if head in GREEK or head in ("cdot", "times", "lceil", "lfloor", "rho"):
            command = Token("command", _COMMANDS.get(head, head), spaced)
            return [command, *(Token("letter", letter) for letter in tail)]
    return [Token("command", name, spaced)]


def _word(word: str, spaced: bool) -> list[Token]:
    if len(word) == 1:
        return [Token("letter", word, spaced)]
    if word in FUNCTIONS:
        return [Token("command", FUNCTIONS[word], spaced)]
    if word in GREEK:
        return [Token("command", word, spaced)]
    return [Token("word", word, spaced)]


def letters(token: Token) -> list[Token]:
    """A short raw word is a product of symbols; what reads as a word is not mathematics."""
    if token.kind != "word":
        return [token]
    if len(token.text) > 3 or token.text.lower() in _ENGLISH:
        raise TooHard
    spaced = [token.spaced, False, False]
    return [Token("letter", c, s) for c, s in zip(token.text, spaced, strict=False)]
