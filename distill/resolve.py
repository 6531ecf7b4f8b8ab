"""The only look-up there is: a name, `pkg.mod:attr` or `file.py:attr` -> the object."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from distill.errors import UsageError


def resolve(spec: str, known: Mapping[str, str], *, what: str, folder: Path | None = None) -> Any:
    """The object that `spec` names.

    `known` maps short names to `pkg.mod:attr`. A path ending in .py is relative to `folder`
    (the recipe's). Raises UsageError with the nearest known name.
    """
    target = known.get(spec, spec)
    module_name, colon, attribute = target.rpartition(":")
    if not colon:
        close = difflib.get_close_matches(spec, list(known), n=1, cutoff=0.5)
        nearest = f"; did you mean '{close[0]}'?" if close else ""
        raise UsageError(
            f"unknown {what} '{spec}'{nearest}",
            f"known: {', '.join(known)}; or your own as file.py:name or package.module:name",
        )
    module = _module(module_name, what, spec, folder)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), n=1, cutoff=0.5)
            nearest = f"; did you mean '{close[0]}'?" if close else ""
            raise UsageError(f"{what} '{spec}': {module_name} has no '{part}'{nearest}")
        found = getattr(found, part)
    return found


def _module(name: str, what: str, spec: str, folder: Path | None) -> ModuleType:
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and name.startswith(error.name):
                raise UsageError(f"{what} '{spec}': no module named '{error.name}'") from None
            raise
    path = Path(name).expanduser()
    if not path.is_absolute() and folder is not None:
        path = folder / path
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"{what} '{spec}': no file {path}")
    # A private name by path, so that a user's teachers.py shadows nothing.
    private = f"_distill_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if private in sys.modules:
        return sys.modules[private]
    loader = importlib.util.spec_from_file_location(private, path)
    if loader is None or loader.loader is None:
        raise UsageError(f"{what} '{spec}': cannot import {path}")
    module = importlib.util.module_from_spec(loader)
    sys.modules[private] = module
    try:
        loader.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[private]
        raise UsageError(f"{what} '{spec}': {path}:{error.lineno}: {error.msg}") from None
    except BaseException:
        del sys.modules[private]
        raise
    return module


def code_version(thing: Any) -> str:
    """What stands for a part's code in an identity.

    Its declared `version` where there is one, otherwise a hash of its source.
    """
    declared = getattr(thing, "version", None)
    if isinstance(declared, str | int):
        return str(declared)
    target = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    try:
        source = inspect.getsource(target)
    except (OSError, TypeError) as error:
        raise UsageError(
            f"the source of {target!r} cannot be read, so its results cannot be reused",
            "give it a `version` attribute and raise it whenever the code changes",
        ) from error
    return "source:" + hashlib.sha256(source.encode()).hexdigest()[:16]
