"""One filtering worker: reads its own blocks of the corpus and sends back what the filters say.

Started by `distill.filter.parallel` as a fresh interpreter, so it holds nothing of the caller (no
torch, no `__main__`). It dies with its parent and may be killed at any time: the file `beat` says
which trace and which filter it is at.
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import signal
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from distill.child import die_with_parent
from distill.errors import DistillError
from distill.filter.asking import Answers, Question, ask_block
from distill.filter.parts import Part, build
from distill.filter.reading import Block, Files, ProblemFile
from distill.schema import PartSpec

BEAT = struct.Struct("<qq")
IDLE = (-1, -1)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a worker needs to know before its first job."""

    specs: Sequence[PartSpec]
    folder: Path
    files: Files
    index: Path
    beat: Path


@dataclass(frozen=True, slots=True)
class Job:
    """One block for the questions in the file `questions` (see `pickle_questions`)."""

    ticket: int
    questions: Path
    block: Block
    reached: bytes | None
    skips: dict[tuple[int, int], str]


Reply = tuple[int, Answers | tuple[str, str, str]]
"""(ticket, answers), or instead of answers (kind, message, hint) of what went wrong."""


def pickle_questions(questions: Sequence[Question], path: Path) -> bool:
    """Write questions for workers; False where a filter's state cannot be pickled.

    Filters that saw nothing are built anew from their specs, others travel with what they saw.
    """
    try:
        rows = [
            (
                q.number,
                None if q.sketch else _state(q.part),
                None if q.alone is None else _state(q.alone),
                q.sketch,
            )
            for q in questions
        ]
        path.write_bytes(pickle.dumps(rows))
    except Exception:
        # Whatever a user's object raises when it is pickled, the answer is the same.
        return False
    return True


def _state(part: Part) -> Any:
    # As bytes of its own, so that a worker can import the user's file before it is read.
    return pickle.dumps(part.call) if part.has_state else None


def _load_questions(path: Path, chain: Sequence[Part]) -> list[Question]:
    def filled(number: int, state: bytes | None) -> Part:
        part = chain[number]
        return part if state is None else Part(part.label, pickle.loads(state), part.own)

    return [
        Question(
            number, filled(number, state), None if alone is None else filled(number, alone), sketch
        )
        for number, state, alone, sketch in pickle.loads(path.read_bytes())
    ]


def main(descriptor: int, parent: int) -> None:
    """Serve until the pipe is closed."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.environ.get("DISTILL_DEBUG"):
        logging.basicConfig(level=logging.DEBUG)
    with Connection(descriptor) as pipe:
        setting: Setting = pipe.recv()
        with setting.beat.open("r+b") as file, mmap.mmap(file.fileno(), BEAT.size) as shared:
            serve(pipe, setting, shared)


def serve(pipe: Connection, setting: Setting, shared: mmap.mmap) -> None:
    """Answer jobs one after another."""
    chain = build(setting.specs, setting.folder)
    problems = ProblemFile(setting.files.problems, setting.index)
    current: tuple[Path, list[Question]] | None = None

    def beat(at: int, number: int) -> None:
        BEAT.pack_into(shared, 0, at, number)

    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        reply: Answers | tuple[str, str, str]
        try:
            if current is None or current[0] != job.questions:
                current = (job.questions, _load_questions(job.questions, chain))
            reply = ask_block(
                current[1],
                problems,
                setting.files,
                job.block,
                reached=job.reached,
                skips=job.skips,
                beat=beat,
            )
        except DistillError as error:
            reply = (type(error).__name__, error.message, error.hint)
        except Exception as error:
            logging.getLogger(__name__).debug("block %s", job.block, exc_info=True)
            reply = (DistillError.__name__, f"{type(error).__name__}: {error}", "")
        beat(*IDLE)
        pipe.send((job.ticket, reply))
