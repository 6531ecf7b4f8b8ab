"""From the last hidden states to the loss, as students/trainer.py goes there, in sizes."""

from __future__ import annotations

from distill.students.passes import Pass
from distill.students.tape import Tensor, Weight

PLAIN_LOGITS_BYTES = 256 << 20
"""As students/trainer.py: fp32 logits up to this size are computed at once."""
CHUNK = 2048
"""As students/head.py: trained tokens of a chunk."""
TILE_TOKENS, TILE_COLUMNS = 4096, 32768
"""As trl's ChunkedLogProbFunction: tokens and rows of the head's weight in a tile of logits."""


def loss_of(run: Pass, hidden: Tensor, head: Weight, new_rows: Weight | None) -> Tensor:
    """The head that the trainer takes: plain for small logits, else in tiles or chunks.

    `new_rows` are the rows of the head that an adapter trains.
    """
    if run.shape.tokens * run.arch.vocab * 4 <= PLAIN_LOGITS_BYTES:
        return plain(run, hidden, head, new_rows)
    if new_rows is not None:
        return chunked(run, hidden, head, new_rows)
    return fused(run, hidden, head)


def merged_rows(run: Pass, weight: Weight, new_rows: Weight) -> Tensor:
    """peft's trainable tokens: a copy of the whole weight with the trained rows in it."""
    tape, count, width, rows = run.tape, weight.count, weight.width, new_rows.count
    out = tape.new(count, width, "buffers")
    return tape.result(out, [new_rows], lambda grad: [tape.new(rows, 4)])


def project(run: Pass, states: Tensor, head: Weight, new_rows: Weight | None) -> Tensor:
    """Logits of `states`."""
    if new_rows is None:
        return run.matmul(states, head, run.arch.vocab)
    tape, vocab, hidden = run.tape, run.arch.vocab, run.arch.hidden
    weight = merged_rows(run, head, new_rows)
    if tape.autocast:
        states, weight = run.cast(states, 2), run.cast(weight, 2)
    tokens, width = states.count // hidden, states.width

    def rule(grad: Tensor) -> list[Tensor]:
        return [tape.new(tokens * hidden, width), tape.new(vocab * hidden, width, "buffers")]

    out = tape.new(tokens * vocab, width)
    return tape.result(out, [states, weight], rule, [states, weight])


def plain(run: Pass, hidden: Tensor, head: Weight, new_rows: Weight | None) -> Tensor:
    """All logits at once, and their cross-entropy in fp32."""
    tape, count = run.tape, run.shape.tokens * run.arch.vocab
    with tape.label("logits"):
        logits = project(run, hidden, head, new_rows)
        del hidden
        if tape.autocast:
            logits = run.cast(logits, 4)  # accelerate returns fp32
        tape.end_autocast()
        narrow = logits.width
        # logits[:, :-1].flatten(0, 1) copies where there are several rows; its gradient is put
        # into zeros of full size.
        several = run.shape.rows > 1
        flat = tape.new(count, narrow) if several else Tensor(count, narrow, logits.buffer)
        tape.result(flat, [logits], lambda grad: [tape.new(count, narrow)])
        flat = run.cast(flat, 4)
        return cross_entropy(run, flat)


def cross_entropy(run: Pass, logits: Tensor) -> Tensor:
    """Keeps the logarithms of the softmax, not the logits."""
    tape, count = run.tape, logits.count
    logs = tape.new(count, 4)
    tape.result(logs, [logits], lambda grad: [tape.new(count, 4)], [logs])
    return tape.result(tape.new(1, 4), [logs], lambda grad: [tape.new(count, 4)], [logs])


def chunked(run: Pass, hidden: Tensor, head: Weight, new_rows: Weight) -> Tensor:
    """students/head.py: chunks of the trained positions, computed again in the backward pass."""
    tape, width = run.tape, run.arch.hidden
    with tape.label("logits"):
        trained = run.select(hidden, run.shape.trained * width)
        del hidden
        losses = []
        for start in range(0, run.shape.trained, CHUNK):
            tokens = min(CHUNK, run.shape.trained - start)
            part = run.slice(trained, tokens * width)

            def loss(states: Tensor) -> Tensor:
                return cross_entropy(run, run.cast(project(run, states, head, new_rows), 4))

            losses.append(tape.checkpoint(loss, part))
        tape.end_autocast()
        return tape.result(tape.new(1, 4), losses, lambda grad: [tape.new(1, 4) for _ in losses])


def fused(run: Pass, hidden: Tensor, head: Weight) -> Tensor:
    """trl's fused head: logits in tiles that are never kept, in both directions."""
    tape, width, on_gpu = run.tape, hidden.width, run.shape.cuda
    # With Triton the positions with a label only; else all rows without their last position.
    tokens = run.shape.trained if on_gpu else run.shape.tokens
    size, count, is_trained = tokens * run.arch.hidden, head.count, head.trained
    compute = 2 if tape.autocast else width
    columns, rows = min(TILE_COLUMNS, run.arch.vocab), min(tokens, TILE_TOKENS)

    def tile(copies: int) -> list[Tensor]:
        made = [tape.new(rows * TILE_COLUMNS, compute)]
        if head.width != compute:
            made.append(tape.new(columns * run.arch.hidden, compute, "buffers"))
        if not on_gpu:
            # torch's own operations on copies of the tile, and one-byte comparisons
            made.append(tape.new(rows * columns * copies, 4))
        return made

    def rule(grad: Tensor) -> list[Tensor | None]:
        mine = tape.new(size, 4)
        its = tape.new(count, 4, "buffers") if is_trained else None
        made = tile(8)
        del made
        return [run.fitting(mine, width), its]

    with tape.label("logits"):
        if on_gpu or run.shape.rows > 1:
            hidden = run.select(hidden, size)
        made = tile(3)
        del made
        tape.end_autocast()
        return tape.result(tape.new(tokens, 4), [hidden, head], rule, [hidden])
