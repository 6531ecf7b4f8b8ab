"""One row over several processes: the same training, whatever the number."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import UsageError
from distill.students.context import Context, split
from distill.students.hardware import hardware
from distill.students.sft import SFT
from tests import tiny_students
from tests.test_students_sft import alike, weights


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(2, 4))
def test_the_parts_of_a_row_are_the_row(lengths: list[int], size: int) -> None:
    total = sum(lengths)
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    row = torch.arange(total)[None]
    batch = {"input_ids": row, "labels": row, "position_ids": row, "cu_seq_lens_q": bounds}
    parts = [split(batch, size, part, pad=-1) for part in range(size)]
    assert len({part["input_ids"].shape for part in parts}) == 1
    seen = torch.cat([part["input_ids"].flatten() for part in parts])
    assert sorted(i for i in seen.tolist() if i >= 0) == list(range(total))
    assert (parts[0]["labels"][parts[0]["input_ids"] < 0] == -100).all()
    assert int(parts[0]["cu_seq_lens_q"][-1]) == parts[0]["input_ids"].shape[1] * size


def test_everyone_attends_about_equally_much() -> None:
    work = []
    for part in range(4):
        chunks = Context(None, 4, part).mine(64)
        work.append(sum(i + 1 for start, end in chunks for i in range(start, end)))
    assert max(work) == min(work)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_parallel": 2}, "of 1 in all"),
        ({"context_parallel": 1, "packing": False}, ""),
    ],
)
def test_what_cannot_be_split_is_refused(changes: dict[str, object], message: str) -> None:
    train = {"packing": True, **changes}
    if not message:
        assert hardware(train).context == 1
        return
    with pytest.raises(UsageError, match=message):
        hardware(train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"packing": False}, "packing is false"), ({"attention": "sdpa"}, "attention: sdpa")],
)
def test_other_layouts_cannot_be_split(
    changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=message):
        hardware({"packing": True, "context_parallel": 2, **changes})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_that_share_rows_train_the_same_student(tmp_path: Path) -> None:
    base = tiny_students.base(tmp_path / "base", "qwen2")
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 21)
    one = SFT().train(data, tmp_path / "one", tiny_students.config(base))
    shared = {"processes": 2, "context_parallel": 2, "gradient_checkpointing": True}
    two = SFT().train(data, tmp_path / "two", tiny_students.config(base, **shared))
    alike(weights(one), weights(two), base)
    losses = [
        [json.loads(row)["loss"] for row in (tmp_path / run / "log.jsonl").open()]
        for run in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
