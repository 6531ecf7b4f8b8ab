"""lm-eval's own tasks: those that generate, k times over stored samples; the others by its models.

lm-eval's default filter keeps the first of k repeats, whatever they cost. So a task that generates
is run k times here: run i sees the i-th sample of every request, and all of them are asked for in
the first run. A score is the mean over the runs; its standard error is over problems, each with the
mean of its k values.
"""

from __future__ import annotations

import importlib.util
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import evaluator, tasks
from lm_eval.api.model import LM

from distill.errors import DataError
from distill.harness import Outcome, SamplerLM, plain_numbers, quiet
from distill.lineup import ModelRef

GENERATES = "generate_until"

BACKENDS = {"transformers": "hf", "vllm": "vllm"}
"""Engines whose weights are here, and lm-eval's model that scores log-likelihoods with them."""

ENGINE_ARGUMENTS = (
    *("dtype", "enforce_eager", "gpu_memory_utilization", "kv_cache_dtype", "max_model_len"),
    *("max_num_seqs", "quantization", "tensor_parallel_size"),
)
"""Options of our vllm engine that lm-eval's takes, too."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How often each problem of a task is answered, and how many of the problems are."""

    samples: int = 1
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Stock:
    """Tasks and groups as lm-eval loads them, and how each task is asked."""

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    asked: Mapping[str, Asked]

    def parts(self, *, generating: bool) -> Iterator[tuple[Asked, dict[str, Any]]]:
        """The tasks of a kind, by how they are asked."""
        found: dict[Asked, dict[str, Any]] = defaultdict(dict)
        for name, task in self.tasks.items():
            if (task.OUTPUT_TYPE == GENERATES) == generating:
                found[self.asked[name]][name] = task
        yield from found.items()

    @property
    def scored(self) -> bool:
        """Whether some of the tasks need log-likelihoods."""
        return any(task.OUTPUT_TYPE != GENERATES for task in self.tasks.values())


def load_stock(specs: Mapping[str, Asked], *, include: Path | None = None) -> Stock:
    """lm-eval's own tasks and groups by name; with `include`, the tasks of that folder instead.

    A group's tasks are asked as the group is. Raises DataError where their data cannot be had, and
    for tasks that run a model's programs: lm-eval has no sandbox.
    """
    quiet()
    try:
        manager = tasks.TaskManager(include_path=include, include_defaults=include is None)
        loaded = dict(manager.load(list(specs)))
    except Exception as error:  # lm-eval and `datasets` raise whatever the hub client raises
        reason = (str(error) or repr(error)).splitlines()[0]
        raise DataError(
            f"lm-eval cannot load {', '.join(specs)}: {reason}",
            "its data comes from the hub: run once with a connection, or name a local file",
        ) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise DataError(
                f"lm-eval would run the programs of task '{name}' without a sandbox",
                "humaneval, mbpp and livecodebench are tasks of ours that have one",
            )
    asked = dict.fromkeys(loaded["tasks"], Asked())
    for name, how in specs.items():
        group = loaded["groups"].get(name)
        members = [task.task_name for task in group.get_all_tasks()] if group else [name]
        asked |= {member: how for member in members if member in asked}
    return Stock(loaded["tasks"], loaded["groups"], asked)


def sample_stock(lm: SamplerLM, stock: Stock, *, seed: int) -> Outcome:
    """Run the tasks that generate. Raises DistillError where `lm` cannot be asked."""
    outcome = Outcome(notes=lm.notes)
    for asked, chosen in stock.parts(generating=True):
        repeats = asked.samples if lm.varies(chosen) else 1
        runs = []
        for turn in range(repeats):
            lm.turn, lm.repeats = turn, repeats
            runs.append(_run(lm, stock, chosen, asked, seed, template=True))
        lm.turn, lm.repeats = 0, 1
        numbers = averaged(runs)
        told = {"samples": repeats, "limit": asked.limit, **lm.told(), "chat_template": True}
        _add(outcome, numbers, chosen, told)
    return outcome


def score_stock(lm: LM, stock: Stock, *, backend: str, seed: int) -> Outcome:
    """Run the tasks that compare log-likelihoods, without a template: as they are published."""
    outcome = Outcome()
    for asked, chosen in stock.parts(generating=False):
        numbers = averaged([_run(lm, stock, chosen, asked, seed, template=False)])
        told = {"samples": 1, "limit": asked.limit, "backend": backend, "chat_template": False}
        _add(outcome, numbers, chosen, told)
    return outcome


def score_model(
    ref: ModelRef, stock: Stock, outcome: Outcome, *, seed: int, note: Callable[[str], None]
) -> None:
    """Add to `outcome` what lm-eval's own model `hf` or `vllm` makes of the tasks to be scored."""
    if ref.engine not in BACKENDS:
        note(
            f"{ref.role}: tasks of log-likelihoods were left out, because lm-eval needs the "
            f"weights and engine '{ref.engine}' has them elsewhere"
        )
        return
    kind = BACKENDS[ref.engine]
    if kind == "vllm" and importlib.util.find_spec("vllm") is None:
        kind = "hf"
        note("tasks of log-likelihoods ran in transformers, because vllm is not installed here")
    scored = score_stock(_backend(kind, ref), stock, backend=f"lm-eval {kind}", seed=seed)
    outcome.results |= scored.results
    outcome.settings |= scored.settings


def _backend(kind: str, ref: ModelRef) -> LM:
    """lm-eval's own model with the options of our engine that it takes."""
    from lm_eval.api.registry import get_model

    given = ref.options
    about: dict[str, Any] = {
        "revision": ref.revision,
        "trust_remote_code": bool(ref.spec.get("trust_remote_code")),
    }
    if kind == "vllm":
        about |= {key: given[key] for key in ENGINE_ARGUMENTS if key in given}
        about |= {"batch_size": "auto"}
    else:
        import torch

        device = given.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        about |= {"dtype": given["dtype"]} if given.get("dtype") else {}
        about |= {"device": device, "batch_size": 8, "revision": ref.revision or "main"}
    build: Callable[..., LM] = get_model(kind)
    return build(pretrained=ref.path, **about)


def averaged(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """lm-eval's numbers of several runs of the same tasks and groups as one.

    Where a score is a plain mean over problems, its standard error is that of the problems' means;
    other scores have the mean of the runs' standard errors, which knows nothing of the runs and is
    rather too large.
    """
    numbers = [plain_numbers({**run["results"], **run.get("groups", {})}) for run in runs]
    found: dict[str, dict[str, Any]] = {}
    for task, first in numbers[0].items():
        found[task] = {key: _mean([run[task].get(key) for run in numbers]) for key in first}
        by_problem = [_by_problem((run.get("samples") or {}).get(task, ())) for run in runs]
        for key in by_problem[0]:
            name, _, kind = key.partition(",")
            docs = by_problem[0][key]
            values = [_mean([run[key].get(doc) for run in by_problem]) for doc in docs]
            error = _error_of_mean(values, found[task].get(key))
            if error is not None:
                found[task][f"{name}_stderr,{kind}"] = error
    return found


def _error_of_mean(values: Sequence[float | None], score: float | None) -> float | None:
    """The standard error of `score`, where that is the mean of these values; else None."""
    known = [value for value in values if value is not None]
    if score is None or len(known) != len(values) or len(known) < 2:
        return None
    mean = sum(known) / len(known)
    if not math.isclose(mean, score, rel_tol=1e-6, abs_tol=1e-9):
        return None
    return math.sqrt(sum((v - mean) ** 2 for v in known) / (len(known) - 1) / len(known))


def _by_problem(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[Any, Any]]:
    """A task's logged metrics: `metric,filter` -> problem -> value, those that are numbers."""
    found: dict[str, dict[Any, Any]] = defaultdict(dict)
    for sample in samples:
        for metric in sample["metrics"]:
            value = sample[metric]
            if isinstance(value, int | float):
                found[f"{metric},{sample['filter']}"][sample["doc_id"]] = float(value)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _run(
    lm: LM, stock: Stock, chosen: Mapping[str, Any], asked: Asked, seed: int, *, template: bool
) -> dict[str, Any]:
    for task in chosen.values():
        # Drawn anew in each run, or the examples in the prompts would differ between them.
        task.set_fewshot_seed(seed)
    # A group of which only a part runs here has no average.
    groups = {
        name: group
        for name, group in stock.groups.items()
        if {task.task_name for task in group.get_all_tasks()} <= chosen.keys()
    }
    return dict(
        evaluator.evaluate(
            lm,
            {"tasks": dict(chosen), "groups": groups},
            limit=asked.limit,
            bootstrap_iters=1000,
            log_samples=True,
            apply_chat_template=template,
        )
        or {}
    )


def _add(
    outcome: Outcome,
    numbers: Mapping[str, dict[str, Any]],
    chosen: Mapping[str, Any],
    told: Mapping[str, Any],
) -> None:
    """Numbers of tasks and groups, and how the tasks were asked; their sizes are no scores."""
    sizes = {name: found.pop("sample_len", None) for name, found in numbers.items()}
    outcome.results |= numbers
    for name, task in chosen.items():
        outcome.settings[name] = {
            **told,
            "problems": sizes[name],
            "version": (task.config.metadata or {}).get("version"),
            "fewshot": task.config.num_fewshot or 0,
        }
