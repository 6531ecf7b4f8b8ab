"""Children: results, errors that keep their kind, and death with the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distill import child
from distill.errors import DistillError, RecipeError, TeacherError


def add(payload: Mapping[str, Any]) -> int:
    return int(payload["a"] + payload["b"])


def refuse(payload: Mapping[str, Any]) -> None:
    raise RecipeError("bad value 7", "use 8")


def refuse_as_teacher(payload: Mapping[str, Any]) -> None:
    raise TeacherError("no answer", "try later", retry=True)


def crash(payload: Mapping[str, Any]) -> None:
    raise ZeroDivisionError("division by nothing")


def killed(payload: Mapping[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted(payload: Mapping[str, Any]) -> None:
    raise KeyboardInterrupt


def sleep_forever(payload: Mapping[str, Any]) -> None:
    Path(payload["pid"]).write_text(str(os.getpid()))
    time.sleep(600)


def call(name: str, **payload: Any) -> Any:
    return child.call(f"tests.test_child:{name}", payload)


def test_the_result_comes_back() -> None:
    assert call("add", a=2, b=3) == 5


def test_an_error_keeps_its_kind_message_hint_and_exit_code() -> None:
    with pytest.raises(RecipeError) as caught:
        call("refuse")
    assert (caught.value.message, caught.value.hint) == ("bad value 7", "use 8")
    assert caught.value.exit_code == 2
    with pytest.raises(TeacherError, match="no answer"):
        call("refuse_as_teacher")


def test_a_crash_is_told_without_a_traceback_which_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "errors.log"
    with pytest.raises(DistillError, match="ZeroDivisionError: division by nothing") as caught:
        child.call("tests.test_child:crash", {}, log_file=log)
    assert str(log) in caught.value.hint
    assert "Traceback" in log.read_text()


def test_a_killed_child_is_told_as_such() -> None:
    with pytest.raises(DistillError, match="was killed") as caught:
        call("killed")
    assert "memory" in caught.value.hint


def test_an_interrupt_travels_up() -> None:
    with pytest.raises(KeyboardInterrupt):
        call("interrupted")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "from distill import child; "
        f"child.call('tests.test_child:sleep_forever', {{'pid': {str(pid_file)!r}}})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
    for _ in range(300):
        if pid_file.exists() and pid_file.read_text():
            break
        time.sleep(0.1)
    pid = int(pid_file.read_text())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.1)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
