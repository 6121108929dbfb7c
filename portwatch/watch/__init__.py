"""Follow what engines report: the table of open sockets, subscribers, and PortWatcher."""

from portwatch.watch.counts import Counts
from portwatch.watch.listing import list_listeners, listing
from portwatch.watch.watcher import PortWatcher

__all__ = ["Counts", "PortWatcher", "list_listeners", "listing"]
