"""Every listening port, as it opens and closes, and who did it."""

from portwatch.errors import EngineUnavailable, NotPermitted, PortwatchError, WrongUse
from portwatch.hub import Counts
from portwatch.model import Event, Holder, Listener, Process, Socket
from portwatch.only import Only
from portwatch.scope import Scope
from portwatch.watcher import PortWatcher, list_listeners

__version__ = "0.1.0"

__all__ = [
    "Counts",
    "EngineUnavailable",
    "Event",
    "Holder",
    "Listener",
    "NotPermitted",
    "Only",
    "PortWatcher",
    "PortwatchError",
    "Process",
    "Scope",
    "Socket",
    "WrongUse",
    "list_listeners",
]
