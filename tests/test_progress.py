"""The progress line: on a terminal, in a log, silenced, from many threads."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.progress import Progress, cut, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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
