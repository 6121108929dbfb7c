"""Who has an address that somebody was refused: by the table, if that is so still, else by the kernel."""

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

QUESTIONS_IN_A_BATCH = 4
_FIRST_FDS = 128
"""Among which listeners are. Looking at 5,000 takes 60 ms, where asking the kernel about all takes 2 to 12."""


class BindConflicts:
    """Those of one batch of records.

    Each is looked into once, and a few of them: programs that fail in a loop must not keep us from reading.
    """

    def __init__(self, engine: Engine, table: Table, batch: deque[Record]) -> None:
        """`batch` is what the table has yet to apply: what happens meanwhile is added to it."""
        self._engine = engine
        self._table = table
        self._batch = batch
        self._answers: dict[Hashable, tuple[Holder, ...]] = {}

    def held_by(self, refused: Socket) -> tuple[Holder, ...] | None:
        """Who is in the way of a socket; None if that cannot be looked into any more."""
        known = self._table.blockers_of(refused)
        question = (refused.endpoint, *(held.socket.inode for held in known))
        if question not in self._answers:
            if len(self._answers) >= QUESTIONS_IN_A_BATCH:
                return _holders(known, _name_now) or None
            self._answers[question] = self._look(refused, known)
        return self._answers[question]

    def _look(self, refused: Socket, known: list[OpenSocket]) -> tuple[Holder, ...]:
        # First what costs little: a pass over all open files takes longer the more there are, and while
        # it holds a file, nobody else's close is the last.
        if found := _holders(known, _name_if_open):
            return found
        if known and (found := self._let_go(known)):
            return found
        try:
            found = self._engine.port_users(refused)
        except (OSError, PortwatchError) as error:
            log.error("nobody can be asked who is in the way: %s", error)
            found = UNKNOWN_HOLDER
        return found if found != UNKNOWN_HOLDER else _holders(known, _name_now) or UNKNOWN_HOLDER

    def _let_go(self, known: list[OpenSocket]) -> tuple[Holder, ...]:
        """Who had it until just now: its close has come already."""
        self._batch += self._engine.read_up_to_now()
        closers = {
            name: record.actor
            for record in self._batch
            if record.kind == "close"
            for name in socket_ids(record.socket)
        }
        gone: list[OpenSocket] = []
        for held in known:
            if name := next((name for name in socket_ids(held.socket) if name in closers), None):
                closer = closers[name]
                gone.append(replace(held, holders=(closer,)) if closer else held)
        return _holders(gone, lambda process, _: process.process)


def _holders(
    known: Iterable[OpenSocket], name_of: Callable[[Process, set[int | None]], str | None]
) -> tuple[Holder, ...]:
    """Those of the known holders who have a name, given the inodes of what they hold."""
    inodes: dict[Process, set[int | None]] = {}
    why: Why = "bound"
    for held in known:
        why = "listening" if held.socket.proto == "tcp" else "bound"
        for process in held.holders:
            inodes.setdefault(process, set()).add(held.socket.inode)
    named = ((process, name_of(process, sockets)) for process, sockets in inodes.items())
    return tuple(Holder(process.pid, name, process.container, why) for process, name in named if name)


def _name_if_open(process: Process, inodes: set[int | None]) -> str | None:
    """What a process is called that has one of these sockets open."""
    try:
        if procfs.shows_kernel_pids() and not inodes.isdisjoint(procfs.socket_inodes(process.pid, _FIRST_FDS)):
            return _name_now(process)
    except procfs.UNREADABLE:
        pass
    return None


def _name_now(process: Process, _: object = None) -> str | None:
    """What a process is called by now; None if it has ended."""
    if not procfs.shows_kernel_pids():
        return process.process
    try:
        comm, _, start_time = procfs.stat(process.pid)
    except procfs.UNREADABLE:
        return None
    return comm.decode("utf-8", "backslashreplace") if start_time == process.start_time else None
