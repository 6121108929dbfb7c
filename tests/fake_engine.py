"""The one engine without a kernel, for what stands above engines."""

import contextlib
import queue

from portwatch.engines.limits import EngineInfo
from portwatch.filters.kernel_filter import UNRESTRICTED
from portwatch.model import OpenSocket, Process, Record, Snapshot, Socket
from portwatch.snapshot.port_users import UNKNOWN_HOLDER

PROCESS = Process(10, 1_000_000_000, "nginx", 0)


def socket(number=1, port=8080, **fields):
    return Socket(number, 1000 + number, 1, "tcp", "ipv4", "127.0.0.1", port, **fields)


def opening(number=1, port=8080, time=1, actor=PROCESS):
    return Record("open", time, socket(number, port), actor)


def closing(number=1, port=8080, time=2, actor=PROCESS):
    return Record("close", time, socket(number, port), actor)


class FakeEngine:
    """Tells what a test pushes, and finds open what a test put into `held`."""

    name = "fake"
    info = EngineInfo("fake", "none")

    def __init__(self, held=()):
        self.held = list(held)
        self.during_snapshot = []
        self.blind = None
        self.lost = 0
        self.recursion_misses = 0
        self.watched = {}
        self.users = UNKNOWN_HOLDER
        self.questions = 0
        self.kernel_filter = UNRESTRICTED
        self.attached = 0
        self.detached = 0
        self._failure = None
        self._records = queue.SimpleQueue()

    def attach(self):
        self.attached += 1
        self._failure = None

    def push(self, *records):
        self._records.put(list(records))

    def fail(self, error):
        self._records.put(error)

    def lose(self, count):
        self.lost += count
        self._records.put([])

    def miss(self):
        self.recursion_misses += 1
        self._records.put([])

    def read(self, timeout):
        self._take([])
        try:
            batch = self._records.get(timeout=timeout)
        except queue.Empty:
            return []
        return self._take(batch)

    def _take(self, batch):
        if isinstance(batch, Exception):
            self._failure = batch  # for good, as what has gone does not come back
        if self._failure:
            raise self._failure
        return batch

    def read_up_to_now(self):
        pushed = self._take([])
        with contextlib.suppress(queue.Empty):
            while True:
                pushed += self._take(self._records.get_nowait())
        pending, self.during_snapshot = self.during_snapshot, []
        return pushed + pending

    def wake(self):
        self._records.put([])

    def snapshot(self):
        if self.blind:
            raise self.blind
        return Snapshot(tuple(self.held), {one.socket.inode for one in self.held})

    def port_users(self, refused):  # noqa: ARG002  # the protocol's
        self.questions += 1
        if isinstance(self.users, Exception):
            raise self.users
        return self.users

    def watch(self, root, tree):
        self.watched[tree] = root.pid

    def unwatch(self, tree):
        self.watched.pop(tree, None)

    def set_filter(self, wanted):
        self.kernel_filter = wanted
        return wanted

    def detach(self):
        self.detached += 1


def held(number=1, port=8080, holders=(PROCESS,)):
    return OpenSocket(socket(number, port), tuple(holders))
