"""Which attention a model gets, and that no example sees another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import DistillError, UsageError
from distill.students.attention import VARLEN, leaks, unpackable
from distill.students.hardware import hardware, layout_of, packing_note
from distill.students.packing import balance, cost, share
from distill.students.sft import SFT
from tests import tiny_students
from tests.test_students_packing import tiny


def config(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **changes)


@pytest.mark.parametrize(
    ("kind", "attention", "layout"),
    [
        ("llama", VARLEN, "flat"),
        ("qwen3", VARLEN, "flat"),
        ("gemma2", "eager", "rectangle"),
        ("mamba2", "sdpa", "padded"),
        ("qwen3_next", "sdpa", "padded"),
    ],
)
def test_attention_and_layout_fit_the_model(kind: str, attention: str, layout: str) -> None:
    train = {"packing": True}
    found = hardware(train, config(kind))
    assert (found.attention, layout_of(True, found.attention, config(kind))) == (attention, layout)
    assert bool(packing_note(train, config(kind))) == (layout == "padded")
    assert hardware({"packing": True, "attention": "sdpa"}, config(kind)).attention == "sdpa"


def test_rows_are_tried_for_leaks() -> None:
    assert leaks(tiny("qwen2", VARLEN), "flat") == 0
    assert leaks(tiny("qwen2", "sdpa"), "rectangle") == 0
    assert leaks(tiny("qwen2", VARLEN), "rectangle") > 0.01  # bounds are not handed over
    assert "linear_attention" in unpackable(config("mamba2"))


def test_a_model_that_leaks_is_not_packed(tmp_path: Path) -> None:
    sizes = {"word_embed_proj_dim": 32, "ffn_dim": 64, "init_std": 0.5}
    base = tiny_students.base(tmp_path / "base", "opt", **sizes)
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 4)
    told = tiny_students.config(base, attention="sdpa", student__template="plain", max_steps=1)
    with pytest.raises(UsageError, match="examples in one row of a opt model see each other"):
        SFT().train(data, tmp_path / "out", told)


def test_what_it_cannot_compute_is_refused() -> None:
    model = tiny("gemma2", VARLEN)
    with pytest.raises(DistillError, match="softcap"):
        model(input_ids=torch.arange(8)[None])


def test_generation_with_padding_is_that_of_sdpa() -> None:
    ids = torch.arange(2 * 9).reshape(2, 9) + 5
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    made = [
        tiny("mistral", name, sliding_window=5).eval()(input_ids=ids, attention_mask=mask).logits
        for name in (VARLEN, "sdpa")
    ]
    torch.testing.assert_close(made[0][:, 4:], made[1][:, 4:])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bf16_and_checkpoints_stay_near(checkpointing: bool) -> None:
    ids = torch.randint(0, 259, (1, 40), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, 13, 40], dtype=torch.int32)
    positions = torch.cat([torch.arange(13), torch.arange(27)])[None]
    sides = []
    for dtype in (torch.bfloat16, torch.float32):
        model = tiny("qwen2", VARLEN, initializer_range=0.1).to(dtype)
        if checkpointing and dtype == torch.bfloat16:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        packed = {"cu_seq_lens_q": bounds, "max_length_q": 27, "position_ids": positions}
        logits = model(input_ids=ids, use_cache=False, **packed).logits
        logits.float().logsumexp(-1).sum().backward()
        sides.append((logits.float(), model.model.layers[0].self_attn.q_proj.weight.grad.float()))
    for one, other in zip(*sides, strict=True):
        assert float((one - other).norm()) <= 0.05 * float(other.norm())


def test_autocast_attends_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 weights under autocast: RoPE leaves queries in fp32, the values are bf16."""
    from distill.students import attention

    seen = []
    inner = attention._by_example

    def by_example(query: Any, key: Any, value: Any, *args: Any) -> Any:
        seen.append({query.dtype, key.dtype, value.dtype})
        return inner(query, key, value, *args)

    monkeypatch.setattr(attention, "_by_example", by_example)
    bounds = torch.tensor([0, 5, 12], dtype=torch.int32)
    packed = {"cu_seq_lens_q": bounds, "max_length_q": 7, "use_cache": False}
    with torch.autocast("cpu", torch.bfloat16):
        tiny("llama", VARLEN)(input_ids=torch.arange(12)[None], **packed)
    assert seen == [{torch.bfloat16}] * 2


def test_long_tails_are_shared_by_cost() -> None:
    """One example of half of all tokens: its squared length counts, not only its tokens."""
    lengths = [4000, *[200] * 20, *[100] * 20]
    square = 1 / (12 * 64)
    parts = balance(range(len(lengths)), lengths, 4096, 2, square)
    shares = share(parts, lengths, 2, square)
    work = [sum(cost(m.rows, lengths, square) for m in mine) for mine in shares]
    assert len(shares[0]) == len(shares[1])
    # Equally many passes: beside the long one goes the cheapest row, not one like the others.
    assert max(work) <= 1.15 * cost([[0]], lengths, square)
    even = [300] * 64
    parts = share(balance(range(64), even, 4096, 4, square), even, 4, square)
    work = [sum(cost(m.rows, even, square) for m in mine) for mine in parts]
    assert max(work) <= 1.01 * min(work)


@pytest.mark.slow
def test_packed_and_padded_train_alike(tmp_path: Path) -> None:
    """Loss parity: the same updates whatever the layout, to rounding."""
    base = tiny_students.base(tmp_path / "base")
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 21)
    found = []
    for name, changes in (
        ("flat", {}),
        ("rectangle", {"attention": "sdpa"}),
        ("padded", {"packing": False}),
    ):
        out = tmp_path / name
        SFT().train(data, out, tiny_students.config(base, **changes))
        assert json.loads((out / "summary.json").read_text())["layout"] == name
        found.append([json.loads(row)["loss"] for row in (out / "log.jsonl").open()])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] == pytest.approx(found[2], rel=1e-4)
