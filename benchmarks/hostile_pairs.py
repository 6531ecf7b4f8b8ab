"""Answers made to hang, crash or deceive a grader, each with a truth known by construction.

Used by `benchmarks.grading_adversarial`. A family is a function from a random generator to
`(gold, answer, equal)`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from distill.records import Problem, Trace

NEVER = "739391847"
"""A gold answer that no hostile text here contains or comes to."""

Case = tuple[str, str, bool]
"""(gold, answer, equal)."""


def nesting(rng: random.Random) -> Case:
    depth = rng.choice((10, 50, 200, 1000, 20_000))
    left, right = rng.choice(
        (("(", ")"), ("{", "}"), ("\\left(", "\\right)"), ("[", "]"), ("|", "|"))
    )
    equal = rng.random() < 0.5 and left not in ("[", "|")
    return "x+1", f"{left * depth}{'x+1' if equal else 'x+2'}{right * depth}", equal


def unbalanced(rng: random.Random) -> Case:
    parts = [
        "{",
        "}",
        "\\frac{",
        "\\sqrt{",
        "(",
        ")",
        "\\left(",
        "\\right]",
        "^{",
        "_",
        "1",
        "x",
        "$",
        "\\{",
    ]
    return NEVER, "".join(rng.choices(parts, k=rng.choice((5, 40, 300, 1900)))), False


def power_tower(rng: random.Random) -> Case:
    base, height = rng.randint(2, 9), rng.choice((3, 5, 12, 60, 300))
    tower = str(base)
    for _ in range(height):
        tower = f"{base}^{{{tower}}}"
    return tower, f"{base}^{{{tower}}}", False


def ten_to_the_ten(rng: random.Random) -> Case:
    top = rng.choice(
        ("10^{10^{10}}", "10^{10^{100}}", "9^{9^{9}}", "2^{10^{9}}", "(10^{10})^{10^{10}}")
    )
    change = rng.choice(("+1", "-1", "\\cdot 2", "+x"))
    return top, top + change, False


def factorial(rng: random.Random) -> Case:
    n = rng.choice((30, 2004, 10**5, 10**7, 10**9, 10**12))
    if rng.random() < 0.4:
        return f"{n}!", f"\\frac{{{n + 1}!}}{{{n + 1}}}", True
    return f"{n}!", rng.choice((f"{n}!+1", f"{n + 1}!", f"{n}!!", f"({n}!)!")), False


def tiny(rng: random.Random) -> Case:
    n = rng.choice((9, 60, 2004, 10**6))
    case = rng.randint(0, 2)
    if case == 0:
        return f"\\frac{{1}}{{{n}!}}", f"\\frac{{1}}{{{n + 2}!}}", False
    if case == 1:
        return f"10^{{-{n}}}", f"10^{{-{n + 1}}}", False
    zeros = "0" * min(n, 5000)
    return f"0.{zeros}1", f"0.{zeros}2", False


def long_sum(rng: random.Random) -> Case:
    terms = [rng.randint(1, 99) for _ in range(rng.choice((20, 200, 600, 50_000)))]
    off = rng.choice((0, 0, 1, 17))
    return str(sum(terms) + off), "+".join(map(str, terms)), not off


def continued_fraction(rng: random.Random) -> Case:
    value, text = Fraction(1), "1"
    for _ in range(rng.choice((5, 20, 60, 400))):
        digit = rng.randint(1, 9)
        value = digit + 1 / value
        text = f"{digit}+\\frac{{1}}{{{text}}}"
    off = rng.choice((0, 0, 1))
    gold = f"\\frac{{{value.numerator + off * value.denominator}}}{{{value.denominator}}}"
    return gold, text, not off


def nested_fraction(rng: random.Random) -> Case:
    depth, number = rng.choice((10, 100, 1000)), rng.randint(2, 9)
    text = "\\frac{1}{" * depth + str(number) + "}" * depth
    equal = rng.random() < 0.5
    inverted = bool(depth % 2) == equal
    return f"\\frac{{1}}{{{number}}}" if inverted else str(number), text, equal


def nested_root(rng: random.Random) -> Case:
    depth = rng.choice((4, 8, 12, 200))
    inside = f"{2 ** (2**depth)}" if depth <= 8 else f"2^{{2^{{{depth}}}}}"
    equal = rng.random() < 0.5
    return "2" if equal else "3", "\\sqrt{" * depth + inside + "}" * depth, equal


def matrix(rng: random.Random) -> Case:
    size = rng.choice((3, 10, 25, 150))
    rows = [[rng.randint(-99, 99) for _ in range(size)] for _ in range(size)]
    gold = _matrix(rows, "pmatrix")
    off = rng.random() < 0.5
    rows[rng.randrange(size)][rng.randrange(size)] += off
    return gold, _matrix(rows, rng.choice(("pmatrix", "bmatrix"))), not off


def _matrix(rows: list[list[int]], kind: str) -> str:
    body = " \\\\ ".join(" & ".join(map(str, row)) for row in rows)
    return f"\\begin{{{kind}}} {body} \\end{{{kind}}}"


def megabytes(rng: random.Random) -> Case:
    size = rng.choice((100_000, 1_000_000))
    number = str(rng.randint(10**8, 10**9))
    case = rng.randint(0, 5)
    if case == 0:
        digits = "7" * size
        return digits + "1", digits + "2", False
    if case == 1:
        return number, " " * size + number + "\n" * size, True
    if case == 2:
        return NEVER, "x+" * (size // 2) + "x", False
    if case == 3:
        return NEVER, "\\boxed{" * (size // 7), False
    if case == 4:
        return NEVER, "}" * size, False
    return NEVER, "".join(rng.choices("0123456789abc^_{}()+-*/\\$ ", k=size)), False


def unicode(rng: random.Random) -> Case:
    marks = "".join(chr(rng.randint(0x300, 0x36F)) for _ in range(rng.choice((3, 500, 20_000))))
    pieces = [
        "\u202e",
        "\u200b",
        "\ufeff",
        "\u2066",
        "①",
        "²",
        "½",
        "٣",
        "５",
        "߂",
        "𝟜",
        "e",
        marks,
    ]
    pieces += ["\ud800", "\U0010ffff", "ﷺ", "İ", "ß", "\u2028", "Ⅷ", "π", "∞", "−"]
    return NEVER, "".join(rng.choices(pieces, k=rng.choice((3, 30, 300)))), False


def control(rng: random.Random) -> Case:
    signs = [chr(rng.randrange(32)) for _ in range(rng.choice((3, 100, 1500)))]
    signs += ["\x1b[2J", "\x7f", "\x85", "5"]
    rng.shuffle(signs)
    return NEVER, "".join(signs), False


def regex_bait(rng: random.Random) -> Case:
    n = rng.choice((50, 1900, 30_000))
    baits = [
        "a" * n + "!", "final answer " * n, "answer is" + " " * n, "1," * n, "\\text{" * n, "$" * n,
        "\\left" * n, "{,}" * n, "**answer**" * n, "(((a+)+)+)+$" * (n // 10), "\\(" * n, "= " * n,
        "x " * n + "= 1", "<answer>" * n, "#### " * n, "\\frac1" * n, "-" * n + "x", "and " * n,
        "1e" * n, "\\\\" * n, "a^" * n, "_" * n, "!" * n, "1 2 " * n, "\\sqrt" * n, "," * n,
        "1/" * n, "%" * n,
    ]  # fmt: skip
    return NEVER, rng.choice(baits), False


def polynomial(rng: random.Random) -> Case:
    n = rng.choice((5, 40, 400, 10**5, 10**9))
    if rng.random() < 0.3:
        return f"(x+1)^{{{n}}}", f"(1+x)^{{{n}}}", True
    return (
        f"(x+1)^{{{n}}}",
        rng.choice((f"(x+1)^{{{n + 1}}}", f"(x+2)^{{{n}}}", f"x^{{{n}}}+1")),
        False,
    )


def binomial(rng: random.Random) -> Case:
    n = rng.choice((50, 10**4, 10**6, 10**9))
    gold = f"\\binom{{{n}}}{{{n // 2}}}"
    if rng.random() < 0.3:
        return gold, f"\\frac{{{n}!}}{{({n // 2}!)^2}}", True
    return gold, f"{gold}+{rng.randint(1, 9)}", False


def iterated(rng: random.Random) -> Case:
    name, depth = (
        rng.choice(("\\sin", "\\cos", "\\ln", "\\sqrt", "\\exp")),
        rng.choice((5, 30, 200)),
    )
    start = {"\\exp": "1", "\\ln": "9"}.get(name, "x")
    text = start
    for _ in range(depth):
        text = f"{name}{{{text}}}" if name == "\\sqrt" else f"{name}({text})"
    return NEVER, text, False


def series(rng: random.Random) -> Case:
    n = rng.choice((10, 1000, 10**6, 10**9))
    case = rng.randint(0, 3)
    if case == 0:
        return str(n * (n + 1) // 2), f"\\sum_{{k=1}}^{{{n}}} k", True
    if case == 1:
        return NEVER, f"\\prod_{{k=1}}^{{{n}}} (k+\\frac{{1}}{{k}})", False
    if case == 2:
        return NEVER, "\\int_0^1 " * rng.choice((1, 3, 20)) + "e^{-x^2}\\sin(x^3) dx", False
    return NEVER, f"\\lim_{{x\\to\\infty}} (1+\\frac{{1}}{{x}})^{{x^{{{n}}}}}", False


def collection(rng: random.Random) -> Case:
    items = rng.sample(range(1, 10**6), rng.choice((5, 60, 300, 20_000)))
    gold = ", ".join(map(str, items))
    rng.shuffle(items)
    off = rng.random() < 0.5
    items[0] += 10**6 * off
    return f"\\{{{gold}\\}}", f"\\{{{', '.join(map(str, items))}\\}}", not off


def intervals(rng: random.Random) -> Case:
    n = rng.choice((2, 20, 100))
    union = [f"({3 * i}, {3 * i + 1}]" for i in range(n)]
    off = rng.random() < 0.5
    other = [*union[:-1], f"({3 * n}, {3 * n + 2}]"] if off else union
    return " \\cup ".join(union), "\\cup".join(other), not off


def code(rng: random.Random) -> Case:
    lines = (
        "__import__('os')._exit(0)",
        "exec('while 1: pass')",
        "().__class__.__bases__[0]",
        "lambda: 0",
        "\\input{/etc/passwd}",
        "\\write18{sleep 9}",
        "9**9**9**9",
        "'a'*10**10",
        "f(f(f(x)))",
        "nan",
    )
    return NEVER, rng.choice(lines), False


def many_boxes(rng: random.Random) -> Case:
    number = rng.randint(10**8, 10**9)
    other = (
        "\\boxed{5} and this is by no means the last word on it, because we go on. "
        * rng.choice((3, 9000))
    )
    equal = rng.random() < 0.5
    return str(number), f"5}} {other} \\boxed{{{number if equal else number + 1}", equal


def noise(rng: random.Random) -> Case:
    raw = rng.randbytes(rng.choice((4, 60, 1500, 100_000)))
    return NEVER, raw.decode(rng.choice(("latin-1", "utf-16-le", "utf-8")), "ignore"), False


FAMILIES: tuple[Callable[[random.Random], Case], ...] = (
    nesting, unbalanced, power_tower, ten_to_the_ten, factorial, tiny, long_sum,
    continued_fraction, nested_fraction, nested_root, matrix, megabytes, unicode, control,
    regex_bait, polynomial, binomial, iterated, series, collection, intervals, code, many_boxes,
    noise,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """One hostile pair as a grade step sees it."""

    family: str
    problem: Problem
    trace: Trace
    equal: bool


def pairs(count: int, seed: int) -> Iterator[Pair]:
    """`count` pairs, one family after another; a few have gold and answer exchanged."""
    for number in range(count):
        rng = random.Random(seed * 1_000_003 + number)
        family = FAMILIES[number % len(FAMILIES)]
        gold, answer, equal = family(rng)
        if rng.random() < 0.2 and gold != NEVER and family is not many_boxes:
            gold, answer = answer, gold
        text = f"<think>It is {number}.</think> So it is \\boxed{{{answer}}}"
        if rng.random() < 0.1 and family is not many_boxes:
            text = f"<think></think>\nFinal answer: ${answer}$"
        name = f"{family.__name__} {number}"
        problem = Problem(messages=(), gold=gold, id=name, source=family.__name__)
        yield Pair(family.__name__, problem, Trace(problem_id=name, index=0, text=text), equal)
