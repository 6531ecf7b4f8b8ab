"""Who objected to which trace: 9 bytes for each in memory, the reasons on disk.

Every pass over the corpus is entered in the order of the traces; at the end the reasons are read
back in that order. Counts of what filters have in common come from the bits alone.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from distill.errors import DistillError, UsageError
from distill.filter.asking import Answers
from distill.filter.reading import Block
from distill.records import Verdict

MAX_FILTERS = 64
MAX_ERROR_SHARE = 0.01
EXAMPLES = 3
QUANTILES = (0.1, 0.5, 0.9)

NOBODY = 255
SIZE = struct.Struct("<i")


class Ledger:
    """What `labels`, the filters of the chain, said about each trace, numbered from 0.

    `folder` holds the reasons until `verdicts` has given them back. Raises UsageError for more
    filters than there are bits.
    """

    def __init__(self, labels: Sequence[str], folder: Path) -> None:
        if len(labels) > MAX_FILTERS:
            raise UsageError(
                f"{len(labels)} filters, and a recipe can have {MAX_FILTERS}",
                "put several of them into one function",
            )
        self.labels, self.folder = list(labels), folder
        self.solo = array("Q")
        self.winner = array("B")
        self.total = 0
        self.errors: dict[int, list[str]] = {}
        self.error_counts: Counter[int] = Counter()
        self.unmeasured: dict[int, list[str]] = {}
        self.measured: dict[int, dict[str, array[float]]] = {}
        self.examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.sources: dict[str, Counter[str]] = defaultdict(Counter)
        self._files: dict[int, IO[str]] = {}
        self._sketches: dict[int, IO[bytes]] = {}

    @property
    def dropped(self) -> int:
        """Traces that some filter objected to so far."""
        return len(self.winner) - self.winner.count(NOBODY)

    def reached(self, number: int, block: Block) -> bytes:
        """One byte for each trace of a block: 1 where no filter before this one objected."""
        part = self.winner[block.first : block.first + block.count]
        return bytes(by > number for by in part)

    def enter_first(self, block: Block, answers: Answers) -> None:
        """The pass that every trace goes through first, with the filters that see one alone."""
        self.solo.extend(answers.solo)
        said = {at: (number, reason) for at, number, reason in answers.objections}
        file = self._file(-1)
        for at, head in enumerate(answers.heads):
            number, reason = said.get(at, (NOBODY, ""))
            self.winner.append(number)
            file.write(json.dumps([*head, number, reason]) + "\n")
        for number, made in answers.sketches.items():
            if number not in self._sketches:
                self._sketches[number] = (self.folder / f"sketches-{number}").open("wb")
            for sketch in made:
                size = -1 if sketch is None else len(sketch)
                self._sketches[number].write(SIZE.pack(size) + (sketch or b""))
        self._common(answers)

    def enter(self, number: int, block: Block, answers: Answers) -> None:
        """A pass of one filter that has seen the corpus."""
        for at, bits in enumerate(answers.solo):
            self.solo[block.first + at] |= bits
        for at, _, reason in answers.objections:
            self.object(number, block.first + at, reason)
        self._common(answers)

    def object(self, number: int, position: int, reason: str) -> None:
        """An objection in the chain to a trace that no earlier filter objected to."""
        self.winner[position] = number
        self._file(number).write(json.dumps(reason) + "\n")

    def object_alone(self, number: int, position: int) -> None:
        """An objection of a filter asked by itself."""
        self.solo[position] |= 1 << number

    def error(self, number: int, text: str) -> None:
        """A filter raised. Raises DistillError where it does so too often."""
        self.error_counts[number] += 1
        self.errors.setdefault(number, [text])
        self.check_errors()

    def sketches(
        self, number: int, *, reached: bool = False
    ) -> Iterator[tuple[int, str, int, bytes]]:
        """(trace, problem id, index, sketch) of a filter's sketches in order.

        With `reached`, of the traces that no filter before it objected to.
        """
        self._files[-1].flush()
        self._sketches[number].close()
        path = self.folder / f"sketches-{number}"
        with path.open("rb") as file:
            for position, (key, index, *_) in enumerate(_rows(self.folder / _name(-1))):
                size = SIZE.unpack(file.read(SIZE.size))[0]
                sketch = file.read(max(size, 0))
                if size >= 0 and not (reached and self.winner[position] < number):
                    yield position, key, index, sketch

    def check_errors(self) -> None:
        """Raise DistillError where a filter raised on more than one trace and 1% of them."""
        for number, count in self.error_counts.items():
            if count > max(1, MAX_ERROR_SHARE * self.total):
                raise DistillError(
                    f"filter '{self.labels[number]}' raised on {count} of {self.total} traces: "
                    f"{self.errors[number][0]}",
                    "mend the filter; DISTILL_DEBUG=1 logs where it raised",
                )

    def verdicts(self) -> Iterator[Verdict]:
        """One verdict for each trace, in order. Counts sources and keeps examples on the way."""
        rows = {number: _rows(self.folder / _name(number)) for number in self._files}
        self.close()
        for position, (key, index, source, first, reason) in enumerate(rows.get(-1, ())):
            by = self.winner[position]
            if by not in (first, NOBODY):
                reason = next(rows[by])
            kept = by == NOBODY
            self.sources[source]["traces"] += 1
            self.sources[source]["kept"] += kept
            label = "" if kept else self.labels[by]
            if not kept and len(self.examples[label]) < EXAMPLES:
                example = {"problem_id": key, "index": index, "reason": reason}
                self.examples[label].append(example)
            yield Verdict(problem_id=key, index=index, kept=kept, filter=label, reason=reason)

    def close(self) -> None:
        """Close the files of reasons."""
        for file in self._files.values():
            file.close()
        for sketches in self._sketches.values():
            sketches.close()

    def summary(self) -> dict[str, Any]:
        """Counts, after `verdicts` was read to its end.

        `dropped` counts first objections, `solo` those of a filter asked by itself, `marginal`
        the traces that it drops and no other would. `overlaps` is {a: {b: traces that both drop
        when asked by themselves}}.
        """
        labels = self.labels
        pairs = Counter(zip(self.winner, self.solo, strict=True))
        dropped, solo, marginal = (Counter[int]() for _ in range(3))
        overlaps: Counter[tuple[int, int]] = Counter()
        for (by, bits), count in pairs.items():
            objecting = [number for number in range(len(labels)) if bits >> number & 1]
            solo.update(dict.fromkeys(objecting, count))
            overlaps.update({(a, b): count for a in objecting for b in objecting if a != b})
            if by != NOBODY:
                dropped[by] += count
                marginal[by] += count * (not bits & ~(1 << by))
        return {
            "traces": len(self.winner),
            "kept": len(self.winner) - sum(dropped.values()),
            "dropped": {label: dropped[n] for n, label in enumerate(labels)},
            "solo": {label: solo[n] for n, label in enumerate(labels)},
            "marginal": {label: marginal[n] for n, label in enumerate(labels)},
            "overlaps": {
                label: {labels[b]: overlaps[a, b] for b in range(len(labels)) if overlaps[a, b]}
                for a, label in enumerate(labels)
            },
            "errors": {labels[n]: count for n, count in sorted(self.error_counts.items())},
            "by_source": {name: dict(counts) for name, counts in sorted(self.sources.items())},
            "examples": {label: self.examples.get(label, []) for label in labels},
            "measured": {
                labels[n]: {name: _spread(values) for name, values in by_name.items()}
                for n, by_name in sorted(self.measured.items())
            },
        }

    def notes(self) -> list[str]:
        """What the report should say about filters that failed."""
        return [
            f"filter '{self.labels[n]}' raised on {self.error_counts[n]} traces, which were "
            f"dropped: {found[0]}"
            for n, found in sorted(self.errors.items())
        ] + [
            f"filter '{self.labels[n]}' could not measure {len(found)} traces: {found[0]}"
            for n, found in sorted(self.unmeasured.items())
        ]

    def _common(self, answers: Answers) -> None:
        for number, text in answers.errors:
            self.error_counts[number] += 1
            self.errors.setdefault(number, [text])
        for number, text in answers.unmeasured:
            self.unmeasured.setdefault(number, []).append(text)
        for number, by_name in answers.measured.items():
            kept = self.measured.setdefault(number, {})
            for name, values in by_name.items():
                kept.setdefault(name, array("d")).extend(values)
        self.check_errors()

    def _file(self, number: int) -> IO[str]:
        if number not in self._files:
            self._files[number] = (self.folder / _name(number)).open("w", encoding="utf-8")
        return self._files[number]


def _name(number: int) -> str:
    return f"reasons-{number}.jsonl" if number >= 0 else "reasons.jsonl"


def _rows(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _spread(values: array[float]) -> dict[str, float]:
    """Mean and quantiles (linear between ranks) of what a filter measured, to six digits."""
    import numpy as np

    found = np.frombuffer(values, dtype=np.float64)
    spread = {"mean": float(found.mean())}
    for share in QUANTILES:
        spread[f"p{share * 100:.0f}"] = float(np.quantile(found, share))
    return {name: float(f"{value:.6g}") for name, value in spread.items()}
