"""How the rows of new think tokens should start: at the mean of all rows, or of their pieces.

    python scripts/think_rows.py models/SmolLM2-135M-Instruct TRACES.jsonl [UPDATES]

TRACES has rows with `problem` and `trace` (an R1-style answer). Prints the loss on held-out answers
before and after a few updates of one example each: over the whole answer, of `</think>` itself, and
of the tokens right after it. Minutes on one CPU thread. docs/rendering.md has what it printed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from distill.protocols import Rendered
from distill.students import loading
from distill.students.render import IGNORED, render

TRAINED, HELD = 12, 6


def examples(path: Path, prepared: loading.Prepared) -> list[Rendered]:
    """The shortest answers of the file that think and answer, rendered."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    whole = [r for r in rows if "</think>" in (r.get("trace") or "")]
    chosen = sorted(whole, key=lambda r: len(r["trace"]))[: TRAINED + HELD]
    made = []
    for row in sorted(chosen, key=lambda r: str(r["id"])):
        answer = {"role": "assistant", "content": row["trace"]}
        chat = [{"role": "user", "content": row["problem"]}, answer]
        made.append(render(chat, prepared.tokenizer, prepared.spec))
    return made


def losses(model: Any, held: list[Rendered], close: int) -> tuple[float, float, float]:
    """Mean loss per token: of all answers, of `</think>`, of the four tokens after it."""
    every, tags, after = [], [], []
    for one in held:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([one.input_ids])).logits[0, :-1]
        labels = torch.tensor(one.labels[1:])
        nll = torch.nn.functional.cross_entropy(
            logits, labels, reduction="none", ignore_index=IGNORED
        )
        every.append(nll[labels != IGNORED])
        (at,) = (labels == close).nonzero(as_tuple=True)
        tags.append(nll[at[-1:]])
        after.append(nll[at[-1] + 1 : at[-1] + 5])
    return tuple(float(torch.cat(x).mean()) for x in (every, tags, after))  # type: ignore[return-value]


def compare(base: str, path: Path, updates: int) -> None:
    student = {"base": base, "think_tokens": "tokens"}
    prepared = loading.prepare(student)
    rendered = examples(path, prepared)
    held, trained = rendered[:HELD], rendered[HELD:]
    open_id, close_id = prepared.tokenizer.convert_tokens_to_ids(list(loading.TAGS))
    counted = sum(len(r.input_ids) for r in rendered)
    print(
        f"{len(trained)} examples to train on, {len(held)} held out, {counted:,} tokens", flush=True
    )
    print("start            updates   answer   </think>   after it", flush=True)
    for start in ("mean of all", "mean of pieces"):
        torch.manual_seed(0)
        model = loading.load_model(prepared, student, dtype=torch.float32)
        if start == "mean of all":
            with torch.no_grad():
                rows = model.get_input_embeddings().weight
                rows[[open_id, close_id]] = rows[: min(prepared.spelled)].mean(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
        for step in range(updates + 1):
            if step in (0, updates // 4, updates):
                told = losses(model.eval(), held, close_id)
                print(
                    f"{start:<16} {step:>7}   " + "   ".join(f"{x:7.3f}" for x in told), flush=True
                )
            one = trained[step % len(trained)]
            model.train()(
                input_ids=torch.tensor([one.input_ids]), labels=torch.tensor([one.labels])
            ).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    compare(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) == 4 else 12)
