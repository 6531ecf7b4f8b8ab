"""`distill push`: what goes, what is said of it, and what happens when the hub refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.cli import main
from distill.errors import DistillError, UsageError
from distill.push import Parcel, left_at_home, pack, send
from tests import fake_hub
from tests.make_run import make_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made"), problems=8)


@pytest.fixture
def run(tmp_path: Path, made: Path) -> Path:
    """A finished run; of its student only what a push looks at."""
    shutil.copytree(made.parent, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / made.name
    train = json.loads((folder / "run.json").read_text())["steps"]["train"]["folder"]
    student = tmp_path / train / "student"
    student.mkdir(exist_ok=True)
    (student / "config.json").write_text('{"model_type": "llama"}')
    (student / "model.safetensors").write_bytes(b"weights" * 100)
    (student / "README.md").write_text(
        "---\nbase_model: owner/base\nlicense: apache-2.0\ntags: [distill]\n---\n\n# student\n"
    )
    (student / "training_args.bin").write_bytes(b"a pickle")
    (student / ".hidden").write_text("not for others")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.Hub]:
    from huggingface_hub import constants

    with fake_hub.hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        yield server


def names(parcel: Parcel) -> set[str]:
    return {name for name, _ in parcel.files}


def test_a_dry_run_says_what_would_go(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "me/student", "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "model me/student, private; nothing was uploaded" in told.out
    assert "700  model.safetensors" in told.out
    assert 'license: "apache-2.0"' in told.out
    assert "training_args" not in told.out
    assert ".hidden" not in told.out
    assert "big-teacher-671b" in told.err  # nobody knows whether its terms allow this


def test_json_of_a_dry_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "student", "--dry-run", "--public", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["visibility"] == "public"
    assert told["card"]["base_model"] == "owner/base"
    assert told["bytes"] == sum(told["files"].values())


def test_student_arrives_whole(run: Path, hub: fake_hub.Hub) -> None:
    address = send(pack(run, "me/student"))
    assert address == f"{hub.url}/me/student"
    repo = hub.repos["me/student"]
    assert repo["private"]
    assert set(repo["files"]) == {"README.md", "config.json", "model.safetensors"}
    assert repo["files"]["model.safetensors"] == b"weights" * 100


def test_data_goes_to_a_data_set(
    run: Path, hub: fake_hub.Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "me/traces", "--what", "data"]) == 0
    assert capsys.readouterr().out.strip() == f"{hub.url}/datasets/me/traces"
    assert set(hub.repos["me/traces"]["files"]) >= {"README.md", "train.parquet"}


def test_what_was_exported_goes_instead(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "a-f16.gguf").write_bytes(b"GGUF")
    parcel = pack(run, "me/a-gguf", "gguf", folder)
    assert names(parcel) == {"a-f16.gguf"}
    assert "the folder has no card (README.md)" in parcel.warnings


def test_an_interrupted_push_goes_on(run: Path, hub: fake_hub.Hub) -> None:
    hub.refuse, hub.times = {"/commit/": 413}, 1
    with pytest.raises(DistillError, match="HTTP 413") as told:
        send(pack(run, "me/student"))
    assert "the same command goes on" in told.value.hint
    before = sum(line.startswith("PUT") for line in hub.asked)
    send(pack(run, "me/student"))
    assert sum(line.startswith("PUT") for line in hub.asked) == before == 1  # not sent again
    assert "model.safetensors" in hub.repos["me/student"]["files"]


def test_a_second_push_brings_what_changed(run: Path, hub: fake_hub.Hub) -> None:
    send(pack(run, "student"))
    parcel = pack(run, "student")
    (parcel.folder / "new.json").write_text("{}")
    assert send(pack(run, "student")) == f"{hub.url}/me/student"
    assert "new.json" in hub.repos["me/student"]["files"]


def test_a_name_that_is_taken_is_refused(run: Path, hub: fake_hub.Hub) -> None:
    hub.repos["me/student"] = {"private": True, "tags": ["bert"], "files": {"config.json": b"{}"}}
    with pytest.raises(UsageError, match="taken"):
        send(pack(run, "me/student"))
    assert hub.repos["me/student"]["files"] == {"config.json": b"{}"}


def test_a_public_repository_is_not_filled_by_accident(run: Path, hub: fake_hub.Hub) -> None:
    send(pack(run, "me/student", public=True))
    with pytest.raises(UsageError, match="is public"):
        send(pack(run, "me/student"))


@pytest.mark.parametrize(
    ("status", "said", "hint"),
    [(401, "does not know you", "hf auth login"), (403, "may not write", "write access")],
)
def test_refusals_say_what_to_do(
    run: Path, hub: fake_hub.Hub, status: int, said: str, hint: str
) -> None:
    hub.refuse = {"/api/repos/create": status}
    with pytest.raises(DistillError, match=said) as told:
        send(pack(run, "me/student"))
    assert hint in told.value.hint


def test_a_hub_that_is_not_there(run: Path, hub: fake_hub.Hub, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DistillError, match=r"127.0.0.1:9 cannot be reached"):
        send(pack(run, "me/student"))


def test_offline_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "me/student"]) == 1
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_names_the_hub_does_not_allow(run: Path) -> None:
    with pytest.raises(UsageError, match="no name for the hub"):
        pack(run, "me/with space")


def test_a_run_without_a_student(tmp_path: Path) -> None:
    run = make_run(tmp_path, problems=8, steps=("problems", "sample", "grade"))
    with pytest.raises(UsageError, match="no student yet"):
        pack(run, "me/student")


def test_no_adapter_of_a_full_training(run: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        pack(run, "me/student", "adapter")


@pytest.mark.parametrize("name", ["optimizer.pt", "a/.git/config", "weights.pth", "x.pkl"])
def test_what_never_goes(name: str) -> None:
    assert left_at_home(name)


def test_llama_asks_for_its_name(run: Path) -> None:
    told = json.loads((run / "run.json").read_text())
    told["recipe"]["student"]["base"] = "meta-llama/Llama-3.1-8B"
    (run / "run.json").write_text(json.dumps(told))
    found = "\n".join(pack(run, "me/student").warnings)
    assert "does not begin with Llama" in found
    assert "Built with Llama" in found
    named = pack(run, "me/Llama-student").warnings
    assert not any("does not begin" in line for line in named)
