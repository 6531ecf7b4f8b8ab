"""The data set as token ids on disk: rendered once and checked; nothing is cut."""

from __future__ import annotations

import collections
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.protocols import Rendered
from distill.records import read_jsonl
from distill.students import preflight
from distill.students.loading import Prepared
from distill.students.render import IGNORED, RenderSpec, render

IN_MEMORY_BYTES = 100 << 20
DEEP = 20_000  # data sets up to this size are checked with their texts, example by example


@dataclass(slots=True)
class Counts:
    """What became of the rows of the data set."""

    rows: int = 0
    examples: int = 0
    too_long: int = 0
    longest: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    trained_tokens: int = 0


def tokenise(
    dataset: Path, folder: Path, prepared: Prepared, max_length: int, *, show: bool = True
) -> tuple[Any, Counts, dict[str, Any]]:
    """Render `dataset` (JSONL rows `{"messages": [...]}`) into `folder`, and show an example.

    Returns the data set with the columns `input_ids` and `start` (number of prompt tokens), the
    counts and the pre-flight report. Raises DataError where nothing is left to train on.
    """
    import datasets

    datasets.disable_progress_bars()
    cache = folder.with_name(f".{folder.name}.cache")
    for stale in (folder, cache):
        shutil.rmtree(stale, ignore_errors=True)
    raw = _raw(dataset, cache)
    count = len(raw)
    if not count:
        raise DataError(f"{dataset} holds no examples", "loosen the filters, or sample more")
    worker = _Renderer(prepared.tokenizer, prepared.spec, prepared.vocab, max_length, count <= DEEP)
    processes = min(os.cpu_count() or 1, count // 5000)
    done = raw.map(
        worker,
        remove_columns=raw.column_names,
        num_proc=processes if processes > 1 else None,
        keep_in_memory=not cache.exists(),
    )
    lengths = list(done["length"])
    if not any(lengths):
        _count(done, max_length)  # raises, with the reasons
    report, shown = _inspect(raw, lengths, prepared)
    counts = _count(done, max_length)
    report |= {"examples": counts.examples, "thinking": sum(done["thinks"])}
    kept = done.filter(
        lambda why: why == "", input_columns="why", keep_in_memory=not cache.exists()
    ).select_columns(["input_ids", "start"])
    kept.save_to_disk(str(folder))
    shutil.rmtree(cache, ignore_errors=True)
    if show:
        preflight.show(shown, prepared.tokenizer)
    return load(folder), counts, report


def load(folder: Path) -> Any:
    """The tokenised data set of `tokenise`, memory-mapped."""
    import datasets

    return datasets.Dataset.load_from_disk(str(folder)).with_format("numpy")


def _rows(path: str) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(read_jsonl(Path(path)), 1):
        messages = row.get("messages")
        if not isinstance(messages, list):
            raise DataError(f"{path}:{number}: no list 'messages'", "rows are {'messages': [...]}")
        yield {
            "messages": [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
        }


def _raw(dataset: Path, cache: Path) -> Any:
    import datasets

    if dataset.stat().st_size <= IN_MEMORY_BYTES:
        return datasets.Dataset.from_list(list(_rows(str(dataset))))
    cache.mkdir(parents=True)
    return datasets.Dataset.from_generator(
        _rows, gen_kwargs={"path": str(dataset)}, cache_dir=str(cache)
    )


@dataclass
class _Renderer:
    """Renders one row; a row that cannot be trained on gets the reason instead of an error."""

    tokenizer: Any
    spec: RenderSpec
    vocab: int
    max_length: int
    texts: bool

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        messages = row["messages"]
        try:
            rendered = render(messages, self.tokenizer, self.spec)
        except DataError as error:
            empty = {"input_ids": [], "start": 0, "length": 0}
            return {**empty, "why": error.message, "thinks": False}
        ids = rendered.input_ids
        start = rendered.labels.count(IGNORED)
        why = ""
        if len(ids) > self.max_length:
            why = "too long"
        else:
            wrong = preflight.check(
                rendered, messages, self.tokenizer, self.spec, self.vocab, self.texts
            )
            why = wrong[0] if wrong else ""
        kept = [] if why else ids
        thinks = not why and preflight.thinks(messages, self.spec)
        return {"input_ids": kept, "start": start, "length": len(ids), "why": why, "thinks": thinks}


def _inspect(raw: Any, lengths: list[int], prepared: Prepared) -> tuple[dict[str, Any], Rendered]:
    renderable = [number for number, length in enumerate(lengths) if length]
    longest = max(renderable, key=lengths.__getitem__)
    sample = []
    for number in [*renderable[: preflight.CHECKED], longest]:
        messages = raw[number]["messages"]
        sample.append((render(messages, prepared.tokenizer, prepared.spec), messages))
    report = preflight.inspect(sample, prepared.tokenizer, prepared.spec, prepared.vocab)
    return report, sample[0][0]


def _count(done: Any, max_length: int) -> Counts:
    lengths, whys, starts = list(done["length"]), list(done["why"]), list(done["start"])
    kept = [i for i, why in enumerate(whys) if not why]
    bad = collections.Counter(why for why in whys if why and why != "too long")
    counts = Counts(
        rows=len(whys),
        examples=len(kept),
        too_long=whys.count("too long"),
        longest=max(lengths),
        bad=dict(bad),
        tokens=sum(lengths[i] for i in kept),
        trained_tokens=sum(lengths[i] - starts[i] for i in kept),
    )
    if not kept:
        reasons = [f"{n}: {why}" for why, n in bad.most_common(3)]
        if counts.too_long:
            ordered = sorted(n for n in lengths if n)
            reasons.insert(
                0,
                f"{counts.too_long} are longer than train.max_length = {max_length} (shortest "
                f"{ordered[0]}, median {ordered[len(ordered) // 2]}, longest {ordered[-1]} tokens)",
            )
        raise DataError(
            f"none of {counts.rows} examples can be trained on: {'; '.join(reasons)}",
            "raise train.max_length (and student.positions), or select shorter traces"
            if counts.too_long
            else "rows are {'messages': [{'role': 'user', ...}, {'role': 'assistant', ...}]}",
        )
    return counts
