"""Model text as HTML that is safe to show: mathematics as MathML, code coloured, all else escaped.

All text is hostile. Only three things become markup: what this module writes itself, pygments'
coloured code (which escapes), and MathML reduced to a list of harmless elements and attributes,
because latex2mathml hands `\\text{<img ...>}` and `\\href{...}` through.
"""

from __future__ import annotations

import html
import re
from functools import lru_cache
from importlib.util import find_spec
from xml.etree import ElementTree

LONGEST_FORMULA = 1000
"""Characters; a longer one is shown as its source."""
MOST_FORMULAS = 400
"""In one text; what follows is shown as its source, so that no answer stalls the page."""
LONGEST_CODE = 50_000

MATHML = "{http://www.w3.org/1998/Math/MathML}"
_ELEMENTS = (
    "math mrow mi mn mo mtext mspace ms mfrac msqrt mroot mstyle merror mpadded mphantom msub msup "
    "msubsup munder mover munderover mmultiscripts mtable mtr mtd menclose"
)
_ATTRIBUTES = (
    "display stretchy accent accentunder fence separator lspace rspace linethickness minsize "
    "maxsize mathvariant columnalign rowspacing columnspacing width height depth movablelimits "
    "largeop symmetric displaystyle scriptlevel notation"
)
ELEMENTS, ATTRIBUTES = frozenset(_ELEMENTS.split()), frozenset(_ATTRIBUTES.split())

_PART = re.compile(
    r"```[ \t]*(?P<language>[\w+#.-]*)[^\n]*\n(?P<code>.*?)(?:\n[ \t]*```|\Z)"
    r"|\$\$(?P<display>.+?)\$\$|\\\[(?P<bracket>.+?)\\\]|\\\((?P<inline>.+?)\\\)"
    r"|(?<![\\$\w])\$(?P<dollar>[^$\n]{1,400}?)(?<![\\\s])\$(?![\w$])"
    r"|(?P<boxed>\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})",
    re.DOTALL,
)


def has_math() -> bool:
    """Whether formulas can be set; without latex2mathml their source is shown."""
    return find_spec("latex2mathml") is not None


def text_html(text: str) -> str:
    """A text of a model as HTML; white space is kept by the style sheet."""
    found, at, formulas = [], 0, 0
    for part in _PART.finditer(text):
        found.append(html.escape(text[at : part.start()]))
        at = part.end()
        if part["code"] is not None:
            found.append(_code(part["code"], part["language"]))
            continue
        formulas += 1
        block = part["display"] or part["bracket"]
        source = block or part["inline"] or part["dollar"] or part["boxed"]
        set_ = _formula(source.strip(), bool(block)) if formulas <= MOST_FORMULAS else None
        found.append(set_ or f"<code>{html.escape(part[0])}</code>")
    found.append(html.escape(text[at:]))
    return "".join(found)


def _code(code: str, language: str) -> str:
    return f'<pre class="code">{_coloured(code, language)}</pre>'


def _coloured(code: str, language: str) -> str:
    if len(code) > LONGEST_CODE or find_spec("pygments") is None:
        return html.escape(code)
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language or "text")
    except ClassNotFound:
        return html.escape(code)
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True)))


@lru_cache(maxsize=4096)
def _formula(source: str, block: bool) -> str | None:
    """MathML of a formula, or None where it cannot be set or would bring anything else along."""
    if not source or len(source) > LONGEST_FORMULA or not has_math():
        return None
    from latex2mathml.converter import convert

    try:
        tree = ElementTree.fromstring(convert(source, display="block" if block else "inline"))
    except Exception:  # a formula that is none, or markup inside one
        return None
    return _clean(tree)


def _clean(element: ElementTree.Element) -> str | None:
    name = element.tag.removeprefix(MATHML)
    if name not in ELEMENTS:
        return None
    attributes = {k: v for k, v in element.attrib.items() if k in ATTRIBUTES}
    if name == "menclose":  # which browsers do not draw
        name, attributes = "mrow", {"class": "box"}
    inside = [html.escape(element.text or "")]
    for child in element:
        cleaned = _clean(child)
        if cleaned is None:
            return None
        inside += [cleaned, html.escape(child.tail or "")]
    told = "".join(f' {key}="{html.escape(value)}"' for key, value in attributes.items())
    return f"<{name}{told}>{''.join(inside)}</{name}>"


def code_style() -> str:
    """CSS of coloured code for light and dark pages; empty without pygments."""
    if find_spec("pygments") is None:
        return ""
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="tango").get_style_defs("pre.code")
    dark = HtmlFormatter(style="github-dark").get_style_defs("pre.code")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
