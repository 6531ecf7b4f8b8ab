"""`distill filter --explain` and the data card, on a small run of published traces."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill import Recipe
from distill.commands.explain import MARK, Paint, explain, lines, printable
from distill.commands.export import main as export_main
from distill.errors import UsageError
from distill.pipeline import run as distil
from distill.records import read_jsonl
from distill.report.data_card import card_path, write_data_card
from distill.report.explain import changes_since, excerpt, explain_filters

PROBLEMS, TRACES = 12, 3
EVIL = "\x1b[31mred\x1b[0m‮"


def recipe_of(folder: Path, longest: int = 400, **select: Any) -> Recipe:
    """12 sums of two sources: sample 1 is wrong, sample 2 long; the answers of all are boxed."""
    rows = [
        {
            "problem": f"What is {i} + {i} ?",
            "answer": str(2 * i),
            "generations": [
                f"<think>\n{EVIL} add {i} and {i} {'step by step ' * (90 * (n == 2))}\n</think>\n\n"
                f"The sum is \\boxed{{{2 * i + (n == 1)}}}."
                for n in range(TRACES)
            ],
        }
        for i in range(PROBLEMS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe.from_dict(
        {
            "name": "sums",
            "traces": {"file": str(folder / "rows.jsonl"), "teacher": "abacus", "licence": "mit"},
            "filters": ["truncated", "correct", {"length": {"max_chars": longest}}],
            "select": {"per_problem": 2, "validation": 0.3, **select},
            "evaluate": {"tasks": []},
        }
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The folder of runs, and two runs in it that differ in a threshold."""
    folder = tmp_path_factory.mktemp("explain")
    made = [
        distil(recipe_of(folder, longest), until="select", runs=folder / "runs").path.parent
        for longest in (400, 4000)
    ]
    return folder / "runs", made[0], made[1]


def test_every_filter_says_what_it_dropped_alone_and_only_it(runs: Any) -> None:
    found = explain_filters(runs[1])
    assert (found["traces"], found["kept"], found["bought"]) == (36, 12, 0)
    by_name = {entry["filter"]: entry for entry in found["filters"]}
    assert list(by_name) == ["truncated", "correct", "length"]
    for name in ("correct", "length"):
        entry = by_name[name]
        assert (entry["dropped"], entry["solo"], entry["marginal"]) == (12, 12, 12)
        assert len(entry["samples"]) == 3
    wrong = by_name["correct"]["samples"][0]
    assert wrong["reason"].startswith("wrong")
    assert wrong["index"] == 1
    assert wrong["gold"] in wrong["reason"]
    assert "What is" in wrong["question"]
    assert "The sum is" in wrong["excerpt"]["before"]
    assert {s["outcome"] for s in found["kept_samples"]} == {"correct"}


def test_a_threshold_moves_traces_without_sampling(runs: Any) -> None:
    first, second = (explain_filters(run) for run in runs[1:])
    assert first["changes"]["now_dropped"] == {"length": 12}
    assert second["changes"]["now_kept"] == {"length": 12}
    assert second["changes"]["now_dropped"] == {}
    assert second["changes"]["same"] == 24
    assert second["changes"]["against"] == first["folder"]
    assert second["changes"]["removed"] == ["length {max_chars: 400}"]
    assert second["changes"]["added"] == ["length {max_chars: 4000}"]
    assert len(list((runs[0] / "steps").glob("import-*"))) == 1
    text = "\n".join(lines(second, Paint(on=False)))
    assert "now kept: 12, now dropped: 0, as before: 24" in text
    assert "kept again, dropped before by: length 12" in text


def test_a_step_over_other_traces_is_not_compared(runs: Any, tmp_path: Path) -> None:
    source = runs[0] / "steps"
    for name in explain_filters(runs[1])["folder"], explain_filters(runs[2])["folder"]:
        old = source.parent / name
        new = tmp_path / old.name
        new.mkdir()
        for file in ("done.json", "verdicts.jsonl", "summary.json"):
            (new / file).write_bytes((old / file).read_bytes())
    here, other = sorted(tmp_path.glob("filter-*"))
    assert changes_since(here) is not None
    done = json.loads((other / "done.json").read_text())
    done["inputs"]["import"] = "import-of-something-else"
    (other / "done.json").write_text(json.dumps(done))
    assert changes_since(here) is None


def options(**given: Any) -> argparse.Namespace:
    plain = {"target": None, "rest": [], "runs": None, "json": False, "limit": None}
    return argparse.Namespace(**{**plain, "verb": "filter", "command": ["distill"], **given})


def test_the_command_prints_lines_that_fit_and_obey_nobody(
    runs: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "64")
    assert explain("filter", options(target=runs[1].name, runs=str(runs[0]))) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 64
    assert "\x1b" not in shown
    assert "‮" not in shown
    assert "36 traces kept (33.3%)" in shown
    assert ["length", "12", "12", "12", "12"] in [line.split() for line in shown.splitlines()]
    assert explain("filter", options(target=str(runs[1]), json=True)) == 0
    assert json.loads(capsys.readouterr().out) == explain_filters(runs[1])


def test_a_filter_that_only_measures_is_shown(runs: Any) -> None:
    found = explain_filters(runs[1])
    found["filters"][0]["measured"] = {"share": {"mean": 0.98, "p10": None}}
    assert "  share over all traces: mean 0.98" in list(lines(found, Paint(on=False)))


def test_explain_of_another_verb_is_refused() -> None:
    with pytest.raises(UsageError, match="not train"):
        explain("train", options(target="pocket"))


def test_colour_marks_the_place_and_only_the_place(runs: Any) -> None:
    found = explain_filters(runs[1])
    sample = found["filters"][1]["samples"][0]
    sample["excerpt"] = {"where": "trace", "before": "so ", "at": "it is 7", "after": " then"}
    text = "\n".join(lines(found, Paint(on=True)))
    assert "so \x1b[1mit is 7\x1b[0m then" in text
    assert MARK not in text


def test_an_excerpt_shows_the_quoted_place() -> None:
    text = "First we look. " * 20 + "Wait,  no\nwait. The end " + "and so on " * 30
    found = excerpt("a loop: 'Wait, no wait. The…' 3 times", text)
    assert found["where"] == "trace"
    assert found["at"] == "Wait,  no\nwait. The"
    assert found["before"].startswith("…")
    assert found["after"].startswith(" end and so on")
    assert excerpt("shares 'the same words'", "x", "with the same words as")["where"] == "problem"
    tail = excerpt("cut off", text)
    assert tail["where"] == "end"
    assert text.endswith(tail["before"].removeprefix("…"))
    assert excerpt("it's what the 'x' says", "") == {
        "where": "end",
        "before": "",
        "at": "",
        "after": "",
    }
    assert printable("a\x1b[2Jb\n c​") == "a [2Jb c"


def front(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])
    return found


def select_folder(run: Path) -> Path:
    steps = json.loads((run / "run.json").read_text())["steps"]
    return run.parent / str(steps["select"]["folder"])


def test_the_training_set_has_a_true_card_that_its_hash_does_not_cover(runs: Any) -> None:
    folder = select_folder(runs[2])
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "README.md" not in json.loads((folder / "done.json").read_text())["files"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["splits"]["validation"]["examples"] > 0
    assert front(folder / "README.md")["license"] == "mit"
    for text in (
        "24 reasoning traces of 12 problems",
        "by abacus",
        f"| train | {summary['splits']['train']['examples']} |",
        "| correct | 12 | 24 | 12 | 12 |",
        "| rows.jsonl | 12 | 12 |",
        "- order: shuffled by the seed 0",
        'length {"max\\_chars": 4000}',
        f"recipe: sums, hash {runs[2].name.rpartition('-')[2]}",
    ):
        assert text in card, text
    write_data_card(runs[2])
    assert (folder / "README.md").read_text(encoding="utf-8") == card
    (folder / "README.md").write_text("mine")
    write_data_card(runs[2])
    assert (folder / "README.md").read_text() == "mine"
    (folder / "README.md").write_text(card, encoding="utf-8")


def test_datasets_reads_the_folder_by_its_card(runs: Any, tmp_path: Path) -> None:
    from datasets import load_dataset

    folder = select_folder(runs[2])
    found = load_dataset(str(folder), cache_dir=str(tmp_path))
    assert list(found) == ["train", "validation"]
    assert list(found["validation"]) == list(read_jsonl(folder / "validation.jsonl"))


def test_export_writes_a_folder_for_the_hub_or_a_file_for_each_split(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"target": runs[2].name, "runs": str(runs[0]), "form": "sharegpt"}
    export_main("export", options(**asked, out=str(tmp_path / "hub")))
    files = front(tmp_path / "hub" / "README.md")["configs"][0]["data_files"]
    assert files == [{"split": s, "path": f"{s}.parquet"} for s in ("train", "validation")]
    assert "`conversations`" in (tmp_path / "hub" / "README.md").read_text()
    export_main("export", options(**asked, out=str(tmp_path / "one.jsonl")))
    assert (tmp_path / "one.validation.jsonl").is_file()
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="not a data card"):
        card_path(tmp_path)
    assert "examples as sharegpt" in capsys.readouterr().out
