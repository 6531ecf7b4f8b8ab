"""A recipe: one YAML that describes a whole distillation, read without importing torch.

Precedence: defaults < recipe < variant < overrides. `origins` remembers where each value came
from, for `distill show`.
"""

from __future__ import annotations

import copy
import difflib
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, PrivateAttr, ValidationError, field_validator

from distill.errors import RecipeError
from distill.schema import (
    About,
    Evaluation,
    FilterList,
    Grading,
    ImportSpec,
    Problems,
    Sampling,
    Section,
    Selection,
    StudentSpec,
    TeacherSpec,
    Training,
    as_student,
    as_teacher,
)
from distill.schema_stages import MergeSpec, StageSpec


class Recipe(Section):
    """A whole distillation. `Recipe.load(name_or_path, ...)` reads one."""

    name: str
    about: About = Field(default_factory=About)
    seed: int = Field(default=0, ge=0)
    problems: Problems = Field(default_factory=Problems)
    traces: ImportSpec | None = None
    teacher: TeacherSpec = Field(default_factory=TeacherSpec)
    sampling: Sampling = Field(default_factory=Sampling)
    grading: Grading = Field(default_factory=Grading)
    filters: FilterList
    select: Selection = Field(default_factory=Selection)
    student: StudentSpec = Field(default_factory=StudentSpec)
    train: Training = Field(default_factory=Training)
    stages: list[StageSpec] = Field(default_factory=list)
    """Trainings in a row, each with what differs from the sections above (docs/stages.md)."""
    merge: MergeSpec | None = None
    """What becomes of the student before it is evaluated."""
    evaluate: Evaluation = Field(default_factory=Evaluation)
    interpreters: Annotated[dict[str, str], "runtime"] = Field(default_factory=dict)
    """Another Python for a step, `{train: /path/to/python}`, where packages do not mix."""

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _path: Path | None = PrivateAttr(default=None)
    _variant: str = PrivateAttr(default="")

    _coerce_teacher = field_validator("teacher", mode="before")(as_teacher)
    _coerce_student = field_validator("student", mode="before")(as_student)

    @classmethod
    def load(cls, name: str | Path, *, variant: str = "", overrides: Iterable[str] = ()) -> Recipe:
        """Read a recipe by name (`distill ls`) or path, apply variants, then overrides.

        `variant` may name several, joined by commas. An override is `key.path=value` with the
        value in YAML. Raises RecipeError.
        """
        path = find_recipe(str(name))
        data, origins = _read_extended(path)
        variants = data.pop("variants", None) or {}
        chosen = [v for v in variant.split(",") if v]
        settings, from_overrides = _split_overrides(overrides)
        chosen += [v for v in from_overrides.split(",") if v]
        for word in chosen:
            if word not in variants:
                raise RecipeError(
                    f"{path.name} has no variant '{word}'",
                    f"it has: {', '.join(variants) or 'none'}{_nearest(word, variants)}",
                )
            _merge(data, variants[word] or {}, origins, f"variant {word}")
        for key, value in settings:
            if isinstance(value, Mapping):  # `teacher.options={...}` says what they are, whole
                _merge(data, _nest(key, {}), origins, "override")
            _merge(data, _nest(key, value), origins, "override")
        recipe = cls._parse(data, path.name)
        recipe._origins, recipe._path, recipe._variant = origins, path, ",".join(chosen)
        return recipe

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], folder: Path | None = None) -> Recipe:
        """A recipe from a plain dict, as a library call or `run.json` has it.

        Its relative paths start in `folder`; without one in the current folder.
        """
        recipe = cls._parse(dict(data), str(data.get("name", "recipe")))
        if folder is not None:
            recipe._path = folder / f"{recipe.name}.yaml"
        return recipe

    @classmethod
    def _parse(cls, data: dict[str, Any], where: str) -> Recipe:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError(
                _explain(cls, error, where), "distill show NAME shows every key"
            ) from None

    def identity(self) -> dict[str, Any]:
        """As of any section; a recipe without stages and merging is what it always was."""
        plain = super().identity()
        return {k: v for k, v in plain.items() if v or k not in ("stages", "merge")}

    @property
    def folder(self) -> Path:
        """Where relative paths of the recipe start: its own folder, or the current one."""
        return self._path.parent if self._path and not _is_shipped(self._path) else Path.cwd()

    @property
    def variant(self) -> str:
        """The variants that were applied, joined by commas."""
        return self._variant

    def origin(self, key: str) -> str:
        """Where the value of a dotted key came from: default, recipe, variant X or override."""
        while key:
            if key in self._origins:
                return self._origins[key]
            key = key.rpartition(".")[0]
        return "default"


def shipped_recipes() -> dict[str, Path]:
    """Name -> path of the recipes in the package, in the order of their size."""
    folder = _shipped_folder()
    order = {"pocket": 0.001, "smollm2-135m": 0.1}
    paths = {p.stem: p for p in folder.glob("[!_]*.yaml")}
    return dict(sorted(paths.items(), key=lambda kv: order.get(kv[0]) or _size_of(kv[0])))


def find_recipe(name: str) -> Path:
    """The file of a recipe given by name or path. Raises RecipeError naming the nearest."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise RecipeError(f"no recipe file '{name}'", "distill ls names the shipped ones")
        return path.resolve()
    known = shipped_recipes()
    if name not in known:
        raise RecipeError(
            f"unknown recipe '{name}'",
            f"shipped: {', '.join(known)}{_nearest(name, known)}; or give a path to a .yaml",
        )
    return known[name]


def variants_of(name: str) -> list[str]:
    """The variants a recipe offers."""
    return list(_read_extended(find_recipe(name))[0].get("variants") or {})


def _shipped_folder() -> Path:
    return Path(str(resources.files("distill.recipes")))


def _is_shipped(path: Path) -> bool:
    return path in shipped_recipes().values()


def _size_of(name: str) -> float:
    try:
        return float(name.rstrip("b"))
    except ValueError:
        return 1e9


def _read_extended(
    path: Path, seen: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """A recipe laid over the one it `extends`, and the origin of each value.

    A file name is relative to the recipe's folder. What one recipe of a family says is thus
    written once. Raises RecipeError on a circle.
    """
    data = _read_yaml(path)
    parent = data.pop("extends", None)
    own = "recipe" if not seen else path.name
    if parent is None:
        return data, dict.fromkeys(_leaves(data), own)
    if path in seen:
        circle = " -> ".join(p.name for p in (*seen, path))
        raise RecipeError(f"recipes extend each other in a circle: {circle}")
    # A copy of a shipped recipe (`distill cp`) goes on extending the shipped one.
    places = [path.parent / str(parent), _shipped_folder() / str(parent)]
    base_path = next((p for p in places if p.is_file()), None) or find_recipe(str(parent))
    base, origins = _read_extended(base_path, (*seen, path))
    _merge(base, data, origins, own)
    return base, origins


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = _parsed(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8: {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} must hold a mapping, found {type(data).__name__}")
    return data


def _parsed(text: str) -> Any:
    """YAML by libyaml's parser, eight times as fast; errors are Python's, which quote the place."""
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return yaml.safe_load(text)


def _split_overrides(overrides: Iterable[str]) -> tuple[list[tuple[str, Any]], str]:
    settings, variant = [], ""
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"override '{text}' is not of the form key=value")
        if key == "variant":
            variant = f"{variant},{raw}"
            continue
        try:
            value = yaml.safe_load(raw) if raw else None
        except yaml.YAMLError as error:
            raise RecipeError(f"override '{text}': {error}") from None
        settings.append((key, _from_here(_number(value))))
    return settings, variant


def _from_here(value: Any) -> Any:
    """Paths in an override start where the command is typed, not in the recipe's folder."""
    if isinstance(value, list):
        return [_from_here(item) for item in value]
    if isinstance(value, dict):
        return {key: _from_here(item) for key, item in value.items()}
    if not isinstance(value, str) or "\n" in value:
        return value
    name, colon, attribute = value.partition(":")
    looks_like_a_path = "/" in name or "." in name
    path = Path(name)
    if not looks_like_a_path or path.is_absolute() or not path.exists():
        return value
    return f"{path.resolve()}{colon}{attribute}"


def _number(value: Any) -> Any:
    # YAML 1.1 reads 5e-5 as a string; nobody who writes it on a command line means one.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(
    base: dict[str, Any], extra: Mapping[str, Any], origins: dict[str, str], by: str
) -> None:
    """Lay `extra` over `base`: mappings are merged, everything else is replaced."""

    def lay(under: dict[str, Any], over: Mapping[str, Any], prefix: str) -> None:
        for key, value in over.items():
            path = f"{prefix}{key}"
            if isinstance(value, Mapping) and isinstance(under.get(key), str):
                coerce = {"teacher.": as_teacher, "student.": as_student}.get(f"{path}.")
                under[key] = coerce(under[key]) if coerce else under[key]
            if path == "stages" and isinstance(value, Mapping) and under.get(key):
                for name, changes in value.items():
                    lay(_stage(under[key], name), changes or {}, f"stages.{name}.")
                continue
            # An empty mapping resets: `options: {}` means none, not "nothing to add".
            if isinstance(value, Mapping) and value and isinstance(under.get(key), dict):
                lay(under[key], value, f"{path}.")
            else:
                under[key] = copy.deepcopy(value)
                for leaf in _leaves({key: value}, prefix):
                    origins[leaf] = by
                origins[path] = by

    lay(base, extra, "")


def _stage(stages: Any, name: str) -> dict[str, Any]:
    """The stage that an override or variant means by its name."""
    names = [row.get("name") for row in stages if isinstance(row, dict)]
    if name not in names:
        raise RecipeError(
            f"there is no stage '{name}'{_nearest(name, [str(n) for n in names])}",
            f"stages: {', '.join(map(str, names)) or 'none'}",
        )
    found: dict[str, Any] = stages[names.index(name)]
    return found


def _leaves(data: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}")
    return found


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def _explain(model: type[Section], error: ValidationError, where: str) -> str:
    """All of pydantic's complaints in plain words, unknown keys with their nearest neighbour."""
    lines = []
    for item in error.errors():
        # Of a key with several types pydantic also says which of them it tried.
        parts = [str(part) for part in item["loc"]]
        path = ".".join(part for part in parts if not part.startswith(("constrained-", "literal[")))
        if item["type"] == "extra_forbidden":
            key = str(item["loc"][-1])
            close = _nearest(key, _keys_at(model, item["loc"][:-1]))
            lines.append(f"unknown key '{path}'{close}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            # A check of a whole section names the values it is about; the section is no help,
            # while a row of a list is known by nothing else.
            row = isinstance(item["loc"][-1], int) if item["loc"] else False
            whole = item["type"] == "value_error" and isinstance(item["input"], dict) and not row
            found = "" if whole else f" = {item['input']!r}"
            lines.append(f"'{path}'{found}: {message}")
    return f"{where}: " + "\n  ".join(lines)


def _keys_at(model: type[Section], loc: Iterable[int | str]) -> list[str]:
    """The keys allowed at a place in the schema."""
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            return []
        current = _section_in(fields[part].annotation)
    return list(getattr(current, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for part in typing.get_args(annotation):
        found = _section_in(part)
        if found is not None:
            return found
    return None
