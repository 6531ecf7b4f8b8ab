"""Wall time per sample of an evaluation by distill over one by lm-eval's own backends.

    python -m benchmarks.evaluation [--model FOLDER] [--problems 64] [--samples 4] [--limit 384]
                                    [--batch 64] [--rounds 3] [--threads 1]
    python -m benchmarks.evaluation --vllm      # needs an interpreter with vllm: `make vllm`

Both sides put the same problems to the same weights, k samples each at temperature 0.6 and top-p
0.95, under the same limit and batch size, and grade every sample by the default grader: ours is the
evaluate step (`distill.evaluate.run_evaluation`), theirs `lm_eval.simple_evaluate` with its `hf`
or `vllm` model and the task `distill_problems`. Each run is a process of its own. The clock starts
when its libraries are imported and stops when it has ended: loading the model, sampling, storing,
grading, the statistics, and taking all down again. vLLM takes most of a minute to start its
processes on a CPU, by the same code on either side: with `--vllm` that is shown and left out of the
ratio. The sides take turns; the ratio is the median over rounds of theirs / ours. pass@1 of both is
shown, because a fast wrong evaluation is worth nothing.

The default model is the pocket teacher, which chooses the lengths itself: half of its answers end
before 80 tokens, some run into the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GOAL, VLLM_GOAL = 1.3, 1.0
TEMPERATURE, TOP_P = 0.6, 0.95
SIDES = ("distill", "lm-eval")

TASK = """
include: {tasks}/distill_problems.yaml
task: measured
custom_dataset: !function {tasks}/utils.load
process_results: !function {tasks}/utils.process_results
repeats: {samples}
filter_list:
  - name: all
    filter: [{{function: take_first_k, k: {samples}}}]
generation_kwargs:
  until: []
  do_sample: true
  temperature: {temperature}
  top_p: {top_p}
  top_k: 0
  max_gen_toks: {limit}
metadata: {{version: 1, file: {file}}}
"""


def ours(asked: dict[str, Any]) -> dict[str, Any]:
    """One evaluation by distill."""
    import torch
    import transformers  # noqa: F401

    from distill import harness  # noqa: F401
    from distill.evaluate import ModelRef, run_evaluation
    from distill.schema import Evaluation, Grading

    torch.set_num_threads(asked["threads"])
    if asked["vllm"]:
        import vllm.v1.engine.async_llm  # noqa: F401
    started: list[float] = []
    _timed(started, asked["engine"])
    folder = Path(asked["folder"])
    out = folder / f"ours-{asked['round']}"
    begin = time.time()
    if asked["vllm"]:
        options = {**asked["vllm_arguments"], "max_num_seqs": asked["batch"]}
    else:
        options = {"batch_size": asked["batch"], "threads": asked["threads"]}
    run_evaluation(
        [ModelRef(role="student", path=asked["model"], engine=asked["engine"], options=options)],
        Evaluation(
            samples=asked["samples"],
            temperature=TEMPERATURE,
            top_p=TOP_P,
            max_tokens=asked["limit"],
        ),
        folder / "tasks",
        grading=Grading(workers=1),
        seed=asked["round"],
        pool_root=out / "pool",
        out=out,
        folder=folder,
    )
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    model = found["tasks"]["heldout"]["models"]["student"]
    lengths = [
        json.loads(line)["completion_tokens"]
        for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return {
        "begin": begin,
        "started": sum(started),
        "pass@1": model["pass@1"],
        "lengths": lengths,
    }


def _timed(seconds: list[float], engine: str) -> None:
    """Have the engine say how long it takes to start."""
    if engine == "vllm":
        from distill.teachers.vllm import VLLMTeacher

        start = VLLMTeacher.open

        async def opened(self: VLLMTeacher) -> None:
            begin = time.perf_counter()
            await start(self)
            seconds.append(time.perf_counter() - begin)

        VLLMTeacher.open = opened  # type: ignore[method-assign]
        return
    from distill.teachers.transformers import TransformersTeacher

    load = TransformersTeacher._load_model

    def loaded(self: TransformersTeacher, chat: Any) -> Any:
        begin = time.perf_counter()
        found = load(self, chat)
        seconds.append(time.perf_counter() - begin)
        return found

    TransformersTeacher._load_model = loaded  # type: ignore[method-assign]


def theirs(asked: dict[str, Any]) -> dict[str, Any]:
    """The same by lm-eval's own model."""
    import torch
    import transformers  # noqa: F401
    from lm_eval import simple_evaluate, tasks
    from lm_eval.api.registry import get_model

    torch.set_num_threads(asked["threads"])
    kind = get_model("vllm" if asked["vllm"] else "hf")
    manager = tasks.TaskManager(include_path=asked["folder"], include_defaults=False)
    if asked["vllm"]:
        arguments = {**asked["vllm_arguments"], "max_num_seqs": asked["batch"]}
        arguments |= {"seed": asked["round"]}
    else:
        arguments = {"dtype": "float32", "device": "cpu"}
    begin = time.time()
    batch = "auto" if asked["vllm"] else asked["batch"]
    model = kind(pretrained=asked["model"], batch_size=batch, **arguments)
    started = time.time() - begin
    found = simple_evaluate(
        model=model,
        tasks=["measured"],
        task_manager=manager,
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=False,
        torch_random_seed=asked["round"],
    )
    score = found["results"]["measured"]["pass@1,all"]
    return {"begin": begin, "started": started, "pass@1": score}


def prepared(folder: Path, asked: dict[str, Any]) -> None:
    """The same problems as a task of either side."""
    from benchmarks.embedded_engine import pocket_problems
    from distill.records import write_jsonl

    file = folder / "tasks" / "heldout.jsonl"
    problems = {problem.id: problem for problem in pocket_problems(asked["problems"])}
    asked["problems"] = len(problems)
    write_jsonl(file, problems.values())
    where = ROOT / "distill" / "tasks" / "lm_eval"
    keys = {key: asked[key] for key in ("samples", "limit")}
    text = TASK.format(tasks=where, file=file, temperature=TEMPERATURE, top_p=TOP_P, **keys)
    (folder / "measured.yaml").write_text(text, encoding="utf-8")


def one(side: str, asked: dict[str, Any]) -> dict[str, Any]:
    """A side in a process of its own; what it measured."""
    command = [asked["python"], "-m", "benchmarks.evaluation", "--side", side, json.dumps(asked)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(asked["threads"]),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(Path(asked["folder"]) / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    end = time.time()
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-4000:]}")
    found = json.loads(Path(asked["folder"], "measured.json").read_text(encoding="utf-8"))
    return {**found, "seconds": end - found["begin"]}


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        side, asked = sys.argv[2], json.loads(sys.argv[3])
        found = json.dumps((ours if side == SIDES[0] else theirs)(asked))
        # vLLM's processes say goodbye on the same output.
        Path(asked["folder"], "measured.json").write_text(found, encoding="utf-8")
        return
    from benchmarks.embedded_engine import POCKET

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(POCKET), help="a folder; default: pocket teacher")
    parser.add_argument("--vllm", action="store_true", help="against lm-eval's vllm model")
    defaults = {"problems": 64, "samples": 4, "limit": 384, "batch": 64, "rounds": 3, "threads": 1}
    if "--vllm" in sys.argv:
        defaults["samples"] = 16
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = {**vars(args), "folder": folder, "python": sys.executable, "engine": "transformers"}
        if args.vllm:
            asked |= {"engine": "vllm", "python": _vllm_python()}
            asked["vllm_arguments"] = {"dtype": "float32", "enforce_eager": True}
        prepared(Path(folder), asked)
        measured: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for number in range(args.rounds):
            for side in SIDES if number % 2 else reversed(SIDES):
                measured[side].append(one(side, {**asked, "round": number}))
    show(measured, asked)


def show(measured: dict[str, list[dict[str, Any]]], asked: dict[str, Any]) -> None:
    """The table, and the line that is compared with the goal."""
    count = asked["problems"] * asked["samples"]
    lengths = sorted(n for run in measured["distill"] for n in run["lengths"])
    marks = [lengths[int(q * (len(lengths) - 1))] for q in (0.1, 0.5, 0.9, 1)]
    backend = "vllm" if asked["vllm"] else "hf"
    print(
        f"{Path(asked['model']).name}: {asked['problems']} problems, {asked['samples']} samples "
        f"each, at most {asked['limit']} tokens, batch {asked['batch']}, {asked['rounds']} rounds, "
        f"{asked['threads']} thread(s); tokens of an answer: 10% {marks[0]}, median {marks[1]}, "
        f"90% {marks[2]}, most {marks[3]}"
    )
    print(f"{'':14}   ms/sample  of it starting  seconds (all rounds)        pass@1")
    for side, runs in measured.items():
        seconds = [run["seconds"] for run in runs]
        name = side if side == "distill" else f"{side} {backend}"
        start = 1000 * statistics.median(run["started"] for run in runs) / count
        each = ", ".join(f"{value:.1f}" for value in seconds)
        score = statistics.mean(run["pass@1"] for run in runs)
        whole = 1000 * statistics.median(seconds) / count
        print(f"{name:14} {whole:11.1f}  {start:14.1f}  {each:26}  {score:6.3f}")
    pairs = zip(measured["lm-eval"], measured["distill"], strict=True)
    ratio = statistics.median(_counted(a, asked) / _counted(b, asked) for a, b in pairs)
    print(f"evaluation ratio={ratio:.2f} goal={VLLM_GOAL if asked['vllm'] else GOAL}")


def _counted(run: dict[str, Any], asked: dict[str, Any]) -> float:
    """The seconds of a run that count."""
    return float(run["seconds"] - (run["started"] if asked["vllm"] else 0))


def _vllm_python() -> str:
    made = ROOT / ".venv-vllm" / "bin" / "python"
    python = os.environ.get("DISTILL_VLLM_PYTHON") or (str(made) if made.is_file() else "")
    if not python:
        sys.exit("no interpreter with vllm: run `make vllm`, or set DISTILL_VLLM_PYTHON")
    return python


if __name__ == "__main__":
    main()
