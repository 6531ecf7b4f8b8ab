"""What a teacher answered: a completion as a trace, an exception as a TeacherError, and by whom."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.errors import DistillError, TeacherError
from distill.protocols import Completion
from distill.records import Trace
from distill.thinking import sanitise, split
from distill.wanted import Job

log = logging.getLogger(__name__)

OPENING = 64
"""Answers at the beginning of a run that may name any model: several servers answer in turn."""


class TeacherFault(TeacherError):
    """A teacher that raised something unforeseen, or returned what is no completion."""


class ModelWatch:
    """Notices that a server begins to answer with another model in the middle of a run.

    Several servers may call one model by different names, and a load balancer hides which of them
    answered. So names are compared as sets: those of the pool's traces (`known`) and of a run's
    first answers are the run's models; one that turns up later is a change. The fingerprint of a
    build is compared within a run only: servers are restarted between runs. Where nothing is
    named nothing is compared. With `accept` changes are noted and nothing is raised.
    """

    def __init__(self, known: Iterable[str] = (), *, accept: bool = False) -> None:
        self.accept = accept
        self.changes: list[str] = []
        self._models = {name for name in known if name}
        self._opened = OPENING if self._models else 0
        self._builds: set[str] = set()
        self._answers = 0

    def see(self, model: str, fingerprint: str) -> None:
        """Take note of an answer. Raises DistillError that names the old and the new model."""
        self._answers += 1
        self._opened += 1
        self._compare("model", model, self._models, self._opened)
        self._compare("build (fingerprint)", fingerprint, self._builds, self._answers)

    def _compare(self, what: str, name: str, known: set[str], answers: int) -> None:
        if not name or name in known:
            return
        change = f"the served {what} is now '{name}', it was {_listed(known)}"
        if known and answers > OPENING:
            if not self.accept:
                raise DistillError(
                    f"the teacher has changed: {change}",
                    "what was bought is kept; go back to that model and run the same command"
                    " again, or go on with sampling.accept_model_change=true",
                )
            self.changes.append(change)
            log.warning(change)
        known.add(name)


def _listed(names: Iterable[str]) -> str:
    return " or ".join(f"'{name}'" for name in sorted(names))


def trace_of(
    job: Job,
    done: Completion,
    *,
    seed: int | None,
    seconds: float,
    prices: tuple[float, float],
    teacher: str,
    by_tokens: bool,
) -> Trace:
    """The trace of a completion. A continuation's holds the whole output up to its end.

    `by_tokens` says that the engine goes on from tokens where it has them; a continuation that
    neither this nor its tokens show to be exact has the flag `prefilled`.
    """
    before = job.before
    ids = None if done.token_ids is None else tuple(int(t) for t in done.token_ids)
    text, flags = done.text, [*(before.flags if before else ()), *done.flags]
    if before is not None:
        known = before.token_ids
        exact = known is not None and (by_tokens or (ids or ())[: len(known)] == known)
        flags += ["continued"] if exact else ["continued", "prefilled"]
        ids, text = _joined(before, ids, text)
    text, broken = sanitise(text)
    if broken:
        flags.append("surrogates")
    new = done.usage.completion_tokens or max(
        0, len(ids or ()) - len((before and before.token_ids) or ())
    )
    asked, billed = done.usage.prompt_tokens, new
    if not new and any(prices):
        # Without the server's count a spending cap would never bite; text has about 3 bytes a
        # token where it is mathematics, 4 where it is English.
        billed = len(text.encode()) // 3
        flags.append("cost_estimated")
    cost = round((asked * prices[0] + billed * prices[1]) / 1e6, 9)
    parts = split(text)
    _, index, segment = job.key
    return Trace(
        problem_id=job.problem.id,
        index=index,
        segment=segment,
        seed=seed,
        text=text,
        reasoning=parts.reasoning,
        answer=parts.answer,
        finish_reason=done.finish_reason or "unknown",
        prompt=None if done.prompt is None else sanitise(done.prompt)[0],
        prompt_ids=None if done.prompt_ids is None else tuple(int(t) for t in done.prompt_ids),
        token_ids=ids,
        prompt_tokens=before.prompt_tokens if before else asked,
        completion_tokens=new + (before.completion_tokens if before else 0),
        cost=cost + (before.cost if before else 0.0),
        time_s=round(seconds, 3) + (before.time_s if before else 0.0),
        teacher=teacher,
        served_model=sanitise(done.served_model)[0],
        flags=tuple(dict.fromkeys(flags)),
        max_tokens=job.limit,
        fingerprint=sanitise(done.fingerprint)[0] or None,
    )


def _joined(
    before: Trace, ids: tuple[int, ...] | None, text: str
) -> tuple[tuple[int, ...] | None, str]:
    """The whole output where an engine gave the new part alone; the rule is the whole."""
    if before.token_ids is not None and ids is not None:
        if ids[: len(before.token_ids)] == before.token_ids:
            return ids, text
        return before.token_ids + ids, before.text + text
    # Tags are written out and white space is folded by engines that answer with text alone.
    if "".join(text.split()).startswith("".join(before.text.split())):
        return ids, text
    return None, before.text + text


async def settle(value: Any) -> Any:
    """Await what may be a coroutine: a teacher's `open` and `close` may be sync or async."""
    return await value if inspect.isawaitable(value) else value


def classified(error: Exception) -> TeacherError:
    """What went wrong, as a TeacherError. Raises it where it ends the run."""
    if isinstance(error, TeacherError):
        if error.fatal:
            raise error
        return error
    if isinstance(error, DistillError):
        raise error
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in where)
    message = f"{type(error).__name__}: {error}{place}"
    if isinstance(error, TimeoutError | ConnectionError):
        fault = TeacherError(message, retry=True)
    else:
        fault = TeacherFault(message, "the fault is in the teacher's code")
    fault.__cause__ = error
    return fault
