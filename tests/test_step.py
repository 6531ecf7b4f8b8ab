"""Steps: done once, reused, checked, locked, resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from distill.errors import StoreError
from distill.step import DONE, Step, Workspace, exclusive


def work_of(text: str, calls: list[Path]):  # type: ignore[no-untyped-def]
    def work(out: Path) -> None:
        calls.append(out)
        (out / "result.txt").write_text(text)

    return work


def test_a_done_step_is_not_done_again(tmp_path: Path) -> None:
    space, calls = Workspace(tmp_path), []
    step = Step("grade", {"a": 1})
    first = space.run(step, work_of("x", calls))
    again = space.run(step, work_of("x", calls))
    assert len(calls) == 1
    assert (first.reused, again.reused) == (False, True)
    assert first.folder == again.folder
    assert first.folder.name.startswith("grade-")


def test_identity_covers_config_inputs_and_version() -> None:
    step = Step("grade", {"a": 1}, {"traces": Step("sample", {"n": 4})}, "1")
    same = Step("grade", {"a": 1}, {"traces": Step("sample", {"n": 4})}, "1")
    assert step.identity == same.identity
    others = [
        Step("grade", {"a": 2}, step.inputs, "1"),
        Step("grade", {"a": 1}, {"traces": Step("sample", {"n": 5})}, "1"),
        Step("grade", {"a": 1}, step.inputs, "2"),
        Step("filter", {"a": 1}, step.inputs, "1"),
    ]
    assert len({step.identity, *(other.identity for other in others)}) == 5


@pytest.mark.parametrize("damage", ["change", "delete", "marker", "torn marker"])
def test_a_damaged_result_is_noticed_and_made_again(tmp_path: Path, damage: str) -> None:
    space, calls = Workspace(tmp_path), []
    step = Step("grade", {})
    folder = space.run(step, work_of("good", calls)).folder
    result, marker = folder / "result.txt", folder / DONE
    if damage == "change":
        result.write_text("evil")
    elif damage == "delete":
        result.unlink()
    elif damage == "marker":
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "identity": "other"}))
    else:
        marker.write_text(marker.read_text()[:40])
    assert not space.run(step, work_of("good", calls)).reused
    assert result.read_text() == "good"
    assert len(calls) == 2


def test_a_touched_but_equal_file_is_believed(tmp_path: Path) -> None:
    space, calls = Workspace(tmp_path), []
    folder = space.run(Step("grade", {}), work_of("x", calls)).folder
    os.utime(folder / "result.txt", (1, 1))
    assert space.run(Step("grade", {}), work_of("x", calls)).reused


def test_an_interrupted_step_keeps_its_folder_and_has_no_marker(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    step = Step("train", {})

    def interrupted(out: Path) -> None:
        (out / "checkpoint").write_text("half way")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        space.run(step, interrupted)
    assert not space.is_done(step)

    def goes_on(out: Path) -> None:
        assert (out / "checkpoint").read_text() == "half way"

    space.run(step, goes_on)
    assert space.is_done(step)


def test_scratch_is_no_part_of_the_result(tmp_path: Path) -> None:
    space = Workspace(tmp_path)

    def work(out: Path) -> None:
        (out / "checkpoints").mkdir()
        (out / "checkpoints" / "1.bin").write_text("x")
        (out / "model").mkdir()
        (out / "model" / "weights").write_text("y")

    folder = space.run(Step("train", {}), work).folder
    assert list(json.loads((folder / DONE).read_text())["files"]) == ["model/weights"]


def test_a_second_worker_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with (
        exclusive(lock, "the pool"),
        pytest.raises(StoreError, match=str(os.getpid())),
        exclusive(lock, "the pool"),
    ):
        pass
    with exclusive(lock, "the pool"):
        assert lock.read_text() == str(os.getpid())
