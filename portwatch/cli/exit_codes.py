"""What the exit codes mean. docs/commands.md has them for users."""

from __future__ import annotations

from portwatch.errors import EngineUnavailable, PortwatchError, WrongUse

FAILED, WRONG_USE, NOT_POSSIBLE, TIMED_OUT = 1, 2, 3, 124
_CODES = {EngineUnavailable: NOT_POSSIBLE, WrongUse: WRONG_USE}


def code_of(error: PortwatchError) -> int:
    """Return the exit code for an error."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILED)
