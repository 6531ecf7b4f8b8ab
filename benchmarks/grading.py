"""Agreement of `math` grading with labelled pairs, beside math-verify used as its README says.

    python -m benchmarks.grading [--data ../shared/data/grading] [--limit N] [--disagreements]

Both see the same strings in the same run. math-verify runs in this process with its own time-outs
(5 s per comparison); ours runs in its pool with a 5 s limit per pair. A row's label is whatever
its source says; a silver label may be wrong. `ratio` is our agreement over math-verify's.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from distill.grade import Judge
from distill.grade.extract import final_answer
from distill.records import Problem, Trace
from distill.schema import Grading

FILES = (
    "math_verify_tests",
    "hendrycks_math_equivalence_tests",
    "simple_evals_equality_examples",
    "silver_qwen_grader_pairs",
)
GOAL = 1.0
KNOWN_FALSE_POSITIVES = [
    # huggingface/Math-Verify#14, and others of the same kind: small numbers, long integers.
    ("\\frac{1}{2004!}", "\\frac{1}{2006!}"),
    ("10^{-7}", "10^{-8}"),
    ("0.0000001", "0.0000002"),
    ("2^{100}", "2^{100}+1"),
    ("12345678901234567890", "12345678901234567891"),
]

Pair = tuple[str, str, bool]


def read(path: Path, limit: int | None) -> list[Pair]:
    """The labelled pairs of a file, as (gold, prediction, equal)."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(r["gold"], r["pred"] or "", bool(r["expected"])) for r in rows][:limit]


def ours(pairs: list[Pair]) -> tuple[list[bool], int, int]:
    """Our verdicts, the number of pairs that could not be judged, and of workers killed."""
    with Judge(Grading(graders=[{"name": "math"}]), Path()) as judge:  # type: ignore[list-item]
        grades = list(judge.grade_many(_as_trace(*pair) for pair in pairs))
        return (
            [g.correct for g in grades],
            sum(g.outcome == "error" for g in grades),
            (judge.pool.killed),
        )


def _as_trace(gold: str, prediction: str, _: bool) -> tuple[Problem, Trace]:
    # A bare prediction is the final answer; a longer text has to be searched for it.
    bare = final_answer(prediction) is None
    text = f"<answer>{prediction}</answer>" if bare else prediction
    return Problem(messages=(), gold=gold), Trace(problem_id="", index=0, text=text)


def peers(pairs: list[Pair]) -> list[bool]:
    """math-verify's verdicts; a string without LaTeX marks is put between dollar signs."""
    from math_verify import parse, verify

    def marked(text: str) -> str:
        return text if any(m in text for m in ("$", "\\boxed", "\\(", "\\[")) else f"${text}$"

    return [bool(verify(parse(marked(gold)), parse(marked(pred)))) for gold, pred, _ in pairs]


def agreement(verdicts: list[bool], pairs: list[Pair]) -> float:
    """Share of the pairs on which a verdict agrees with the label."""
    return sum(v == p[2] for v, p in zip(verdicts, pairs, strict=True)) / len(pairs)


def main() -> None:
    """Print the table, the false positives and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parents[2]
    parser.add_argument("--data", type=Path, default=here / "shared" / "data" / "grading")
    parser.add_argument("--limit", type=int, help="pairs per file")
    parser.add_argument("--disagreements", action="store_true", help="print ours")
    options = parser.parse_args()
    print(
        f"{'pairs':<34}{'n':>6}{'ours':>8}{'m-v':>8}{'ours FP':>9}{'m-v FP':>8}{'s':>7}{'s m-v':>7}"
    )
    right = peer_right = 0.0
    for name in FILES:
        pairs = read(options.data / f"{name}.jsonl", options.limit)
        begin = time.perf_counter()
        mine, errors, killed = ours(pairs)
        middle = time.perf_counter()
        theirs = peers(pairs)
        end = time.perf_counter()
        a, b = agreement(mine, pairs), agreement(theirs, pairs)
        right, peer_right = right + a * len(pairs), peer_right + b * len(pairs)
        false = [sum(v and not p[2] for v, p in zip(x, pairs, strict=True)) for x in (mine, theirs)]
        print(
            f"{name:<34}{len(pairs):>6}{a:>9.4f}{b:>9.4f}{false[0]:>9}{false[1]:>9}"
            f"{middle - begin:>9.1f}{end - middle:>9.1f}   {errors} errors, {killed} killed",
            flush=True,
        )
        for verdict, peer, (gold, prediction, label) in zip(mine, theirs, pairs, strict=True):
            if options.disagreements and verdict != label:
                who = "both" if peer == verdict else "ours"
                print(
                    f"    {who} {verdict:d} label {label:d}  {gold[-90:]!r} | {prediction[-90:]!r}"
                )
    known = [(gold, answer, False) for gold, answer in KNOWN_FALSE_POSITIVES]
    taken, peer_taken = sum(ours(known)[0]), sum(peers(known))
    print(f"known false positives: ours {taken}, math-verify {peer_taken} of {len(known)}")
    print(f"grading ratio={right / peer_right:.4f} goal={GOAL}")


if __name__ == "__main__":
    main()
