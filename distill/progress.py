"""How far a stage has come: live lines on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import ClassVar, TextIO
from weakref import WeakValueDictionary

REDRAW_S = 0.1
LINE_EVERY_S = 30.0
MOST_LINES = 4

PLAIN = str.maketrans("▁▂▃▄▅▆▇█", "_1234567")
"""What stands for the bars of a histogram where the stream's encoding has none."""

Figure = int | float | str


class Progress:
    """Counts what a stage has done and shows it on stderr.

    On a terminal a line, or a block of at most four, is redrawn in place, ten times a second at
    most; stages that run side by side share the screen. Elsewhere (a log, a notebook) a line is
    written at the start, every 30 seconds and at the end. `DISTILL_PROGRESS=0` silences it;
    `NO_COLOR` is honoured. May be called from any thread.

    `total` may be None, or be set later. `details`, where set, tells the rest in place of rate,
    time and figures: its first line goes behind the count, the others below it. Lines are written
    by `update` itself: there is no thread that could outlive a stage.
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
        live = _is_terminal(self._stream) and not self._silent
        self._screen = _Screen.of(self._stream) if live else None

    def __enter__(self) -> Progress:
        self._begin = self._last = self._clock()
        self._show()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ending = "" if kind is None else "stopped"
        if self._screen is not None:
            self._screen.leave(self, self.block(ending))
        else:
            self._write(self.line(ending) + "\n")

    def update(self, done_increment: int = 1, **figures: Figure) -> None:
        """Count `done_increment` more and replace the named figures."""
        with self._lock:
            self.done += done_increment
            self._figures.update(figures)
            now = self._clock()
            due = now - self._last >= (LINE_EVERY_S if self._screen is None else REDRAW_S)
            if due:
                self._last = now
        if due:
            self._show()

    def skip(self, count: int) -> None:
        """Count what was there already: done, but no part of the rate and of the time left."""
        with self._lock:
            self.done += count
            self._skipped += count

    def note(self, text: str) -> None:
        """Write a line that stays, above the live ones."""
        if self._screen is None:
            self._write(f"{self.stage}: {text}\n")
        else:
            self._screen.say(f"{self.stage}: {text}")

    def line(self, ending: str = "") -> str:
        """All that is shown as one line, without colour and not cut."""
        return "  ".join(self.block(ending))

    def block(self, ending: str = "") -> list[str]:
        """All that is shown, as lines of a terminal; the first begins with the stage's name."""
        details = [] if self.details is None else list(self.details())
        with self._lock:
            unit = f" {self.unit}" if self.unit else ""
            if self.total is None:
                parts = [self.stage, f"{self.done:,}{unit}"]
            else:
                share = f" {100 * self.done / self.total:.0f}%" if self.total else ""
                parts = [self.stage, f"{self.done:,}/{self.total:,}{unit}{share}"]
            parts += self._rate() if self.details is None else details[:1]
        if ending:
            parts.append(ending)
        return ["  ".join(parts), *details[1:MOST_LINES]]

    def _rate(self) -> list[str]:
        parts = []
        elapsed = self._clock() - self._begin
        fresh = self.done - self._skipped
        if fresh > 0 and elapsed > 0:
            rate = fresh / elapsed
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min")
            if self.total is not None and self.total > self.done:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        parts.append(duration(elapsed))
        parts += [f"{name.replace('_', ' ')} {_figure(v)}" for name, v in self._figures.items()]
        return parts

    def _show(self) -> None:
        if self._screen is not None:
            self._screen.draw(self)
        else:
            self._write(self.line() + "\n")

    def _write(self, text: str) -> None:
        if not self._silent:
            self._silent = not _written(self._stream, text)


class _Screen:
    """The live lines of all stages that show themselves on one terminal.

    One line is redrawn where it is. Several are drawn below an empty row in which the cursor
    waits: what anybody else writes (a warning, a child's output) lands there and stays, and the
    lines are drawn again below it.
    """

    _all: ClassVar[WeakValueDictionary[int, _Screen]] = WeakValueDictionary()
    _opening = threading.Lock()

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lock = threading.Lock()
        self._stages: list[Progress] = []
        self._colour = not os.environ.get("NO_COLOR")
        self._drawn = 0
        self._broken = False

    @classmethod
    def of(cls, stream: TextIO) -> _Screen:
        with cls._opening:
            # A screen lives as long as a stage holds it, and its stream no shorter.
            return cls._all.setdefault(id(stream), cls(stream))

    def draw(self, stage: Progress) -> None:
        with self._lock:
            if stage not in self._stages:
                self._stages.append(stage)
            self._draw()

    def say(self, text: str) -> None:
        with self._lock:
            self._write(self._erased() + text + "\n")
            if self._stages:
                self._draw()

    def leave(self, stage: Progress, block: Sequence[str]) -> None:
        """Take a stage off; its last lines stay above those of the others."""
        with self._lock:
            columns, _ = _size(self.stream)
            said = [self._styled(line, columns, i == 0) for i, line in enumerate(block)]
            self._write(self._erased() + "\n".join(said) + "\n")
            if stage in self._stages:
                self._stages.remove(stage)
            if self._stages:
                self._draw()

    def _draw(self) -> None:
        columns, rows = _size(self.stream)
        blocks = [stage.block() for stage in self._stages]
        if sum(map(len, blocks)) > rows - 2:
            blocks = [block[:1] for block in blocks][: max(1, rows - 2)]
        lines = [
            self._styled(line, columns, i == 0) for block in blocks for i, line in enumerate(block)
        ]
        if len(lines) == 1:
            self._write(self._erased() + lines[0])
        else:
            self._write(self._erased() + "\n" + "\n".join(lines) + f"\r\x1b[{len(lines)}A")
        self._drawn = len(lines)

    def _erased(self) -> str:
        # The rest of the screen is cleared only where more than one line may stand.
        return "\r\x1b[K" if self._drawn <= 1 else "\r\x1b[J"

    def _styled(self, line: str, columns: int, bold: bool) -> str:
        # One cell stays free: some terminals wrap as soon as the last one is written.
        text = cut(line if bold else f"  {line}", columns - 1)
        if not (bold and self._colour):
            return text
        name, gap, rest = text.partition("  ")
        return f"\x1b[1m{name}\x1b[0m{gap}{rest}"

    def _write(self, text: str) -> None:
        if not self._broken:
            self._broken = not _written(self.stream, text)
        self._drawn = 0


def _written(stream: TextIO, text: str) -> bool:
    """Write and flush; False where the stream is closed, which must not end hours of work."""
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            plain = text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
            stream.write(plain)
        stream.flush()
    except (OSError, ValueError):
        return False
    return True


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


def _size(stream: TextIO) -> tuple[int, int]:
    """Columns and rows: the environment's, the stream's own, or 80 x 24."""
    try:
        own = os.get_terminal_size(stream.fileno())
    except (AttributeError, OSError, ValueError):
        own = os.terminal_size((80, 24))
    shown = shutil.get_terminal_size(own)
    if "COLUMNS" not in os.environ and own.columns:
        # shutil asks stdout, which may be a file while stderr is the terminal.
        return own.columns, own.lines or 24
    return shown.columns, shown.lines


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False
