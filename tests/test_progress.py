"""Progress: a line or a block on a terminal, lines in a log, silenced, from many threads."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.progress import Progress, cut, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Screen:
    """What a terminal shows: rows of text, and where the cursor is."""

    def __init__(self, columns: int = 60, rows: int = 8) -> None:
        self.columns, self.height = columns, rows
        self.rows = [""] * rows
        self.y = self.x = 0

    def feed(self, text: str) -> Screen:
        for code, char in re.findall(r"(\x1b\[\d*[A-Za-z])|(.)", text, re.DOTALL):
            self._code(code) if code else self._char(char)
        return self

    def _char(self, char: str) -> None:
        if char == "\r":
            self.x = 0
        elif char == "\n":
            # As the line discipline of a terminal sends it: CR LF.
            self.x, self.y = 0, self.y + 1
        else:
            if self.x == self.columns:
                self.x, self.y = 0, self.y + 1
                self._scroll()
            row = self.rows[self.y].ljust(self.x)
            self.rows[self.y] = row[: self.x] + char + row[self.x + 1 :]
            self.x += 1
        self._scroll()

    def _scroll(self) -> None:
        if self.y == self.height:
            self.rows, self.y = [*self.rows[1:], ""], self.y - 1

    def _code(self, code: str) -> None:
        kind, count = code[-1], int(code[2:-1] or 1)
        if kind == "A":
            self.y = max(0, self.y - count)
        elif kind in "KJ":
            self.rows[self.y] = self.rows[self.y][: self.x]
            if kind == "J":
                self.rows[self.y + 1 :] = [""] * (self.height - self.y - 1)

    @property
    def text(self) -> list[str]:
        return [row.rstrip() for row in self.rows]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISTILL_PROGRESS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")


def test_a_log_gets_a_line_at_the_start_every_30_seconds_and_at_the_end() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress("sample", 1000, "traces", stream=out, clock=clock) as progress:
        for _ in range(100):
            clock.now += 1
            progress.update(10, tokens=12345)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 + 3 + 1
    assert lines[0] == "sample  0/1,000 traces 0%  0s"
    assert lines[1] == "sample  300/1,000 traces 30%  10.0/s  1:10 left  30s  tokens 12,345"
    assert lines[-1] == "sample  1,000/1,000 traces 100%  10.0/s  1:40  tokens 12,345"
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_one_line_redrawn_ten_times_a_second_and_cut_to_its_width() -> None:
    out, clock = Terminal(), Clock()
    with Progress("sample", 100_000, "traces", stream=out, clock=clock) as progress:
        for _ in range(1000):
            clock.now += 0.01
            progress.update(1, a_long_figure="x" * 100)
    text = out.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    drawn = text.split("\r\x1b[K")[1:]
    assert 90 <= len(drawn) <= 102
    visible = [d.rstrip("\n").replace("\x1b[1m", "").replace("\x1b[0m", "") for d in drawn]
    assert max(map(len, visible)) == 59


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    with Progress("grade", 3, stream=out) as progress:
        progress.update(3)
    assert "\x1b[1m" not in out.getvalue()
    assert "3/3" in out.getvalue()


def test_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_PROGRESS", "0")
    out = Terminal()
    with Progress("grade", 3, stream=out) as progress:
        progress.update(3)
        progress.note("nothing to see")
    assert out.getvalue() == ""


def test_a_note_stays_above_the_live_line() -> None:
    out = Terminal()
    with Progress("train", None, "updates", stream=out) as progress:
        progress.note("checkpoint saved")
    assert "\r\x1b[Ktrain: checkpoint saved\n" in out.getvalue()


def test_what_was_there_already_is_no_part_of_the_rate() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress("sample", 100, stream=out, clock=clock) as progress:
        progress.skip(80)
        clock.now += 10
        progress.update(10)
        assert progress.line() == "sample  90/100 90%  1.0/s  10s left  10s"


def test_an_interruption_is_told() -> None:
    out = io.StringIO()
    with contextlib.suppress(KeyboardInterrupt), Progress("sample", 2, stream=out):
        raise KeyboardInterrupt
    assert out.getvalue().splitlines()[-1].endswith("stopped")


def test_a_closed_stderr_ends_nothing() -> None:
    out = io.StringIO()
    with Progress("sample", 2, stream=out) as progress:
        out.close()
        progress.update()
        progress.note("gone")
    assert progress.done == 1


def block(stage: str, out: io.StringIO, clock: Clock, *lines: str) -> Progress:
    progress = Progress(stage, 10, stream=out, clock=clock)
    progress.details = lambda: [f"{clock.now:.0f}s", *lines]
    return progress


def test_a_block_is_redrawn_in_place_even_at_the_foot_of_the_screen() -> None:
    out, clock, screen = Terminal(), Clock(), Screen(rows=8)
    screen.feed("$ make\n" * 7)
    with block("sample", out, clock, "accepted 3", "pass rate ▁█", "failed 1") as progress:
        for _ in range(20):
            clock.now += 1
            progress.update()
        shown = screen.feed(out.getvalue())
        assert shown.text[3:] == [
            "",
            "sample  20/10 200%  20s",
            "  accepted 3",
            "  pass rate ▁█",
            "  failed 1",
        ]
        assert (shown.y, shown.x) == (3, 0)
        mark = out.tell()
    shown.feed(out.getvalue()[mark:])
    assert shown.text[2:] == [
        "$ make",
        "sample  20/10 200%  20s",
        "  accepted 3",
        "  pass rate ▁█",
        "  failed 1",
        "",
    ]
    assert shown.x == 0


def test_what_others_write_stays_and_the_block_moves_below_it() -> None:
    out, clock = Terminal(), Clock()
    with block("sample", out, clock, "a", "b") as progress:
        out.write("WARNING a server is gone\n")
        clock.now += 1
        progress.update()
        progress.note("a round ended")
        shown = Screen().feed(out.getvalue()).text
    assert shown[:6] == [
        "WARNING a server is gone",
        "sample: a round ended",
        "",
        "sample  1/10 10%  1s",
        "  a",
        "  b",
    ]


def test_stages_side_by_side_share_the_screen() -> None:
    out, clock, screen = Terminal(), Clock(), Screen()
    with block("sample", out, clock, "tokens") as first:
        with Progress("tasks", 3, stream=out, clock=clock) as second:
            for _ in range(3):
                clock.now += 1
                first.update()
                second.update()
            assert Screen().feed(out.getvalue()).text[1:4] == [
                "sample  3/10 30%  3s",
                "  tokens",
                "tasks  3/3 100%  1.0/s  3s",
            ]
        clock.now += 1
        first.update()
        assert screen.feed(out.getvalue()).text[:4] == [
            "tasks  3/3 100%  1.0/s  3s",
            "",
            "sample  4/10 40%  4s",
            "  tokens",
        ]


def test_a_low_terminal_shows_the_first_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "4")
    out, clock = Terminal(), Clock()
    with block("sample", out, clock, "a", "b", "c"):
        assert Screen(rows=4).feed(out.getvalue()).text == ["sample  0/10 0%  0s", "", "", ""]


def test_a_log_gets_the_block_as_one_line() -> None:
    out, clock = io.StringIO(), Clock()
    with block("sample", out, clock, "accepted 3", "failed 1"):
        pass
    assert out.getvalue().splitlines() == ["sample  0/10 0%  0s  accepted 3  failed 1"] * 2


def test_bars_become_digits_where_the_encoding_has_none() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    with block("sample", out, Clock(), "▁▄█ é"):  # type: ignore[arg-type]
        pass
    assert raw.getvalue().splitlines()[-1] == b"sample  0/10 0%  0s  _37 ?"


def test_a_real_terminal_of_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 34, 0, 0))
    clock = Clock()
    with open(theirs, "w", encoding="utf-8") as terminal:
        progress = Progress("sample", 3, stream=terminal, clock=clock)
        progress.details = lambda: ["1s", "x" * 50, "y"]
        with progress:
            clock.now += 1
            progress.update(3)
        terminal.write("\0")
        terminal.flush()
        # What is written to a terminal arrives at its other end a little later.
        seen = ""
        while not seen.endswith("\0"):
            seen += os.read(ours, 1 << 16).decode()
    os.close(ours)
    screen = Screen(34, 10).feed(seen.rstrip("\0").replace("\r\n", "\n"))
    assert screen.text[:4] == ["sample  3/3 100%  1s", "  " + "x" * 31, "  y", ""]


def test_many_threads() -> None:
    out = Terminal()
    with Progress("sample", 8000, stream=out) as progress:

        def work() -> None:
            for _ in range(1000):
                progress.update(1, tokens=1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert progress.done == 8000


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (61, "1:01"), (3661, "1:01:01")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.text(), st.integers(0, 40))
def test_a_cut_line_is_a_beginning_without_control_characters(text: str, cells: int) -> None:
    short = cut(text, cells)
    assert len(short) <= len(text)
    assert "\n" not in short
    assert "\x1b" not in short
    assert cut(short, cells) == short


def test_wide_characters_take_two_cells() -> None:
    assert cut("思考思考", 5) == "思考"


def test_the_module_imports_no_rich() -> None:
    code = "import sys, distill.progress; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
