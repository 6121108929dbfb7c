"""What can go wrong, for those who embed portwatch."""

from __future__ import annotations


class PortwatchError(Exception):
    """Everything that portwatch raises on purpose; its text says what to do next."""


class WrongUse(PortwatchError):  # noqa: N818  # reads as what it is
    """What was asked for is not there to be had, and what is."""


class EngineUnavailable(PortwatchError):  # noqa: N818  # reads as what it is
    """An engine cannot run on this machine, and why."""


class NotPermitted(EngineUnavailable):
    """An engine could run here, with a right that this process has not."""


class JournalError(PortwatchError):
    """A journal cannot be opened or read, and why."""
