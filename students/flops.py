"""Floating-point operations of training and sampling, and what devices can do of them.

Counted are matrix products, a multiplication and an addition for each pair of numbers (2 m n k for
an (m, k) by (k, n) product), as papers and torch's FlopCounterMode do. Norms, activations and the
optimizer are less than one percent and bound by memory, not by arithmetic.

Attention is counted as it is needed: a token looks at itself and at what comes before it in its own
example, n (n + 1) / 2 pairs for n tokens. `causal=False` counts the full square n^2, as
FlopCounterMode and PaLM do.
"""

from __future__ import annotations

from collections.abc import Sequence

from distill.students.catalog import Arch

PEAK: dict[str, float] = {
    # Dense bf16 tensor-core FLOP/s with fp32 accumulation as the vendors publish them; where a data
    # sheet only gives the rate "with sparsity", half of that. A100, H100 and H200 agree with trl's
    # table; the others were written down without the sheet at hand: check yours.
    "A100": 312e12,  # NVIDIA A100 Tensor Core GPU data sheet, 2021 (40 and 80 GB, SXM and PCIe)
    "A800": 312e12,  # as A100, slower links
    "A30": 165e12,  # NVIDIA A30 data sheet
    "A40": 149.7e12,  # NVIDIA A40 data sheet
    "A10": 125e12,  # NVIDIA A10 data sheet
    "RTX A6000": 154.8e12,  # NVIDIA RTX A6000: 309.7 with sparsity
    "H100": 989.4e12,  # NVIDIA H100 data sheet, SXM5 (torch's name ends in "HBM3")
    "H100 PCIe": 756.5e12,  # NVIDIA H100 data sheet, PCIe
    "H100 NVL": 835.5e12,  # NVIDIA H100 NVL data sheet: 1,671 with sparsity
    "H800": 989.4e12,  # as H100 SXM5, slower links
    "H20": 148e12,  # NVIDIA H20 data sheet
    "H200": 989.4e12,  # NVIDIA H200 data sheet: 1,979 with sparsity
    "H200 NVL": 835.5e12,  # NVIDIA H200 data sheet, NVL: 1,671 with sparsity
    "GH200": 989.4e12,  # NVIDIA GH200 data sheet
    "B200": 2250e12,  # NVIDIA HGX B200 data sheet: 4.5 PFLOP/s with sparsity
    "GB200": 2500e12,  # NVIDIA GB200 NVL72 data sheet: 5 PFLOP/s with sparsity per GPU
    "L4": 121e12,  # NVIDIA L4 data sheet: 242 with sparsity
    "L40": 181.05e12,  # NVIDIA L40 data sheet
    "L40S": 362.05e12,  # NVIDIA L40S data sheet
    "RTX 6000 Ada": 364.2e12,  # NVIDIA RTX 6000 Ada: 728.5 with sparsity
    "RTX 3090": 71e12,  # NVIDIA GA102 whitepaper, fp32 accumulation
    "RTX 4090": 165.2e12,  # NVIDIA Ada whitepaper, fp32 accumulation
    "RTX 5090": 209.5e12,  # NVIDIA RTX Blackwell whitepaper, fp32 accumulation
    "MI250X": 191.5e12,  # AMD Instinct MI250X data sheet: 383 for two dies, each a device of torch
    "MI300X": 1307.4e12,  # AMD Instinct MI300X data sheet
    "MI325X": 1307.4e12,  # AMD Instinct MI325X data sheet
}
"""Peak dense bf16 FLOP/s by a part of the name that torch gives a device."""


def peak_of(device_name: str) -> float | None:
    """Peak bf16 FLOP/s of a device by torch's name of it ("NVIDIA H100 80GB HBM3"), or None.

    The longest name of `PEAK` that occurs wins, as whole words: "L4" is not in "L40S".
    """
    words = f" {device_name.replace('-', ' ').replace('_', ' ').lower()} "
    found = [name for name in PEAK if f" {name.lower()} " in words]
    return PEAK[max(found, key=len)] if found else None


def linear_params(arch: Arch) -> int:
    """Weights of the linear layers inside the blocks: what every token is multiplied with."""
    return arch.layers * sum(rows * columns for rows, columns in _linears(arch))


def adapter_params(arch: Arch, rank: int) -> int:
    """Weights of a LoRA of `rank` on all linear layers but the head: rank x (in + out) each."""
    return arch.layers * rank * sum(rows + columns for rows, columns in _linears(arch))


def forward_flops(arch: Arch, lengths: Sequence[int], *, causal: bool = True) -> int:
    """FLOPs of one forward pass over examples of `lengths` tokens, the head on every token.

    2 x (linear weights + head) x tokens, and 4 x query width x pairs of attention in each layer.
    """
    linear, attention, head = _parts(arch, lengths, causal)
    return linear + attention + head


def training_flops(
    arch: Arch,
    lengths: Sequence[int],
    method: str = "full",
    *,
    rank: int = 32,
    causal: bool = True,
) -> int:
    """FLOPs that one forward and backward pass over examples of `lengths` tokens needs.

    What model FLOPs utilisation counts: no recomputation. `full`: three times the forward pass.
    `lora`, `qlora`: twice the forward pass of the base, whose weights need no gradients, with
    three times its attention; three times the adapters; without what would go back into the
    embedding: the first block's query, key and value.
    """
    linear, attention, head = _parts(arch, lengths, causal)
    if method == "full":
        return 3 * (linear + attention + head)
    adapters = 2 * sum(lengths) * adapter_params(arch, rank)
    first = _into_embedding(arch, sum(lengths), rank)
    return 2 * (linear + head) + 3 * (attention + adapters) - first


def hardware_flops(
    arch: Arch,
    lengths: Sequence[int],
    method: str = "full",
    *,
    rank: int = 32,
    checkpointing: bool = True,
    trained: int | None = None,
    causal: bool = True,
) -> int:
    """FLOPs that a device computes for `training_flops`: what is computed again comes on top.

    The backward pass of fused attention computes the scores again (5 products instead of 4).
    `checkpointing` computes each block again up to the input of its last product, whose result
    nobody needs (LoRA: the last adapter matrix's). `trained` are the tokens that reach the head,
    all by default: those of a prompt do not (students/head.py).
    """
    linear, attention, _ = _parts(arch, lengths, causal)
    tokens = sum(lengths)
    total = training_flops(arch, lengths, method, rank=rank, causal=causal) + attention // 2
    if trained is not None:
        left_out = 2 * (tokens - trained) * arch.vocab * arch.hidden
        total -= left_out * (3 if method == "full" else 2)
    if not checkpointing:
        return total
    last = arch.intermediate if method == "full" else rank
    total += linear + attention - 2 * tokens * arch.layers * arch.hidden * last
    if method != "full":
        # The embedding's output is made to ask for gradients, or nothing would be checkpointed.
        adapters = 2 * tokens * adapter_params(arch, rank)
        total += adapters + _into_embedding(arch, tokens, rank)
    return total


def _linears(arch: Arch) -> list[tuple[int, int]]:
    """(output, input) widths of a block's linear layers: q, k, v, o, gate, up, down."""
    dim = arch.head_dim or arch.hidden // arch.heads
    q, kv = arch.heads * dim, arch.kv_heads * dim
    hidden, inner = arch.hidden, arch.intermediate
    attention = [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q)]
    return [*attention, (inner, hidden), (inner, hidden), (hidden, inner)]


def _into_embedding(arch: Arch, tokens: int, rank: int) -> int:
    """FLOPs of the gradient of the first block's input, where only adapters are trained."""
    return 2 * tokens * sum(rows * columns + rank * columns for rows, columns in _linears(arch)[:3])


def _parts(arch: Arch, lengths: Sequence[int], causal: bool) -> tuple[int, int, int]:
    """FLOPs of one forward pass: linear layers of the blocks, attention, head."""
    tokens = sum(lengths)
    pairs = sum(n * (n + 1) // 2 if causal else n * n for n in lengths)
    dim = arch.head_dim or arch.hidden // arch.heads
    # Queries times keys, and weights times values: two products for each pair and head.
    attention = 2 * 2 * arch.heads * dim * pairs * arch.layers
    return 2 * tokens * linear_params(arch), attention, 2 * tokens * arch.vocab * arch.hidden
