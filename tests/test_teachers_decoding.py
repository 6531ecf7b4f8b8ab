"""The fast batched decoder against the naive ones: HF generate, and a loop of one row at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from distill.teachers.decoding import ATTENTION, SHORTLIST, Decoder, Row, pick
from tests import char_models


@pytest.fixture(scope="module")
def tiny() -> Any:
    made = char_models.model()
    made.set_attn_implementation(ATTENTION)
    return made


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(7, 50) for _ in range(rng.randint(3, 14))] for _ in range(count)]


def decoder(model: Any, eos: Sequence[int] = (2,)) -> Decoder:
    return Decoder(model, eos=frozenset(eos), pad=0)


def generate(model: Any, ids: list[int], new: int, eos: int | None = 2) -> list[int]:
    """transformers' own greedy generation of one row."""
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return out[0, len(ids) :].tolist()


@torch.inference_mode()
def naive(model: Any, row: Row, eos: int = 2) -> list[int]:
    """One row, no cache, no batch: what the fast loop must reproduce."""
    generator = torch.Generator()
    generator.manual_seed(row.seed or 0)
    uniforms = torch.rand(row.limit, generator=generator)
    ids, out = list(row.ids), []
    for u in uniforms.tolist():
        logits = model(torch.tensor([ids])).logits[0, -1].double() / row.temperature
        ranked = sorted(range(len(logits)), key=lambda i: -logits[i].item())
        ranked = ranked[: row.top_k] if row.top_k else ranked
        weights = torch.softmax(logits[ranked], -1).tolist()
        kept, mass = 0, 0.0
        while mass < row.top_p and kept < len(ranked):
            mass += weights[kept]
            kept += 1
        target, rank, total = u * mass, 0, weights[0]
        while total <= target and rank + 1 < kept:
            rank += 1
            total += weights[rank]
        ids.append(ranked[rank])
        out.append(ranked[rank])
        if ranked[rank] == eos:
            break
    return out


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", {}),
        ("llama", {"num_key_value_heads": 4}),
        ("qwen3", {"num_key_value_heads": 1, "head_dim": 16}),
        ("mistral", {"sliding_window": 8}),
        ("gemma3_text", {"sliding_window": 8, "head_dim": 8, "query_pre_attn_scalar": 8}),
    ],
)
def test_greedy_batch_equals_hf_generate(kind: str, changes: dict[str, Any]) -> None:
    model = char_models.model(kind, **changes)
    rows = [Row(ids, limit=20, temperature=0) for ids in prompts(9)]
    expected = [generate(model, list(row.ids), 20) for row in rows]
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
    decoder(model).run(rows)
    assert [row.out for row in rows] == expected
    assert {row.finish_reason for row in rows} <= {"stop", "length"}


def test_families_with_windows_take_the_general_path(tiny: Any) -> None:
    assert decoder(tiny).fast
    assert not decoder(char_models.model("mistral", sliding_window=8)).fast


@pytest.mark.parametrize("top_k", [None, 5])
def test_sampling_equals_the_naive_loop(tiny: Any, top_k: int | None) -> None:
    rows = [
        Row(ids, limit=24, temperature=0.3 + 0.2 * (i % 4), top_p=0.8, top_k=top_k, seed=100 + i)
        for i, ids in enumerate(prompts(8))
    ]
    decoder(tiny).run(rows)
    assert [row.out for row in rows] == [naive(tiny, row) for row in rows]


def test_rows_that_leave_early_change_no_other(tiny: Any) -> None:
    def rows(limits: list[int]) -> list[Row]:
        return [
            Row(ids, limit=limit, temperature=0.9, seed=i)
            for i, (ids, limit) in enumerate(zip(prompts(12), limits, strict=True))
        ]

    whole = rows([60] * 12)
    early = rows([3, 60, 5, 60, 7, 9, 60, 11, 30, 1, 60, 60])
    decoder(tiny, eos=[]).run(whole)
    decoder(tiny, eos=[]).run(early)
    for short, full in zip(early, whole, strict=True):
        assert short.out == full.out[: short.limit]
        assert short.finish_reason == "length"


def test_a_row_depends_on_its_own_seed_only(tiny: Any) -> None:
    ids = prompts(1)[0]
    alone = [Row(ids, limit=40, seed=7)]
    among = [Row(other, limit=40, seed=1) for other in prompts(5, seed=3)] + [
        Row(ids, limit=40, seed=7)
    ]
    decoder(tiny).run(alone)
    decoder(tiny).run(among)
    assert among[-1].out == alone[0].out
    other = [Row(ids, limit=40, seed=8)]
    decoder(tiny).run(other)
    assert other[0].out != alone[0].out


def test_samples_of_a_prompt_share_its_prefill(tiny: Any) -> None:
    asked = prompts(3)
    order = [0, 1, 0, 2, 1, 0]
    rows = [Row(ids=asked[n], limit=10, top_p=0.9, seed=50 + i) for i, n in enumerate(order)]
    shapes: list[tuple[int, ...]] = []
    hook = tiny.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    decoder(tiny).run(rows)
    hook.remove()
    assert shapes[0][0] == 3, "each prompt is read once"
    assert shapes[1] == (6, 1)
    assert [row.out for row in rows] == [naive(tiny, row) for row in rows]


def test_without_a_seed_samples_differ(tiny: Any) -> None:
    rows = [Row(prompts(1)[0], limit=40) for _ in range(2)]
    decoder(tiny, eos=[]).run(rows)
    assert rows[0].out != rows[1].out


def test_random_numbers_go_on_beyond_one_chunk() -> None:
    model = char_models.model(max_position_embeddings=1024)
    rows = [Row([8, 9], limit=600, seed=1), Row([8, 9], limit=600, seed=1)]
    decoder(model, eos=[]).run(rows)
    assert rows[0].out == rows[1].out
    assert len(rows[0].out) == 600
    assert rows[0].out[:256] != rows[0].out[256:512]


def test_tokens_are_reported_and_a_zero_limit_ends_at_once(tiny: Any) -> None:
    seen: list[int] = []
    rows = [Row(ids, limit=17, seed=i) for i, ids in enumerate(prompts(4))] + [Row([9], limit=0)]
    decoder(tiny).run(rows, seen.append)
    assert sum(seen) == sum(len(row.out) for row in rows)
    assert (rows[-1].out, rows[-1].finish_reason) == ([], "length")
    decoder(tiny).run([])


def test_pick_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.05, 0.5, 0.15, 0.3])
    n = 20_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0))
    logits = probabilities.log().expand(n, -1)

    def shares(top_p: float, top_k: int | None) -> list[float]:
        k = None if top_k is None else torch.full((n,), top_k)
        ids = pick(logits, torch.full((n,), top_p), k, uniform)
        return (torch.bincount(ids, minlength=4) / n).tolist()

    assert shares(1.0, None) == pytest.approx([0.05, 0.5, 0.15, 0.3], abs=0.01)
    assert shares(0.8, None) == pytest.approx([0, 0.625, 0, 0.375], abs=0.01)
    assert shares(0.81, None) == pytest.approx([0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95], abs=0.01)
    assert shares(1.0, 2) == pytest.approx([0, 0.625, 0, 0.375], abs=0.01)
    # top-p counts the probabilities after top-k, as vLLM does.
    assert shares(0.6, 2) == pytest.approx([0, 1, 0, 0])
    assert shares(0.01, None) == [0, 1, 0, 0]


def test_the_shortlist_of_a_large_vocabulary_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 8 * SHORTLIST, generator=generator)
    logits[:4] *= 4
    uniform = torch.rand(6, generator=generator)
    top_p = torch.tensor([0.9, 0.5, 0.95, 0.99, 1.0, 0.95])
    top_k = torch.tensor([0, 40, 3, 0, 0, 2000])

    def full(k: torch.Tensor | None, rows: slice) -> torch.Tensor:
        out = []
        for i in range(6)[rows]:
            values, ids = logits[i].double().sort(descending=True)
            kept = int(k[i]) if k is not None and k[i] else len(values)
            p = values[:kept].softmax(-1)
            p = p[(p.cumsum(-1) - p) < top_p[i]]
            rank = int((p.cumsum(-1) <= uniform[i] * p.sum()).sum())
            out.append(int(ids[rank]))
        return torch.tensor(out)

    for rows in (slice(0, 4), slice(0, 6)):
        for k in (None, top_k):
            found = pick(logits[rows], top_p[rows], None if k is None else k[rows], uniform[rows])
            assert found.tolist() == full(k, rows).tolist()
