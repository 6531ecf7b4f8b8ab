"""Checkpoints: whole or not at all, the best one kept, and read back as they were written."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.errors import DataError, DistillError, UsageError
from distill.students import checkpoints, keeping, saving
from distill.students.sft import SFT, Job
from distill.students.validation import Validation
from tests import tiny_students


def write(folder: Path, step: int, size: int = 100) -> Path:
    """A sealed checkpoint of one file."""
    path = folder / f"checkpoint-{step}"
    (path / "state").mkdir(parents=True)
    (path / "state" / "__0_0.distcp").write_bytes(b"x" * size)
    checkpoints.seal(path, step, world=1)
    return path


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def weights(student: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(student / "model.safetensors")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_students.base(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_students.dataset(tmp_path / "dataset.jsonl", 21)


def test_half_written_checkpoints_are_removed(tmp_path: Path) -> None:
    good, torn, lost, unsealed, renamed = (write(tmp_path, n) for n in (5, 10, 15, 20, 25))
    (torn / "state" / "__0_0.distcp").write_bytes(b"x" * 99)
    (lost / "state" / "__0_0.distcp").unlink()
    (unsealed / checkpoints.SEAL).unlink()
    renamed.rename(tmp_path / "checkpoint-30")
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints.last_complete(tmp_path) == good
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["checkpoint-5", "checkpoint-best"]


@pytest.mark.parametrize("text", ["", "[]", '{"step": 5}', '{"step": 5, "files": {}}', "\0"])
def test_a_seal_that_says_nothing_is_no_seal(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, 5)
    (path / checkpoints.SEAL).write_text(text)
    assert checkpoints.damage(path) is not None


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10, 100):
        write(tmp_path, step)
    checkpoints.prune(tmp_path, 2, {2})
    assert [checkpoints.step_of(p) for p in checkpoints.all_of(tmp_path)] == [2, 10, 100]


def trained(seed: int, steps: int) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2, bias=False))
    model[1].weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    go_on(model, optimizer, steps)
    return model, optimizer


def go_on(model: Any, optimizer: Any, steps: int) -> None:
    for step in range(steps):
        model(torch.full((4, 3), step + 1.0)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_weights_and_optimizer_come_back(tmp_path: Path) -> None:
    model, optimizer = trained(0, 5)
    checkpoints.write(tmp_path, model, optimizer)
    other, its = trained(1, 2)
    other[1].weight.data = model[1].weight.data  # what is not trained comes from the base
    checkpoints.read(tmp_path, other, its)
    for one, another in ((model, optimizer), (other, its)):
        go_on(one, another, 3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_of_is_a_folder_of_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    model, optimizer = trained(0, 1)
    checkpoints.write(tmp_path, model, optimizer)
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 30)
    folder = checkpoints.weights_of(tmp_path)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 2
    found = {k: v for file in files for k, v in load_file(file).items()}
    assert found.keys() == {"0.weight", "0.bias"}
    for name, value in found.items():
        assert torch.equal(value, model.get_parameter(name))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert checkpoints.weights_of(tmp_path) == folder


def measured(losses: list[float], **settings: Any) -> tuple[Validation, list[int]]:
    """A validation over `losses` (the first is the base's), and the updates that were saved."""
    told = iter(losses)
    progress: Any = SimpleNamespace(validated=lambda step, loss: None)
    seen = Validation(lambda: next(told), len(losses) - 1, progress, **settings)
    saved = []
    seen.on_train_begin(None, SimpleNamespace(global_step=0), None)
    for step in range(1, len(losses)):
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        seen.on_step_end(None, SimpleNamespace(global_step=step), control)
        saved += [step] * control.should_save
        if control.should_training_stop:
            break
    return seen, saved


def test_best_is_the_first_of_equals_and_never_the_base() -> None:
    seen, saved = measured([1.0, 5.0, 4.0, 4.0, 6.0], keep_best=True)
    assert (seen.best, saved, seen.stopped) == (2, [1, 2], None)
    assert measured([1.0, float("nan"), 7.0], keep_best=True)[0].best == 2
    assert measured([1.0, float("nan")])[0].best is None


def test_patience_counts_measurements_without_a_lower_loss() -> None:
    seen, saved = measured([9.0, 5.0, 4.0, 4.0, 6.0, 1.0], patience=2)
    assert (seen.best, seen.stopped, max(seen.losses), saved) == (2, 4, 4, [4])
    assert measured([9.0, 5.0, 6.0, 4.0, 6.0, 3.0], patience=2)[0].stopped is None


def test_what_nothing_decides_is_refused(tmp_path: Path, base: Path, data: Path) -> None:
    for change in ({"keep": "best"}, {"early_stop": 2}):
        with pytest.raises(UsageError, match="no examples to measure it on"):
            SFT().train(data, tmp_path / "out", tiny_students.config(base, **change))
    with pytest.raises(UsageError, match="both say which"):
        keeping.check({"keep": "best", "average": 3}, "some.jsonl")
    long = tiny_students.config(base, keep="best") | {"validation": str(tmp_path / "long.jsonl")}
    rows = [tiny_students.example(1, 2, words=100)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="go by the validation loss"):
        SFT().train(data, tmp_path / "out", long)


def test_a_recipe_is_refused_before_anything_is_paid_for(tmp_path: Path) -> None:
    from distill.agreement import check_agreement
    from distill.recipe import Recipe

    def asked(**sections: Any) -> Recipe:
        return Recipe.from_dict({"name": "x", **sections})

    for train in ({"keep": "best"}, {"early_stop": 3}):
        with pytest.raises(UsageError, match="no examples to measure it on"):
            check_agreement(asked(train=train))
        check_agreement(asked(train=train, select={"validation": 0.1}))
    with pytest.raises(UsageError, match="there is no file"):
        check_agreement(asked(train={"keep": "best", "development": "none.jsonl"}))
    (tmp_path / "dev.jsonl").write_text("")
    check_agreement(asked(train={"keep": "best", "development": str(tmp_path / "dev.jsonl")}))
    with pytest.raises(UsageError, match="both say which"):
        check_agreement(asked(train={"keep": "best", "average": 2}, select={"validation": 5}))
    with pytest.raises(UsageError, match="4 bits"):
        check_agreement(asked(train={"shard": "fsdp"}, student={"method": "qlora"}))


def test_what_decides_is_part_of_the_identity(tmp_path: Path, base: Path, data: Path) -> None:
    def identity(text: str, **changes: Any) -> str:
        (tmp_path / "held.jsonl").write_text(text)
        config = tiny_students.config(base, **changes) | {
            "validation": str(tmp_path / "held.jsonl")
        }
        return Job(data, tmp_path / "out", config).fingerprint

    assert identity("a") == identity("b") == identity("a", save_every=7)
    assert identity("a", keep="best") != identity("b", keep="best")
    assert identity("a", keep="best") == identity("a", keep="best", save_every=7)
    assert identity("a", average=2) != identity("a", average=2, save_every=7)


class Interrupted(Exception):
    pass


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, *call: Any) -> None:
    """Train until the update after `after` has been passed, and stop like an error would."""
    from distill.students.progress import Progress

    count, seen = Progress.on_update, []

    def stop(self: Progress, tokens: int, *more: Any) -> None:
        count(self, tokens, *more)
        seen.append(tokens)
        if len(seen) > after:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_update", stop)
        with pytest.raises(Interrupted):
            SFT().train(*call)


@pytest.mark.slow
def test_the_best_checkpoint_is_the_student_also_after_an_interruption(
    tmp_path: Path, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sums teach how answers look, and then, ever more, that there are no foxes in them.
    rows = [tiny_students.example(7, 8)] * 4
    for row in rows:
        row["messages"][1]["content"] = "<think>\nquick brown fox\n</think>\n\njumps over"
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"learning_rate": 0.03, "epochs": 4}
    config = tiny_students.config(base, save_every=3, keep="best", **changes)
    config["validation"] = str(held)
    student = SFT().train(data, tmp_path / "whole", config)
    told = summary(tmp_path / "whole")
    rows = [json.loads(r) for r in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["validation_loss"] for r in rows if "validation_loss" in r}
    best = min((loss, step) for step, loss in losses.items() if step)[1]
    assert told["kept_update"] == best < told["updates"] == 12
    assert "lowest validation loss" in told["kept_why"]
    short = SFT().train(data, tmp_path / "short", tiny_students.config(base, **changes))
    assert not all(torch.equal(v, weights(short)[k]) for k, v in weights(student).items())
    interrupted(monkeypatch, best + 4, data, tmp_path / "cut", config)
    again = SFT().train(data, tmp_path / "cut", config)
    assert summary(tmp_path / "cut")["resumed_from"] > best
    assert summary(tmp_path / "cut")["kept_update"] == best
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(student).items())
    stop = {**config, "train": {**config["train"], "early_stop": 1, "keep": "last"}}
    SFT().train(data, tmp_path / "stopped", stop)
    told = summary(tmp_path / "stopped")
    assert told["updates"] == told["kept_update"] < told["planned_updates"] == 12
    assert any(note.startswith("stopped after") for note in told["notes"])


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_complete_checkpoint(
    tmp_path: Path, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_students.config(base, save_every=2)
    limit, seal = resource.getrlimit(resource.RLIMIT_FSIZE), checkpoints.seal

    def sealed(path: Path, step: int, **more: Any) -> None:
        seal(path, step, **more)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "seal", sealed)
        try:
            with pytest.raises(DistillError, match="checkpoint of update 4 could not be written"):
                SFT().train(data, tmp_path / "out", config)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    left = [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()]
    assert left == ["checkpoint-2"]
    SFT().train(data, tmp_path / "out", config)
    assert summary(tmp_path / "out")["resumed_from"] == 2


@pytest.mark.slow
def test_out_of_memory_says_what_was_tried(
    tmp_path: Path, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.students.trainer import UpdateTrainer

    config, loss, seen = tiny_students.config(base, save_every=1, max_steps=2), None, []
    loss = UpdateTrainer.compute_loss

    def hungry(self: Any, *args: Any, **kw: Any) -> Any:
        seen.append(1)
        if self.state.global_step == 1:
            torch.empty(1 << 60)
        return loss(self, *args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(UpdateTrainer, "compute_loss", hungry)
        with pytest.raises(DistillError, match="out of memory in update 2, with examples") as told:
            SFT().train(data, tmp_path / "out", config)
    assert "micro_batch_tokens 512" in str(told.value)
    assert "method full" in str(told.value)
    SFT().train(data, tmp_path / "out", config)
    assert summary(tmp_path / "out")["resumed_from"] == 1


def test_other_errors_are_not_called_out_of_memory() -> None:
    with pytest.raises(ValueError, match="shapes"), saving.memory("here", "so"):
        raise ValueError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes"), saving.memory("here", "so"):
        raise RuntimeError("shapes differ")
    with pytest.raises(DistillError, match="out of memory here"), saving.memory("here", "so"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(DistillError, match="MemoryError"), saving.memory("here", "so"):
        raise MemoryError
