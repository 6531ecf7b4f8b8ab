"""From the last hidden states to the loss, as students/head.py goes there, in sizes."""

from __future__ import annotations

from distill.students.passes import Pass
from distill.students.tape import Tensor, Weight

CPU_LOGITS_BYTES = 16 << 20
GPU_LOGITS_BYTES = 1 << 30
"""As students/head.py: fp32 logits that are there at once."""


def loss_of(run: Pass, hidden: Tensor, head: Weight, new_rows: Weight | None) -> Tensor:
    """The summed loss of the trained positions.

    `new_rows` are rows of the head that an adapter trains (peft's trainable tokens).
    """
    with run.tape.label("logits"):
        hidden = run.select(hidden, run.shape.trained * run.arch.hidden)
        if new_rows is not None:
            return by_modules(run, hidden, head, new_rows)
        return by_pieces(run, hidden, head)


def pieces(run: Pass) -> list[int]:
    """Tokens of each piece; equal ones in the middle are left out, they change no peak."""
    budget = GPU_LOGITS_BYTES if run.shape.cuda else CPU_LOGITS_BYTES
    size, tokens = max(16, budget // (4 * run.arch.vocab)), run.shape.trained
    found = [size] * min(3, tokens // size)
    return [*found, tokens % size] if tokens % size else found


def by_pieces(run: Pass, hidden: Tensor, head: Weight) -> Tensor:
    """A plain head: each piece's gradients are taken while its logits are there."""
    tape, vocab, size = run.tape, run.arch.vocab, hidden.count
    if tape.autocast:
        hidden = run.cast(hidden, 2)
    width = hidden.width
    used = tape.new(head.count, width, "buffers") if head.width != width else None
    to_hidden = tape.new(size, width)
    to_weight = tape.new(head.count, head.width, "buffers") if head.trained else None
    logits = gradient = product = None
    for tokens in pieces(run):
        logits = run.cast(tape.new(tokens * vocab, width), 4)
        if run.shape.cuda:  # exp(logits - maximum) inside logsumexp
            scratch = tape.new(tokens * vocab, 4)
            del scratch
        gradient = run.cast(logits, width)
        if to_weight is not None and head.width != width:
            product = tape.new(head.count, width, "buffers")
            product = None
    del logits, gradient, product, used
    kept = [to_hidden] if to_weight is None else [to_hidden, to_weight]
    scaled = len(kept)
    del to_hidden, to_weight

    def rule(grad: Tensor, saved: list[Tensor]) -> list[Tensor | None]:
        # Multiplied in place and handed on.
        return [saved[0], saved[1] if scaled == 2 else None]

    return tape.result(tape.new(1, 4), [hidden, head], rule, kept)


def by_modules(run: Pass, hidden: Tensor, head: Weight, new_rows: Weight) -> Tensor:
    """A head with an adapter: each piece through the modules, computed again when needed."""
    tape, width = run.tape, run.arch.hidden
    losses = []
    for tokens in pieces(run):
        part = run.slice(hidden, tokens * width)

        def loss(states: Tensor) -> Tensor:
            return cross_entropy(run, run.cast(project(run, states, head, new_rows), 4))

        losses.append(tape.checkpoint(loss, part))
    return tape.result(tape.new(1, 4), losses, lambda g, _: [tape.new(1, 4) for _ in losses])


def merged_rows(run: Pass, weight: Weight, new_rows: Weight) -> Tensor:
    """peft's trainable tokens: a copy of the whole weight with the trained rows in it."""
    tape, count, width, rows = run.tape, weight.count, weight.width, new_rows.count
    out = tape.new(count, width, "buffers")
    return tape.result(out, [new_rows], lambda g, _: [tape.new(rows, 4)])


def project(run: Pass, states: Tensor, head: Weight, new_rows: Weight) -> Tensor:
    """Logits of `states`: keeps both factors."""
    tape, vocab, hidden = run.tape, run.arch.vocab, run.arch.hidden
    weight = merged_rows(run, head, new_rows)
    if tape.autocast:
        states, weight = run.cast(states, 2), run.cast(weight, 2)
    tokens, width = states.count // hidden, states.width

    def rule(grad: Tensor, _: list[Tensor]) -> list[Tensor]:
        return [tape.new(tokens * hidden, width), tape.new(vocab * hidden, width, "buffers")]

    out = tape.new(tokens * vocab, width)
    return tape.result(out, [states, weight], rule, [states, weight])


def cross_entropy(run: Pass, logits: Tensor) -> Tensor:
    """Keeps the logarithms of the softmax, not the logits."""
    tape, count = run.tape, logits.count
    logs = tape.new(count, 4)
    tape.result(logs, [logits], lambda g, _: [tape.new(count, 4)], [logs])
    return tape.result(tape.new(1, 4), [logs], lambda g, _: [tape.new(count, 4)], [logs])
