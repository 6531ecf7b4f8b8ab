"""How a request travels: one streamed POST with its time-outs, and a few small calls besides.

What went wrong on the way is raised as the TeacherError that says whose fault it is.
"""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from distill.errors import TeacherError
from distill.protocols import OnTokens
from distill.teachers.refusals import Refusals
from distill.teachers.servers import Broken, Lease, Overloaded, Unreachable
from distill.teachers.stream import Answer, Body

CONNECT_S = 60.0
CALL_S = 5.0
"""Seconds to wait for a connection, and for a small call: thousands may begin at once."""

KEEP_ALIVE_S = 4.0
"""Idle connections are dropped before uvicorn's 5 s, so that none is used as it is closed."""

ALIVE_TIMES = 4
"""With keep-alives a first token may take so many times as long as without."""

SHARE = 50
"""Requests on one httpx client: its pool looks through all connections at every request."""


class Patience:
    """A `with` block that ends, by raising TimeoutError, when nothing has come for too long.

    Before the first token every byte renews `first_s`, up to ALIVE_TIMES of it in all: a proxy
    that keeps a connection warm for ever may have nobody behind it. After it only tokens count,
    and renew `silence_s`.
    """

    def __init__(self, first_s: float, silence_s: float) -> None:
        self.first_s, self.silence_s = first_s, silence_s
        self.begun = self.expired = False

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        now = self._loop.time()
        self._due, self._last = now + self.first_s, now + ALIVE_TIMES * self.first_s
        self._timer = self._loop.call_at(self._due, self._look)
        return self

    def heard(self, tokens: int) -> None:
        """Bytes came, and with them so many tokens."""
        if tokens:
            self._due = self._loop.time() + self.silence_s
            if not self.begun:
                self.begun = True
                self._timer.cancel()
                self._timer = self._loop.call_at(self._due, self._look)
        elif not self.begun:
            self._due = min(self._loop.time() + self.first_s, self._last)

    def _look(self) -> None:
        # Moving a timer for each piece would cost more than reading the piece.
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._look)
        else:
            self.expired = True
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if (
            self.expired
            and self._task.uncancel() <= self._cancelling
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            raise TimeoutError from error


class Wire:
    """Connections to any number of servers. `close` it in the loop that it was used in."""

    def __init__(
        self, headers: Mapping[str, str], first_s: float, silence_s: float, refusals: Refusals
    ) -> None:
        self._headers = dict(headers)
        self._first_s, self._silence_s = first_s, silence_s
        self._refusals = refusals
        self._clients: list[httpx.AsyncClient] = []
        self._used: list[int] = []

    async def post(
        self,
        lease: Lease,
        path: str,
        body: Mapping[str, Any],
        answer: Answer,
        on_tokens: OnTokens | None,
    ) -> str:
        """Fill `answer`. Returns the server's words where the context is too small, else ""."""
        url = lease.server.url
        patience = Patience(self._first_s, self._silence_s)
        number = self._begin()
        try:
            with patience:
                return await self._exchange(
                    number, url + path, body, answer, lease, patience, on_tokens
                )
        except TimeoutError:
            raise self._too_long(url, patience) from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(f"no connection to {url}: {_name(error)}", retry=True) from None
        except httpx.TransportError as error:
            raise Broken(f"{url}: {_name(error)}", retry=True) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Broken(f"{url}: {_name(error)}", retry=True) from None
        finally:
            self._end(number)

    async def _exchange(
        self,
        number: int,
        url: str,
        body: Mapping[str, Any],
        answer: Answer,
        lease: Lease,
        patience: Patience,
        on_tokens: OnTokens | None,
    ) -> str:
        # Lone surrogates of a prompt cannot be sent as UTF-8; escaped they can.
        content = json.dumps(body, separators=(",", ":")).encode()
        client = self._clients[number]
        async with client.stream("POST", url, content=content, headers=JSON) as response:
            if response.status_code >= 300:
                await response.aread()
                return self._refusals.judge(response)
            incoming = Body()
            async for data in response.aiter_bytes():
                tokens = answer.feed(incoming.feed(data))
                patience.heard(tokens)
                if tokens:
                    lease.received(tokens)
                    if on_tokens is not None:
                        on_tokens(tokens)
            answer.feed(incoming.end())
            answer.whole = incoming.plain
        return ""

    def _too_long(self, url: str, patience: Patience) -> TeacherError:
        if patience.begun:
            return Broken(
                f"{url}: silent for {self._silence_s:g} s in the middle of an answer",
                "raise sampling.silence_s if the server pauses for longer",
                retry=True,
            )
        return Overloaded(
            f"{url}: no token for {self._first_s:g} s",
            "raise sampling.timeout_s if the server queues requests for longer",
            retry=True,
        )

    async def call(self, url: str, body: Any = None) -> httpx.Response:
        """A small GET, or POST with a body. Raises httpx.TransportError."""
        patience = min(CONNECT_S, max(CALL_S, self._first_s))
        number = self._begin()
        try:
            client = self._clients[number]
            if body is None:
                return await client.get(url, timeout=patience)
            return await client.post(url, json=body, timeout=patience)
        finally:
            self._end(number)

    async def well(self, url: str) -> bool:
        """Whether a server answers at /health, or where it has none, at /models."""
        try:
            status = (await self.call(f"{root(url)}/health")).status_code
            if status == 200 or status >= 500:
                return status == 200
            return (await self.call(f"{url}/models")).status_code < 500
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            return False

    async def close(self) -> None:
        """Close all connections."""
        clients, self._clients, self._used = self._clients, [], []
        await asyncio.gather(*(client.aclose() for client in clients))

    def _end(self, number: int) -> None:
        if number < len(self._used):
            self._used[number] -= 1

    def _begin(self) -> int:
        """The number of a client with room for one more request."""
        for number, used in enumerate(self._used):
            if used < SHARE:
                self._used[number] += 1
                return number
        self._clients.append(
            httpx.AsyncClient(
                headers=self._headers,
                verify=_trust(),
                timeout=httpx.Timeout(None, connect=CONNECT_S),
                limits=httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=None,
                    keepalive_expiry=KEEP_ALIVE_S,
                ),
                follow_redirects=True,
                # A proxy of the environment is for what is elsewhere.
                mounts=dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]")),
            )
        )
        self._used.append(1)
        return len(self._used) - 1


JSON = {"content-type": "application/json"}


def root(url: str) -> str:
    """A base URL without its version: where /health, /tokenize and /detokenize are."""
    head, _, tail = url.rpartition("/")
    return head if tail[:1] == "v" and tail[1:].isdigit() else url


@functools.cache
def _trust() -> ssl.SSLContext:
    # Reading the certificates takes longer than everything else about a client.
    return httpx.create_ssl_context()


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
