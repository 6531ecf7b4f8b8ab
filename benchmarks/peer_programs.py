"""The programs that `benchmarks.peers` compares, each as its package's documentation shows it.

All take: base URL, file of prompts, requests in flight, working folder, output file.
"""

from __future__ import annotations

from dataclasses import dataclass

DISTILL = """
import json, sys
from pathlib import Path
from distill.records import Problem
from distill.sample import sample
from distill.schema import Sampling
from distill.teachers.openai import OpenAITeacher
url, prompts, in_flight, work, out = sys.argv[1:]
prompts = json.loads(Path(prompts).read_text())
problems = [Problem(messages=({"role": "user", "content": p},)) for p in prompts]
asked = {p.id: p.messages[-1]["content"] for p in problems}
result = sample(
    problems,
    OpenAITeacher("stub", base_urls=[url]),
    Sampling(n=1, max_tokens=64, concurrency=int(in_flight)),
    seed=0,
    pool_root=Path(work) / "pool",
)
Path(out).write_text(json.dumps([asked[t.problem_id] for t in result.traces if t.text]))
"""

DISTILABEL = """
import json, sys
from pathlib import Path
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration
if __name__ == "__main__":
    url, prompts, in_flight, work, out = sys.argv[1:]
    prompts = json.loads(Path(prompts).read_text())
    with Pipeline(name="peers", cache_dir=str(Path(work) / "cache")) as pipeline:
        load = LoadDataFromDicts(
            data=[{"instruction": p} for p in prompts], batch_size=int(in_flight)
        )
        generate = TextGeneration(
            llm=OpenAILLM(
                model="stub",
                base_url=url,
                api_key="none",
                generation_kwargs={"max_new_tokens": 64, "temperature": 0.6},
            ),
            input_batch_size=int(in_flight),
        )
        load >> generate
    rows = pipeline.run(use_cache=True)["default"]["train"]
    done = [row["instruction"] for row in rows if row["generation"]]
    Path(out).write_text(json.dumps(done))
"""

CURATOR = """
import json, os, sys
from pathlib import Path
url, prompts, in_flight, work, out = sys.argv[1:]
os.environ["OPENAI_API_KEY"] = "none"
os.environ["CURATOR_CACHE_DIR"] = str(Path(work) / "cache")
os.environ["CURATOR_DISABLE_CACHE"] = ""
os.environ["TELEMETRY_ENABLED"] = "0"
import tiktoken

try:
    tiktoken.get_encoding("cl100k_base")
except Exception:
    # It fetches that file to estimate lengths; where there is no network, words stand for tokens.
    class Words:
        def encode(self, text, **kwargs):
            return text.split()

    tiktoken.get_encoding = lambda name: Words()
from bespokelabs import curator
from datasets import Dataset


class Ask(curator.LLM):
    def prompt(self, row):
        return row["question"]

    def parse(self, row, response):
        return {"question": row["question"], "answer": response}


if __name__ == "__main__":
    prompts = json.loads(Path(prompts).read_text())
    llm = Ask(
        model_name="stub",
        backend="openai",
        generation_params={"max_tokens": 64, "temperature": 0.6},
        backend_params={
            "base_url": url,
            "max_concurrent_requests": int(in_flight),
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 10_000_000_000,
            "require_all_responses": False,
        },
    )
    done = llm(Dataset.from_list([{"question": p} for p in prompts]))
    rows = getattr(done, "dataset", done)
    Path(out).write_text(json.dumps([row["question"] for row in rows if row["answer"]]))
"""


@dataclass(frozen=True)
class Peer:
    """A program that samples, and the pip arguments of the environment it needs."""

    name: str
    program: str
    pip: tuple[str, ...] = ()


PEERS = (
    Peer("distill", DISTILL),
    Peer("distilabel", DISTILABEL, ("distilabel[openai]==1.5.3", "requests")),
    Peer("curator", CURATOR, ("bespokelabs-curator==0.1.31",)),
)
