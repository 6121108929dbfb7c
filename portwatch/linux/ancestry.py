"""The command line and the ancestors of a process, read from /proc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from portwatch.event import Listener
from portwatch.linux import procfs
from portwatch.model import Process


class Ancestor(NamedTuple):
    """An entry of an ancestry: a process and its current name."""

    pid: int
    process: str


@dataclass(frozen=True, slots=True)
class ProcessDetails:
    """The command line and the ancestors of a process."""

    command: tuple[str, ...] | None
    """The arguments, which the process may have overwritten. None if they cannot be read."""
    ancestry: tuple[Ancestor, ...]
    """The processes from pid 1 down to this process. An unreadable ancestor and all above it are missing."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "command": None if self.command is None else [*self.command],
            "ancestry": [ancestor._asdict() for ancestor in self.ancestry],
        }


def details_of(process: Process) -> ProcessDetails:
    """Return the current details of a process.

    The details are empty if the process has ended, even if another process now has its pid.
    """
    upwards = [
        Ancestor(pid, comm.decode("utf-8", "backslashreplace"))
        for pid, comm, _ in procfs.ancestors_of(process.pid, process.start_time)
    ]
    return ProcessDetails(_command(process), tuple(reversed(upwards)))


def listener_with_details(listener: Listener, *, commands: bool = True) -> dict[str, Any]:
    """Return the JSON form of a listener, with the details of its owner and of every holder.

    If `commands` is False, every `command` is null.
    """

    def details(process: Process) -> dict[str, Any]:
        fields = details_of(process).as_dict()
        return fields if commands else {**fields, "command": None}

    fields = listener.as_dict()
    for holder, holder_fields in zip(listener.holders, fields["holders"], strict=True):
        holder_fields.update(details(holder))
    owner = listener.owner
    fields.update(details(owner) if owner else {"command": None, "ancestry": []})
    return fields


def _command(process: Process) -> tuple[str, ...] | None:
    try:
        content = procfs.read(process.pid, "cmdline")
        if procfs.stat(process.pid)[2] != process.start_time:
            return None
    except procfs.UNREADABLE:
        return None
    # A program that overwrites its arguments with a title fills the unused rest of that memory with NULs or
    # spaces.
    title = content.rstrip(b"\0 ")
    return tuple(part.decode("utf-8", "backslashreplace") for part in title.split(b"\0")) if title else ()
