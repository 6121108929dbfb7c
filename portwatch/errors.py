"""Exceptions that portwatch raises. The messages say what is wrong and what to do."""

from __future__ import annotations


class PortwatchError(Exception):
    """Base class of all exceptions that portwatch raises on purpose."""


class WrongUse(PortwatchError):  # noqa: N818  # a public name
    """A wrong argument. The message names what would be right."""


class EngineUnavailable(PortwatchError):  # noqa: N818  # a public name
    """An engine cannot run on this machine."""


class NotPermitted(EngineUnavailable):
    """An engine cannot run, or a question cannot be answered, without a permission that this process lacks."""


class JournalError(PortwatchError):
    """A journal cannot be opened or read."""
