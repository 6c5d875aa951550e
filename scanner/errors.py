"""Errors meant for people: one sentence with the fix, and the exit code that goes with it."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FLAGGED = 1  # only with --fail-on-flag
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_PREFLIGHT = 4
EXIT_NOTHING_TO_SCAN = 5
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Something the user can mend. `str(error)` is shown as it is, without a traceback."""

    def __init__(self, message: str, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self):
        return type(self), (str(self), self.exit_code)


def first_line(error: BaseException) -> str:
    """What an error says first, without a full stop; of one that only announces what follows, the last line."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return (lines[-1] if lines[0].endswith(":") else lines[0]).strip().rstrip(".")
