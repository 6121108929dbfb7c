"""Exceptions that portwatch raises. The messages say what is wrong and what to do."""

from __future__ import annotations


class PortwatchError(Exception):
    """Base class of all exceptions that portwatch raises on purpose."""


class WrongUse(PortwatchError):  # noqa: N818  # a public name
    """An argument is wrong. The message says what would be right."""


class EngineUnavailable(PortwatchError):  # noqa: N818  # a public name
    """An engine cannot run on this machine."""


class NotPermitted(EngineUnavailable):
    """The process lacks a permission that an engine or a lookup needs."""


class JournalError(PortwatchError):
    """A journal cannot be opened or read."""
