"""`math` grading beside plain math-verify: agreement with labels, and pairs per second of one core.

    python -m benchmarks.grading [--data ../shared/data/grading] [--limit N] [--repeat N]
                                 [--disagreements | --table FILE]

Both see the same strings. math-verify runs as its README says, with its own time-outs (5 s per
comparison), in a process of its own; ours runs with one worker and 5 s per pair. Seconds are
processor seconds of all processes that take part, after the imports and one warming pair. Labels
are whatever their source says; those that were judged wrong (`data/grading_review.json`, one
reason each) are put right in the second pair of columns, and it is there that ours must not be
below math-verify on any file. `ratio` is the smallest over the mixes of pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LABELLED = (
    "math_verify_tests",
    "hendrycks_math_equivalence_tests",
    "simple_evals_equality_examples",
    "silver_qwen_grader_pairs",
)
UNLABELLED = "rasbt_math500_pairs_unlabelled"
REVIEW = Path(__file__).parent / "data" / "grading_review.json"
GOAL = 5.0
PROBLEMS, SAMPLES = 120, 16
"""The mix that sampling gives: so many problems, so many answers to each."""

KNOWN_FALSE_POSITIVES = [
    # huggingface/Math-Verify#14, #41, #60, and others of the same kinds.
    ("\\frac{1}{2004!}", "\\frac{1}{2006!}"),
    ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}"),
    ("\\frac{2^{2005}+1}{3 \\cdot 2^{2006}}", "\\frac{1}{3 \\cdot 2^{2006}}"),
    ("10^{-7}", "10^{-8}"),
    ("1e-7", "1e-8"),
    ("0.0000001", "0.0000002"),
    ("2^{100}", "2^{100}+1"),
    ("12345678901234567890", "12345678901234567891"),
    ("\\sqrt{10^{40}+1}", "10^{20}"),
    ("n=2, 3, 4", "n=1, 2, 3"),
    ("D = (0, 1)", "D = (0, 1.5)"),
    ("F_n = \\sum_{k=0}^{n-1} F_k F_{n-k-1}", "F_n = \\sum_{k=0}^{n-2} F_k F_{n-k-2}"),
    ("19, 46, \\text{ and } 82", "21, 36, and 82"),
    ("1 - \\frac{1}{\\mathrm{e}}", "1 + \\frac{1}{\\mathrm{e}}"),
    ("\\pm 2021", "2021"),
    ("12:00", "1:00"),
    ("1, 2, \\ldots, n", "1, 3, 5, \\ldots, 2n-1"),
    ("1:2:3:\\ldots", "1:4:9:\\ldots"),
    ("4", "4\\sqrt(2)"),
    ("3*x-1*y+13=0", "3x + 4y + 14=0"),
    ("5\\text{ cm}", "5\\text{ m}"),
    ("1.22", "1.22x10⁻¹⁸J"),
]

Pair = tuple[str, str]


def read(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a file: `gold`, `pred`, `expected` (None where there is no label)."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{**row, "pred": row["pred"] or ""} for row in rows][:limit]


def sampled(rows: Sequence[dict[str, Any]]) -> list[Pair]:
    """Problems with many answers each, drawn from the answers that were given to them."""
    answers: dict[str, list[str]] = {}
    for row in rows:
        answers.setdefault(row["gold"], []).append(row["pred"])
    draw = random.Random(0)
    several = [gold for gold, given in answers.items() if len(given) > 2]
    chosen = draw.sample(several, min(PROBLEMS, len(several)))
    return [(gold, draw.choice(answers[gold])) for gold in chosen for _ in range(SAMPLES)]


# --- ours ----------------------------------------------------------------------------------------


def ours(pairs: Sequence[Pair]) -> tuple[list[str], int, float]:
    """Our outcomes, the number of workers killed, and the processor seconds of all processes."""
    from distill.grade import Judge
    from distill.schema import Grading

    with Judge(Grading(graders=[{"name": "math"}], workers=1), Path()) as judge:  # type: ignore[list-item]
        list(judge.grade_many([as_trace("\\int x", "\\int y")]))
        begin = _all_seconds(judge.pool)
        outcomes = [g.outcome for g in judge.grade_many(as_trace(*pair) for pair in pairs)]
        seconds = _all_seconds(judge.pool) - begin
        return list(outcomes), judge.pool.killed, seconds


def as_trace(gold: str, prediction: str) -> Any:
    """The problem and trace of a pair: a bare prediction is the final answer itself."""
    from distill.grade.extract import final_answer
    from distill.records import Problem, Trace

    bare = final_answer(prediction) is None
    text = f"<answer>{prediction}</answer>" if bare else prediction
    return Problem(messages=(), gold=gold), Trace(problem_id="", index=0, text=text)


def _all_seconds(pool: Any) -> float:
    """Processor seconds of this process, of workers that have ended, and of the one that runs."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for member in pool._members:
        stat = Path(f"/proc/{member.process.pid}/stat").read_text(encoding="ascii")
        fields = stat.rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


@contextmanager
def no_cache() -> Iterator[None]:
    """Every pair is judged anew: neither verdicts nor parsed answers are kept."""
    from distill.grade import forms, service

    kept = service.CACHE, forms._settle, forms._readings
    service.CACHE = 0
    forms._settle = forms._settle.__wrapped__  # type: ignore[assignment]
    forms._readings = forms._readings.__wrapped__  # type: ignore[assignment]
    try:
        yield
    finally:
        service.CACHE, forms._settle, forms._readings = kept  # type: ignore[assignment]


# --- math-verify ---------------------------------------------------------------------------------


def peers(pairs: Sequence[Pair]) -> tuple[list[bool], float]:
    """math-verify's verdicts and processor seconds, from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.grading", "--peer"]
    done = subprocess.run(
        command,
        input=json.dumps(list(pairs)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    verdicts, seconds = json.loads(done.stdout.splitlines()[-1])
    return verdicts, seconds


def peer_main() -> None:
    """In the fresh process: pairs from stdin, `[verdicts, seconds]` to stdout."""
    from math_verify import parse, verify

    def marked(text: str) -> str:
        return text if any(m in text for m in ("$", "\\boxed", "\\(", "\\[")) else f"${text}$"

    def judged(gold: str, prediction: str) -> bool:
        return bool(verify(parse(marked(gold)), parse(marked(prediction))))

    judged("\\int x", "\\int y")
    pairs = json.load(sys.stdin)
    begin = time.process_time()
    verdicts = [judged(*pair) for pair in pairs]
    print(json.dumps([verdicts, time.process_time() - begin]))


# --- the tables ----------------------------------------------------------------------------------


def reviewed() -> dict[tuple[str, int], dict[str, Any]]:
    """The judged disagreements by (file, row)."""
    if not REVIEW.is_file():
        return {}
    return {(r["file"], r["row"]): r for r in json.loads(REVIEW.read_text(encoding="utf-8"))}


def truth(name: str, row: int, label: bool) -> bool:
    """The label, put right where it was judged wrong."""
    judged = reviewed_once().get((name, row))
    return not label if judged and judged["verdict"] == "label wrong" else label


_REVIEWED: list[dict[tuple[str, int], dict[str, Any]]] = []


def reviewed_once() -> dict[tuple[str, int], dict[str, Any]]:
    """`reviewed`, read once."""
    if not _REVIEWED:
        _REVIEWED.append(reviewed())
    return _REVIEWED[0]


def share(verdicts: Sequence[bool], labels: Sequence[bool]) -> float:
    """Share of verdicts that are the label."""
    return sum(v == x for v, x in zip(verdicts, labels, strict=True)) / max(1, len(labels))


def agreement(
    name: str, rows: Sequence[dict[str, Any]], mine: Sequence[str], theirs: Sequence[bool]
) -> str:
    """Print one line of the table. Returns a complaint where ours is below math-verify's."""
    labels = [bool(row["expected"]) for row in rows]
    right = [truth(name, i, label) for i, label in enumerate(labels)]
    got = [outcome == "correct" for outcome in mine]
    false = [sum(v and not x for v, x in zip(who, right, strict=True)) for who in (got, theirs)]
    missed = [sum(x and not v for v, x in zip(who, right, strict=True)) for who in (got, theirs)]
    counts = Counter(mine)
    values = [share(who, against) for against in (labels, right) for who in (got, theirs)]
    print(
        f"{name:<34}{len(rows):>6}" + "".join(f"{value:>9.4f}" for value in values),
        f"{false[0]:>5}{false[1]:>5}{missed[0]:>6}{missed[1]:>5}  ",
        ", ".join(f"{outcome} {n}" for outcome, n in counts.most_common()),
        flush=True,
    )
    return f"{name}: {values[2]:.4f} below {values[3]:.4f}" if values[2] < values[3] else ""


def disagreements(
    name: str, rows: Sequence[dict[str, Any]], mine: Sequence[str], theirs: Sequence[bool]
) -> Iterator[dict[str, Any]]:
    """The rows on which our verdict or math-verify's is not the label."""
    for i, (row, outcome, peer) in enumerate(zip(rows, mine, theirs, strict=True)):
        label = bool(row["expected"])
        if (outcome == "correct") != label or peer != label:
            judged = reviewed_once().get((name, i), {})
            yield {
                "file": name, "row": i, "label": label, "ours": outcome, "peer": peer,
                "gold": row["gold"], "pred": row["pred"], **judged,
            }  # fmt: skip


def table(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the judged disagreements as a Markdown table. The pairs stay where they are."""
    lines = [
        "# Where a verdict is not the label",
        "",
        "Every pair of `../shared/data/grading` on which `math` or plain math-verify disagrees "
        "with its label, judged one by one. Written by `python -m benchmarks.grading --table`; "
        "the judgements are in `benchmarks/data/grading_review.json`. Row numbers count from 0; "
        "`--disagreements` prints the pairs themselves.",
        "",
        "| file | row | label | ours | math-verify | judged | why |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        cells = [
            one["file"].split("_")[0], str(one["row"]),
            "equal" if one["label"] else "different", one["ours"],
            "equal" if one["peer"] else "different", one.get("verdict", "not judged"),
            one.get("why", ""),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def speed(name: str, pairs: Sequence[Pair], repeat: int) -> tuple[list[str], list[bool], float]:
    """Print one line of the table of speeds. Returns outcomes, verdicts and the ratio."""
    mine, theirs, cold = [], [], []
    outcomes: list[str] = []
    verdicts: list[bool] = []
    killed = 0
    for _ in range(repeat):
        outcomes, killed, seconds = ours(pairs)
        mine.append(seconds)
        with no_cache():
            cold.append(ours(pairs)[2])
        verdicts, seconds = peers(pairs)
        theirs.append(seconds)
    rates = [len(pairs) / statistics.median(times) for times in (mine, cold, theirs)]
    errors = outcomes.count("error")
    print(
        f"{name:<34}{len(pairs):>6}" + "".join(f"{rate:>10.0f}" for rate in rates),
        f"{rates[0] / rates[2]:>8.2f}{rates[1] / rates[2]:>9.2f}",
        f"  {errors} errors, {killed} killed",
        flush=True,
    )
    return outcomes, verdicts, rates[0] / rates[2]


def main() -> None:
    """Print both tables, the false positives and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parents[2]
    parser.add_argument("--data", type=Path, default=here / "shared" / "data" / "grading")
    parser.add_argument("--limit", type=int, help="pairs per file")
    parser.add_argument("--repeat", type=int, default=1, help="runs, of which the median counts")
    parser.add_argument("--disagreements", action="store_true", help="print all, and judgements")
    parser.add_argument("--table", type=Path, help="write them as Markdown")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer_main()
        return
    files = {n: read(options.data / f"{n}.jsonl", options.limit) for n in (*LABELLED, UNLABELLED)}
    print(f"{'pairs per second of one core':<34}{'n':>6}{'ours':>10}{'no cache':>10}{'m-v':>10}"
          f"{'ratio':>9}{'no cache':>9}")  # fmt: skip
    results, ratios = {}, []
    for name in (LABELLED[-1], UNLABELLED):
        pairs = [(row["gold"], row["pred"]) for row in files[name]]
        *results[name], ratio = speed(name, pairs, options.repeat)
        ratios.append(ratio)
    mixed = sampled([*files[LABELLED[-1]], *files[UNLABELLED]])
    ratios.append(speed(f"{SAMPLES} samples a problem, of both", mixed, options.repeat)[2])
    head = f"{'labels':>22}{'labels reviewed':>18}{'false +':>13}{'false -':>11}"
    print(f"\n{'agreement with':<34}{head}")
    print(f"{'':<34}{'n':>6}" + f"{'ours':>9}{'m-v':>9}" * 2 + f"{'ours':>6}{'m-v':>5}" * 2)
    complaints, found = [], []
    for name in LABELLED:
        rows = files[name]
        if name not in results:
            pairs = [(row["gold"], row["pred"]) for row in rows]
            results[name] = [ours(pairs)[0], peers(pairs)[0]]
        mine, theirs = results[name]
        complaints.append(agreement(name, rows, mine, theirs))
        found += disagreements(name, rows, mine, theirs)
    if options.disagreements:
        for one in found:
            print(json.dumps(one, ensure_ascii=False))
    if options.table:
        table(found, options.table)
    taken = sum(outcome == "correct" for outcome in ours(KNOWN_FALSE_POSITIVES)[0])
    peer_taken = sum(peers(KNOWN_FALSE_POSITIVES)[0])
    known = len(KNOWN_FALSE_POSITIVES)
    print(f"known false positives: ours {taken}, math-verify {peer_taken} of {known}")
    if taken:
        complaints.append(f"{taken} known false positives")
    if any(complaints):
        sys.exit("not as good as math-verify: " + "; ".join(filter(None, complaints)))
    print(f"grading ratio={min(ratios):.2f} goal={GOAL:g}")


if __name__ == "__main__":
    main()
