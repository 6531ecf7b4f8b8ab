"""JSON answers: valid against a problem's schema, and equal to the reference where there is one.

Validation may take for ever (a `pattern` that backtracks), so it runs in a worker. Nothing is ever
fetched: a `$ref` to what is neither in the schema nor a published meta-schema is an `error`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from importlib import metadata, util
from typing import Any

from distill.errors import MissingExtra
from distill.grade.base import Check, StagedGrader, version_of
from distill.grade.extract import answer_text, final_answer, was_cut, without_answer
from distill.records import Grade, Problem, Trace

KEY = "schema"
"""Where a problem's metadata holds its JSON schema, as an object or as text."""

EXTRA = "schema"
LONGEST = 1_000_000
"""Characters at the end of an answer in which its JSON is looked for."""

_FENCE = re.compile(r"^[ \t]*```[ \t]*(?:json[c5]?)?[ \t]*\n(.*?)^[ \t]*```", re.S | re.M | re.I)
_SHOWN = 3


_BRACKETS = re.compile(r"[{}\[\]]")
_BEGUN = re.compile(r"\{\s*[\"'}]|\[\s*(?:[\[{\"'\]]|-?\d)")
"""What looks like the beginning of an object or array, not like a brace in prose or LaTeX."""


class NoJson(ValueError):
    """A text without a JSON value."""


def last_json(text: str, kind: type | None = None) -> Any:
    """The last JSON value of a text: in a code fence, as the whole text, or an object or array.

    With `kind` (dict or list) the last one of that kind, where there is any. Strict JSON: NaN and
    Infinity are none, and what stands within broken JSON is no value of its own. Raises NoJson,
    with the reason where something looks like JSON and is none.
    """
    fenced = [m.group(1) for m in _FENCE.finditer(text)]
    for candidate in [*reversed(fenced[-4:]), text]:
        try:
            return _loads(candidate)
        except (ValueError, RecursionError):
            continue
    for part in (fenced[-1], text) if fenced else (text,):
        found = list(_values(part))
        if found:
            fitting = [value for value in found if kind is None or isinstance(value, kind)]
            return (fitting or found)[-1]
    begun = _BEGUN.search(text)
    try:
        if begun:
            _loads(text[begun.start() :].strip())
    except (ValueError, RecursionError) as error:
        raise NoJson(f"no JSON value: {error}") from None
    raise NoJson("no JSON value")


def _values(text: str) -> Iterator[Any]:
    """The outermost objects and arrays of a text, in order; linear in the text."""
    decoder, ends = json.JSONDecoder(parse_constant=_no_constant), _ends(text)
    begun = _BEGUN.search(text)
    while begun:
        start = begun.start()
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            if start not in ends:
                return  # cut off: what is complete within it is no answer
            end = ends[start] + 1
        else:
            yield value
        begun = _BEGUN.search(text, end)


def _ends(text: str) -> dict[int, int]:
    """Where each bracket that is closed is closed."""
    found: dict[int, int] = {}
    stack: list[int] = []
    for match in _BRACKETS.finditer(text):
        if match.group() in "{[":
            stack.append(match.start())
        elif stack and text[stack[-1]] == {"}": "{", "]": "["}[match.group()]:
            found[stack.pop()] = match.start()
    return found


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal: keys in any order, 1 equals 1.0, true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


class JsonSchema(StagedGrader):
    """`correct` if the answer's last JSON value fits `metadata["schema"]` and equals the gold.

    `compare: false` leaves a gold unread; `formats: true` also checks `format` (date, email,
    ...), which the standard leaves open. The dialect is the schema's own `$schema`, else 2020-12.
    """

    name = "json_schema"
    code = "1"

    def __init__(self, *, compare: bool = True, formats: bool = False) -> None:
        self.compare, self.formats = compare, formats
        self.version = f"{self.code}, {_package()}"

    def ready(self, problems: Iterable[Problem]) -> None:
        """Raises MissingExtra where one of these problems needs a validator and there is none."""
        if any(problem.metadata.get(KEY) is not None for problem in problems):
            _installed()

    def warm(self, part: str) -> None:
        _installed()
        import jsonschema  # noqa: F401

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        schema = problem.metadata.get(KEY)
        if schema is None:
            return self.grade("ungraded", detail=f"the problem has no metadata.{KEY}")
        text = answer_text(trace)[-LONGEST:]
        if not text.strip():
            return without_answer(trace, self.name, self.version)
        gold = problem.gold if self.compare else None
        args = (schema, gold, text, was_cut(trace))
        return Check(args, hashlib.sha256(repr(args).encode()).digest())

    def check(self, *args: Any) -> Grade:
        schema, gold, text, cut = args
        kind = _kind(schema)
        try:
            value = last_json(text, kind)
        except NoJson as error:
            try:
                value = last_json(final_answer(text, cut=cut) or "", kind)
            except NoJson:
                return self.grade("truncated" if cut else "unparsed", detail=_cut(str(error), 160))
        said = json.dumps(value, ensure_ascii=False)
        try:
            faults = self.faults(schema, value)
            wanted = None if gold is None else _gold(gold)
        except (ValueError, RecursionError) as error:
            return self.grade("error", _cut(said), detail=str(error)[:300])
        if faults:
            more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
            return self.grade("wrong", _cut(said), detail="; ".join(faults[:_SHOWN]) + more)
        if gold is not None and not same(wanted, value):
            where = difference(wanted, value)
            return self.grade("wrong", _cut(said), detail=f"fits the schema; {where}")
        return self.grade("correct", _cut(said))

    def faults(self, schema: Any, value: Any) -> list[str]:
        """What is wrong with a value, each with its path. Raises ValueError for a wrong schema."""
        from jsonschema import exceptions, validators
        from referencing.exceptions import Unresolvable

        schema = _schema(schema)
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except exceptions.SchemaError as error:
            raise ValueError(f"the schema is wrong at {error.json_path}: {error.message}") from None
        # Of the meta-schemas alone, because the default registry opens the addresses in `$ref`.
        registry = validators.SPECIFICATIONS
        checker = kind.FORMAT_CHECKER if self.formats else None
        validator = kind(schema, registry=registry, format_checker=checker)
        try:
            found = sorted(validator.iter_errors(value), key=lambda e: (e.json_path, e.message))
        except Unresolvable as error:
            raise ValueError(
                f"the schema refers to {error.ref!r}, which it does not hold (nothing is fetched)"
            ) from None
        return [f"{_cut(error.json_path, 80)}: {_message(error)}" for error in found]


def difference(wanted: Any, value: Any, path: str = "$") -> str:
    """The first place, in words, where a value is not the wanted one."""
    if isinstance(wanted, dict) and isinstance(value, dict):
        for key in wanted:
            if key not in value:
                return f"{_cut(path, 80)}: no {key!r:.60}"
            if not same(wanted[key], value[key]):
                return difference(wanted[key], value[key], f"{path}.{key}")
        extra = next(key for key in value if key not in wanted)
        return f"{_cut(path, 80)}: {extra!r:.60} is not in the reference"
    if isinstance(wanted, list) and isinstance(value, list):
        if len(wanted) != len(value):
            return f"{_cut(path, 80)}: {len(value)} items instead of {len(wanted)}"
        at = next(i for i, (a, b) in enumerate(zip(wanted, value, strict=True)) if not same(a, b))
        return difference(wanted[at], value[at], f"{path}[{at}]")
    told = [_cut(json.dumps(v, ensure_ascii=False)) for v in (value, wanted)]
    return f"{_cut(path, 80)}: {told[0]} instead of {told[1]}"


def _schema(schema: Any) -> Any:
    return _loads(schema) if isinstance(schema, str) else schema


def _kind(schema: Any) -> type | None:
    try:
        wanted = _schema(schema).get("type")
    except (AttributeError, ValueError):
        return None
    return {"object": dict, "array": list}.get(wanted) if isinstance(wanted, str) else None


def _gold(text: str) -> Any:
    try:
        return _loads(text)
    except ValueError as error:
        raise ValueError(
            f"the reference answer {text!r:.60} is not JSON ({error}); `compare: false` ignores it"
        ) from None


def _message(error: Any) -> str:
    # jsonschema quotes the whole value, which may be long.
    instance = repr(error.instance)
    if len(instance) > 60:
        return _cut(str(error.message).replace(instance, instance[:59] + "…"), 200)
    return _cut(str(error.message), 200)


def _cut(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _installed() -> None:
    if util.find_spec("jsonschema") is None:
        raise MissingExtra("jsonschema", EXTRA, "grader 'json_schema'")


def _package() -> str:
    try:
        return version_of("jsonschema")
    except metadata.PackageNotFoundError:
        return "without jsonschema"
