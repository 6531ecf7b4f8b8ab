"""What a rehearsal changes: few problems, the longest ones; full lengths; a handful of updates.

A rehearsal finds out in minutes what would otherwise stop a run after days: that a step does not
fit into the memory. The driver is `distill/commands/rehearse.py`.
"""

from __future__ import annotations

import heapq
import math
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.recipe import Recipe
from distill.records import Example, Problem, Trace, read_records, write_jsonl
from distill.resolve import resolve
from distill.schema import Sampling
from distill.tasks.definitions import define

PROBLEMS = 8
SAMPLES = 2
UPDATES = 2
"""The optimiser's state is there from the first update on, so the second one shows the peak."""

IGNORES_EOS = ("transformers", "vllm")
"""Engines that can be told to sample every answer to its limit."""

BATCH = 64
"""The transformers engine's own batch size where a recipe says none."""

CHARACTERS = 3
"""A token's length for a trainer whose tokenizer is not known here."""


def rehearsed(recipe: Recipe, engine: str) -> Recipe:
    """The recipe's rehearsal; `engine` is its teacher's. Settings that need memory stay."""
    changed = recipe.model_copy(deep=True)
    options = _to_the_limit(engine, changed.teacher.options)
    changed.teacher = changed.teacher.model_copy(update={"options": options})
    sampling = changed.sampling.model_dump()
    fixed: dict[str, Any] = {"want": None, "budget_tokens": None, "budget_cost": None, "limits": []}
    changed.sampling = Sampling(**{**sampling, **fixed, "n": _samples(engine, options)})
    changed.filters = []
    changed.select = changed.select.model_copy(update={"pass_rate": None})  # too few problems
    # Two micro-batches of full examples an update: gradients are summed as in the real training.
    train = changed.train
    fits = max(1, (train.micro_batch_tokens or train.max_length) // train.max_length)
    changed.train = train.model_copy(
        update={
            "epochs": 1.0,
            "max_steps": UPDATES,
            "save_every": UPDATES,
            "batch_size": 2 * train.processes * fits,
            "trackers": [],
        }
    )
    asked = changed.evaluate
    options = _to_the_limit(asked.engine, asked.options)
    changed.evaluate = asked.model_copy(
        update={
            "tasks": [
                task.model_copy(update={"samples": None, "limit": None})
                for task in asked.tasks
                if define(task) is not None
            ],
            "samples": _samples(asked.engine, options),
            "limit": None,
            "options": options,
        }
    )
    return changed


def left_out(recipe: Recipe, engine: str) -> list[str]:
    """What this rehearsal cannot show, in sentences."""
    said = []
    if recipe.traces is None and engine not in IGNORES_EOS:
        said.append(f"answers end where the model ends them: engine {engine} samples to no limit")
    stock = [task.name for task in recipe.evaluate.tasks if define(task) is None]
    if stock:
        said.append(f"lm-eval's own tasks are not rehearsed: {', '.join(stock)}")
    return said


def _to_the_limit(engine: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {**options, "ignore_eos": True} if engine in IGNORES_EOS else dict(options)


def _samples(engine: str, options: Mapping[str, Any]) -> int:
    """Enough to fill one batch of an engine that computes in batches."""
    if engine != "transformers":
        return SAMPLES
    return math.ceil(int(options.get("batch_size") or BATCH) / PROBLEMS)


def length(problem: Problem) -> int:
    """Characters of a prompt; a template adds the same to each."""
    return sum(len(message["content"]) for message in problem.messages)


def longest(problems: Iterable[Problem]) -> list[Problem]:
    """The few longest problems, in a fixed order."""
    return heapq.nlargest(PROBLEMS, problems, key=lambda p: (length(p), p.id))


def shorten(source: Path, out: Path) -> None:
    """A problems or import step with its longest problems only, and their traces if it has any."""
    kept = set()
    for name in ("problems.jsonl", "heldout.jsonl"):
        if (source / name).is_file():
            chosen = longest(read_records(Problem, source / name))
            kept |= {problem.id for problem in chosen}
            write_jsonl(out / name, chosen)
    if (source / "traces.jsonl").is_file():
        counts: Counter[str] = Counter()
        rows = []
        for trace in read_records(Trace, source / "traces.jsonl"):
            if trace.problem_id in kept and counts[trace.problem_id] < SAMPLES:
                counts[trace.problem_id] += 1
                rows.append(trace)
        write_jsonl(out / "traces.jsonl", rows)


def fill_examples(payload: Mapping[str, Any]) -> dict[str, int]:
    """Write examples of the full `max_length`, made of traces said again and again.

    Payload: dataset (JSONL of Example), out (the file to write), student, train, trainer. Runs
    in the trainer's process, for its tokenizer. Returns how many there are, and their tokens.
    """
    train = payload["train"]
    limit, count = int(train["max_length"]), UPDATES * int(train["batch_size"])
    measure = _measure(payload)
    read = read_records(Example, Path(payload["dataset"]))
    examples = list(islice((e for e in read if _trainable(e, measure)), count))
    if not examples:
        raise DataError("the trainer refuses every example", "distill train says what is wrong")
    filled, tokens = [], 0
    for number in range(count):
        example = examples[number % len(examples)]
        messages, reached = _filled(example.messages, limit, measure)
        tokens = max(tokens, reached)
        filled.append(
            Example(
                messages=messages,
                problem_id=example.problem_id,
                index=number,
                source=example.source,
            )
        )
    write_jsonl(Path(payload["out"]), filled)
    return {"examples": count, "tokens": tokens}


def _trainable(example: Example, measure: Any) -> bool:
    try:
        measure(example.messages)
    except DataError:  # a control token in a question, say; the training leaves it out too
        return False
    return True


def _measure(payload: Mapping[str, Any]) -> Any:
    """A function from messages to their number of tokens, as they will be trained."""
    if payload["trainer"] != "sft":
        return lambda messages: sum(len(m["content"]) for m in messages) // CHARACTERS
    prepared = resolve("distill.students.loading:prepare", {}, what="students")(payload["student"])
    render = resolve("distill.students.render:render", {}, what="students")
    return lambda messages: len(render(messages, prepared.tokenizer, prepared.spec).input_ids)


def _filled(messages: Sequence[Any], limit: int, measure: Any) -> tuple[tuple[Any, ...], int]:
    """The chat with an answer that thinks up to `limit` tokens, and the tokens it has."""
    said = str(messages[-1]["content"]).replace("<think>", " ").replace("</think>", " ").strip()
    said = (said or "Let me think again.") + "\n"

    def chat(characters: int) -> tuple[Any, ...]:
        thought = (said * (characters // len(said) + 1))[:characters]
        answer = f"<think>\n{thought}\n</think>\n\nThat is all."
        return (*messages[:-1], {"role": "assistant", "content": answer})

    low, high = 1, 2
    while measure(chat(high)) <= limit:
        low, high = high, 2 * high
    while high - low > max(1, low // 200):
        middle = (low + high) // 2
        low, high = (middle, high) if measure(chat(middle)) <= limit else (low, middle)
    return chat(low), measure(chat(low))


class Memory:
    """Watches the memory of this process's children and of the GPUs while a step runs."""

    def __init__(self, root: int, every_s: float = 0.5) -> None:
        self._root, self._every_s = root, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._smi = True
        self.peak = 0
        self.gpus: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def __str__(self) -> str:
        gib = 1 << 30
        said = [f"{self.peak / gib:.1f} GiB of memory"] if self.peak else []
        said += [
            f"GPU {name}: {used / 1024:.1f} of {total / 1024:.1f} GiB"
            for name, (used, total) in sorted(self.gpus.items())
        ]
        return ", ".join(said) or "no process of its own was seen"

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self.peak = max(self.peak, resident(self._root))
            if self._smi:
                self._look_at_gpus()

    def _look_at_gpus(self) -> None:
        asked = ["nvidia-smi", "--query-gpu=index,memory.used,memory.total"]
        try:
            said = subprocess.run(
                [*asked, "--format=csv,noheader,nounits"],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            ).stdout
        except (OSError, subprocess.SubprocessError):
            self._smi = False
            return
        for line in said.splitlines():
            name, used, total = (word.strip() for word in line.split(","))
            before, _ = self.gpus.get(name, (0, 0))
            self.gpus[name] = (max(before, int(used)), int(total))


def resident(root: int) -> int:
    """Bytes of memory that the descendants of process `root` hold (Linux; elsewhere 0).

    Pages that several share count once for each.
    """
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    total = 0
    for pid in parents:
        at = pid
        while at in parents and at != root:
            at = parents[at]
        if at == root and pid != root:
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                continue
            total += pages * 4096
    return total
