"""The filter for the length of a trace, in tokens of its engine or of the student."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UsageError
from distill.filter.text import tokens_of
from distill.records import Grade, Problem, Trace
from distill.schema import PartSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STUDENT = "student"


class Length:
    """Drops traces outside the bounds given. By default only those of fewer than 5 tokens.

    Without `tokenizer`, tokens are the engine's own; imported traces without a count are taken at
    four characters a token. `tokenizer` is `student` (the recipe's `student.base`), a model's
    folder, its tokenizer.json or a name on the hub: then the trace's text is counted with it, about
    1 MB a second and core. `min_chars` and `max_chars` bound the characters of the text.

    `trained` is the recipe's `train.max_length`, which the recipe itself fills in for `student`.
    """

    version = "2"

    def __init__(
        self,
        min_tokens: int = 5,
        max_tokens: int | None = None,
        min_chars: int = 0,
        max_chars: int | None = None,
        tokenizer: str | None = None,
        trained: int | None = None,
    ) -> None:
        for name, low, high in (
            ("tokens", min_tokens, max_tokens),
            ("chars", min_chars, max_chars),
        ):
            if high is not None and high < low:
                raise UsageError(
                    f"filter 'length': max_{name} = {high} is below min_{name} = {low}"
                )
        self.min_tokens, self.max_tokens = min_tokens, max_tokens
        self.min_chars, self.max_chars = min_chars, max_chars
        self.tokenizer = tokenizer
        self.notes = [_disagreement(max_tokens, trained)] if _differ(max_tokens, trained) else []
        self._last: tuple[str, int] = ("", 0)

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        size, unit = self.count(trace)
        for number, low, high, word in (
            (size, self.min_tokens, self.max_tokens, unit),
            (len(trace.text), self.min_chars, self.max_chars, "characters"),
        ):
            if number < low:
                return f"{number} {word}, fewer than {low}"
            if high is not None and number > high:
                return f"{number} {word}, more than {high}"
        return None

    def measure(self, problem: Problem, trace: Trace) -> dict[str, float]:
        """The trace's tokens, where a tokenizer was named: other counts are shown elsewhere."""
        return {} if self.tokenizer is None else {"tokens": self.count(trace)[0]}

    def count(self, trace: Trace) -> tuple[int, str]:
        """The tokens of a trace and what they are called."""
        if self.tokenizer is None:
            return tokens_of(trace), "tokens" if trace.completion_tokens else "tokens (estimated)"
        if self._last[0] is not trace.text:
            found = self._encoder.encode(trace.text, add_special_tokens=False)
            self._last = (trace.text, len(found.ids))
        return self._last[1], "tokens of the student"

    @cached_property
    def _encoder(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(tokenizer_file(self.tokenizer or STUDENT)))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_encoder"}

    @classmethod
    def identity(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters, with a hash of the tokenizer in place of its path."""
        plain = {key: value for key, value in params.items() if key != "trained"}
        if plain.get("tokenizer") is not None:
            data = tokenizer_file(plain["tokenizer"]).read_bytes()
            plain["tokenizer"] = "sha256:" + hashlib.sha256(data).hexdigest()
            # The note is written down with the result.
            plain["note"] = _differ(params.get("max_tokens"), params.get("trained"))
        return plain


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json of a folder, a file or a hub model in the local cache or on the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.is_file():
        return path
    if name == STUDENT or path.suffix == ".json" or name.count("/") != 1 or path.is_absolute():
        raise UsageError(
            f"filter 'length': no tokenizer '{name}'",
            "tokenizer is student, the folder of a model with a tokenizer.json, or a hub name",
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "tokenizer.json"))
    except Exception as error:  # the hub's client raises what its transport library raises
        raise UsageError(
            f"filter 'length': the tokenizer of '{name}' cannot be had: {error}",
            f"on a machine with a connection: hf download {name} tokenizer.json",
        ) from error


def with_tokenizers(
    filters: Sequence[PartSpec], folder: Path, base: Callable[[], str], max_length: int
) -> list[PartSpec]:
    """The specs with `tokenizer: student` and relative folders made into paths.

    `base()` is the student's folder or name, asked for where a filter wants it, and `max_length`
    the longest example that is trained on. Raises UsageError for a tokenizer that is not there.
    """
    return [_with_tokenizer(spec, folder, base, max_length) for spec in filters]


def _with_tokenizer(
    spec: PartSpec, folder: Path, base: Callable[[], str], max_length: int
) -> PartSpec:
    asked = spec.params.get("tokenizer") if spec.name == "length" else None
    if asked is None:
        return spec
    if asked == STUDENT:
        more = {"tokenizer": base(), "trained": max_length}
    else:
        path = folder / Path(asked).expanduser()
        more = {"tokenizer": str(path.resolve()) if path.exists() else asked}
    tokenizer_file(str(more["tokenizer"]))
    return PartSpec(name=spec.name, params={**spec.params, **more})


def _differ(max_tokens: int | None, trained: int | None) -> bool:
    return trained is not None and (max_tokens is None or max_tokens > trained)


def _disagreement(max_tokens: int | None, trained: int | None) -> str:
    allowed = "of any length" if max_tokens is None else f"of up to {max_tokens} tokens"
    return (
        f"length: traces {allowed} pass, and training leaves out examples (prompt and trace) of "
        f"more than {trained} (train.max_length)"
    )
