"""The engine that needs no BPF. It polls sock_diag, and reports the differences between consecutive polls."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator

from portwatch.engines import limits, sock_diag_snapshot
from portwatch.engines.diagnosis import Check, Fact, Finding, run_checks
from portwatch.engines.wakeup import Wakeup
from portwatch.filters.kernel_filter import UNRESTRICTED, KernelFilter
from portwatch.linux import netns
from portwatch.linux.lineage import Identity, Lineage
from portwatch.model import Holder, OpenSocket, Record, Snapshot, Socket, oldest
from portwatch.snapshot import sock_diag
from portwatch.snapshot.port_users import listed_port_users

INTERVAL = 1.0
LIMITS = (
    limits.SHORT_LIVED,
    limits.FAILURES,
    limits.IO_URING_FAILURES,
    limits.COMPAT_FAILURES,
    limits.ACTOR,
    *sock_diag_snapshot.LIMITS,
    limits.UDP_CONNECT,
    limits.BACKLOG_CHANGE,
    limits.TREES,
    limits.OUTSIDE,
)


class PollEngine:
    """An engine that gets records and snapshots from sock_diag."""

    name = "poll"
    lost = 0
    recursion_misses = 0

    def __init__(self, *, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._known: dict[int | None, OpenSocket] = {}
        """The open sockets at the last poll, by cookie."""
        self._unread: list[Record] = []
        self._next_poll = 0.0
        self._wakeup = Wakeup()
        self._membership = Lineage()
        self._limits = tuple(dict.fromkeys(LIMITS + sock_diag_snapshot.current_limits()))

    @property
    def info(self) -> limits.EngineInfo:
        """The limits of this engine with the capabilities that this process has."""
        return limits.EngineInfo(self.name, "sock_diag", self._limits)

    def attach(self) -> None:
        """Poll for the first time. Raise EngineUnavailable if sock_diag does not answer."""
        sockets = sock_diag_snapshot.take_snapshot(self._membership).sockets
        self._known = {one.socket.cookie: one for one in sockets}
        self._next_poll = time.monotonic() + self._interval

    def read(self, timeout: float | None) -> list[Record]:
        """Wait until the next poll is due, poll, and return the differences.

        Return [] if `timeout` or a call of `wake` ends the wait before that.
        """
        until_poll = self._next_poll - time.monotonic()
        wait = max(0.0, until_poll if timeout is None else min(until_poll, timeout))
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        if poller.poll(wait * 1000):
            self._wakeup.clear()
            return []
        if time.monotonic() < self._next_poll:
            return []
        self._next_poll = time.monotonic() + self._interval
        return self.read_up_to_now()

    def read_up_to_now(self) -> list[Record]:
        """Poll now, and return all differences that have not been returned yet."""
        current = sock_diag_snapshot.all_open_sockets()
        self._record_difference(current, lambda new: sock_diag_snapshot.with_holders(new, self._membership))
        records, self._unread = self._unread, []
        return records

    def wake(self) -> None:
        """Make `read` return, if it is waiting. Any thread may call this."""
        self._wakeup.set()

    def snapshot(self) -> Snapshot:
        """Return all open sockets, with holders, of each network namespace that we may enter."""
        taken = sock_diag_snapshot.take_snapshot(self._membership)
        # A snapshot counts as a poll. Otherwise, if a socket opened after the last poll and closed before the
        # next one, the snapshot would show it, but its close would not be reported.
        by_cookie = {one.socket.cookie: one for one in taken.sockets}
        self._record_difference(
            [one.socket for one in taken.sockets], lambda new: [by_cookie[socket.cookie] for socket in new]
        )
        return taken

    def port_users(self, socket: Socket) -> tuple[Holder, ...]:
        """Return the processes that use the port of `socket`, as far as sock_diag lists their sockets."""
        return listed_port_users(socket)

    def watch(self, root: Identity, tree: int) -> None:
        """From now on, set the bit `tree` in records and snapshots about `root` and its descendants."""
        self._membership.watch(root, tree)

    def unwatch(self, tree: int) -> None:
        """Stop setting the bit `tree` in records and snapshots."""
        self._membership.unwatch(tree)

    def set_filter(self, wanted: KernelFilter) -> KernelFilter:  # noqa: ARG002  # part of the protocol
        """Return UNRESTRICTED, because polling always lists all sockets."""
        return UNRESTRICTED

    def forget(self) -> None:
        """Close the wakeup descriptor in a forked child. The parent keeps its own copy."""
        self._wakeup.forget()

    def detach(self) -> None:
        """Close the wakeup descriptor."""
        self._wakeup.close()

    def _record_difference(
        self, sockets: list[Socket], with_holders: Callable[[list[Socket]], list[OpenSocket]]
    ) -> None:
        now = time.time_ns()
        current = {socket.cookie: socket for socket in sockets}
        closed = [
            known
            for cookie, known in self._known.items()
            if not _is_still_open(known.socket, current.get(cookie))
        ]
        for known in closed:
            del self._known[known.socket.cookie]
        opened = with_holders([socket for cookie, socket in current.items() if cookie not in self._known])
        self._known.update((one.socket.cookie, one) for one in opened)
        changed = [
            socket for cookie, socket in current.items() if socket.backlog != self._known[cookie].socket.backlog
        ]
        for socket in changed:
            self._known[socket.cookie] = OpenSocket(socket, self._known[socket.cookie].holders)
        self._unread += [
            *(Record("close", now, one.socket, None) for one in closed),
            *(Record("open", now, one.socket, oldest(one.holders), None, one.trees) for one in opened),
            *(Record("backlog", now, socket, None) for socket in changed),
        ]


def _is_still_open(before: Socket, after: Socket | None) -> bool:
    # A socket that was shut down and listens again keeps its cookie, but may have another port.
    return after is not None and before.endpoint == after.endpoint


def _sock_diag() -> Finding:
    try:
        sockets = sock_diag.open_sockets(netns.own())
    except OSError as error:
        return Finding(
            "not ok", f"does not answer ({error.strerror})", "modprobe inet_diag tcp_diag udp_diag (as root)"
        )
    return Finding("ok", f"answers ({len(sockets)} open sockets in our own network namespace)")


_CHECKS: dict[str, Check] = {"sock_diag": _sock_diag}


def diagnose() -> Iterator[Fact]:
    """Yield the facts that this engine depends on."""
    return run_checks(_CHECKS)
