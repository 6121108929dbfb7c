"""The engine without BPF: asks sock_diag again and again, and reports what differs."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator

from portwatch.engines import limits as caps
from portwatch.engines import sock_diag_snapshot
from portwatch.engines.diagnosis import Fact, State, run_checks
from portwatch.engines.wakeup import Wakeup
from portwatch.filters.kernel_filter import UNRESTRICTED, KernelFilter
from portwatch.linux import netns
from portwatch.linux.lineage import Identity, Lineage
from portwatch.model import Holder, OpenSocket, Record, Snapshot, Socket, oldest
from portwatch.snapshot import sock_diag
from portwatch.snapshot.port_users import listed_port_users

INTERVAL = 1.0
LIMITS = (
    caps.SHORT_LIVED,
    caps.FAILURES,
    caps.IO_URING_FAILURES,
    caps.COMPAT_FAILURES,
    caps.ACTOR,
    *sock_diag_snapshot.LIMITS,
    caps.UDP_CONNECT,
    caps.BACKLOG_CHANGE,
    caps.TREES,
    caps.OUTSIDE,
)


class PollEngine:
    """Events and snapshots from sock_diag."""

    name = "poll"
    lost = 0
    recursion_misses = 0

    def __init__(self, *, interval: float = INTERVAL) -> None:
        """Raises EngineUnavailable where sock_diag does not answer."""
        self._interval = interval
        self._known: dict[int | None, OpenSocket] = {}
        self._unread: list[Record] = []
        self._due = 0.0
        self._wakeup = Wakeup()
        self._membership = Lineage()
        self._limits = tuple(dict.fromkeys(LIMITS + sock_diag_snapshot.limits()))

    @property
    def info(self) -> caps.EngineInfo:
        """What polling can see with the rights that we have."""
        return caps.EngineInfo(self.name, "sock_diag", self._limits)

    def attach(self) -> None:
        """Looks for the first time."""
        self._known = {
            held.socket.cookie: held for held in sock_diag_snapshot.take_snapshot(self._membership).sockets
        }
        self._due = time.monotonic() + self._interval

    def read(self, timeout: float | None) -> list[Record]:
        """What differs from the last poll; [] when `timeout` or `wake` came before the next one."""
        until_due = self._due - time.monotonic()
        wait = max(0.0, until_due if timeout is None else min(until_due, timeout))
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        if poller.poll(wait * 1000):
            self._wakeup.clear()
            return []
        if time.monotonic() < self._due:
            return []
        self._due = time.monotonic() + self._interval
        return self.read_up_to_now()

    def read_up_to_now(self) -> list[Record]:
        """What differs from the last poll, at once."""
        current = sock_diag_snapshot.open_sockets()
        self._keep_difference(current, lambda new: sock_diag_snapshot.with_holders(new, self._membership))
        records, self._unread = self._unread, []
        return records

    def wake(self) -> None:
        """Ends a `read` that waits."""
        self._wakeup.set()

    def snapshot(self) -> Snapshot:
        """Every open socket of every network namespace that we may enter, with its holders."""
        taken = sock_diag_snapshot.take_snapshot(self._membership)
        # It is a poll, too: what it shows open for the first time must be missed when it has gone.
        held = {one.socket.cookie: one for one in taken.sockets}
        self._keep_difference(
            [one.socket for one in taken.sockets], lambda new: [held[socket.cookie] for socket in new]
        )
        return taken

    def port_users(self, socket: Socket) -> tuple[Holder, ...]:
        """Who uses the port of `socket`, listening or not, as far as sock_diag tells."""
        return listed_port_users(socket)

    def watch(self, root: Identity, tree: int) -> None:
        """From here on, records and snapshots say by the bit `tree` what concerns a process tree."""
        self._membership.watch(root, tree)

    def unwatch(self, tree: int) -> None:
        """Forgets a tree."""
        self._membership.unwatch(tree)

    def set_filter(self, wanted: KernelFilter) -> KernelFilter:  # noqa: ARG002  # the protocol's
        """Polling sees all that there is or nothing."""
        return UNRESTRICTED

    def detach(self) -> None:
        """Forgets what was seen."""
        self._wakeup.close()

    def _keep_difference(
        self, sockets: list[Socket], with_holders: Callable[[list[Socket]], list[OpenSocket]]
    ) -> None:
        now = time.time_ns()
        current = {socket.cookie: socket for socket in sockets}
        gone = [held for cookie, held in self._known.items() if not _same(held.socket, current.get(cookie))]
        for held in gone:
            del self._known[held.socket.cookie]
        new = with_holders([socket for cookie, socket in current.items() if cookie not in self._known])
        self._known.update((held.socket.cookie, held) for held in new)
        changed = [
            socket for cookie, socket in current.items() if socket.backlog != self._known[cookie].socket.backlog
        ]
        for socket in changed:
            self._known[socket.cookie] = OpenSocket(socket, self._known[socket.cookie].holders)
        self._unread += [
            *(Record("close", now, held.socket, None) for held in gone),
            *(Record("open", now, held.socket, oldest(held.holders), None, held.trees) for held in new),
            *(Record("backlog", now, socket, None) for socket in changed),
        ]


def _same(before: Socket, after: Socket | None) -> bool:
    """Whether it is open as before: a socket that listened twice may have got another port."""
    return after is not None and before.endpoint == after.endpoint


def diagnose() -> Iterator[Fact]:
    """Yield what polling needs."""
    return run_checks({"sock_diag": _sock_diag})


def _sock_diag() -> tuple[State, str, str | None]:
    try:
        found = sock_diag.open_sockets(netns.own())
    except OSError as error:
        return "not ok", f"does not answer ({error.strerror})", "modprobe inet_diag tcp_diag udp_diag (as root)"
    return "ok", f"answers ({len(found)} open sockets in our own network namespace)", None
