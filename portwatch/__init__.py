"""Reports every listening port on a Linux machine as it opens and closes, and the process responsible.

The names in `__all__` are imported on first use: `import portwatch` imports no submodule.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portwatch.errors import EngineUnavailable, JournalError, NotPermitted, PortwatchError, WrongUse
    from portwatch.event import Event, Listener
    from portwatch.filters import Filter, Scope
    from portwatch.model import Holder, Process, Socket
    from portwatch.watch import Counts, PortWatcher, list_listeners

__version__ = "0.1.0"

__all__ = [
    "Counts",
    "EngineUnavailable",
    "Event",
    "Filter",
    "Holder",
    "JournalError",
    "Listener",
    "NotPermitted",
    "PortWatcher",
    "PortwatchError",
    "Process",
    "Scope",
    "Socket",
    "WrongUse",
    "list_listeners",
]

_EXPORTS = {
    "errors": ("EngineUnavailable", "JournalError", "NotPermitted", "PortwatchError", "WrongUse"),
    "event": ("Event", "Listener"),
    "filters": ("Filter", "Scope"),
    "model": ("Holder", "Process", "Socket"),
    "watch": ("Counts", "PortWatcher", "list_listeners"),
}
"""For each module, the names in `__all__` that it defines."""


def __getattr__(name: str) -> Any:
    for module, names in _EXPORTS.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value  # later uses do not call __getattr__
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
