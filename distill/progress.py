"""How far a stage has come: one live line on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TextIO

REDRAW_S = 0.1
LINE_EVERY_S = 30.0

Figure = int | float | str


class Progress:
    """Counts what a stage has done and shows it on stderr.

    On a terminal one line is redrawn in place, ten times a second at most. Elsewhere (a log, a
    notebook) a line is written at the start, every 30 seconds and at the end.
    `DISTILL_PROGRESS=0` silences it; `NO_COLOR` is honoured. May be called from any thread.

    `total` may be None, or be set later. Lines are written by `update` itself: there is no
    thread that could outlive a stage.
    """

    def __init__(
        self,
        stage: str,
        total: int | None,
        unit: str = "",
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.details: Callable[[], Sequence[str]] | None = None
        self.done = 0
        self._skipped = 0
        self._figures: dict[str, Figure] = {}
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._lock = threading.Lock()
        self._begin = self._last = clock()
        self._silent = os.environ.get("DISTILL_PROGRESS") == "0"
        self._live = _is_terminal(self._stream)
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._drawn = False

    def __enter__(self) -> Progress:
        self._begin = self._last = self._clock()
        with self._lock:
            self._show()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._show("" if kind is None else "stopped")
            if self._live and self._drawn:
                self._write("\n")
                self._drawn = False

    def update(self, done_increment: int = 1, **figures: Figure) -> None:
        """Count `done_increment` more and replace the named figures."""
        with self._lock:
            self.done += done_increment
            self._figures.update(figures)
            now = self._clock()
            if now - self._last >= (REDRAW_S if self._live else LINE_EVERY_S):
                self._last = now
                self._show()

    def skip(self, count: int) -> None:
        """Count what was there already: done, but no part of the rate and of the time left."""
        with self._lock:
            self.done += count
            self._skipped += count

    def note(self, text: str) -> None:
        """Write a line that stays, above the live one."""
        with self._lock:
            if self._live and self._drawn:
                self._write("\r\x1b[K")
            self._write(f"{self.stage}: {text}\n")
            if self._live:
                self._show()

    def line(self, ending: str = "") -> str:
        """What is shown, without colour and not cut."""
        elapsed = self._clock() - self._begin
        fresh = self.done - self._skipped
        unit = f" {self.unit}" if self.unit else ""
        if self.total is None:
            parts = [f"{self.done:,}{unit}"]
        else:
            share = f" {100 * self.done / self.total:.0f}%" if self.total else ""
            parts = [f"{self.done:,}/{self.total:,}{unit}{share}"]
        if self.details is not None:
            parts += [*self.details(), *([ending] if ending else [])]
            return f"{self.stage}  " + "  ".join(parts)
        if fresh > 0 and elapsed > 0:
            rate = fresh / elapsed
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min")
            if self.total is not None and self.total > self.done:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        parts.append(duration(elapsed))
        parts += [f"{name.replace('_', ' ')} {_figure(v)}" for name, v in self._figures.items()]
        if ending:
            parts.append(ending)
        return f"{self.stage}  " + "  ".join(parts)

    def _show(self, ending: str = "") -> None:
        if not self._live:
            self._write(self.line(ending) + "\n")
            return
        # One cell stays free: some terminals wrap as soon as the last one is written.
        text = cut(self.line(ending), shutil.get_terminal_size().columns - 1)
        if self._colour:
            text = f"\x1b[1m{text[: len(self.stage)]}\x1b[0m{text[len(self.stage) :]}"
        self._write(f"\r\x1b[K{text}")
        self._drawn = True

    def _write(self, text: str) -> None:
        if self._silent:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # A closed stderr must not end hours of work.
            self._silent = True


def duration(seconds: float) -> str:
    """Seconds as 9s, 4:05 or 3:04:05."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def cut(text: str, cells: int) -> str:
    """The beginning of `text` that fits into `cells` columns of a terminal."""
    text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    used = 0
    for at, char in enumerate(text):
        used += _cells(char)
        if used > cells:
            return text[:at]
    return text


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _figure(value: Figure) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False
