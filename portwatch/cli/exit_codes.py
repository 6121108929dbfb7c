"""Exit codes. docs/commands.md documents them."""

from __future__ import annotations

from portwatch.errors import EngineUnavailable, PortwatchError, WrongUse

FAILED, WRONG_USE, NOT_POSSIBLE, TIMED_OUT = 1, 2, 3, 124
_CODES = {EngineUnavailable: NOT_POSSIBLE, WrongUse: WRONG_USE}


def exit_code(error: PortwatchError) -> int:
    """Return the exit code for an error."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILED)
