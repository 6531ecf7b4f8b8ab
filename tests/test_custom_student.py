"""Students of your own: architectures that no catalog knows, and a trainer that is a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.errors import ModelError
from distill.resolve import resolve
from distill.students.loading import prepare
from distill.students.sft import SFT
from tests import tiny_students

DROPLESS = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, **DROPLESS},
    "gpt_neox": {},
    "gemma2": {"head_dim": 8, "sliding_window": 64},
    "olmo2": {},
    "phi": {"partial_rotary_factor": 0.5},
    "mistral": {},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
"""What transformers knows and the catalog does not, with the settings that make it tiny."""

MINE = '''
"""A student whose training is counting characters."""
import json, shutil
from pathlib import Path

class Mine:
    version = "1"

    def train(self, dataset, out, config):
        rows = [json.loads(line) for line in Path(dataset).read_text().splitlines()]
        student = Path(out) / "student"
        shutil.copytree(config["student"]["base"], student)
        told = {"examples": len(rows), "updates": 0, "tokens": 0, "notes": ["nothing was trained"]}
        (Path(out) / "summary.json").write_text(json.dumps(told))
        return student
'''


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method"),
    [*((kind, "full") for kind in ARCHITECTURES), ("gpt2", "lora"), ("qwen2_moe", "lora")],
)
def test_any_causal_model_trains(tmp_path: Path, kind: str, method: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny_students.base(tmp_path / "base", kind, **ARCHITECTURES[kind])
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 8)
    config = tiny_students.config(base, student__method=method, epochs=3, batch_size=4)
    student = SFT().train(data, tmp_path / "out", config)
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert told["template"] == "plain"
    assert told["updates"] == 6
    assert told["final_loss"] < losses(tmp_path / "out")[0] - 0.05
    model, words = (
        AutoModelForCausalLM.from_pretrained(student),
        AutoTokenizer.from_pretrained(student),
    )
    asked = words.apply_chat_template([{"role": "user", "content": "1+1=?"}], tokenize=False)
    assert model(**words(asked, return_tensors="pt")).logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_packing_changes_nothing_there_either(tmp_path: Path, kind: str) -> None:
    base = tiny_students.base(tmp_path / "base", kind, **ARCHITECTURES[kind])
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 8)
    found = []
    for packing in (True, False):
        out = tmp_path / f"packing-{packing}"
        SFT().train(data, out, tiny_students.config(base, max_steps=1, packing=packing))
        found.append(losses(out)[0])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_attention_that_an_architecture_lacks_is_refused_with_the_way_out(tmp_path: Path) -> None:
    base = tiny_students.base(tmp_path / "base", "bloom")
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 8)
    with pytest.raises(ModelError, match="attention") as told:
        SFT().train(data, tmp_path / "out", tiny_students.config(base))
    assert told.value.hint == "set train.attention: eager"


def test_what_is_no_causal_model_is_refused(tmp_path: Path) -> None:
    base = tiny_students.base(tmp_path / "base")
    told = json.loads((base / "config.json").read_text())
    told["model_type"] = "not-a-model"
    (base / "config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match="not-a-model"):
        prepare(tiny_students.config(base)["student"])


def test_a_trainer_is_a_class_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    base = tiny_students.base(tmp_path / "base")
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 3)
    mine = resolve("./mine.py:Mine", {}, what="trainer", folder=tmp_path)
    student = mine().train(data, tmp_path / "out", {"student": {"base": str(base)}})
    assert (student / "config.json").is_file()


@pytest.mark.slow
def test_a_run_with_a_trainer_of_ones_own(tmp_path: Path) -> None:
    from distill import Recipe, run

    (tmp_path / "mine.py").write_text(MINE)
    base = tiny_students.base(tmp_path / "base")
    rows = [
        {
            "problem": f"{a}+1=?",
            "answer": str(a + 1),
            "messages": tiny_students.example(a, 1)["messages"],
        }
        for a in range(12)
    ]
    traces = tmp_path / "traces.jsonl"
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.from_dict(
        {
            "name": "mine",
            "traces": {"file": str(traces), "format": "messages", "teacher": "DeepSeek-R1"},
            "problems": {"heldout": 0.2},
            "filters": [],
            "student": {"base": str(base), "trainer": f"{tmp_path}/mine.py:Mine"},
        }
    )
    report = run(recipe, until="train", runs=tmp_path / "runs")
    assert report.student is not None
    assert (report.student / "model.safetensors").is_file()
    assert any("nothing was trained" in note["note"] for note in report.numbers["notes"])
    card = (report.student / "README.md").read_text()
    assert "training other models on its outputs: allowed" in card
