"""Memory by walking a pass with sizes: worked by hand, properties, and one real training."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.students.catalog import Arch, find
from distill.students.flops import adapter_params
from distill.students.memory import Parts, Setting, estimate, nf4_bytes
from distill.students.tape import Buffer, Meter, Tape, Tensor, Weight

TINY = Arch(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=192, vocab=259, tied=False)
SMALL = "Qwen/Qwen2.5-Math-1.5B"
GB = 1 << 30


def arch_of(base: str) -> Arch:
    arch = find(base).arch
    assert arch is not None
    return arch


def test_states_take_sixteen_bytes_a_weight_in_full() -> None:
    arch = arch_of(SMALL)
    parts = estimate(arch, Setting(tokens=4096, longest=4096))
    n = arch.params
    assert (parts.weights, parts.gradients, parts.optimiser) == (4 * n, 4 * n, 8 * n)
    assert parts.peak == parts.states + parts.activations + parts.logits + parts.buffers
    assert parts.total == parts.peak + parts.fragmentation + parts.context


def test_lora_keeps_the_base_in_two_bytes_and_trains_only_the_adapter() -> None:
    arch = arch_of(SMALL)
    parts = estimate(arch, Setting(tokens=4096, longest=4096, method="lora", rank=16))
    adapter = adapter_params(arch, 16)
    assert parts.weights == 2 * arch.params + 4 * adapter
    assert (parts.gradients, parts.optimiser) == (4 * adapter, 8 * adapter)


def test_nf4_takes_half_a_byte_and_an_eighth_of_a_bit_for_scales() -> None:
    # 64 * 64 = 4096 weights: 2048 bytes, 64 one-byte scales, one fp32 scale of those, two code
    # books and an offset: 16 + 256 + 1 numbers.
    assert nf4_bytes(4096) == 2048 + 64 + 4 + 4 * 273
    assert nf4_bytes(1 << 30) / (1 << 30) == pytest.approx(0.5 + 1 / 64 + 4 / 64 / 256, rel=1e-5)


def test_checkpointing_keeps_one_hidden_state_of_each_layer() -> None:
    short, tall = (
        estimate(
            dataclasses.replace(TINY, layers=layers),
            Setting(4096, 4096, precision="fp32", accumulates=False, device="cpu"),
        )
        for layers in (10, 11)
    )
    assert tall.activations - short.activations == 4096 * TINY.hidden * 4


def test_the_worked_case_of_the_docs_page() -> None:
    # docs/memory.md: without checkpointing, a layer of a llama in fp32 keeps, for each token,
    # 6 hidden + 3 query + 2 key-value + 4 inner numbers and two fp32 norms and one per head.
    per_token = 4 * (6 * 64 + 3 * 64 + 2 * 32 + 4 * 192 + 2 + 4)
    one, two = (
        estimate(
            dataclasses.replace(TINY, layers=layers),
            Setting(
                512,
                512,
                precision="fp32",
                checkpointing=False,
                accumulates=False,
                layout="flat",
                device="cpu",
            ),
        )
        for layers in (10, 11)
    )
    assert two.activations - one.activations == 512 * per_token


def test_processes_share_states_or_copy_them() -> None:
    arch = arch_of(SMALL)
    alone = Setting(tokens=4096, longest=4096)
    one = estimate(arch, alone)
    copied = estimate(arch, dataclasses.replace(alone, world=8))
    shared = estimate(arch, dataclasses.replace(alone, world=8, shard="fsdp"))
    offloaded = estimate(arch, dataclasses.replace(alone, world=8, shard="fsdp", offload=True))
    assert copied.states == one.states
    assert copied.buffers >= one.buffers + 4 * arch.params  # DDP's buckets
    assert shared.states * 8 == pytest.approx(one.states, rel=1e-3)
    assert offloaded.states == 0
    assert offloaded.host == 2 * arch.params
    assert shared.host == 0


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(["full", "lora", "qlora"]),
    st.sampled_from(["bf16", "fp32"]),
    st.booleans(),
    st.integers(64, 4096),
    st.integers(1, 64),
)
def test_more_of_anything_never_takes_less(
    method: str, precision: str, checkpointing: bool, tokens: int, rank: int
) -> None:
    setting = Setting(
        tokens,
        tokens,
        method=method,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        checkpointing=checkpointing,
        rank=rank,
    )

    def peak(arch: Arch = TINY, **changes: object) -> int:
        return estimate(arch, dataclasses.replace(setting, **changes)).peak  # type: ignore[arg-type]

    here = peak()
    assert peak(tokens=2 * tokens, longest=2 * tokens) > here
    assert peak(dataclasses.replace(TINY, layers=3)) > here
    assert peak(dataclasses.replace(TINY, intermediate=256)) > here
    assert peak(rank=2 * rank) >= here
    assert peak(accumulates=False) <= here
    if checkpointing:
        assert peak(checkpointing=False) >= here


def test_a_tape_frees_what_torch_frees() -> None:
    meter = Meter()
    tape = Tape(meter)
    weight = Weight(10, 4, trained=True)
    x = tape.new(100, 4)
    out = tape.result(tape.new(100, 4), [x, weight], lambda g, _: [None, tape.new(10, 4)], [x])
    del x
    assert meter.total == 800  # x is kept for the gradient of the weight
    tape.backward(out)
    del out
    assert weight.gradient is not None
    assert meter.total == 40
    assert meter.peak == 400 + 400 + 400 + 40
    assert meter.now["gradients"] == 40


def test_a_checkpoint_keeps_its_input_and_computes_the_rest_again() -> None:
    meter = Meter()
    tape = Tape(meter)
    start = tape.new(100, 4)
    tape.result(start, [Weight(0, 4, trained=True)], lambda g, _: [None])

    def double(x: Tensor) -> Tensor:
        middle = tape.result(tape.new(100, 4), [x], lambda g, _: [tape.new(100, 4)], [x])
        return tape.result(tape.new(100, 4), [middle], lambda g, _: [tape.new(100, 4)], [middle])

    out = tape.checkpoint(double, start)
    assert meter.total == 800  # the input and the result
    tape.backward(out)
    del out, start
    assert meter.total == 0


def test_a_meter_says_what_was_there_at_the_worst_moment() -> None:
    meter = Meter()
    held = [Buffer(meter, "weights", 5), Buffer(meter, "logits", 7)]
    held.pop()
    held.append(Buffer(meter, "buffers", 1))
    assert (meter.total, meter.peak) == (6, 12)
    assert meter.worst == {"weights": 5, "logits": 7}


def test_a_setting_from_a_recipes_sections() -> None:
    train = {"max_length": 4096, "packing": True, "lora": {"rank": 8, "dropout": 0.1}}
    found = Setting.of({"method": "lora"}, train)
    assert (found.tokens, found.longest, found.rank) == (4096, 4096, 8)
    assert found.dropout
    assert found.shape.tokens == 4096
    wide = Setting.of({}, {**train, "micro_batch_tokens": 8192}, longest=1000, layout="padded")
    assert (wide.shape.rows, wide.shape.width) == (8, 1024)


def test_a_plan_with_many_settings_is_quick() -> None:
    arch = arch_of("Qwen/Qwen2.5-Math-7B")
    assert isinstance(estimate(arch, Setting(32768, 32768)), Parts)
    before = estimate.cache_info().hits
    estimate(arch, Setting(32768, 32768))
    assert estimate.cache_info().hits == before + 1


@pytest.mark.slow
def test_a_real_training_takes_what_was_predicted() -> None:
    from benchmarks.planner_train import Case, run

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    for method, precision in (("full", "bf16"), ("lora", "fp32")):
        changes = {
            "student__method": method,
            "precision": precision,
            "gradient_checkpointing": precision == "bf16",
        }
        row = run(Case(f"{method} {precision}", "qwen2", sizes, changes))
        assert row.ratio == pytest.approx(1, abs=0.1), (method, precision, row)
