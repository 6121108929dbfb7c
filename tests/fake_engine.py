"""An engine that needs no kernel, for tests of code that uses engines."""

import contextlib
import queue

from portwatch.engines.limits import EngineInfo
from portwatch.filters.kernel_filter import UNRESTRICTED
from portwatch.model import OpenSocket, Process, Record, Snapshot, Socket
from portwatch.snapshot.port_users import UNKNOWN_HOLDER

PROCESS = Process(10, 1_000_000_000, "nginx", 0)


def socket(number=1, port=8080, **fields):
    return Socket(number, 1000 + number, 1, "tcp", "ipv4", "127.0.0.1", port, **fields)


def open_socket(number=1, port=8080, holders=(PROCESS,)):
    return OpenSocket(socket(number, port), tuple(holders))


def opening(number=1, port=8080, time=1, actor=PROCESS):
    return Record("open", time, socket(number, port), actor)


def closing(number=1, port=8080, time=2, actor=PROCESS):
    return Record("close", time, socket(number, port), actor)


class FakeEngine:
    """Returns the records that a test pushes. Its snapshots contain the sockets in `open_sockets`."""

    name = "fake"
    info = EngineInfo("fake", "none")

    def __init__(self):
        self.open_sockets = []
        self.records_after_snapshot = []
        """Records of changes that happen during a snapshot. The next `read_up_to_now` returns them last."""
        self.snapshot_error = None
        self.lost = 0
        self.recursion_misses = 0
        self.watched = {}
        """Maps the bit of each watched tree to the pid of the root of the tree."""
        self.holders = UNKNOWN_HOLDER
        """What `port_users` returns. If this is an exception, `port_users` raises it."""
        self.port_user_lookups = 0
        self.kernel_filter = UNRESTRICTED
        self.attached = 0
        self.detached = 0
        self._failure = None
        self._batches = queue.SimpleQueue()

    def push(self, *records):
        self._batches.put(list(records))

    def fail(self, error):
        """Make the next read and all later ones raise `error`."""
        self._batches.put(error)

    def lose(self, count):
        """Count `count` more records as lost."""
        self.lost += count
        self._batches.put([])

    def skip_program(self):
        """Count one more BPF program run that the kernel skipped."""
        self.recursion_misses += 1
        self._batches.put([])

    @property
    def is_drained(self):
        return self._batches.empty()

    def attach(self):
        self.attached += 1
        self._failure = None

    def read(self, timeout):
        self._records_of([])
        try:
            batch = self._batches.get(timeout=timeout)
        except queue.Empty:
            return []
        return self._records_of(batch)

    def read_up_to_now(self):
        records = self._records_of([])
        with contextlib.suppress(queue.Empty):
            while True:
                records += self._records_of(self._batches.get_nowait())
        last, self.records_after_snapshot = self.records_after_snapshot, []
        return records + last

    def _records_of(self, batch):
        if isinstance(batch, Exception):
            self._failure = batch  # later reads fail too: a failed engine does not recover
        if self._failure:
            raise self._failure
        return batch

    def wake(self):
        self._batches.put([])

    def snapshot(self):
        if self.snapshot_error:
            raise self.snapshot_error
        return Snapshot(tuple(self.open_sockets), {one.socket.inode for one in self.open_sockets})

    def port_users(self, socket):  # noqa: ARG002  # a parameter of the protocol
        self.port_user_lookups += 1
        if isinstance(self.holders, Exception):
            raise self.holders
        return self.holders

    def watch(self, root, tree):
        self.watched[tree] = root.pid

    def unwatch(self, tree):
        self.watched.pop(tree, None)

    def set_filter(self, wanted):
        self.kernel_filter = wanted
        return wanted

    def forget(self):
        self.is_forgotten = True

    def detach(self):
        self.detached += 1
