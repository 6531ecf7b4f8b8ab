"""The few ways in which distill refuses or fails, each with a way out.

Every error a user can cause says what was wrong (with the value) in `message` and what to do
next in `hint`. The command line prints both without a traceback and exits with `exit_code`.
"""

from __future__ import annotations


class DistillError(Exception):
    """The run failed. `message` says what was wrong, `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(DistillError):
    """The command line or the recipe is wrong: exit code 2, nothing was run."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that cannot be read, has an unknown key or a value out of range."""


class MissingExtra(UsageError):
    """A package of an optional extra is not installed."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package '{package}', which is not installed",
            f"pip install 'distill[{extra}]'",
        )


class DataError(DistillError):
    """Input data that cannot be used: empty, torn beyond use, without the needed columns."""


class ModelError(DistillError):
    """A model that is missing, cannot be loaded or does not fit its tokenizer."""


class PreflightError(DistillError):
    """What would be trained is not what should be trained; training did not start."""


class StoreError(DistillError):
    """A pool or a step's folder that is locked by another process or damaged."""


class TeacherError(DistillError):
    """One request failed.

    `retry` says that the same request may succeed later (a time-out, 429, 5xx); `retry_after`
    is the server's own wish in seconds. `fatal` says that every other request would fail in
    the same way (wrong key, unknown model), so the run stops at once.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        retry: bool = False,
        retry_after: float | None = None,
        fatal: bool = False,
    ) -> None:
        super().__init__(message, hint)
        self.retry = retry
        self.retry_after = retry_after
        self.fatal = fatal
