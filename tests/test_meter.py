"""The meter of sampling: figures by a clock that is ours, the file, the view, many threads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.meter import Meter, tenth
from distill.metrics import FILE, bars, money, read_metrics, view
from distill.progress import Progress
from distill.records import Grade, Outcome, Trace


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def trace(problem: str = "p", index: int = 0, tokens: int = 100, **more: Any) -> Trace:
    return Trace(problem_id=problem, index=index, completion_tokens=tokens, **more)


def grade(outcome: Outcome = "correct") -> Grade:
    return Grade(outcome=outcome)


def fixed(clock: Clock, **more: Any) -> Meter:
    return Meter(None, None, problems=10, wanted=100, clock=clock, **more)


def adaptive(clock: Clock, out: Path | None = None, **more: Any) -> Meter:
    settings: dict[str, Any] = {"problems": 10, "wanted": 160, "want": 2, **more}
    return Meter(out, None, clock=clock, wall=lambda: 1.7e9, **settings)


def test_a_fixed_number_is_counted_down_at_the_recent_speed() -> None:
    clock = Clock()
    meter = fixed(clock, prices=(1, 2))
    for _ in range(10):
        meter.reused(trace(tokens=100, cost=0.5))
    for _ in range(10):
        clock.now += 1
        meter.bought(trace(tokens=100, cost=0.5))
    figures = meter.figures()
    assert figures["traces"] == figures["reused"] == 10
    assert (figures["tokens"], figures["tokens_bought"]) == (2000, 1000)
    assert figures["tokens_per_s"] == 100
    assert figures["traces_to_come"] == 80
    assert figures["eta_s"] == 80
    assert (figures["cost"], figures["cost_bought"], figures["cost_to_come"]) == (10, 5, 40)
    assert figures["tokens_per_accepted"] is None


def test_traces_in_the_pool_that_are_not_read_are_neither_to_come_nor_in_a_mean() -> None:
    clock = Clock()
    meter = fixed(clock)
    meter.stored(60)
    clock.now += 10
    meter.bought(trace(tokens=100))
    figures = meter.figures()
    assert (figures["reused"], figures["tokens"]) == (60, 100)
    assert (figures["traces_to_come"], figures["tokens_to_come"]) == (39, 3900)


def test_the_speed_is_that_of_the_last_minute_and_a_stall_is_seen() -> None:
    clock = Clock()
    meter = fixed(clock)
    for _ in range(300):
        clock.now += 1
        meter.bought(trace(tokens=1000))
    for _ in range(90):
        clock.now += 1
        meter.bought(trace(tokens=10))
    assert meter.figures()["tokens_per_s"] == pytest.approx(10, abs=0.5)
    assert 60 <= meter.figures()["window_s"] <= 63
    for _ in range(70):
        clock.now += 1
        meter.tick()
    assert meter.figures()["tokens_per_s"] == 0
    assert meter.figures()["eta_s"] is None


def test_few_and_long_traces_are_looked_at_over_a_longer_time() -> None:
    clock = Clock()
    meter = fixed(clock)
    for _ in range(20):
        clock.now += 100
        meter.bought(trace(tokens=32_000))
    figures = meter.figures()
    assert figures["tokens_per_s"] == pytest.approx(320, rel=0.2)
    assert figures["window_s"] >= 600


def test_tokens_under_way_count_where_the_engine_tells_of_them() -> None:
    clock = Clock()
    meter = fixed(clock)
    meter.bought(trace(tokens=100))
    meter.streamed(100)
    for _ in range(10):
        clock.now += 1
        meter.streamed(50)
    assert meter.figures()["tokens_per_s"] == 60
    assert meter.figures()["tokens_under_way"] == 500
    assert view(meter.figures(), 10)[1] == "60 tokens/s  600 tokens"
    before = meter.figures()["tokens_to_come"]
    meter.streamed(200)
    assert meter.figures()["tokens_to_come"] == before - 200


def test_a_continuation_counts_its_new_tokens_and_no_further_trace() -> None:
    meter = fixed(Clock())
    meter.bought(trace(tokens=100, cost=1.0, finish_reason="length"))
    meter.bought(trace(tokens=250, cost=2.5, segment=1), tokens=150, cost=1.5)
    figures = meter.figures()
    assert (figures["traces"], figures["truncated"]) == (1, 1)
    assert (figures["tokens"], figures["cost"]) == (250, 2.5)


def test_adaptive_figures() -> None:
    clock = Clock()
    meter = adaptive(clock, prices=(1, 1))
    for index, good in enumerate([True, False, True, True]):
        meter.bought(trace("easy", index, cost=1.0))
        meter.graded("easy", index, grade("correct" if good else "wrong"), good)
    clock.now += 10
    meter.stopped("easy", "enough", 3, 2)
    meter.graded("easy", 4, grade(), True)
    meter.bought(trace("hard", 0, cost=1.0))
    meter.graded("hard", 0, grade("truncated"), False)
    meter.stopped("gone", "hopeless", 16, 0)
    meter.stopped("gone", "hopeless", 16, 0)
    figures = meter.figures()
    assert figures["problems_done"] == 2
    assert (figures["graded"], figures["accepted"], figures["surplus"]) == (20, 2, 2)
    assert figures["stopped"] == {"enough": 1, "hopeless": 1}
    assert figures["pass_rates"] == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert figures["tokens_per_accepted"] == 250
    assert figures["outcomes"] == {"correct": 4, "wrong": 1, "truncated": 1}


def test_what_adaptive_sampling_will_take_is_bounded_by_max_and_budget() -> None:
    clock = Clock()
    meter = adaptive(clock)
    assert meter.figures()["traces_to_come"] is None
    for i in range(4):
        meter.bought(trace("a", i))
        meter.graded("a", i, grade(), i % 2 == 0)
    # Half are accepted: 10 problems x 2, less the 2 that are here, at two tries each.
    assert meter.figures()["traces_to_come"] == 36
    assert meter.figures()["tokens_to_come"] == 3600
    for i in range(60):
        meter.graded("b", i, grade("wrong"), False)
    assert meter.figures()["traces_to_come"] == 160 - 64
    bounded = adaptive(clock, budget_tokens=500, budget_cost=1.0, prices=(1, 1))
    bounded.bought(trace("a", cost=0.25))
    bounded.graded("a", 0, grade(), True)
    assert bounded.figures()["tokens_to_come"] == 400
    assert bounded.figures()["cost_to_come"] == 0.75
    for name in "abcdefghij":
        meter.stopped(name, "most", 16, 0)
    assert meter.figures()["traces_to_come"] == 0


def test_the_file_gets_a_line_every_30_seconds_one_a_round_and_one_at_the_end(
    tmp_path: Path,
) -> None:
    clock = Clock()
    with adaptive(clock, tmp_path) as meter:
        meter._stop.set()
        for _ in range(100):
            clock.now += 1
            meter.bought(trace())
            meter.tick()
        meter.round(number=1, budget=12.5)
        meter.servers([{"url": "http://a", "up": True}, {"url": "http://b", "up": False}])
    rows = read_metrics(tmp_path / FILE)
    assert [row["event"] for row in rows] == ["start", "tick", "tick", "tick", "round", "end"]
    assert [row["seconds"] for row in rows] == [0, 30, 60, 90, 100, 100]
    assert rows[0]["time"] == "2023-11-14T22:13:20+00:00"
    assert rows[4]["round"] == {"number": 1, "budget": 12.5}
    assert rows[-1]["servers"][1] == {"url": "http://b", "up": False}
    assert rows[-1]["traces"] == 100
    meter.close()
    assert len(read_metrics(tmp_path / FILE)) == 6


def test_a_torn_line_and_a_full_disk_end_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(b'{"event":"start"}\n{"event":"ti')
    adaptive(Clock(), tmp_path).close()
    assert [row["event"] for row in read_metrics(tmp_path / FILE)] == ["start", "end"]
    full = tmp_path / "full"
    full.mkdir()
    (full / FILE).symlink_to("/dev/full")
    with adaptive(Clock(), full) as meter:
        meter.bought(trace())
        meter.round(number=1)
    assert caplog.text.count("no more metrics are written") == 1
    assert meter.figures()["traces"] == 1


KILLED = """
import sys, time
from pathlib import Path
from distill.meter import Meter
from distill.records import Trace
with Meter(Path(sys.argv[1]), None, problems=1, wanted=10**9, every_s=0.02) as meter:
    print("ready", flush=True)
    while True:
        meter.bought(Trace(problem_id="p", index=0, completion_tokens=7))
        time.sleep(0.001)
"""


@pytest.mark.slow
def test_what_a_killed_run_wrote_is_whole_and_the_next_goes_on_below(tmp_path: Path) -> None:
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        size = os.path.getsize(tmp_path / FILE)
        while os.path.getsize(tmp_path / FILE) < size + 3000:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    lines = (tmp_path / FILE).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["event"] for row in rows].count("start") == 2
    assert rows[-1]["tokens"] == 7 * rows[-1]["traces"] > 0


def test_many_threads_lose_no_event() -> None:
    with Meter(None, None, problems=10, wanted=10**6, want=1) as meter:

        def work(name: str) -> None:
            for i in range(2000):
                meter.bought(trace(name, i, tokens=3))
                meter.streamed(3)
                meter.graded(name, i, grade(), i % 2 == 0)
            meter.stopped(name, "enough", 2000, 1000)

        threads = [threading.Thread(target=work, args=(f"p{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    figures = meter.figures()
    assert (figures["traces"], figures["tokens"]) == (16_000, 48_000)
    assert (figures["graded"], figures["accepted"], figures["surplus"]) == (16_000, 8_000, 0)
    assert figures["problems_done"] == 8


def test_the_view(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTILL_PROGRESS", raising=False)
    clock = Clock()
    with Progress("sample", None, clock=clock) as progress:
        meter = Meter(None, progress, problems=4, wanted=64, want=2, prices=(0, 3), clock=clock)
        for i in range(3):
            clock.now += 20
            meter.bought(trace("a", i, tokens=4000, cost=0.012))
            meter.graded("a", i, grade(), i != 1)
        meter.stopped("a", "enough", 3, 2)
        meter.retried()
        meter.failed()
        meter.servers({"servers": [{"up": True}, {"up": False}], "waiting": 3})
        assert progress.block() == [
            "sample  1/4 problems 25%  1:00  about 3:00 left",
            "accepted 2 of 3  200 tokens/s  12,000 tokens  6,000 tokens an accepted trace",
            "pass rate 0 ▁▁▁▁▁▁▁█▁▁▁ 1  cost 0.036  about 0.108 to come",
            "failed 1  retries 1  servers 1/2 up",
        ]
        meter.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sample  0  0s"
    assert lines[-1].startswith("sample  1/4 problems 25%  1:00  about 3:00 left  accepted 2 of 3")


def test_the_view_of_a_fixed_number_says_nothing_of_grades(capsys: Any) -> None:
    clock = Clock()
    progress = Progress("sample", None, clock=clock)
    meter = Meter(None, progress, problems=5, wanted=10, clock=clock)
    meter.reused(trace())
    clock.now += 10
    meter.bought(trace())
    assert progress.block() == [
        "sample  2/10 traces 20%  10s  about 1:20 left",
        "10 tokens/s  200 tokens",
    ]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=11))
def test_bars_are_as_many_as_counts_and_only_zero_is_flat(counts: list[int]) -> None:
    drawn = bars(counts)
    assert len(drawn) == len(counts)
    assert [char == "▁" for char in drawn] == [count == 0 for count in counts]
    assert max(counts) == 0 or drawn[counts.index(max(counts))] == "█"


@pytest.mark.parametrize(
    ("accepted", "tries", "bin_"),
    [
        (0, 0, 0),
        (0, 9, 0),
        (1, 16, 1),
        (1, 10, 1),
        (3, 10, 3),
        (31, 100, 4),
        (9, 10, 9),
        (4, 4, 10),
    ],
)
def test_bins_of_pass_rates(accepted: int, tries: int, bin_: int) -> None:
    assert tenth(accepted, tries) == bin_


def test_a_problem_without_a_try_has_no_pass_rate() -> None:
    meter = adaptive(Clock())
    meter.stopped("gone", "failed", 0, 0)
    meter.graded("hard", 0, grade("wrong"), False)
    meter.stopped("hard", "most", 1, 0)
    assert meter.figures()["pass_rates"] == [1] + [0] * 10
    assert meter.figures()["stopped"] == {"failed": 1, "most": 1}


def test_amounts() -> None:
    assert [money(a) for a in (0, 0.0123456, 12.5, 98765.4)] == [
        "0.00",
        "0.0123",
        "12.50",
        "98,765.40",
    ]


def test_figures_are_json_and_the_view_takes_them_back() -> None:
    figures = adaptive(Clock()).figures()
    assert view(json.loads(json.dumps(figures)), 5) == ["5s  no token yet"]


def test_an_outage_is_seen_though_nothing_arrives() -> None:
    up = [True]
    meter = Meter(None, None, problems=1, wanted=1)
    meter.watch(lambda: {"servers": [{"url": "http://a", "up": up[0]}]})
    meter.tick()
    assert meter.figures()["servers"] == [{"url": "http://a", "up": True}]
    up[0] = False
    meter.tick()
    assert meter.figures()["servers"] == [{"url": "http://a", "up": False}]


def test_a_teacher_that_cannot_tell_of_its_servers_ends_nothing() -> None:
    meter = Meter(None, None, problems=1, wanted=1)
    meter.watch(lambda: 1 / 0)
    meter.tick()
    assert meter.figures()["servers"] == []
