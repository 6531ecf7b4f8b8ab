"""FLOPs by formula: worked by hand, against known numbers, and their properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.students import flops
from distill.students.catalog import Arch, find

TINY = Arch(hidden=8, layers=2, heads=2, kv_heads=1, intermediate=16, vocab=10, tied=False)
LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=5)


def test_a_forward_pass_by_hand() -> None:
    # Widths: q 8, k and v 4 each. Linear layers of a block: 8*8 + 2*4*8 + 8*8 + 3*16*8 = 576.
    assert flops.linear_params(TINY) == 2 * 576
    # Three tokens: 2 * 3 * 1152, the head 2 * 3 * 10 * 8, and 6 pairs of attention, of which
    # each costs 2 products of 2 * 8 in both layers.
    assert flops.forward_flops(TINY, [3]) == 6912 + 480 + 6 * 4 * 8 * 2
    # The full square has 9 pairs.
    assert flops.forward_flops(TINY, [3], causal=False) == 6912 + 480 + 9 * 4 * 8 * 2


def test_training_by_hand() -> None:
    forward = flops.forward_flops(TINY, [3])
    assert flops.training_flops(TINY, [3]) == 3 * forward
    # Rank 2 on q, k, v, o, gate, up, down: 2 * (in + out) each.
    assert flops.adapter_params(TINY, 2) == 2 * 2 * (16 + 12 + 12 + 16 + 24 + 24 + 24)
    # The first block's input has no gradient: 8*8 + 2*4*8 of the base, 3 * 2 * 8 of the adapters.
    attention, first = 6 * 4 * 8 * 2, 2 * 3 * (128 + 48)
    adapters = 3 * 2 * 3 * flops.adapter_params(TINY, 2)
    expected = 2 * (6912 + 480) + 3 * attention + adapters - first
    assert flops.training_flops(TINY, [3], "lora", rank=2) == expected


def test_six_times_weights_times_tokens_is_close_for_short_examples() -> None:
    arch = find("Qwen/Qwen2.5-Math-7B").arch
    assert arch is not None
    used = arch.params - arch.vocab * arch.hidden  # looking up the embedding is no product
    rule = 6 * used * 512
    assert flops.training_flops(arch, [512]) == pytest.approx(rule, rel=0.01)
    assert flops.training_flops(arch, [32768]) > 1.3 * 64 * rule


@given(LENGTHS)
def test_what_is_computed_is_never_less_than_what_is_needed(lengths: list[int]) -> None:
    for method in ("full", "lora", "qlora"):
        needed = flops.training_flops(TINY, lengths, method, rank=2)
        plain = flops.hardware_flops(TINY, lengths, method, rank=2, checkpointing=False)
        saved = flops.hardware_flops(TINY, lengths, method, rank=2)
        assert flops.forward_flops(TINY, lengths) < needed < plain < saved


@given(LENGTHS, LENGTHS)
def test_examples_add_up_and_one_long_costs_more_than_two_halves(
    one: list[int], other: list[int]
) -> None:
    both = flops.forward_flops(TINY, one + other)
    assert both == flops.forward_flops(TINY, one) + flops.forward_flops(TINY, other)
    assert flops.forward_flops(TINY, [sum(one) + sum(other)]) > both


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA RTX 6000 Ada Generation", 364.2e12),
        ("NVIDIA RTX A6000", 154.8e12),
        ("Tesla T4", None),
        ("cpu", None),
    ],
)
def test_peaks_by_the_names_that_torch_gives(device: str, peak: float | None) -> None:
    assert flops.peak_of(device) == peak
