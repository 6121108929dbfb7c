"""What /proc adds to a process that is known: how it was called, and whom it descends from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from portwatch.event import Listener
from portwatch.linux import procfs
from portwatch.model import Process


class Ancestor(NamedTuple):
    """A process of a line of descent, by what it is called now."""

    pid: int
    process: str


@dataclass(frozen=True, slots=True)
class ProcessDetails:
    """Where a process comes from."""

    command: tuple[str, ...] | None
    """Its arguments, as it shows them itself; None if it has ended or is not ours to see."""
    ancestry: tuple[Ancestor, ...]
    """From pid 1 down to the process itself; where the line cannot be followed up, from there."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "command": None if self.command is None else [*self.command],
            "ancestry": [one._asdict() for one in self.ancestry],
        }


def details_of(process: Process) -> ProcessDetails:
    """Where a process comes from, as of now; nothing of a later process of the same pid."""
    line = [
        Ancestor(pid, comm.decode("utf-8", "backslashreplace"))
        for pid, comm, _ in procfs.ancestors_of(process.pid, process.start_time)
    ]
    return ProcessDetails(_command(process), tuple(reversed(line)))


def listener_with_details(listener: Listener, *, commands: bool = True) -> dict[str, Any]:
    """The JSON form of a listener, with the background of its owner and of every holder.

    Without `commands`, none shows its arguments.
    """

    def of(process: Process) -> dict[str, Any]:
        found = details_of(process).as_dict()
        return found if commands else {**found, "command": None}

    fields = listener.as_dict()
    for holder, shown in zip(listener.holders, fields["holders"], strict=True):
        shown.update(of(holder))
    owner = listener.owner
    fields.update(of(owner) if owner else {"command": None, "ancestry": []})
    return fields


def _command(process: Process) -> tuple[str, ...] | None:
    try:
        content = procfs.read(process.pid, "cmdline")
        if procfs.stat(process.pid)[2] != process.start_time:
            return None
    except procfs.UNREADABLE:
        return None
    # Programs that write a title of their own leave the rest of the room as NULs or spaces.
    title = content.rstrip(b"\0 ")
    return tuple(part.decode("utf-8", "backslashreplace") for part in title.split(b"\0")) if title else ()
