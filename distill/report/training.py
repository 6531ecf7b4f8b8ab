"""What the report tells of the training: the stages' summaries, and their curves in a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.report.reading import STRICT, Reader
from distill.report.words import clip

if TYPE_CHECKING:
    from distill.report.build import Step

CURVE_POINTS = 400
CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu")


def read_training(
    steps: Sequence[Step],
    notes: list[dict[str, str]],
    merged: Mapping[str, Any],
    read: Reader = STRICT,
) -> dict[str, Any] | None:
    """The last stage's summary, with the curves of all; None where nothing was trained.

    `merged` is the summary of the merge step; `merge` has it, or is None.

    `curve` and `validation_curve` count updates from the first stage on; `stages` has a row for
    each stage of several, with the update it `starts` at, else it is empty.
    """
    if not steps:
        return None
    curve: list[dict[str, Any]] = []
    validation: list[dict[str, Any]] = []
    stages, start = [], 0
    for step in steps:
        rows, measured = _logged(step.folder, start, read)
        curve += rows
        validation += measured
        stages.append({"name": step.stage, "starts": start, **without_notes(step.summary)})
        start += int(step.summary.get("updates") or 0)
    preflight = read_json(steps[-1].folder / "preflight.json", notes, steps[-1].name)
    thin = max(1, -(-len(curve) // CURVE_POINTS))
    several = len(steps) > 1 or bool(steps[0].stage)
    return {
        **without_notes(steps[-1].summary),
        "curve": curve[::thin],
        "validation_curve": validation,
        "logged": len(curve),
        "stages": stages if several else [],
        "merge": without_notes(merged) or None,
        "preflight": _preflight(preflight),
    }


def _logged(
    folder: Path, start: int, read: Reader
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of log.jsonl: of the training, and on the validation split."""
    rows = list(read.rows(folder / "log.jsonl"))
    told = [row for row in rows if row.get("loss") is not None]
    measured = [row for row in rows if row.get("validation_loss") is not None]
    return (
        [{"step": start + row["step"], **{key: row.get(key) for key in CURVES}} for row in told],
        [{"step": start + row["step"], "loss": row["validation_loss"]} for row in measured],
    )


def _preflight(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the check before training found, and its example with what is trained of it."""
    if found is None:
        return None
    example = [
        {"trained": bool(part.get("trained")), "text": clip(str(part.get("text") or ""))}
        for part in found.get("example") or []
    ]
    return {"checked": found.get("checked"), "failed": found.get("failed"), "example": example}


def without_notes(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A step's summary without its notes, which the report gathers from all steps."""
    return {k: v for k, v in summary.items() if k != "notes"}


def read_json(
    path: Path, notes: list[dict[str, str]], step: str = "report"
) -> dict[str, Any] | None:
    """An object from a file; None where it is not there, with a note where it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict):
            return data
        raise ValueError("expected an object")
    except FileNotFoundError:
        return None
    except ValueError as error:
        notes.append({"step": step, "note": f"{path.name} is damaged and was left out: {error}"})
        return None
