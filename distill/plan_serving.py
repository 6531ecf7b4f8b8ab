"""How fast a model answers on a machine: decoding bound by memory, with as many requests as fit.

A step of decoding reads the weights once and the cache of every request in the batch; it takes as
long as the memory's bandwidth (or, for large batches, the arithmetic) says. How many requests fit
is said by the KV cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.plan_machines import GIB, Machine, assumed
from distill.plan_models import Served

SPREAD = 0.9
"""Standard deviation of the logarithm of a trace's length over problems. R1's traces on 171 public
prompts have 0.94, on 70 problems of MATH-500 1.1 (in characters); wrong ones included."""
STEP_SECONDS = 0.005
"""What a step of decoding takes besides the GPU's work: scheduling, sampling."""
SPLIT = 0.9
"""Of the speed that is left at each doubling of the GPUs that share one model: communication."""
RUNTIME_BYTES = 2 * GIB
"""On each GPU of a server: activations, CUDA graphs, sampler."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How a machine serves a model: `replicas` servers of `split` GPUs with `batch` requests each.

    `weights` and `cache` are GiB per GPU, `tokens_per_second` is that of all of them together.
    Where it does not fit, `short` says so and the speed is 0.
    """

    machine: str
    split: int
    replicas: int
    batch: int
    weights: float
    cache: float
    tokens_per_second: float
    short: str = ""

    def hours(self, tokens: float) -> float | None:
        """Hours for so many completion tokens."""
        return tokens / self.tokens_per_second / 3600 if self.tokens_per_second else None


def serve(model: Served, machine: Machine, *, prompt: float, tokens: float, most: int) -> Serving:
    """The fastest way to serve `model` on `machine`.

    `tokens` is the mean length of an answer, `most` its limit, of which one must fit.
    """
    splits = [2**n for n in range(11) if 2**n <= machine.gpus]
    # Beyond a node whole nodes share a model.
    splits += [machine.gpus * n for n in range(2, machine.nodes + 1)]
    # Of a token in the middle of its answer: long answers are in the batch for longer.
    context = prompt + tokens * math.exp(SPREAD**2) / 2
    context = min(context, prompt + most)
    found = [_split(model, machine, s, prompt, context, prompt + most) for s in splits]
    fitting = [s for s in found if not s.short]
    return max(fitting, key=lambda s: s.tokens_per_second) if fitting else found[-1]


def _split(
    model: Served, machine: Machine, split: int, prompt: float, context: float, longest: float
) -> Serving:
    gpu = machine.gpu
    share = min(split, model.cache_shares)
    room = assumed("serving_memory") * gpu.usable - RUNTIME_BYTES - model.weights / split
    needed = longest * model.cache / share
    replicas = machine.total // split
    weights = model.weights / split / GIB
    if room < needed:
        short = f"{weights:,.0f} GiB of weights and {needed / GIB:,.1f} of KV cache on each GPU"
        return Serving(machine.label, split, replicas, 0, weights, needed / GIB, 0.0, short)
    batch = max(1, min(int(assumed("serving_batch")), int(room / (context * model.cache / share))))
    # Of a mixture of experts a batch reads those that any of its tokens chose.
    touched = 1 - (1 - model.active / model.params) ** batch if model.active < model.params else 1
    cache = batch * context * model.cache / share
    read = model.weights / split * touched + cache
    memory = read / (gpu.bandwidth * assumed("decode_bandwidth"))
    rate = gpu.flops * assumed("decode_compute")
    compute = 2 * model.active * batch / split / rate
    # Prompts are read once per answer; their share of a step is small.
    prefill = compute * prompt / max(context, 1.0)
    step = (max(memory, compute) + prefill) / SPLIT ** math.log2(split) + STEP_SECONDS
    speed = replicas * batch / step
    return Serving(machine.label, split, replicas, batch, weights, cache / GIB, speed)
