"""Near-duplicates: against exact similarity, whatever the order, and on real traces."""

from __future__ import annotations

import json
import pickle
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UsageError
from distill.filter.minhash import RECALL, NearDuplicates, Signer, band_rows, similarity
from distill.filter.parts import build
from distill.records import Grade, Problem, Trace
from distill.schema import PartSpec

GRADE = Grade(outcome="correct", score=1.0)
WORDS = [f"{a}{b}" for a in "bcdfgklmnprstvz" for b in ("a", "en", "il", "or", "um", "ash", "ick")]
Sample = tuple[str, int, str]
"""(problem id, index, text)"""


def prose(draw: random.Random, words: int) -> list[str]:
    return [draw.choice(WORDS) for _ in range(words)]


def changed(draw: random.Random, words: Sequence[str], times: int) -> list[str]:
    copy = list(words)
    for at in draw.sample(range(len(copy)), times):
        copy[at] = f"{copy[at]}x"
    return copy


def dropped(samples: Sequence[Sample], **params: Any) -> dict[tuple[str, int], str]:
    """The reasons by (problem id, index)."""
    near = NearDuplicates(**params)
    problem = Problem(messages=({"role": "user", "content": "?"},))
    items = [(problem, Trace(problem_id=p, index=i, text=text), GRADE) for p, i, text in samples]
    near.prepare(iter(items))
    again = pickle.loads(pickle.dumps(near))
    found = {(t.problem_id, t.index): again(p, t, g) for p, t, g in items}
    return {key: reason for key, reason in found.items() if reason}


def jaccard(one: str, other: str, n: int = 5) -> float:
    signer = Signer(n, 64)
    a, b = (set(signer.shingles(text).tolist()) for text in (one, other))
    return len(a & b) / len(a | b)


def test_a_copy_with_a_word_changed_is_dropped_and_says_for_which() -> None:
    draw = random.Random(1)
    text = prose(draw, 400)
    samples = [
        ("p", 7, " ".join(changed(draw, text, 3))),
        ("p", 2, " ".join(text)),
        ("p", 4, " ".join(prose(draw, 400))),
        ("q", 0, " ".join(text).upper().replace(" ", "\n  ")),
    ]
    (reason,) = dropped(samples).values()
    assert reason.endswith("% alike sample 2")
    found = dropped(samples, within="corpus")
    assert found[("q", 0)] == "100% alike sample 2 of problem p"
    assert set(found) == {("p", 7), ("q", 0)}


def test_estimates_are_those_of_datasketch() -> None:
    datasketch = pytest.importorskip("datasketch")
    draw, signer = random.Random(2), Signer(5, 256)
    ours, theirs = [], []
    for times in range(0, 60, 3):
        text = prose(draw, 300)
        pair = [" ".join(text), " ".join(changed(draw, text, times))]
        exact = jaccard(*pair)
        signed = [signer(one) for one in pair]
        ours.append(float(similarity(signed[0][None], signed[1])[0]) - exact)
        sketches = []
        for one in pair:
            sketch = datasketch.MinHash(256)
            sketch.update_batch([shingle.tobytes() for shingle in signer.shingles(one)])
            sketches.append(sketch)
        theirs.append(sketches[0].jaccard(sketches[1]) - exact)
    assert abs(np.mean(ours)) < 0.02
    assert np.std(ours) < 1.5 * np.std(theirs) + 0.005
    assert max(map(abs, ours)) < 0.12


def test_no_bias_between_unrelated_and_equal_texts() -> None:
    draw, signer = random.Random(3), Signer(5, 256)
    signed = np.array([signer(" ".join(prose(draw, 200))) for _ in range(60)])
    found = [similarity(signed[i + 1 :], signed[i]) for i in range(59)]
    assert np.concatenate(found).mean() < 0.004
    assert similarity(signed[:1], signed[0])[0] == 1


@pytest.mark.parametrize("within", ["problem", "corpus"])
def test_recall_against_exact_similarity(within: str) -> None:
    """Of pairs well above the threshold all are found, of those well below none is taken."""
    draw = random.Random(4)
    samples: list[Sample] = []
    for number in range(60):
        text = prose(draw, draw.randint(80, 400))
        samples.append((f"p{number}", 0, " ".join(text)))
        samples.append((f"p{number}", 1, " ".join(changed(draw, text, draw.randint(0, 14)))))
    found = dropped(samples, within=within, threshold=0.8)
    shares = {
        p: jaccard(a, b) for (p, _, a), (_, _, b) in zip(samples[::2], samples[1::2], strict=True)
    }
    sure = {p for p, share in shares.items() if share > 0.88}
    not_so = {p for p, share in shares.items() if share < 0.72}
    assert len(sure) > 10
    assert len(not_so) > 10
    assert sure <= {p for p, _ in found}
    assert not not_so & {p for p, _ in found}


def family(seed: int) -> list[Sample]:
    """Copies of copies: similarities of all sizes within and across problems."""
    draw = random.Random(seed)
    texts = [prose(draw, 60) for _ in range(3)]
    for _ in range(12):
        texts.append(changed(draw, draw.choice(texts), draw.randint(0, 3)))
    return [(draw.choice("abc"), i, " ".join(text)) for i, text in enumerate(texts)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.randoms(), st.sampled_from(["problem", "corpus"]))
def test_order_does_not_matter_and_something_alike_stays(
    seed: int, shuffler: random.Random, within: str
) -> None:
    samples = family(seed)
    params = {"within": within, "threshold": 0.7, "permutations": 64}
    found = dropped(samples, **params)
    shuffled = list(samples)
    shuffler.shuffle(shuffled)
    assert dropped(shuffled, **params) == found
    keys = {(p, i) for p, i, _ in samples}
    for (problem, index), reason in found.items():
        ((sample, owner),) = re.findall(r"sample (\d+)(?: of problem (\w))?$", reason)
        keeper = (owner or problem, int(sample))
        assert keeper in keys - set(found)
        assert keeper < (problem, index)


def test_a_chain_of_small_changes_keeps_its_far_end() -> None:
    draw = random.Random(5)
    first = prose(draw, 300)
    second = changed(draw, first, 6)
    third = changed(draw, second, 6)
    samples = [("p", i, " ".join(text)) for i, text in enumerate((first, second, third))]
    near = [jaccard(samples[a][2], samples[b][2]) for a, b in ((0, 1), (1, 2), (0, 2))]
    assert near[0] > 0.8
    assert near[1] > 0.8
    assert near[2] < 0.75
    assert set(dropped(samples, threshold=0.77, permutations=1024)) == {("p", 1)}


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("", "  \n", True),
        ("2 + 2 = 4", "2+2=4", True),
        ("2 + 2 = 4", "2 + 2 = 5", False),
        ("求和是多少", "求和是多少", True),
        ("求和是多少，答案是十二", "求积是多少，答案是三十", False),
        ("\ud800 half a pair", "\ud800 half a pair", True),
    ],
)
def test_short_and_odd_texts(one: str, other: str, alike: bool) -> None:
    assert bool(dropped([("p", 0, one), ("p", 1, other)])) is alike


def test_nothing_at_all() -> None:
    assert dropped([]) == {}
    assert dropped([], within="corpus") == {}


@given(st.text(st.characters(exclude_categories=())), st.integers(1, 8))
def test_any_text_has_a_signature(text: str, n: int) -> None:
    signer = Signer(n, 32)
    assert signer(text).shape == (32,)
    assert np.array_equal(signer(text), Signer(n, 32)(f" {text}\n"))


def test_bands_find_what_is_at_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.85, 0.95, 1.0):
        for size in (64, 128, 256):
            rows = band_rows(threshold, size)
            chance = 1 - (1 - threshold**rows) ** (size // rows)
            assert chance >= RECALL or rows == 3
    assert band_rows(0.85, 256) == 8


def test_parameters_that_make_no_sense() -> None:
    for params in ({"threshold": 0.2}, {"n": 0}, {"permutations": 8}, {"within": "folder"}):
        with pytest.raises(UsageError, match="near_duplicates"):
            NearDuplicates(**params)  # type: ignore[arg-type]


def test_a_recipe_names_it() -> None:
    (part,) = build([PartSpec(name="near_duplicates", params={"within": "corpus"})], Path())
    assert part.needs_corpus


def test_different_solutions_of_real_models_are_kept(shared: Path) -> None:
    """Models that solve the same problems: no two traces are near-duplicates by default."""
    by_problem: dict[str, list[str]] = defaultdict(list)
    for name in ("skythought_sky_t1_long", "topology_r1_math500"):
        with (shared / "traces" / f"{name}.jsonl").open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                by_problem[row["problem"]].append(row["trace"][:8_000])
    groups = [texts for texts in by_problem.values() if len(texts) > 1]
    samples = [(f"p{g}", i, t) for g, texts in enumerate(groups[:40]) for i, t in enumerate(texts)]
    assert len(samples) > 80
    assert dropped(samples) == {}
    highest = max(jaccard(a, b) for texts in groups[:40] for a, b in combinations(texts, 2))
    assert highest < 0.75
