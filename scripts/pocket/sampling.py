"""A plain batched sampler with a key-value cache, and the grading of what it draws."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from .tasks import Problem, dataset


@dataclass
class Draw:
    """One completion: its text and whether it came to an end by itself."""

    problem: Problem
    text: str
    stopped: bool
    tokens: int

    @property
    def answer(self) -> str | None:
        """The last box after the reasoning; None where there is none."""
        if "<think>" in self.text and "</think>" not in self.text:
            return None
        boxes = re.findall(r"\\boxed\{([^{}]*)\}", self.text.rsplit("</think>", 1)[-1])
        return boxes[-1] if boxes and self.stopped else None

    @property
    def correct(self) -> bool:
        """Graded by reasoning-gym itself; near misses (0.5) do not count."""
        if self.answer is None:
            return False
        checker = dataset(self.problem.task, self.problem.difficulty, 0, 1)
        return bool(checker.score_answer(self.answer, self.problem.entry) == 1.0)


def teacher_prompt(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> str:
    """R1's form: user turn, then an opened reasoning."""
    message = [{"role": "user", "content": problem.prompt}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


def student_prompt(problem: Problem) -> str:
    """Plain text, the same for base and student."""
    return f"User: {problem.prompt}\n\nAssistant:"


def pick(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Nucleus sampling; ``logits`` (rows, vocabulary), returns (rows,)."""
    probs, order = torch.softmax(logits / temperature, -1).sort(-1, descending=True)
    probs[probs.cumsum(-1) - probs > top_p] = 0.0
    return order.gather(1, torch.multinomial(probs, 1)).squeeze(1)


@torch.inference_mode()
def _batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], limit: int
) -> list[tuple[list[int], bool]]:
    ids = [tokenizer(p, add_special_tokens=False).input_ids for p in prompts]
    width = max(map(len, ids))
    pad = int(tokenizer.pad_token_id)
    inputs = torch.tensor([[pad] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    cache, rows = DynamicCache(config=model.config), list(range(len(ids)))
    out: list[list[int]] = [[] for _ in ids]
    done = [False] * len(ids)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for _ in range(limit):
        logits = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens = pick(logits, 0.6, 0.95)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            out[row].append(token)
            done[row] = done[row] or token == tokenizer.eos_token_id
        going = [i for i, row in enumerate(rows) if not done[row]]
        if not going:
            break
        inputs, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        if len(going) < 0.75 * len(rows):  # drop finished rows now and then
            index = torch.tensor(going)
            cache.batch_select_indices(index)
            inputs, positions, mask = inputs[index], positions[index], mask[index]
            rows = [rows[i] for i in going]
    eos = int(tokenizer.eos_token_id)
    cut = [row[: row.index(eos)] if eos in row else row for row in out]
    return list(zip(cut, done, strict=True))


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    *,
    chat: bool,
    limit: int = 224,
    batch: int = 128,
) -> list[Draw]:
    """One completion per given problem (repeat a problem for more), R1's sampling defaults."""
    prompts = [teacher_prompt(tokenizer, p) if chat else student_prompt(p) for p in problems]
    order = sorted(range(len(problems)), key=lambda i: len(prompts[i]))
    out: list[Draw | None] = [None] * len(problems)
    for at in range(0, len(order), batch):
        part = order[at : at + batch]
        drawn = _batch(model, tokenizer, [prompts[i] for i in part], limit)
        for i, (ids, stopped) in zip(part, drawn, strict=True):
            text = ("<think>\n" if chat else "") + tokenizer.decode(ids)
            out[i] = Draw(problems[i], text, stopped, len(ids))
    return [d for d in out if d is not None]
