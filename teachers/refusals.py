"""What a server's refusal means: try again, give this request up, or stop the run."""

from __future__ import annotations

import email.utils
import math
import os
import re
import time
from dataclasses import dataclass

import httpx

from distill.errors import TeacherError
from distill.teachers.servers import Broken, Busy, Overloaded, Unreachable
from distill.teachers.stream import error_text

AGAIN = (408, 409, 425)
"""Refusals that pass, besides 429 and all 5xx."""

OVERLOADED = (503, 504, 529)

BAD_IN_A_ROW = 8
"""So many bad requests before any answer mean that none will be good."""

_CONTEXT = re.compile(
    r"context[ _](length|window|size)|maximum (number of )?tokens|prompt is too long"
    r"|too many tokens|max_model_len|exceeds the available context",
    re.IGNORECASE,
)
_LIMIT = re.compile(r"maximum context length (?:is|of) (\d+)", re.IGNORECASE)
_WHOLE = re.compile(r"max_tokens=\d+ cannot be greater than \w+=(\d+)")
"""vLLM 0.32 where the limit alone passes the context; otherwise it lowers the limit itself."""
_PROMPT = re.compile(r"(\d+) (?:in the (?:messages|prompt)|input tokens)|has (\d+) input")
_QUOTA = re.compile(r"insufficient[_ ](quota|balance)|exceeded your current quota", re.IGNORECASE)


@dataclass(slots=True)
class Refusals:
    """Judges the refusals that one engine meets. `served` are the models that servers list."""

    model: str
    key_env: str
    served: tuple[str, ...] = ()
    bad: int = 0
    answered: bool = False

    def succeeded(self) -> None:
        """A request was answered: from now on a bad request is that request's own fault."""
        self.answered = True

    def judge(self, response: httpx.Response) -> str:
        """The server's words where the context is too small; raises TeacherError otherwise.

        What says something about all requests before the first answer (a refused key, an
        unknown model) is one request's own matter, or a proxy's moment, after it.
        """
        status, said = response.status_code, self._words(response)
        where = f"{response.request.url}: HTTP {status}: {said}"
        if status == 401 or (status == 403 and not self.answered):
            raise self.key(status, response.text)
        if status == 402 or (status == 429 and _QUOTA.search(said)):
            raise TeacherError(where, "the account has no credit left", fatal=True)
        wish = retry_after(response.headers)
        if status == 404:
            if self.answered:
                raise Broken(where, retry=True)
            raise TeacherError(where, self._models(str(response.request.url)), fatal=True)
        if status == 429:
            raise Busy(where, retry=True, retry_after=wish)
        if status in OVERLOADED:
            raise Overloaded(where, retry=True, retry_after=wish)
        if status >= 500:
            raise Broken(where, retry=True, retry_after=wish)
        if status in AGAIN:
            raise TeacherError(where, retry=True, retry_after=wish)
        if status in (400, 413, 422) and _CONTEXT.search(said):
            return said
        self.bad += 1
        hopeless = not self.answered and self.bad >= BAD_IN_A_ROW
        raise TeacherError(
            where,
            "the server takes no such request: teacher.options.extra_body can add a field or,"
            " with null, leave one out",
            fatal=hopeless,
        )

    def key(self, status: int, text: str) -> TeacherError:
        """The error of a refused key. It names the variable, never its value."""
        said = self._hide(text)[:200]
        if os.environ.get(self.key_env, "").strip():
            return TeacherError(
                f"the server refuses the key in {self.key_env}: HTTP {status}: {said}",
                "check that the key belongs to this server (teacher.base_urls) and model",
                fatal=True,
            )
        return TeacherError(
            f"the server wants a key, and the environment variable {self.key_env} is not set: "
            f"HTTP {status}: {said}",
            f"export {self.key_env}=..., or name another variable in teacher.api_key_env",
            fatal=True,
        )

    def _models(self, url: str) -> str:
        if self.served:
            return f"asked for '{self.model}'; the server has: {', '.join(self.served[:20])}"
        return f"is {url} the right address? a server's base URL usually ends in /v1"

    def _words(self, response: httpx.Response) -> str:
        try:
            said = error_text(response.json())
        except ValueError:
            said = response.text[:200]
        return self._hide(said)

    def _hide(self, text: str) -> str:
        key = os.environ.get(self.key_env, "").strip()
        return text.replace(key, "***") if key else text


def room_left(said: str, asked: int) -> int | None:
    """New tokens that the context still holds, from the words of a refusal; None if none.

    Older vLLM and other servers refuse a request whose prompt and limit together pass the
    context, although the prompt alone fits.
    """
    if whole := _WHOLE.search(said):
        room = int(whole[1])
        return room if 0 < room < asked else None
    limit, prompt = _LIMIT.search(said), _PROMPT.search(said)
    if not limit or not prompt:
        return None
    room = int(limit[1]) - int(prompt[1] or prompt[2])
    return room if 0 < room < asked else None


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds to wait, from a Retry-After header in seconds or as a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def unreachable(url: str, error: Exception) -> TeacherError:
    """The error of a server that cannot be spoken to at all."""
    why = str(error) or type(error).__name__
    if isinstance(error, httpx.ReadTimeout):
        why = "it takes connections and answers nothing"
    return Unreachable(
        f"no server at {url}: {why}",
        "check teacher.base_urls and that the server is up: "
        "vllm serve MODEL --reasoning-parser deepseek_r1",
        fatal=True,
    )
