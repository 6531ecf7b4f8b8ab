"""The sampler's CPU time per request over that of a bare loop with the `openai` package.

    python -m benchmarks.sampler_overhead [--in-flight 2000] [--requests 2000] [--chunks 64]

Ours is all of it: what is wanted, concurrency, the server pool, the HTTP engine, retries,
and every trace with its checksum in the trace pool on the disk. The peer is 2,000 coroutines that
stream an answer from AsyncOpenAI and keep its text. Both read the same chunks, one token each,
from a stub server in a process of its own, by turns; CPU seconds are those of this process.

    python -m benchmarks.sampler_overhead --gpu MODEL

compares tokens per second of the sampler and `vllm serve` with raw `vllm.LLM.generate`, on
machines with a GPU (goal: at least 0.97). It has not been run on one yet.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.stub_server import running
from distill.records import Problem
from distill.sample import sample
from distill.schema import Sampling
from distill.teachers.openai import OpenAITeacher

GOAL = 1.5
GPU_GOAL = 0.97


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--in-flight", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--chunks", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--seconds", type=float, default=2.0, help="the stub's time for an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", metavar="MODEL", help="tokens/s against vllm.LLM.generate")
    parser.add_argument("--max-tokens", type=int, default=1024, help="with --gpu")
    args = parser.parse_args()
    if args.gpu:
        on_a_gpu(args.gpu, args.requests, args.in_flight, args.max_tokens)
        return
    try:
        import openai  # noqa: F401
    except ImportError:
        sys.exit("the peer is not installed: pip install 'openai>=2'")
    # A socket for each request, and as many again that are closing.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """Both by turns; a table, and the ratio of the medians."""
    sides: dict[str, Callable[[str, int, int], int]] = {"openai": theirs, "distill": ours}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    print(f"{args.requests:,} requests of {args.chunks} chunks, {args.in_flight:,} in flight")
    print(f"{'':>10}{'CPU ms/request':>16}{'CPU µs/chunk':>14}{'wall s':>9}")
    with running(args.chunks, args.seconds) as url:
        for side in sides.values():
            side(url, 50, 50)
        for _ in range(args.rounds):
            for name, side in sides.items():
                gc.collect()
                wall, begin = time.monotonic(), time.process_time()
                tokens = side(url, args.requests, args.in_flight)
                spent, wall = time.process_time() - begin, time.monotonic() - wall
                assert tokens == args.requests * args.chunks, f"{name} lost tokens: {tokens}"
                each = spent / args.requests
                cpu[name].append(each)
                print(f"{name:>10}{1e3 * each:>16.2f}{1e6 * each / args.chunks:>14.1f}{wall:>9.1f}")
    ratio = statistics.median(cpu["distill"]) / statistics.median(cpu["openai"])
    print(f"sampler_overhead ratio={ratio:.2f} goal={GOAL}")


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {number} + {number + 1}? Think step by step."}]


def theirs(url: str, requests: int, in_flight: int) -> int:
    """A bare asyncio loop with the openai package. Returns the number of tokens read."""
    import openai

    async def main() -> int:
        # The package's own limit is 1,000 connections.
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=None)
        http = openai.DefaultAsyncHttpxClient(limits=limits)
        patient = {"timeout": 600.0, "max_retries": 5}
        async with openai.AsyncOpenAI(
            base_url=url, api_key="none", http_client=http, **patient
        ) as client:
            left, texts, tokens = iter(range(requests)), [], []

            async def work() -> None:
                for number in left:
                    parts: list[str] = []
                    answer: Any = await client.chat.completions.create(
                        model="stub",
                        messages=question(number),  # type: ignore[arg-type]
                        temperature=0.6,
                        top_p=0.95,
                        max_tokens=32768,
                        seed=number,
                        stream=True,
                        stream_options={"include_usage": True},
                    )
                    async for chunk in answer:
                        if chunk.choices:
                            parts.append(chunk.choices[0].delta.content or "")
                        if chunk.usage:
                            tokens.append(chunk.usage.completion_tokens)
                    texts.append("".join(parts))

            await asyncio.gather(*(work() for _ in range(in_flight)))
            return sum(tokens)

    return asyncio.run(main())


def ours(url: str, requests: int, in_flight: int) -> int:
    """The sampler, into a pool on the disk. Returns the number of tokens bought."""
    problems = [Problem(messages=tuple(question(number))) for number in range(requests)]
    sampling = Sampling(n=1, concurrency=in_flight, max_tokens=32768)
    with tempfile.TemporaryDirectory() as folder:
        result = sample(
            problems,
            OpenAITeacher("stub", base_urls=[url], api_key_env="NO_KEY"),
            sampling,
            seed=0,
            pool_root=Path(folder),
        )
    assert result.summary["bought"] == requests, result.summary
    return int(result.summary["completion_tokens"])


def on_a_gpu(model: str, requests: int, in_flight: int, max_tokens: int) -> None:
    """Tokens per second of the sampler over those of raw vLLM, one after the other."""
    raw = float(
        subprocess.check_output(
            [sys.executable, "-c", RAW, model, str(requests), str(max_tokens)]
        ).split()[-1]
    )
    port = 8765
    serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    with subprocess.Popen([*serve, "--port", str(port), "--disable-uvicorn-access-log"]) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(f"{url}/health", server)
            teacher = OpenAITeacher(model, base_urls=[f"{url}/v1"], extra_body={"ignore_eos": True})
            problems = [Problem(messages=tuple(question(n))) for n in range(requests)]
            sampling = Sampling(n=1, concurrency=in_flight, max_tokens=max_tokens)
            with tempfile.TemporaryDirectory() as folder:
                found = sample(problems, teacher, sampling, seed=0, pool_root=Path(folder))
        finally:
            server.terminate()
    speed = found.summary["completion_tokens"] / found.summary["seconds"]
    print(f"vllm.LLM.generate {raw:,.0f} tokens/s, the sampler {speed:,.0f} tokens/s")
    print(f"sampler_overhead_gpu ratio={speed / raw:.3f} goal={GPU_GOAL}")


RAW = """
import sys, time
from vllm import LLM, SamplingParams
model, requests, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
llm = LLM(model)
text = "What is {} + {}? Think step by step."
ask = [[{"role": "user", "content": text.format(n, n + 1)}] for n in range(requests)]
params = SamplingParams(temperature=0.6, top_p=0.95, max_tokens=most, ignore_eos=True, seed=0)
render = llm.get_tokenizer().apply_chat_template
how = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
prompts = [{"prompt_token_ids": render(messages, **how)} for messages in ask]
llm.generate(prompts[:8], params, use_tqdm=False)
begin = time.monotonic()
found = llm.generate(prompts, params, use_tqdm=False)
print(sum(len(f.outputs[0].token_ids) for f in found) / (time.monotonic() - begin))
"""


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(2)
    sys.exit(f"vLLM ended with {server.returncode}")


if __name__ == "__main__":
    main()
