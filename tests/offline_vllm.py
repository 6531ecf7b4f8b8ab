"""Asks the in-process vLLM engine a few things and prints the answers as one JSON line.

Run with an interpreter that has vllm, from the repository's root, by tests/test_vllm_real.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from typing import Any

from distill.protocols import Completion, Request, SamplingParams
from distill.teachers.vllm import VLLMTeacher

MODEL = "pocket-teacher"
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512}
QUESTION = "State the final answer to the following arithmetic problem: 61 + 28 - 17 ="
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def ask(question: str = QUESTION, *, greedy: bool = False, **more: Any) -> Request:
    """A chat as the pocket teacher was trained to be asked; hot, where not greedy."""
    heat = 0.0 if greedy else 1.5
    params = SamplingParams(max_tokens=more.pop("max_tokens", 80), temperature=heat, top_p=1.0)
    content = f"{question}\n{INSTRUCTION}"
    key = more.pop("key", "p/0/0")
    return Request(key=key, prompt=[{"role": "user", "content": content}], params=params, **more)


async def answers() -> dict[str, Any]:
    """What the tests compare. Prompts do not all fit into one step of the scheduler."""
    engine = VLLMTeacher.from_spec(
        {"model": MODEL, "options": {**ENGINE, "max_num_batched_tokens": 512}}
    )
    await engine.open()
    try:
        whole = await engine.complete(ask(greedy=True))
        cut = await engine.complete(ask(greedy=True, max_tokens=12))
        rest = await engine.complete(ask(greedy=True, prefix_ids=cut.token_ids))
        named = {"whole": whole, "cut": cut, "rest": rest}
        for name, seed in [("first", 1), ("again", 1), ("other", 2)]:
            named[name] = await engine.complete(ask(seed=seed))
        many = await asyncio.gather(
            *(engine.complete(ask(seed=i, max_tokens=4)) for i in range(64)), return_exceptions=True
        )
        failed = [repr(one) for one in many if not isinstance(one, Completion)]
    finally:
        engine.close()
    plain = {name: dataclasses.asdict(one) for name, one in named.items()}
    return {"identity": engine.identity, "failed": failed, **plain}


if __name__ == "__main__":
    # vLLM writes to stdout too: the answer is the last line.
    print("\n" + json.dumps(asyncio.run(answers())), flush=True)
    sys.exit(0)
