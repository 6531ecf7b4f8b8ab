"""The loss in pieces: the same number and gradients, and never the logits of all tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distill.students import head
from distill.students.head import add_nll_head
from tests.test_students_packing import tiny

CASES = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 3.0, "attn_logit_softcapping": None},
    "granite": {"logits_scaling": 2.0},
    "cohere": {"logit_scale": 0.5},
}


def batch(rows: int = 2, width: int = 19, vocab: int = 259) -> tuple[Any, Any]:
    made = torch.Generator().manual_seed(1)
    ids = torch.randint(0, vocab, (rows, width), generator=made)
    labels = ids.roll(-1, dims=1)
    labels[:, -1] = -100
    labels[:, :5] = -100
    return ids, labels


def losses(kind: str, changes: dict[str, Any]) -> tuple[Any, Any]:
    """Models after a backward pass: through the head in pieces, and through plain logits."""
    ids, labels = batch()
    ours, plain = tiny(kind, "eager", **changes), tiny(kind, "eager", **changes)
    add_nll_head(ours)
    one = ours(input_ids=ids, nll=labels, use_cache=False) * 0.5
    logits = plain(input_ids=ids, use_cache=False).logits.float()
    two = 0.5 * torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100
    )
    one.backward()
    two.backward()
    torch.testing.assert_close(one, two)
    return ours, plain


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [0, 16 << 20])
def test_pieces_give_the_loss_and_gradients_of_whole_logits(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CPU_LOGITS_BYTES", size)
    ours, plain = losses("llama" if name == "tied" else name, CASES[name])
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert float((one.grad - other.grad).norm()) <= 1e-4 * float(other.grad.norm()) + 1e-6


def test_bf16_autocast_stays_near() -> None:
    ids, labels = batch()
    ours, plain = tiny("qwen2", "sdpa"), tiny("qwen2", "sdpa")
    add_nll_head(ours)
    with torch.autocast("cpu", torch.bfloat16):
        one = ours(input_ids=ids, nll=labels, use_cache=False)
        logits = plain(input_ids=ids, use_cache=False).logits.float()
    two = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert one.dtype == torch.float32
    torch.testing.assert_close(one, two, rtol=2e-2, atol=0)
    one.backward()
    two.backward()
    weight, other = (m.get_output_embeddings().weight.grad for m in (ours, plain))
    assert weight.dtype == torch.float32
    assert float((weight - other).norm()) <= 0.05 * float(other.norm())


def test_nothing_to_train_has_zero_gradients() -> None:
    ids, labels = batch()
    model = tiny("llama", "sdpa")
    add_nll_head(model)
    model(input_ids=ids, nll=labels.fill_(-100), use_cache=False).backward()
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)


def test_frozen_head_gets_no_gradient() -> None:
    ids, labels = batch()
    model = tiny("llama", "sdpa", tie_word_embeddings=False)
    add_nll_head(model)
    model.get_output_embeddings().weight.requires_grad_(False)
    model(input_ids=ids, nll=labels, use_cache=False).backward()
    assert model.get_output_embeddings().weight.grad is None
    assert float(model.get_input_embeddings().weight.grad.abs().max()) > 0


def test_logits_of_a_row_never_exist() -> None:
    """A vocabulary of 152k: no operation makes more than a piece of the logits."""
    from torch.profiler import ProfilerActivity, profile

    vocab, tokens = 152_064, 64
    states = torch.randn(tokens, 8, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(vocab, 8))
    labels = torch.randint(0, vocab, (tokens,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        head._Nll.apply(states, weight, labels).backward()
    largest = max(event.self_cpu_memory_usage for event in seen.events())
    assert 0 < largest <= head.CPU_LOGITS_BYTES < tokens * vocab * 4 / 2
    assert head.piece(vocab, "cuda") * vocab * 4 <= head.GPU_LOGITS_BYTES
