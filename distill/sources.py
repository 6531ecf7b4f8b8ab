"""The sources of problems: reasoning-gym tasks, tables, and a user's function."""

from __future__ import annotations

import difflib
import inspect
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from distill import child
from distill.errors import DataError, DistillError, UsageError
from distill.grade.choice import Options
from distill.grade.code_columns import INSTRUCTION, tests_of
from distill.grade.extract import last_boxed
from distill.grade.gym import pack, unpack
from distill.records import BadLines, Message, Problem
from distill.resolve import resolve
from distill.schema import Problems, SourceSpec
from distill.tables import column, missing_column, read_rows

GYM = "reasoning_gym"
"""Where a problem's metadata holds what its task's scorer needs (`distill.grade.gym`)."""

HASHED = frozenset(
    {
        *("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note"),
        *("word_ladder", "zebra_puzzles"),
    }
)
"""reasoning-gym's tasks whose problems follow Python's hash seed too (version 0.1.25): they are
generated in a process in which it is fixed, or each run would have problems of its own."""

PATIENCE = 100
"""Rows without the column that the recipe names after which it is taken to be the wrong name."""


@dataclass(slots=True)
class BadRow:
    """A row that gives no problem, and why."""

    row: int | str
    reason: str


def load_source(spec: SourceSpec, problems: Problems, folder: Path) -> Iterator[Problem]:
    """The usable problems of one source, in its own order.

    Rows that give no problem are left out; `make_problems` writes them out.
    """
    return (item for item in read_source(spec, problems, folder) if isinstance(item, Problem))


def read_source(spec: SourceSpec, problems: Problems, folder: Path) -> Iterator[Problem | BadRow]:
    """The problems and the bad rows of one source, in its own order."""
    if spec.task:
        return _gym(spec, problems)
    if spec.call:
        return _called(spec, problems, folder)
    return _table(spec, problems, folder)


def ask(
    question: str | Sequence[Message], problems: Problems, instruction: str | None = None
) -> tuple[Message, ...]:
    """The messages of a question: system prompt first, instruction on a line of its own at the end.

    Of a conversation, what follows its last user message is left out; a system message of its own
    stays instead of the recipe's. `instruction` is a source's own, instead of the recipe's. Raises
    ValueError for a question without text.
    """
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    plain = [_message(m) for m in messages]
    while plain and plain[-1]["role"] != "user":
        plain.pop()
    if not plain or not plain[-1]["content"].strip():
        raise ValueError("the question is empty")
    instruction = problems.instruction if instruction is None else instruction
    if instruction:
        last = plain[-1]["content"].rstrip()
        plain[-1] = {"role": "user", "content": f"{last}\n{instruction}"}
    if problems.system and plain[0]["role"] != "system":
        plain.insert(0, {"role": "system", "content": problems.system})
    return tuple(plain)


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise ValueError(f"a message is a {type(message).__name__}, expected an object")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"a message needs role and content, found {sorted(message)}")
    return {"role": role, "content": content}


def gold_text(value: Any) -> str | None:
    r"""The reference answer of a column's value, or None.

    Of a worked solution only its end counts: after GSM8K's `####`, or the last `\boxed{}`.
    """
    if isinstance(value, list | tuple):
        parts = [gold_text(v) for v in value]
        return ", ".join(p for p in parts if p is not None) or None
    if value is None or isinstance(value, Mapping):
        return None
    text = str(value).strip()
    if "####" in text:
        text = text.rpartition("####")[2].strip()
    elif "\\boxed" in text:
        text = last_boxed(text) or text
    return text or None


def _problem(
    spec: SourceSpec,
    problems: Problems,
    question: Any,
    gold: Any,
    metadata: Mapping[str, Any],
    row: Mapping[str, Any],
) -> Problem:
    if not isinstance(question, str | list | tuple):
        raise ValueError(f"the question is a {type(question).__name__}, expected text or messages")
    instruction, asked = spec.instruction, question
    if spec.carry:
        metadata = {**metadata, **{name: column(row, key) for name, key in spec.carry.items()}}
        if "choices" in spec.carry and isinstance(question, str):
            asked = question = lettered(question, metadata)
    if spec.tests:
        held, added = tests_of(spec.tests, row)
        metadata = {**metadata, "tests": held}
        instruction = INSTRUCTION if instruction is None else instruction
        asked = question.rstrip() + added if isinstance(question, str) else question
    messages = ask(asked, problems, instruction)
    if isinstance(question, str):
        statement = question.strip()
    else:
        statement = str([m for m in question if m["role"] == "user"][-1]["content"]).strip()
    return Problem(
        messages=messages,
        gold=gold_text(gold),
        source=spec.label,
        statement=statement,
        metadata=metadata,
    )


def lettered(question: str, metadata: Mapping[str, Any]) -> str:
    """A question with its options below it, each after its letter, where it has not got them.

    Raises ValueError for options in a form that is not understood.
    """
    options = Options.of(Problem(messages=(), metadata=metadata))
    pairs = list(zip(options.letters, options.texts, strict=True))
    if all(re.search(rf"{one}[).:]\s*{re.escape(text)}", question) for one, text in pairs):
        return question
    lines = [f"{letter}) {text}" for letter, text in pairs]
    return "\n".join([question.rstrip(), "", *lines])


def labels(row: Mapping[str, Any], **wanted: str | None) -> dict[str, str]:
    """Labels of a row's problem: each is the text itself, or of `=column` that column's value."""
    found = {}
    for key, label in wanted.items():
        if not label:
            continue
        try:
            value = column(row, label[1:]) if label.startswith("=") else label
        except KeyError:
            continue
        if value not in (None, ""):
            found[key] = str(value)
    return found


def _labels(spec: SourceSpec, row: Mapping[str, Any]) -> dict[str, str]:
    return labels(row, difficulty=spec.difficulty, domain=spec.domain)


def _table(spec: SourceSpec, problems: Problems, folder: Path) -> Iterator[Problem | BadRow]:
    unread = BadLines()
    rows = read_rows(
        dataset=spec.dataset,
        subset=spec.subset,
        split=spec.split,
        revision=spec.revision,
        file=spec.file,
        folder=folder,
        bad=unread,
    )
    lacking: dict[str, int] = {}
    count, columns = 0, {}
    for number, row in enumerate(islice(rows, spec.size)):
        count, columns = count + 1, dict.fromkeys(row)
        try:
            question = column(row, spec.question)
            # What has tests needs no answer, and seldom has one.
            gold = column(row, spec.gold) if spec.gold and not spec.tests else None
            yield _problem(spec, problems, question, gold, _labels(spec, row), row)
        except KeyError as error:
            name = str(error.args[0])
            lacking[name] = lacking.get(name, 0) + 1
            if lacking[name] == count == PATIENCE:
                break
            yield BadRow(number, f"no column '{name}'")
        except (ValueError, TypeError) as error:
            yield BadRow(number, str(error))
    for name, missed in lacking.items():
        if missed == count:
            other = "carry" if name in spec.carry.values() else "tests"
            key = {spec.question: "question", spec.gold: "gold"}.get(name, other)
            raise missing_column(name, columns, f"source '{spec.label}'", key)
    for sample in unread.samples:
        where, _, why = sample.partition(": ")
        yield BadRow(where, why)
    for _ in range(unread.count - len(unread.samples)):
        yield BadRow("?", "a further line that could not be read")


def _gym(spec: SourceSpec, problems: Problems) -> Iterator[Problem | BadRow]:
    task = str(spec.task)
    asked: dict[str, Any] = {
        "task": task,
        "size": spec.size or 0,
        "seed": spec.seed,
        "config": spec.config,
    }
    entries: Iterable[Any]
    if task in HASHED:
        entries = child.call(
            "distill.sources:listed", asked, environment={"PYTHONHASHSEED": str(spec.seed % 2**32)}
        )
    else:
        entries = generated(**asked)
    for number, packed in enumerate(entries):
        if isinstance(packed, str):
            yield BadRow(number, packed)
            continue
        entry = unpack(packed)
        held = {"task": task, "config": spec.config, "entry": packed}
        metadata = {**_labels(spec, entry.get("metadata", {})), GYM: held}
        try:
            yield _problem(spec, problems, entry["question"], entry["answer"], metadata, {})
        except (ValueError, TypeError) as error:
            yield BadRow(number, f"{type(error).__name__}: {error}")


def generated(task: str, size: int, seed: int, config: Mapping[str, Any]) -> Iterator[Any]:
    """Entries of a reasoning-gym task as `grade.gym.pack` holds them; text says why one failed."""
    import reasoning_gym

    try:
        made = reasoning_gym.create_dataset(task, size=size, seed=seed, **config)
    except (ValueError, TypeError, AssertionError) as error:
        raise _gym_error(task, config, error) from None
    for number in range(size):
        try:
            yield pack(made[number])
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            yield f"{type(error).__name__}: {error}"


def listed(asked: Mapping[str, Any]) -> list[Any]:
    """`generated` in a child."""
    return list(generated(**asked))


def _gym_error(task: str, config: Mapping[str, Any], error: Exception) -> DistillError:
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        close = difflib.get_close_matches(task, list(DATASETS), n=1, cutoff=0.5)
        nearest = f"; did you mean '{close[0]}'?" if close else ""
        return UsageError(
            f"reasoning-gym has no task '{task}'{nearest}", f"it has: {', '.join(sorted(DATASETS))}"
        )
    fields = ", ".join(DATASETS[task][1].__dataclass_fields__)
    return UsageError(
        f"reasoning-gym task '{task}' refuses its config {dict(config)}: {error}",
        f"its settings are: {fields}",
    )


def source_callable(spec: SourceSpec, folder: Path) -> Any:
    """The user's function that a source names. Raises UsageError."""
    found = resolve(str(spec.call), {}, what="problem source", folder=folder)
    if not callable(found):
        raise UsageError(
            f"problem source '{spec.call}' is a {type(found).__name__}, not callable",
            "it is a function that returns problems",
        )
    return found


def _called(spec: SourceSpec, problems: Problems, folder: Path) -> Iterator[Problem | BadRow]:
    function = source_callable(spec, folder)
    arguments = dict(spec.config)
    if "seed" in inspect.signature(function).parameters:
        arguments.setdefault("seed", spec.seed)
    try:
        items: Iterable[Any] = function(**arguments)
        for number, item in enumerate(islice(items, spec.size)):
            yield _from_item(spec, problems, item, number)
    except DistillError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(
            f"problem source '{spec.call}' failed: {type(error).__name__}: {error}",
            f"at {last.filename}:{last.lineno}",
        ) from error


def _from_item(spec: SourceSpec, problems: Problems, item: Any, number: int) -> Problem | BadRow:
    if isinstance(item, Problem):
        # Asked as it stands: whoever builds whole problems has decided on the prompt.
        metadata = {**labels({}, domain=spec.domain), **item.metadata}
        return replace(item, source=item.source or spec.label, metadata=metadata)
    if not isinstance(item, Mapping):
        return BadRow(number, f"a {type(item).__name__}, expected a Problem or an object")
    question = item.get("question", item.get(spec.question))
    if question is None:
        return BadRow(number, f"no 'question', only {', '.join(map(str, item)) or 'nothing'}")
    metadata = {**dict(item.get("metadata") or {}), **_labels(spec, item)}
    try:
        gold = item.get("gold", item.get(spec.gold or ""))
        return _problem(spec, problems, question, gold, metadata, item)
    except KeyError as error:
        return BadRow(number, f"no column '{error.args[0]}'")
    except (ValueError, TypeError) as error:
        return BadRow(number, str(error))
