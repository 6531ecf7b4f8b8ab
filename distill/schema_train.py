"""The sections of a recipe that say who learns and how. Read `distill/schema.py` first."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from distill.section import RUNTIME, Section


class StudentSpec(Section):
    """Who learns. `trainer` is `sft` or `file.py:Class`."""

    base: str = ""
    revision: str | None = None
    trainer: str = "sft"
    method: Literal["full", "lora", "qlora"] = "full"
    template: str = ""
    """Name of a template in students/catalog.yaml; empty: the catalog's for this base."""
    think_tokens: Literal["text", "tokens"] = "text"
    """`tokens` adds the think tags to the vocabulary and trains their embeddings."""
    positions: int | None = Field(default=None, ge=1)
    """Written into the student's config with `rope_theta`."""
    rope_theta: float | None = Field(default=None, gt=0)
    trust_remote_code: bool = False


class Lora(Section):
    """LoRA on all linear layers (LoRA Without Regret, Thinking Machines 2025)."""

    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Training(Section):
    """Supervised fine-tuning. R1's shape: cosine to a tenth, batch 64, 2-3 epochs (v2 B.4.3)."""

    epochs: float = Field(default=2, gt=0)
    learning_rate: float = Field(default=1e-5, gt=0)
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    batch_size: int = Field(default=64, ge=1)
    """Examples per update, whatever the packing."""
    max_length: int = Field(default=32768, ge=8)
    """Tokens. A longer example is left out and counted; nothing is cut."""
    packing: bool = True
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    max_steps: int | None = Field(default=None, ge=1)
    seed: int | None = None
    """None: the recipe's seed."""
    lora: Lora = Field(default_factory=Lora)
    micro_batch_tokens: Annotated[int | None, RUNTIME] = Field(default=None, ge=8)
    """Tokens per forward pass and process; None: `max_length`."""
    gradient_checkpointing: Annotated[bool, RUNTIME] = True
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    attention: Annotated[str | None, RUNTIME] = None
    processes: Annotated[int, RUNTIME] = Field(default=1, ge=1)
    """GPUs (or processes on a CPU) of each node."""
    nodes: Annotated[int, RUNTIME] = Field(default=1, ge=1)
    launcher: Annotated[Literal["auto", "torchrun", "slurm", "ray"], RUNTIME] = "auto"
    """Who starts the processes; `auto`: torchrun, or Slurm inside an allocation of many nodes."""
    shard: Annotated[Literal["none", "fsdp", "zero3"], RUNTIME] = "none"
    """`none`: every process holds all of it (DDP); `fsdp`: FSDP2; `zero3`: DeepSpeed's ZeRO-3."""
    offload: Annotated[bool, RUNTIME] = False
    """With `shard`: weights and optimizer in the memory of the machine, not of the GPU."""
    context_parallel: Annotated[int, RUNTIME] = Field(default=1, ge=1)
    """Neighbouring processes that share every row of tokens; their number divides all processes."""
    kernels: Annotated[Literal["auto", "torch", "liger"], RUNTIME] = "auto"
    """`auto`: liger-kernel's on a GPU where it is installed."""
    keep: Literal["last", "best"] = "last"
    """Which weights the student gets: the last, or those of the lowest validation loss."""
    development: Annotated[str | None, RUNTIME] = None
    """JSONL rows {"messages"} to measure the loss on instead of the validation split. They are
    never reported as a result; their contents, not their path, are part of the identity."""
    early_stop: int | None = Field(default=None, ge=1)
    """Stop after so many measurements of the validation loss without a lower one."""
    average: int = Field(default=1, ge=1)
    """The student is the mean of its last so many checkpoints."""
    allow_cpu: Annotated[bool, RUNTIME] = False
    """Train a base of a billion parameters or more on a machine that shows no GPU."""
    save_every: Annotated[int, RUNTIME] = Field(default=100, ge=1)
    """Updates between two checkpoints."""
    trackers: Annotated[list[str], RUNTIME] = Field(default_factory=list)

    def identity(self) -> dict[str, Any]:
        """As of any section; what is not used is left out, so that it changes nothing."""
        plain = super().identity()
        unused = {"keep": "last", "early_stop": None, "average": 1}
        if self.average > 1:  # then the checkpoints are part of the result
            plain["save_every"] = self.save_every
        return {k: v for k, v in plain.items() if k not in unused or v != unused[k]}
