"""The forward pass of a decoder in the words of students/tape.py: sizes instead of numbers.

It follows transformers' Llama, Qwen2 and Qwen3 line by line, with the adapters of peft; docstrings
name what autograd keeps. students/pass_heads.py goes on from the last hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.students.catalog import Arch
from distill.students.tape import Tape, Tensor, Weight


@dataclass(slots=True)
class Linear:
    """A linear layer: its weight, a bias, and with LoRA its two adapter matrices.

    `quantised`: bitsandbytes' 4 bits, multiplied by a copy in two or four bytes.
    """

    rows: int
    columns: int
    weight: Weight
    bias: Weight | None = None
    rank: int = 0
    a: Weight | None = None
    b: Weight | None = None
    quantised: bool = False


@dataclass(slots=True)
class Block:
    """The weights of one layer."""

    norms: tuple[Weight, Weight]
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    qk_norms: tuple[Weight, Weight] | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """A micro-batch: `rows` of `width` tokens, of which `trained` have a label.

    `masked`: rows hold several examples, kept apart by a mask; `split`: one call of attention for
    each example (students/attention.py on a CPU). `liger`: students/kernels.py.
    """

    rows: int
    width: int
    trained: int
    masked: bool = False
    split: bool = False
    cuda: bool = True
    dropout: bool = False
    liger: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.width


class Pass:
    """One forward pass over a micro-batch."""

    def __init__(self, tape: Tape, arch: Arch, shape: Shape, compute: int) -> None:
        self.tape, self.arch, self.shape = tape, arch, shape
        self.compute = compute
        """Bytes of an activation of a frozen base outside autocast."""
        dim = arch.head_dim or arch.hidden // arch.heads
        self.dim, self.q, self.kv = dim, arch.heads * dim, arch.kv_heads * dim

    # Operations.

    def cast(self, x: Tensor, width: int) -> Tensor:
        """x.to(dtype): the same tensor where nothing changes."""
        return x if x.width == width else self.made_of(x, self.tape.new(x.count, width))

    def made_of(self, x: Tensor, out: Tensor) -> Tensor:
        """`out` made of x alone, keeping nothing; its gradient becomes a new one of x's size."""
        tape, count, width = self.tape, x.count, x.width
        return tape.result(out, [x], lambda g, _: [tape.new(count, width)])

    def fitting(self, grad: Tensor, width: int) -> Tensor:
        """A gradient in the width of what it belongs to (autograd's validate_grad)."""
        return grad if grad.width == width else self.tape.new(grad.count, width)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y; the gradient of both is the gradient of the sum, not a copy of it."""
        out = self.tape.new(x.count, max(x.width, y.width))
        a, b = x.width, y.width
        return self.tape.result(out, [x, y], lambda g, _: [self.fitting(g, a), self.fitting(g, b)])

    def times(self, x: Tensor, constant: Tensor | None = None) -> Tensor:
        """x * constant, where only x has a gradient; a number as constant is None."""
        wide = max(x.width, constant.width if constant else 0)
        count, narrow = x.count, x.width
        kept = [constant] if constant else []

        def rule(grad: Tensor, _: list[Tensor]) -> list[Tensor]:
            return [self.fitting(self.tape.new(count, max(grad.width, wide)), narrow)]

        return self.tape.result(self.tape.new(count, wide), [x], rule, kept)

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """x * y of equal sizes, both kept."""
        count, width = x.count, x.width

        def rule(grad: Tensor, _: list[Tensor]) -> list[Tensor]:
            return [self.tape.new(count, width), self.tape.new(count, width)]

        return self.tape.result(self.tape.new(count, width), [x, y], rule, [x, y])

    def silu(self, x: Tensor) -> Tensor:
        """Keeps x."""
        count, width = x.count, x.width
        return self.tape.result(
            self.tape.new(count, width), [x], lambda g, _: [self.tape.new(count, width)], [x]
        )

    def norm(self, x: Tensor, weight: Weight, over: int) -> Tensor:
        """RMSNorm over the last `over` elements: in fp32 inside, as transformers writes it."""
        tape, count, width = self.tape, x.count, x.width
        rows = count // over
        if self.shape.liger:
            return self._norm_of_liger(x, weight, rows)
        x = self.cast(x, 4)

        def squared(grad: Tensor, _: list[Tensor]) -> list[Tensor]:
            first = tape.new(count, 4)  # x ** (2 - 1)
            second = tape.new(count, 4)  # times 2
            del first
            return [self._both(second, count)]

        squares = tape.result(tape.new(count, 4), [x], squared, [x])
        mean = tape.result(tape.new(rows, 4), [squares], lambda g, _: [tape.new(count, 4)])
        del squares
        root = tape.new(rows, 4)
        tape.result(root, [mean], lambda g, _: [tape.new(rows, 4)], [root])
        del mean

        def scaled(grad: Tensor, _: list[Tensor]) -> list[Tensor]:
            mine, other = tape.new(count, 4), tape.new(count, 4)
            return [mine, self._both(other, rows)]

        normed = tape.result(tape.new(count, 4), [x, root], scaled, [x, root])
        del x, root
        normed = self.cast(normed, width)
        out_width = max(width, weight.width)
        trained, size, wide = weight.trained, weight.count, weight.width

        def weighted(grad: Tensor, _: list[Tensor]) -> list[Tensor | None]:
            other = tape.new(count, out_width) if trained else None
            mine = self.fitting(tape.new(count, out_width), width)
            return [mine, tape.new(size, wide) if other is not None else None]

        # normed is kept for the gradient of the weight.
        kept = [normed] if trained else []
        return tape.result(tape.new(count, out_width), [normed, weight], weighted, kept)

    def _norm_of_liger(self, x: Tensor, weight: Weight, rows: int) -> Tensor:
        """Keeps x as it is and a number for each row; the gradient is made in place."""
        tape, size, wide = self.tape, weight.count, weight.width
        root = tape.new(rows, 4)

        def rule(grad: Tensor, _: list[Tensor]) -> list[Tensor]:
            return [grad, tape.new(size, wide)]

        return tape.result(tape.new(x.count, x.width), [x, weight], rule, [x, root])

    def _both(self, held: Tensor, count: int) -> Tensor:
        """A result that is made while `held` is alive."""
        made = self.tape.new(count, 4)
        del held
        return made

    def linear(self, x: Tensor, layer: Linear) -> Tensor:
        """x W^T, with an adapter the sum of two of them."""
        if not layer.rank:
            return self.matmul(x, layer.weight, layer.rows, layer.bias, layer.quantised)
        assert layer.a is not None
        assert layer.b is not None
        result = self.matmul(x, layer.weight, layer.rows, layer.bias, layer.quantised)
        width, given = result.width, x  # noqa: F841 - who calls a module holds its input
        if layer.quantised:
            result = self.copy(result)  # peft clones what bitsandbytes returns
        # peft asks whether CUDA autocasts, whatever the device is.
        if not (layer.quantised and self.tape.autocast and self.shape.cuda):
            x = self.cast(x, layer.a.width)
        if self.shape.dropout:
            x = self.drop(x)
        low = self.matmul(x, layer.a, layer.rank)
        result = self.add(result, self.times(self.matmul(low, layer.b, layer.rows)))
        return self.cast(result, width)

    def select(self, x: Tensor, count: int) -> Tensor:
        """Some of x's elements as a copy; the gradient is put into zeros of x's size."""
        return self.made_of(x, self.tape.new(count, x.width))

    def slice(self, x: Tensor, count: int) -> Tensor:
        """A view of some of x's elements; the gradient is put into zeros of x's size."""
        return self.made_of(x, Tensor(count, x.width, x.buffer))

    def copy(self, x: Tensor) -> Tensor:
        """x.clone()"""
        return self.tape.result(self.tape.new(x.count, x.width), [x], lambda g, _: [g])

    def drop(self, x: Tensor) -> Tensor:
        """Dropout: keeps a mask, of one byte an element on a GPU, as wide as x on a CPU."""
        mask = self.tape.new(x.count, 1 if self.shape.cuda else x.width)
        count, width = x.count, x.width
        return self.tape.result(
            self.tape.new(count, width), [x], lambda g, _: [self.tape.new(count, width)], [mask]
        )

    def matmul(
        self,
        x: Tensor,
        weight: Weight,
        rows: int,
        bias: Weight | None = None,
        quantised: bool = False,
    ) -> Tensor:
        """x W^T + b: keeps x for the gradient of W, and W's copy for the gradient of x."""
        tape = self.tape
        columns = weight.count // rows
        tokens = x.count // columns
        if quantised:
            return self._dequantised(x, rows, columns)
        if tape.autocast:
            x = self.cast(x, 2)
        copy = tape.cast_weight(weight)
        sources: list[Tensor | Weight] = [x, copy]
        if bias is not None:
            sources.append(tape.cast_weight(bias))
        width, has_grad, trained = x.width, x.node is not None, weight.trained
        biases = len(sources) - 2

        def rule(grad: Tensor, _: list[Tensor]) -> list[Tensor | None]:
            mine = tape.new(tokens * columns, width) if has_grad else None
            its = tape.new(rows * columns, width, "buffers") if trained else None
            return [mine, its, *(tape.new(rows, width, "buffers") for _ in range(biases))]

        kept = ([x] if trained else []) + ([copy] if isinstance(copy, Tensor) else [])
        return tape.result(tape.new(tokens * rows, width), sources, rule, kept)

    def _dequantised(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """The product with four bits, which become a matrix for its time, in both directions."""
        tape, width = self.tape, self.compute
        tokens = x.count // columns
        x = self.cast(x, width)
        full = tape.new(rows * columns, width, "buffers")
        out = tape.new(tokens * rows, width)
        del full

        def rule(grad: Tensor, _: list[Tensor]) -> list[Tensor | None]:
            full = tape.new(rows * columns, width, "buffers")
            mine = tape.new(tokens * columns, width)
            del full
            return [mine]

        return tape.result(out, [x], rule)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary positions: x cos + rotate_half(x) sin; liger's work in place."""
        if self.shape.liger:
            return x
        first = self.times(x, cos)
        tape, count, width = self.tape, x.count, x.width

        def halves(grad: Tensor, _: list[Tensor]) -> list[Tensor]:
            # Each half is put into zeros of full size.
            one = tape.new(count, width)
            other = tape.new(count, width)
            del one
            return [other]

        negated = tape.new(count // 2, width)
        turned = tape.result(tape.new(count, width), [x], halves)
        del negated, x
        return self.add(first, self.times(turned, sin))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Fused attention: keeps q, k, v, its result and the log-sum of each row."""
        tape, tokens, heads = self.tape, self.shape.tokens, self.arch.heads
        if mask is not None and self.kv < self.q:
            # With a mask, transformers repeats keys and values for all heads.
            k, v = self.repeat(k), self.repeat(v)
        if tape.autocast:
            q, k, v = self.cast(q, 2), self.cast(k, 2), self.cast(v, 2)
        if self.shape.split:
            q, k, v = self.parts(q), self.parts(k), self.parts(v)
        width, dim_kv = q.width, k.count // tokens
        kept = [q, k, v]
        if mask is not None:
            kept.append(tape.new(mask.count, width))  # -inf where the mask is False
        out = tape.new(tokens * self.q, width)
        log_sums = tape.new(tokens * heads, 4)
        cuda, wide = self.shape.cuda, self.q

        def rule(grad: Tensor, _: list[Tensor]) -> list[Tensor]:
            dq = tape.new(tokens * wide, width)
            if cuda:
                summed = tape.new(tokens * wide, 4)  # flash attention adds up dq in fp32
                spread = [tape.new(tokens * wide, width) for _ in range(2 if dim_kv < wide else 0)]
            dk, dv = tape.new(tokens * dim_kv, width), tape.new(tokens * dim_kv, width)
            if cuda:
                del summed, spread
            return [dq, dk, dv]

        out = tape.result(out, [q, k, v], rule, [*kept, out, log_sums])
        if self.shape.split:  # torch.cat; its gradient is views
            count = out.count
            out = tape.result(tape.new(count, width), [out], lambda g, _: [g])
        return out

    def parts(self, x: Tensor) -> Tensor:
        """x.split(lengths): views; their gradients are copied together."""
        return self.slice(x, x.count)

    def repeat(self, x: Tensor) -> Tensor:
        """Keys or values once for each head of the queries."""
        return self.made_of(x, self.tape.new(self.shape.tokens * self.q, x.width))

    # Modules.

    def block(
        self, x: Tensor, block: Block, cos: Tensor, sin: Tensor, mask: Tensor | None
    ) -> Tensor:
        """One decoder layer."""
        h = self.arch.hidden
        attended = self._attend(self.norm(x, block.norms[0], h), block, cos, sin, mask)
        x = self.add(x, attended)
        del attended
        return self.add(x, self._mlp(self.norm(x, block.norms[1], h), block))

    def _attend(
        self, x: Tensor, block: Block, cos: Tensor, sin: Tensor, mask: Tensor | None
    ) -> Tensor:
        q = self.linear(x, block.q)
        if block.qk_norms:
            q = self.norm(q, block.qk_norms[0], self.dim)
        k = self.linear(x, block.k)
        if block.qk_norms:
            k = self.norm(k, block.qk_norms[1], self.dim)
        v = self.linear(x, block.v)
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        out = self.attention(q, k, v, mask)
        del q, k, v
        return self.linear(out, block.o)

    def _mlp(self, x: Tensor, block: Block) -> Tensor:
        if self.shape.liger:
            # One kernel, which keeps both and writes their gradients over them.
            gate, up = self.linear(x, block.gate), self.linear(x, block.up)
            made = self.tape.new(gate.count, gate.width)
            made = self.tape.result(made, [gate, up], lambda _, saved: saved, [gate, up])
            return self.linear(made, block.down)
        gate = self.silu(self.linear(x, block.gate))
        return self.linear(self.product(gate, self.linear(x, block.up)), block.down)

    def embed(self, embedding: Weight | Tensor, require_grad: bool) -> Tensor:
        """The embedding's output; `require_grad` has it ask for a gradient that nobody uses."""
        tape, tokens = self.tape, self.shape.tokens
        count, wide = embedding.count, embedding.width
        x, ids = tape.new(tokens * self.arch.hidden, wide), tape.new(tokens, 8)
        tape.result(x, [embedding], lambda g, _: [tape.new(count, wide, "buffers")], [ids])
        if require_grad and x.node is None:
            tape.result(x, [Weight(0, wide, True)], lambda g, _: [None])
        return x

    def hidden(
        self,
        embedded: Tensor,
        blocks: Sequence[Block],
        last: Weight,
        checkpointing: bool,
    ) -> Tensor:
        """From the embedding's output to the last hidden states."""
        tape, tokens, x = self.tape, self.shape.tokens, embedded
        del embedded
        wide = x.width
        positions = self.shape.tokens if self.shape.masked else self.shape.width
        cos, sin = tape.new(positions * self.dim, wide), tape.new(positions * self.dim, wide)
        mask = tape.new(tokens * self.shape.width, 1) if self.shape.masked else None
        for block in blocks:

            def layer(x: Tensor, block: Block = block) -> Tensor:
                return self.block(x, block, cos, sin, mask)

            x = tape.checkpoint(layer, x) if checkpointing else layer(x)
        return self.norm(x, last, self.arch.hidden)
