"""The engine that samples nothing: it answers with traces recorded in a JSONL file.

For tests, for demonstrations without a GPU, and to send published or bought traces through
the sampler's own path.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from distill.errors import DataError, TeacherError
from distill.protocols import Capabilities, Completion, OnTokens, Request, Usage
from distill.records import BadLines, Trace, TraceKey, from_row, problem_id
from distill.teachers import options
from distill.teachers.chat import Tags, as_tags
from distill.thinking import canonical, split

log = logging.getLogger(__name__)


class ReplayTeacher:
    """Answers request `problem_id/index/segment` with the recorded trace of that key.

    `file` holds Trace rows, or plain rows: `{"messages": [...]}` or `{"prompt": "..."}` as it
    was asked, with the output in `text` (or as a last assistant message), in order of their
    sample index. Only the places of the rows are kept in memory. Of two rows with one key the
    first counts. Raises DataError for a file that is missing or has no usable row.
    """

    def __init__(
        self, file: str | Path, *, tags: Tags | None = None, prompt_opens: bool = False
    ) -> None:
        self.path = Path(file).expanduser()
        self._tags = as_tags(tags)
        self._prompt_opens = prompt_opens
        self.capabilities = Capabilities(seed=False, sampling=False, deterministic=True)
        self.bad = BadLines()
        self._places: dict[TraceKey, int] = {}
        self.identity = f"replay:{self.path.name}@{self._index()}"

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """The engine of a recipe's teacher section; `model` is the file."""
        wanted = dict(spec.get("options") or {})
        name = str(wanted.pop("file", None) or spec.get("model", ""))
        # A path in a recipe begins at the recipe's folder.
        arguments = {"file": Path(spec.get("folder") or ".") / Path(name).expanduser()}
        return options.build(cls, arguments, wanted)

    def __len__(self) -> int:
        return len(self._places)

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        """The recorded completion. Raises TeacherError where there is none."""
        place = self._find(request)
        if place is None:
            raise TeacherError(
                f"{request.key}: not recorded in {self.path.name}",
                "replay can only give what was sampled before: lower n, or use a real teacher",
            )
        with self.path.open("rb") as file:
            file.seek(place)
            found = self._completion(json.loads(file.readline()))
        if on_tokens is not None:
            on_tokens(found.usage.completion_tokens)
        return found

    def _find(self, request: Request) -> int | None:
        name, index, segment = _parse(request.key)
        place = self._places.get((name, index, segment))
        if place is None:
            prompt = request.prompt
            if isinstance(prompt, str):
                prompt = [{"role": "user", "content": prompt}]
            if all(isinstance(message, Mapping) for message in prompt):
                asked = problem_id(prompt)  # type: ignore[arg-type]
                place = self._places.get((asked, index, segment))
        return place

    def _index(self) -> str:
        """Note where each row begins; returns 16 hex digits over the file."""
        if not self.path.is_file():
            raise DataError(f"no file of recorded traces: {self.path}", "check teacher.model")
        total = hashlib.sha256()
        seen: Counter[str] = Counter()
        place = duplicates = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                total.update(raw)
                if raw.strip():
                    try:
                        key = _key(json.loads(raw.decode("utf-8")), seen)
                    except (ValueError, KeyError, TypeError) as error:
                        why = f"no {error}" if isinstance(error, KeyError) else str(error)
                        self.bad.add(f"{self.path}:{number}", why)
                    else:
                        duplicates += key in self._places
                        self._places.setdefault(key, place)
                place += len(raw)
        if self.bad.count or duplicates:
            log.warning(
                "%s: %d unusable rows %s, %d rows with a key seen before",
                self.path.name,
                self.bad.count,
                self.bad.samples,
                duplicates,
            )
        if not self._places:
            raise DataError(
                f"{self.path} holds no recorded trace",
                "; ".join(self.bad.samples) or "the file is empty",
            )
        return total.hexdigest()[:16]

    def _completion(self, row: Mapping[str, Any]) -> Completion:
        if "problem_id" in row:
            trace = from_row(Trace, row)
            text, reasoning = trace.text, trace.reasoning
            if reasoning is None:
                reasoning = split(text, self._tags).reasoning
        else:
            trace = Trace(problem_id="", index=0, finish_reason=row.get("finish_reason", "stop"))
            said, opens = _output(row), self._prompt_opens
            text = canonical(said, self._tags, prompt_opens=opens)
            reasoning = split(said, self._tags, prompt_opens=opens).reasoning
        return Completion(
            text=text,
            reasoning=reasoning,
            finish_reason=trace.finish_reason,
            prompt=trace.prompt,
            prompt_ids=trace.prompt_ids,
            token_ids=trace.token_ids,
            usage=Usage(
                prompt_tokens=trace.prompt_tokens, completion_tokens=trace.completion_tokens
            ),
            served_model=trace.served_model,
            flags=trace.flags,
        )


def _key(row: Any, seen: Counter[str]) -> TraceKey:
    if not isinstance(row, dict):
        raise TypeError(f"expected an object, found {type(row).__name__}")
    if "problem_id" in row:
        if not isinstance(row["text"], str):
            raise TypeError("text is not a string")
        return (str(row["problem_id"]), int(row["index"]), int(row.get("segment", 0)))
    if not isinstance(_output(row), str):
        raise TypeError("text is not a string")
    name = problem_id(_asked(row))
    index = int(row.get("index", seen[name]))
    seen[name] += 1
    return (name, index, 0)


def _asked(row: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
    if "messages" not in row:
        return [{"role": "user", "content": row["prompt"]}]
    messages: Sequence[Mapping[str, str]] = row["messages"]
    return messages if "text" in row else messages[:-1]


def _output(row: Mapping[str, Any]) -> Any:
    if "text" in row or not row.get("messages"):
        return row["text"]
    last = row["messages"][-1]
    if last["role"] != "assistant":
        raise ValueError("no text, and the last message is not the assistant's")
    return last["content"]


def _parse(key: str) -> TraceKey:
    name, *numbers = key.rsplit("/", 2)
    try:
        index, segment = map(int, numbers)
    except ValueError:
        raise TeacherError(f"the request key '{key}' is not problem_id/index/segment") from None
    return (name, index, segment)
