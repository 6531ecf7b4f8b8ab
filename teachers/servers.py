"""Equal servers behind one engine: who is asked, how many at once, who is left out, who returns.

All times are seconds of the event loop's monotonic clock, so a clock that is set changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.errors import TeacherError

log = logging.getLogger(__name__)

UNREACHABLE = 3
"""So many refused connections in a row eject a server."""

FAULTS = 8
"""So many failed requests in a row do: one bad problem among good ones never does."""

PROBE = 4
"""Requests at once for a server that came back, until it has sent a first token."""

PAUSE_S, PAUSE_MOST_S = 1.0, 60.0
HOLD_MOST_S = 60.0
"""A server's Retry-After keeps every request from it, but no longer than this."""

DECREASE = 0.5
STEPS = 16
"""From half its peak a limit grows back in half as many rounds of answers as this."""

PRIOR = 4


class Busy(TeacherError):
    """A server that has too much to do: 429."""


class Broken(TeacherError):
    """A server that failed a request: 5xx, a broken connection, a torn or stalled answer."""


class Overloaded(Busy, Broken):
    """503, no first token in time: too much to do, or nobody there behind the proxy."""


class Unreachable(Broken):
    """A server that took no connection."""


@dataclass(slots=True, eq=False)
class Server:
    """One base URL. `tokens` are those still expected of it; `limit` is inf until it complained."""

    url: str
    healthy: bool = True
    limit: float = math.inf
    in_flight: int = 0
    tokens: float = 0.0
    done: int = 0
    failed: int = 0
    ejected: int = 0
    why: str = ""
    _peak: int = 1
    _streaming: int = 0
    _proving: bool = False
    _probes: int = 0
    _unreachable: int = 0
    _faults: int = 0
    _pause: float = field(default_factory=lambda: PAUSE_S)
    _cut_at: float = -math.inf
    _back_at: float = -math.inf
    _held_until: float = -math.inf

    def room(self, now: float) -> bool:
        """Whether it may get another request."""
        if not self.healthy or now < self._held_until:
            return False
        if self._proving and self._probes >= PROBE:
            return False
        return self.in_flight + 1 <= self.limit

    def stats(self) -> dict[str, Any]:
        """What `ServerPool.stats` tells of it."""
        return {
            "url": self.url,
            "up": self.healthy,
            "limit": None if math.isinf(self.limit) else int(self.limit),
            "in_flight": self.in_flight,
            "tokens": round(self.tokens),
            "done": self.done,
            "failed": self.failed,
            "ejected": self.ejected,
        }


@dataclass(slots=True, eq=False)
class Lease:
    """The right to send one request to `server`. Tell it what arrives."""

    server: Server
    begun: float
    pool: ServerPool
    left: float
    probe: bool = False
    got: int = 0
    streaming: bool = False

    def received(self, tokens: int) -> None:
        """Tokens of the answer have come."""
        if not self.streaming:
            self.streaming = True
            self.pool.answering(self)
        self.got += tokens
        known = min(tokens, self.left)
        self.left -= known
        self.server.tokens -= known


@dataclass(slots=True, eq=False)
class ServerPool:
    """Hands out leases: to the server with the fewest outstanding tokens, within its limit.

    `check(url)` says whether an ejected server answers again; it is asked after pauses that
    double from 1 s to 60 s and begin anew once the server has completed a request. With every
    server ejected requests wait, and fail for good after `outage_s`. A first token later than
    `slow_s` counts as a sign of overload, because the next step would be time-outs.
    """

    urls: Sequence[str]
    check: Callable[[str], Awaitable[bool]]
    outage_s: float = 1800.0
    slow_s: float = math.inf
    servers: list[Server] = field(init=False)
    _waiting: deque[tuple[int, asyncio.Future[Lease]]] = field(default_factory=deque)
    _watches: set[asyncio.Task[None]] = field(default_factory=set)
    _timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    _turn: itertools.count[int] = field(default_factory=itertools.count)
    _returned: int = 0
    _tokens: int = 0
    _over: TeacherError | None = None
    _down_since: float | None = None

    def __post_init__(self) -> None:
        self.servers = [Server(url) for url in dict.fromkeys(self.urls)]

    def stats(self) -> dict[str, Any]:
        """For the live view: each server's state, and how many requests wait for one."""
        return {
            "servers": [server.stats() for server in self.servers],
            "waiting": len(self._waiting),
        }

    @contextlib.asynccontextmanager
    async def lease(self, most: int) -> AsyncIterator[Lease]:
        """A server for one request of at most `most` new tokens.

        Waits for room. What the body raises tells the server's health. Raises a fatal
        TeacherError where no server has answered for `outage_s`.
        """
        lease = await self._acquire(most)
        try:
            yield lease
        except TeacherError as error:
            lease.server.failed += 1
            self._judge(lease, error)
            raise
        else:
            self._succeeded(lease)
        finally:
            self._end(lease)

    def eject(self, server: Server, why: str, *, for_good: bool = False) -> None:
        """Leave a server out until `check` finds it well; `for_good`: it is not asked again."""
        if not server.healthy:
            return
        server.healthy, server.why = False, why
        server.ejected += 1
        rest = sum(s.healthy for s in self.servers)
        log.warning("%s is left out (%d others stay): %s", server.url, rest, why)
        if not for_good:
            watch = asyncio.create_task(self._watch(server))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)
        if not rest:
            self._outage()

    def _outage(self) -> None:
        """No server is left. Only an answer ends an outage: health checks of a mute one pass."""
        if self._down_since is None:
            self._down_since = _now()
            log.warning(
                "no server is left: requests wait up to %g s for one to come back (outage_s)",
                self.outage_s,
            )
        self._after("outage", self._down_since + self.outage_s - _now(), self._give_up)

    def _heard(self) -> None:
        """A server has answered something."""
        self._down_since = None
        if timer := self._timers.pop("outage", None):
            timer.cancel()

    async def close(self) -> None:
        """End the health checks."""
        for timer in self._timers.values():
            timer.cancel()
        watches = list(self._watches)
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    def answering(self, lease: Lease) -> None:
        """A first token has come: the server works, and it may be slow."""
        server = lease.server
        server._proving = False
        server._unreachable = 0
        server._streaming += 1
        self._heard()
        if _now() - lease.begun > self.slow_s:
            self._slow_down(lease, "a first token came late")
        elif self._waiting:
            self._serve()

    async def _acquire(self, most: int) -> Lease:
        if self._over:
            raise self._over
        server = None if self._waiting else self._pick()
        if server is not None:
            return self._lend(server, most)
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting.append((most, future))
        self._serve()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                self._end(future.result())
            raise

    def _lend(self, server: Server, most: int) -> Lease:
        # The mean of what came back; the quarter of the limit stands for what is not known yet.
        mean = (self._tokens + PRIOR * most / 4) / (self._returned + PRIOR)
        lease = Lease(server, _now(), self, min(most, mean), server._proving)
        server.in_flight += 1
        server._probes += lease.probe
        server.tokens += lease.left
        return lease

    def _end(self, lease: Lease) -> None:
        server = lease.server
        server.in_flight -= 1
        server._probes -= lease.probe
        server._streaming -= lease.streaming
        server.tokens -= lease.left
        self._serve()

    def _pick(self) -> Server | None:
        now = _now()
        free = [server for server in self.servers if server.room(now)]
        if not free:
            return None
        # An answer longer than expected still costs: a quarter of the mean for each request.
        share = self._tokens / (4 * self._returned) if self._returned else 1.0
        turn = next(self._turn)
        first = min(
            range(len(free)),
            key=lambda i: (free[i].tokens + share * free[i].in_flight, (i - turn) % len(free)),
        )
        return free[first]

    def _serve(self) -> None:
        """Give room that there is to whoever has waited longest."""
        while self._waiting:
            most, future = self._waiting[0]
            if future.done():
                self._waiting.popleft()
                continue
            server = self._pick()
            if server is None:
                now = _now()
                held = [s._held_until - now for s in self.servers if s.healthy]
                if waits := [seconds for seconds in held if seconds > 0]:
                    self._after("hold", min(waits), self._serve)
                return
            self._waiting.popleft()
            future.set_result(self._lend(server, most))

    def _succeeded(self, lease: Lease) -> None:
        server = lease.server
        server.done += 1
        server._proving, server._unreachable, server._faults = False, 0, 0
        server._pause = PAUSE_S
        self._heard()
        self._returned += 1
        self._tokens += lease.got
        server._peak = max(server._peak, server.in_flight)
        if server.in_flight + 1 > server.limit and lease.begun >= server._cut_at:
            # Only a limit that was reached has shown that it is borne.
            server.limit += max(1.0, server._peak / STEPS) / server.limit

    def _judge(self, lease: Lease, error: TeacherError) -> None:
        server = lease.server
        if isinstance(error, Busy):
            if error.retry_after:
                server._held_until = _now() + min(error.retry_after, HOLD_MOST_S)
            self._slow_down(lease, error.message)
        if not isinstance(error, Broken):
            # It spoke with us, if only to refuse.
            self._heard()
            server._unreachable = 0
            server._faults *= isinstance(error, Busy)
            return
        if lease.begun < server._back_at or not server.healthy:
            return  # sent before the server was left out: nothing new
        if isinstance(error, Overloaded) and server._streaming:
            return  # it works for others: it has enough to do and is not gone
        server._faults += 1
        server._unreachable += isinstance(error, Unreachable)
        patience = 1 if server._proving else FAULTS
        if server._unreachable >= UNREACHABLE or server._faults >= patience:
            self.eject(server, error.message)

    def _slow_down(self, lease: Lease, why: str) -> None:
        server = lease.server
        if lease.begun < server._cut_at:
            return  # sent before the last cut: one round of complaints counts once
        server._cut_at = _now()
        before = min(server.limit, server.in_flight)
        server.limit = max(1.0, before * DECREASE)
        log.info("%s: %s; at most %d requests at once", server.url, why, server.limit)

    async def _watch(self, server: Server) -> None:
        while True:
            await asyncio.sleep(server._pause * random.uniform(0.8, 1.2))
            server._pause = min(PAUSE_MOST_S, server._pause * 2)
            if await self.check(server.url):
                break
        server.healthy, server._proving = True, True
        server._unreachable = server._faults = 0
        server._back_at = _now()
        if self._over:
            self._over, self._down_since = None, None
        log.warning("%s is back", server.url)
        self._serve()

    def _give_up(self) -> None:
        if any(server.healthy for server in self.servers):
            return  # one is being tried; if it fails too, `eject` comes back here at once
        reasons = "; ".join(dict.fromkeys(server.why for server in self.servers))
        self._over = TeacherError(
            f"no server has answered for {self.outage_s:g} s: {reasons}",
            "what was bought is kept; see to the servers and run the same command again",
            fatal=True,
        )
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(self._over)
        self._waiting.clear()

    def _after(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        if timer := self._timers.get(name):
            timer.cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, call)


def _now() -> float:
    return asyncio.get_running_loop().time()
