"""Sampling of a plan as lines of text, and numbers as a plan says them: three digits."""

from __future__ import annotations

from distill.plan_sampling import Basis, Expected, expected, not_honoured
from distill.policy import Policy
from distill.recipe import Recipe


def sampling_lines(
    recipe: Recipe, count: int | None, basis: Basis, tokens_per_second: float | None
) -> list[str]:
    teacher, sampling = recipe.teacher, recipe.sampling
    who = teacher.model or teacher.engine or "(object)"
    if count is None and sampling.want is None:
        lines = [f"teacher {who}: {sampling.n} samples of each problem"]
    elif count is None:
        lines = [f"teacher {who}: {_wanted(recipe)} of each problem"]
    else:
        found = expected(recipe, count, basis)
        fixed = sampling.want is None
        lines = (
            [_fixed_line(who, recipe, found)]
            if fixed
            else _adaptive_lines(who, recipe, found, basis)
        )
        if teacher.price_out or teacher.price_in:
            cap = "no cap" if sampling.max_cost is None else f"cap {sampling.max_cost:,.2f}"
            lines.append(f"cost about {found.money:,.2f} at the recipe's prices ({cap})")
        if tokens_per_second:
            hours = found.tokens / tokens_per_second / 3600
            lines.append(f"time about {hours:,.1f} hours at {tokens_per_second:,.0f} tokens/s")
    if ignored := not_honoured(recipe):
        lines.append(f"the engine ignores: {', '.join(ignored)}")
    return lines


def _fixed_line(who: str, recipe: Recipe, found: Expected) -> str:
    sampling = recipe.sampling
    return (
        f"teacher {who}: {found.problems:,} problems x {sampling.n} samples = "
        f"{found.samples:,} traces, about {short(found.tokens)} tokens "
        f"(at most {short(found.samples * sampling.max_tokens)})"
    )


def _wanted(recipe: Recipe) -> str:
    sampling = recipe.sampling
    plural = "" if sampling.want == 1 else "s"
    return f"{sampling.want} accepted trace{plural} of at most {sampling.max} samples"


def _about(count: int) -> str:
    """Three digits of a large number: a simulation knows no more."""
    return f"{float(f'{count:.3g}'):,.0f}"


def _adaptive_lines(who: str, recipe: Recipe, found: Expected, basis: Basis) -> list[str]:
    sampling = recipe.sampling
    fixed = found.problems * sampling.max * basis.sample_tokens
    complete = f", {found.complete:.0%} with all {sampling.want}" if sampling.want != 1 else ""
    lines = [
        f"teacher {who}: {found.problems:,} problems, {_wanted(recipe)} each",
        f"expected {_about(found.samples)} traces "
        f"({found.samples / found.problems:.1f} a problem), "
        f"about {_about(found.tokens)} tokens: {found.tokens / fixed:.0%} of n = {sampling.max}",
        f"bringing {_about(found.accepted or 0)} accepted traces; "
        f"{found.solved:.0%} of the problems solved{complete}",
        f"pass rates Beta({basis.mix[0]:.2f}, {basis.mix[1]:.2f}), {basis.sample_tokens:,.0f} "
        f"tokens a sample ({basis.said})",
    ]
    given_up = Policy.from_sampling(sampling).gives_up_after()
    lines.append(
        f"a problem is given up after {given_up} samples without an accepted one"
        if given_up
        else f"no problem is given up before its {sampling.max} samples"
    )
    if found.rounds is not None:
        spent = [f"{b:,.10g}" for b in (sampling.budget_tokens, sampling.budget_cost) if b]
        lines.append(f"in about {found.rounds} rounds of a budget of {' and '.join(spent)}")
    return lines


def selection_lines(recipe: Recipe) -> list[str]:
    """What a reader should know of a selection that throws away what was asked for."""
    want, select = recipe.sampling.want, recipe.select
    found = []
    if recipe.traces is None and want and want > select.per_problem and select.by == "random":
        found.append(
            f"note: sampling.want is {want}, and select.per_problem keeps {select.per_problem} of "
            "them, drawn at random"
        )
    if select.by == "judge" and not any(p.name == "judge" for p in recipe.grading.graders):
        found.append("note: select.by is judge, and no judge is among grading.graders")
    return found


def size(number: float | None) -> str:
    """Three digits of a number: 1,230 or 45,600; small ones as they are."""
    if number is None:
        return "?"
    return f"{number:,.0f}" if number < 1000 else _about(round(number))


def short(number: float | None) -> str:
    """A large number by its unit: 7.62 B, 323 M, 4.71 T."""
    if number is None:
        return "?"
    units = {"Z": 1e21, "E": 1e18, "P": 1e15, "T": 1e12, "B": 1e9, "M": 1e6, "k": 1e3}
    for unit, factor in units.items():
        if number >= factor * 0.9995:
            return f"{float(f'{number / factor:.3g}'):g} {unit}"
    return f"{number:,.0f}"
