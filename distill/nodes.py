"""A training on several machines, seen from one that does not lead.

`distill train RECIPE` is typed on every node (or started by torchrun in every process); the first
one runs the recipe, and the others take part in its trainings and keep no step of their own.
"""

from __future__ import annotations

import os
from typing import Any

from distill import child
from distill.errors import UsageError
from distill.recipe import Recipe
from distill.resolve import resolve
from distill.stages import stages_of

LAUNCH = "distill.students.launch"


def follows(recipe: Recipe) -> bool:
    """Whether this process only takes part in what another one leads. Raises UsageError."""
    if _inside():
        if len(stages_of(recipe)) > 1:
            raise UsageError(
                f"recipe '{recipe.name}' trains in {len(stages_of(recipe))} stages, and torchrun "
                "starts processes for one training",
                "start `distill train` itself, once on each node: it starts the processes",
            )
        # A process of torchrun's must end with it, like every one that we start ourselves.
        child.die_with_parent(os.getppid())
    return bool(_launch("follows")(recipe.train.model_dump(mode="json")))


def follow(recipe: Recipe) -> None:
    """Take part until the last training of the recipe is over. Raises DistillError."""
    child.call(
        f"{LAUNCH}:follow",
        {"train": recipe.train.model_dump(mode="json")},
        python=recipe.interpreters.get("train"),
        distributed=True,
    )


def check(recipe: Recipe) -> None:
    """Refuse what cannot be started here, before anything is paid for.

    A trainer of the user's starts its processes as it likes. Raises UsageError, MissingExtra.
    """
    if recipe.student.trainer != "sft":
        return
    trains = [stage.recipe.train for stage in stages_of(recipe)]
    places = {(train.nodes, train.processes, train.launcher) for train in trains}
    if len(places) > 1 and any(train.nodes > 1 for train in trains):
        raise UsageError(
            f"the stages of recipe '{recipe.name}' differ in train.nodes, processes or launcher",
            "the nodes that do not lead are started once for all of them: let them be equal",
        )
    for train in trains:
        _launch("check")(train.model_dump(mode="json"), own="train" not in recipe.interpreters)


def _inside() -> bool:
    return bool(_launch("inside")())


def _launch(name: str) -> Any:
    return resolve(f"{LAUNCH}:{name}", {}, what="launcher")
