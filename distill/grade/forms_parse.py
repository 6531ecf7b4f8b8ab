r"""A recursive-descent parser from tokens to one formula, a `Node` of `forms_exact`.

Only what has one meaning is parsed: `1/2x`, `x^y^z`, `3 4` and words raise `TooHard`. `\pm` is read
as the sign that the caller chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from distill.grade.forms_exact import HALF, Node, TooHard
from distill.grade.forms_tokens import FUNCTIONS, GREEK, Token, letters

MAX_DEPTH = 40
_STARTS = frozenset(("frac", "binom", "infty", "lfloor", "lceil", "dot", "ddot", "dddot"))
CALLED = frozenset("fghFGHPQRTuvWyY")
"""Letters before a parenthesis that are more likely functions than factors."""

_CLOSE = {"(": ")", "[": "]", "{": "}"}
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}


def formula(tokens: Sequence[Token], sign: int = 1) -> Node:
    """The node of all tokens. Raises TooHard for anything that is not one plain formula."""
    parser = _Parser(tokens, sign)
    node = parser.sum()
    if parser.peek() is not None:
        raise TooHard
    return node


class _Parser:
    def __init__(self, tokens: Sequence[Token], sign: int) -> None:
        self.tokens = [letter for token in tokens for letter in letters(token)]
        self.sign = sign
        self.at = self.depth = self.bars = 0

    def peek(self, ahead: int = 0) -> Token | None:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else None

    def sees(self, kind: str, *texts: str) -> bool:
        token = self.peek()
        return token is not None and token.kind == kind and token.text in texts

    def take(self, kind: str, *texts: str) -> bool:
        if self.sees(kind, *texts):
            self.at += 1
            return True
        return False

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooHard
        node: Node | None = None
        while True:
            sign = self.plus_or_minus()
            if sign is None:
                if node is None:
                    node = self.product()
                    continue
                break
            term = self.product()
            term = term if sign > 0 else ("-", term)
            node = term if node is None else ("+", node, term)
        self.depth -= 1
        return node

    def plus_or_minus(self) -> int | None:
        if self.take("sign", "+"):
            return 1
        if self.take("sign", "-"):
            return -1
        if self.take("command", "pm"):
            return self.sign
        if self.take("command", "mp"):
            return -self.sign
        return None

    def product(self) -> Node:
        node = self.factor()
        divided = False
        while True:
            if self.take("sign", "*") or self.take("command", "cdot"):
                node, divided = ("*", node, self.signed()), False
            elif self.take("sign", "/") or self.take("command", "div"):
                node, divided = ("/", node, self.signed()), True
            elif self.begins_factor():
                if divided:
                    raise TooHard  # 1/2x has two readings
                node = ("*", node, self.factor())
            else:
                return node

    def signed(self) -> Node:
        if self.take("sign", "-"):
            return ("-", self.factor())
        return self.factor()

    def begins_factor(self) -> bool:
        token = self.peek()
        if token is None or token.kind == "text":
            return False
        if token.kind in ("number", "e"):
            before = self.tokens[self.at - 1]
            if before.kind in ("number", "e"):
                raise TooHard
            # x2 may be a subscript or a power; (x)2 and \pi 2 are products.
            if before.kind == "letter":
                raise TooHard
            return True
        if token.kind == "sign":
            return token.text in ("(", "[", "{") or (token.text == "|" and not self.bars)
        if token.kind == "command":
            known = token.text in GREEK or token.text in FUNCTIONS.values()
            return known or token.text in _STARTS
        return True

    def factor(self) -> Node:
        node = self.base()
        while True:
            if self.take("sign", "!"):
                if self.sees("sign", "!"):
                    raise TooHard
                node = ("!", node)
            elif self.sees("sign", "^"):
                self.at += 1
                node = ("^", node, self.exponent())
                if self.sees("sign", "^"):
                    raise TooHard
            else:
                return node

    def exponent(self) -> Node:
        if self.sees("sign", "{"):
            return self.group()
        if self.take("sign", "-"):
            return ("-", self.base())
        token = self.peek()
        if token is None:
            raise TooHard
        plain = token.kind in ("number", "letter") or token.text == "("
        if plain or token.text == "frac" or token.text in GREEK:
            return self.base()
        raise TooHard

    def group(self) -> Node:
        """What stands between a bracket and its partner."""
        token = self.peek()
        if token is None or token.text not in _CLOSE:
            raise TooHard
        self.at += 1
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.bars = bars
        if not self.take("sign", _CLOSE[token.text]):
            raise TooHard
        return node

    def base(self) -> Node:
        token = self.peek()
        if token is None:
            raise TooHard
        if token.kind == "sign":
            return self.bracketed(token)
        self.at += 1
        if token.kind == "number":
            return self.number(token)
        if token.kind == "e":
            return ("n", Fraction(token.text), True)
        if token.kind == "command":
            return self.command(token)
        if token.kind == "letter":
            return self.letter(token.text)
        raise TooHard

    def bracketed(self, token: Token) -> Node:
        if token.text in _CLOSE:
            return self.group()
        if token.text == "|":
            self.at += 1
            self.bars += 1
            node = self.sum()
            self.bars -= 1
            if not self.take("sign", "|"):
                raise TooHard
            return ("f", "abs", node)
        raise TooHard

    def number(self, token: Token) -> Node:
        node: Node = ("n", Fraction(token.text), "." in token.text)
        if self.sees("sign", "_"):
            raise TooHard
        mixed = self.mixed(token)
        return node if mixed is None else ("n", node[1] + mixed, False)

    def mixed(self, token: Token) -> Fraction | None:
        r"""The fraction of a mixed number: `2\frac{1}{3}`, `2 1/3`."""
        if not token.text.isdigit():
            return None
        start = self.at
        if self.take("command", "frac"):
            try:
                above, below = self.small(), self.small()
            except TooHard:
                self.at = start
                return None
        elif (
            (one := self.peek()) is not None
            and one.kind == "number"
            and one.spaced
            and (bar := self.peek(1)) is not None
            and bar.text == "/"
            and (two := self.peek(2)) is not None
            and two.kind == "number"
            and one.text.isdigit()
            and two.text.isdigit()
        ):
            self.at += 3
            above, below = int(one.text), int(two.text)
        else:
            return None
        if not 0 < above < below:
            raise TooHard
        return Fraction(above, below)

    def small(self) -> int:
        """A plain integer as the argument of a fraction."""
        node = self.argument()
        if node[0] != "n" or node[1].denominator != 1:
            raise TooHard
        return int(node[1])

    def argument(self) -> Node:
        r"""The argument of a command: a group, or one digit or letter, as in `\frac12`."""
        if self.sees("sign", "{"):
            return self.group()
        token = self.peek()
        if token is None:
            raise TooHard
        if token.kind == "number" and token.text.isdigit():
            rest = token.text[1:]
            self.tokens = [
                *self.tokens[: self.at],
                Token("number", token.text[0], token.spaced),
                *([Token("number", rest)] if rest else []),
                *self.tokens[self.at + 1 :],
            ]
            self.at += 1
            return ("n", Fraction(int(token.text[0])), False)
        if token.kind == "letter":
            self.at += 1
            return ("s", token.text)
        if token.kind == "command" and token.text in GREEK:
            self.at += 1
            return ("s", token.text)
        raise TooHard

    def letter(self, name: str) -> Node:
        name = self.primed(self.subscripted(name))
        if self.sees("sign", "("):
            return self.call_or_product(name)
        return ("s", name)

    def primed(self, name: str) -> str:
        """A derivative is a symbol of its own."""
        while True:
            texts = [token.text for token in self.tokens[self.at : self.at + 4]]
            if texts[:1] == ["'"]:
                self.at += 1
            elif texts == ["^", "{", "prime", "}"]:
                self.at += 4
            else:
                return name
            name += "'"

    def subscripted(self, name: str) -> str:
        if not self.take("sign", "_"):
            return name
        if not self.take("sign", "{"):
            token = self.peek()
            if token is None or token.kind not in ("letter", "number", "command", "text"):
                raise TooHard
            self.at += 1
            return f"{name}_{token.text}"
        parts = []
        while not self.take("sign", "}"):
            token = self.peek()
            if token is None or token.text in ("{", "_", "^"):
                raise TooHard
            parts.append(token.text)
            self.at += 1
        return f"{name}_{''.join(parts)}"

    def call_or_product(self, name: str) -> Node:
        r"""`f(x)`: a call that is not computed. `n(n-1)`: a product."""
        start = self.at
        inside = self.group()
        if inside[0] in ("s", "n") or name[0] in CALLED:
            return ("f", f"call:{name}", inside)
        self.at = start
        return ("s", name)

    def command(self, token: Token) -> Node:
        name = token.text
        if name == "frac":
            return ("/", self.argument(), self.argument())
        if name == "binom":
            return ("binom", self.argument(), self.argument())
        if name == "sqrt":
            return self.root()
        if name == "infty":
            return ("inf",)
        if name in GREEK:
            return self.letter(name)
        if name in ("dot", "ddot", "dddot"):
            inner = self.argument()
            if inner[0] != "s":
                raise TooHard
            return self.letter(inner[1] + "'" * (len(name) - 2))
        if name in ("lfloor", "lceil"):
            node = self.sum()
            if not self.take("command", "r" + name[1:]):
                raise TooHard
            return ("f", name[1:], node)
        if name in FUNCTIONS.values():
            return self.function(name)
        raise TooHard

    def root(self) -> Node:
        degree: Node = HALF_NODE
        if self.take("sign", "["):
            index = self.sum()
            if index[0] != "n" or index[1] < 2 or not self.take("sign", "]"):
                raise TooHard
            degree = ("n", 1 / index[1], False)
        token = self.peek()
        if token is not None and token.kind == "number" and len(token.text) > 1:
            raise TooHard  # \sqrt13 is the root of 1 in LaTeX, of 13 elsewhere
        return ("^", self.group() if self.sees("sign", "(") else self.argument(), degree)

    def function(self, name: str) -> Node:
        r"""`\sin x`, `\sin^2(x)`, `\log_2 8`: the argument ends at a sign or another function."""
        power: Node | None = None
        base: Node | None = None
        if name == "log" and self.take("sign", "_"):
            base = self.argument()
        if self.take("sign", "^"):
            power = self.exponent()
            if power in (("-", ("n", Fraction(1), False)),) and name in _INVERSES:
                name, power = _INVERSES[name], None
            elif power[0] != "n":
                raise TooHard
        if self.sees("sign", "(", "{"):
            inner = self.group()
        else:
            inner = self.juxtaposed()
        if name in ("exp", "sinh", "cosh"):
            powers = _exponential(name, inner)
            return powers if power is None else ("^", powers, power)
        if name == "log" and base is not None:
            name = "logb"
        node: Node = ("f", name, inner, base) if base is not None else ("f", name, inner)
        return node if power is None else ("^", node, power)

    def juxtaposed(self) -> Node:
        if self.sees("command", *FUNCTIONS.values()) and not self.sees("command", "sqrt"):
            raise TooHard
        node = self.factor()
        scalar = node[0] == "n" or node == ("s", "pi")
        while self.begins_factor() and not self.sees("sign", "(", "[", "{"):
            if self.sees("command", *FUNCTIONS.values()) and not self.sees("command", "sqrt"):
                break
            more = self.factor()
            # \\sin 2x and \\sin\\omega t have one reading, \\sin x e^x has two.
            if not scalar and not (node[0] == "s" and more == ("s", "t")):
                raise TooHard
            scalar = scalar and (more[0] == "n" or more == ("s", "pi"))
            node = ("*", node, more)
        if self.sees("sign", "(", "[", "{", "/"):
            raise TooHard
        return node


def _exponential(name: str, inner: Node) -> Node:
    """exp, sinh and cosh as powers of e, so that they are known to be those."""
    up: Node = ("^", ("s", "e"), inner)
    if name == "exp":
        return up
    down: Node = ("^", ("s", "e"), ("-", inner))
    both: Node = ("+", up, down if name == "cosh" else ("-", down))
    return ("*", HALF_NODE, both)


HALF_NODE: Node = ("n", HALF, False)
