"""The course of one problem through adaptive sampling: what it asks next, and when it is done.

Pure: a course takes results in an order that is fixed by the results themselves, however they
arrive, so that a run that was killed, one that asked ahead and an undisturbed one decide alike.

Without growing limits that order is the index. With them, a sample that was cut off and can be
continued is put aside. The oldest of those is continued when that is likelier to be accepted than
a new sample is, by the problem's own record of both, or when `most` were begun. So an easy problem
does not pay for the chain that ran in circles, and a hard one does not start again what needs room.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from distill.policy import Policy, State, needed

Place = tuple[int, int]
"""(sample index, segment)."""

FAILED, BUDGET = "failed", "budget"
"""Reasons to stop beside the policy's: no request got through; the shared budget is spent."""

CERTAIN = 1 - 1e-9
LIKELY = 0.75
"""Asked ahead, where there is room, is what is needed with at least this probability."""
REFUSALS = 2
"""A problem whose first requests were all given up is left, as one with too long a prompt."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a request: accepted or not; `goes_on` if cut off and able to go on.

    `key` is equal for equal texts (None: not compared); `lost` means that there is no trace.
    `tokens` are those of the whole sample so far.
    """

    accepted: bool = False
    goes_on: bool = False
    key: bytes | None = None
    tokens: int = 0
    lost: bool = False


class Course:
    """Where one problem is. `tell` it results in any order; `upcoming` says what it asks for.

    `tries` are the decided samples that have a trace, `accepted` how many of them were accepted,
    `begun` the indices asked for so far, `tokens` those of the decided. `reason` is why it
    stopped, None while it has not. `allowance` is how many requests it may still have before the
    next round, None where it has no limit.
    """

    __slots__ = (
        "_again",
        "_again_accepted",
        "_arrived",
        "_aside",
        "_keys",
        "_new_accepted",
        "_policy",
        "_segments",
        "accepted",
        "allowance",
        "asked",
        "lost",
        "reason",
        "tokens",
        "tries",
    )

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.tries = self.accepted = self.tokens = self.lost = 0
        self._again = self._again_accepted = self._new_accepted = 0
        self.reason: str | None = None
        self.allowance: int | None = None
        # Lists, because there is a course for each of a million problems, and few are long.
        self.asked: list[Place] = []
        self._segments: list[int] = []
        self._aside: list[int] = []
        self._arrived: dict[Place, Result] = {}
        self._keys: list[bytes] = []

    @property
    def begun(self) -> int:
        """Indices that were asked for and have an outcome, of whatever kind."""
        return len(self._segments)

    @property
    def aside(self) -> int:
        """Samples that were cut off and are not continued (yet)."""
        return len(self._aside)

    @property
    def state(self) -> State:
        """What the allocation of a round has to know."""
        return State(self.tries, self.accepted, self.tokens, over=self.reason is not None)

    @property
    def next(self) -> Place:
        """The request whose result the course goes on with."""
        if self._aside and (self.begun >= self._policy.most or self._rather_continues()):
            return self._aside[0], self._segments[self._aside[0]] + 1
        return self.begun, 0

    def _rather_continues(self) -> bool:
        # Jeffreys' prior for both: a first sample that was cut off is continued at once.
        again = (self._again_accepted + 0.5) / (self._again + 1)
        return again > (self._new_accepted + 0.5) / (self.begun - self.lost + 1)

    def places(self) -> Iterator[Place]:
        """The samples that count, in index order, each with the segment it ended at."""
        return ((index, segment) for index, segment in enumerate(self._segments) if segment >= 0)

    def tell(self, place: Place, result: Result) -> None:
        """The result of one request. What is not its turn yet waits; the rest is surplus."""
        if place in self.asked:
            self.asked.remove(place)
        if self.reason is not None:
            return
        self._arrived[place] = result
        while self.reason is None and (found := self._arrived.pop(self.next, None)) is not None:
            self._take(self.next, found)
        if self.reason is not None:
            self._arrived, self._keys = {}, []

    def ahead(self) -> tuple[float, ...]:
        """For the 1st, 2nd, ... of `upcoming`: the probability that its result is needed."""
        chances = needed(self._policy, self.state)[: self.allowance]
        if not self._aside:
            return chances[: self._policy.most - self.begun]
        # Of samples put aside only the next is sure to be continued, but every accepted trace that
        # they cannot bring takes a new sample.
        missing, aside = (self._policy.want or 0) - self.accepted, len(self._aside)
        if self.begun >= self._policy.most:
            sure = min(missing, aside)
        else:
            sure = max(1, missing - aside + (self.next[1] > 0))
        return tuple(p for p in chances if p >= CERTAIN)[:sure]

    def upcoming(self) -> Iterator[Place]:
        """The requests to come if nothing stops it, likeliest first; the first is `next`."""
        if self.reason is not None:
            return
        if self.begun >= self._policy.most:
            yield from ((index, self._segments[index] + 1) for index in self._aside)
            return
        if self.next[1]:
            yield self.next
        yield from ((index, 0) for index in range(self.begun, self._policy.most))

    def ask(self, least: float = CERTAIN) -> tuple[float, Place] | None:
        """A request that is not under way and is needed with a probability of `least` or more."""
        if self.reason is not None:
            return None
        for chance, place in zip(self.ahead(), self.upcoming(), strict=False):
            if chance < least:
                return None
            if place not in self.asked and place not in self._arrived:
                return chance, place
        return None

    def end(self, reason: str) -> None:
        """Stop for a reason that is not the course's own."""
        self.reason = self.reason or reason

    def _take(self, place: Place, result: Result) -> None:
        index, segment = place
        if self.allowance is not None:
            self.allowance = max(0, self.allowance - 1)
        if segment:
            self._aside.pop(0)
        if result.lost:
            # A continuation that failed leaves the sample as it was: tried, not accepted.
            if segment:
                self.tries += 1
            else:
                self._segments.append(-1)
                self.lost += 1
        else:
            if segment:
                self._segments[index] = segment
            else:
                self._segments.append(0)
            accepted = result.accepted and result.key not in self._keys
            if segment:
                self._again += 1
                self._again_accepted += accepted
            else:
                self._new_accepted += accepted
            if result.goes_on and not accepted:
                # What is still cut off after a continuation is continued first.
                self._aside.insert(0 if segment else len(self._aside), index)
            else:
                self.tries += 1
                self.accepted += accepted
                self.tokens += result.tokens
                if result.key is not None:
                    self._keys.append(result.key)
        self.reason = self._stopped()

    def _stopped(self) -> str | None:
        reason = self._policy.stop(self.tries, self.accepted)
        if reason is not None:
            return reason
        if self.lost >= REFUSALS and not self.tries and not self._aside:
            return FAILED
        if self.begun >= self._policy.most and not self._aside:
            return "most" if self.lost < self.begun else FAILED
        return None
