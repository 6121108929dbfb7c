"""Finds the processes that hold an address when a bind to it has failed with EADDRINUSE."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace

from portwatch.engines.protocol import Engine
from portwatch.errors import PortwatchError
from portwatch.linux import procfs
from portwatch.model import Holder, OpenSocket, Process, Record, Socket, Why
from portwatch.snapshot.port_users import UNKNOWN_HOLDER
from portwatch.watch.table import Table, socket_ids

log = logging.getLogger("portwatch")

LOOKUPS_PER_BATCH = 4
_FDS_READ = 128
"""How many descriptors of a known holder are read. The lowest are read first, because listeners are mostly
among them. Reading 5,000 would take 60 ms, whereas the engine needs 2 to 12 ms for all processes."""


class BindConflicts:
    """Finds the holders for the refused binds in one batch of records.

    Each conflict is looked up only once, and a batch has at most LOOKUPS_PER_BATCH lookups. Otherwise a program
    whose binds fail in a loop would keep the reader from reading.
    """

    def __init__(self, engine: Engine, table: Table, batch: deque[Record]) -> None:
        """`batch` has the records that are not applied to the table yet. A lookup appends what it reads."""
        self._engine = engine
        self._table = table
        self._batch = batch
        self._holders: dict[Hashable, tuple[Holder, ...]] = {}

    def holders_for(self, refused: Socket) -> tuple[Holder, ...] | None:
        """Return the holders of the address to which `refused` could not be bound.

        After LOOKUPS_PER_BATCH lookups, return the holders that the table knows, or None if it knows none.
        """
        blockers = self._table.blockers_of(refused)
        conflict = (refused.endpoint, *(blocker.socket.inode for blocker in blockers))
        if conflict not in self._holders:
            if len(self._holders) >= LOOKUPS_PER_BATCH:
                return _named_holders(blockers, _current_name) or None
            self._holders[conflict] = self._look_up(refused, blockers)
        return self._holders[conflict]

    def _look_up(self, refused: Socket, blockers: list[OpenSocket]) -> tuple[Holder, ...]:
        # The engine is asked last, for two reasons. It visits every open file, which takes long if there are
        # many. And while it has a reference to a file, a close by another process does not release the file:
        # the release then runs in this process.
        if holders := _named_holders(blockers, _name_if_open):
            return holders
        if blockers and (holders := self._closers_of(blockers)):
            return holders
        try:
            holders = self._engine.port_users(refused)
        except (OSError, PortwatchError) as error:
            log.error("cannot look up which process holds a port: %s", error)
            holders = UNKNOWN_HOLDER
        if holders == UNKNOWN_HOLDER:
            return _named_holders(blockers, _current_name) or UNKNOWN_HOLDER
        return holders

    def _closers_of(self, blockers: list[OpenSocket]) -> tuple[Holder, ...]:
        """Return the processes that have closed these sockets, according to records not yet applied."""
        self._batch += self._engine.read_up_to_now()
        closers = {
            socket_id: record.actor
            for record in self._batch
            if record.kind == "close"
            for socket_id in socket_ids(record.socket)
        }
        closed: list[OpenSocket] = []
        for blocker in blockers:
            ids = socket_ids(blocker.socket)
            if socket_id := next((one for one in ids if one in closers), None):
                closer = closers[socket_id]
                closed.append(replace(blocker, holders=(closer,)) if closer else blocker)
        return _named_holders(closed, lambda process, _: process.process)


def _named_holders(
    open_sockets: Iterable[OpenSocket], name_of: Callable[[Process, set[int | None]], str | None]
) -> tuple[Holder, ...]:
    """Return the processes that hold these sockets and for which `name_of` returns a name.

    `name_of` is called with each process and the inodes of the sockets that it holds.
    """
    inodes: dict[Process, set[int | None]] = {}
    why: Why = "bound"
    for one in open_sockets:
        why = "listening" if one.socket.proto == "tcp" else "bound"
        for process in one.holders:
            inodes.setdefault(process, set()).add(one.socket.inode)
    named = ((process, name_of(process, held)) for process, held in inodes.items())
    return tuple(Holder(process.pid, name, process.container, why) for process, name in named if name)


def _name_if_open(process: Process, inodes: set[int | None]) -> str | None:
    """Return the current name of a process if it has one of these sockets open."""
    try:
        if procfs.shows_kernel_pids() and not inodes.isdisjoint(procfs.socket_inodes(process.pid, _FDS_READ)):
            return _current_name(process)
    except procfs.UNREADABLE:
        pass  # the process has ended, or this user may not read its descriptors
    return None


def _current_name(process: Process, _: object = None) -> str | None:
    """Return the current name of a process; None if it has ended."""
    if not procfs.shows_kernel_pids():
        return process.process
    try:
        comm, _, start_time = procfs.stat(process.pid)
    except procfs.UNREADABLE:
        return None
    return comm.decode("utf-8", "backslashreplace") if start_time == process.start_time else None
