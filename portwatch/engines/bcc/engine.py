"""The engine whose BPF programs bcc compiles when the engine starts, for machines on which core cannot run."""

from __future__ import annotations

import ctypes
import os
import select
from dataclasses import replace

from portwatch.engines import filter_map, limits, sock_diag_snapshot
from portwatch.engines.bcc.attaching import Attachment, attach_hooks
from portwatch.engines.bcc.cpu_buffers import CpuBuffers
from portwatch.engines.bcc.order import Fields, OrderedReader
from portwatch.engines.bcc.programs import Programs
from portwatch.engines.bcc.shared_map import SharedMap
from portwatch.engines.common_hooks import STABLE_LIMITS, STABLE_NAME
from portwatch.engines.members import Members
from portwatch.engines.permissions import missing_capabilities
from portwatch.engines.wakeup import Wakeup
from portwatch.errors import NotPermitted
from portwatch.filters.kernel_filter import UNRESTRICTED, KernelFilter
from portwatch.linux import clock, procfs
from portwatch.linux.kernel import RELEASE
from portwatch.linux.lineage import Identity, Lineage
from portwatch.model import Holder, Record, Snapshot, Socket
from portwatch.record import RawRecord, decode
from portwatch.snapshot import open_files, port_users


class _Control(ctypes.Structure):
    """struct control of bpf/bcc.bpf.c."""

    _fields_ = (("trees", ctypes.c_uint64), ("filter_flags", ctypes.c_uint32), ("port", ctypes.c_uint32))


class _Drops(ctypes.Structure):
    """struct drops of bpf/bcc.bpf.c."""

    _fields_ = (("records", ctypes.c_uint64), ("members", ctypes.c_uint64))


class BccEngine:
    """An engine that uses kprobes or, if they cannot be attached, the stable hooks."""

    name = "bcc"

    def __init__(self, *, failures: bool = True, ephemeral: bool = False, pages: int | None = None) -> None:
        """Compile the programs. Raise EngineUnavailable if bcc or something that it needs is missing."""
        if missing := missing_capabilities():  # checked first, because a compilation takes half a second
            raise NotPermitted(missing)
        self._failures = failures
        self._ephemeral = ephemeral
        self._attachment = Attachment(STABLE_NAME, STABLE_LIMITS)
        self._programs = Programs(ephemeral=ephemeral)
        self._drops = SharedMap(self._programs.table("drops"), _Drops)
        self._controls = SharedMap(self._programs.table("controls"), _Control)
        self._filter_map = SharedMap(self._programs.table("filters"), filter_map.FilterMap)
        self._membership: Members | Lineage = Lineage()
        self._filter = UNRESTRICTED
        self._wakeup = Wakeup()
        self._poll = select.epoll()
        self._poll.register(self._wakeup, select.EPOLLIN)
        self._buffers = CpuBuffers(self._programs.table("records"), self._poll, pages)
        self._reader = OrderedReader(self._drain)
        self._dropped_records = 0
        self._dropped_members = 0

    @property
    def info(self) -> limits.EngineInfo:
        """The attached hooks and their limits."""
        of_snapshots: tuple[limits.Limit, ...] = ()
        if not self._programs.has_iterator:
            of_snapshots = (limits.OUTSIDE, *sock_diag_snapshot.current_limits())
            if RELEASE < port_users.LISTS_BOUND_SINCE:
                of_snapshots += (limits.BOUND_HOLDERS,)
        all_limits = tuple(dict.fromkeys(self._attachment.limits + of_snapshots))
        return limits.EngineInfo(self.name, self._attachment.hooks, all_limits, self._attachment.why)

    @property
    def lost(self) -> int:
        """How many records and tree members were dropped since `attach` because a buffer or map was full."""
        # Both the kernel and the programs count lost records. The kernel reports its count only with the next
        # record that fits. The programs' count is fetched only when records are read. Either count may lag
        # behind, so take the larger count.
        return max(self._buffers.lost, self._dropped_records) + self._dropped_members

    @property
    def recursion_misses(self) -> int:
        """How often the kernel has skipped a BPF program since `attach`."""
        return self._programs.recursion_misses

    def attach(self) -> None:
        """Attach all programs. From then on, they see every event."""
        self._buffers.open()
        self._attachment = attach_hooks(self._programs, failures=self._failures)
        if not self._programs.load_fork_programs():
            of_trees = (limits.TREES, limits.OUTSIDE)
            self._attachment = replace(self._attachment, limits=self._attachment.limits + of_trees)
        self._programs.free_compiler_memory()

    def read(self, timeout: float | None) -> list[Record]:
        """Wait for a record, a call of `wake`, or the timeout. Return the records in order of their events."""
        if not self._reader.has_pending:
            for fd, _ in self._poll.poll(timeout):
                if fd == self._wakeup.fileno():
                    self._wakeup.clear()
        return self.read_up_to_now()

    def read_up_to_now(self) -> list[Record]:
        """Return all unread records of events that happened before this call."""
        epoch, own_pid = clock.monotonic_epoch(), os.getpid()
        raw_records = list(map(RawRecord._make, self._reader.read()))
        if self._filter.cgroups is not None:
            self._filter_map.value.exclude_cgroups(self._filter, {raw.cgroup for raw in raw_records})
        records = [decode(raw, epoch, own_pid) for raw in raw_records]
        if self._programs.has_fork_hooks:
            return records
        return [
            replace(record, trees=self._membership.of(record.actor)) if record.actor else record
            for record in records
        ]

    def wake(self) -> None:
        """Make `read` return, if it is waiting. Any thread or signal handler may call this."""
        self._wakeup.set()

    def snapshot(self) -> Snapshot:
        """Return every open socket with all its holders.

        Also open and close buffers, if CPUs have come online or gone offline.
        """
        self._buffers.follow_cpus()
        if isinstance(self._membership, Members):
            self._fetch_drops()
            self._membership.find_missed(self._dropped_members + self.recursion_misses)
        else:
            self._membership.forget_ended()
        if not self._programs.has_iterator:
            return sock_diag_snapshot.take_snapshot(self._membership)
        return open_files.snapshot_of(self._read_iterator(0), ephemeral=self._ephemeral)

    def port_users(self, socket: Socket) -> tuple[Holder, ...]:
        """Return the processes that have the port of `socket` in use, whether they listen on it or not."""
        if not self._programs.has_iterator:
            return port_users.listed_port_users(socket)
        return port_users.port_users(socket, self._read_iterator(socket.port))

    def watch(self, root: Identity, tree: int) -> None:
        """From now on, set the bit `tree` in records and snapshots about `root` and its descendants."""
        if self._programs.has_fork_hooks and not isinstance(self._membership, Members):
            procfs.require_kernel_pids()
            self._membership = Members(self._programs.attach_fork_hooks())
        self._controls.value.trees |= tree
        self._controls.publish()
        self._membership.watch(root, tree)

    def unwatch(self, tree: int) -> None:
        """Stop setting the bit `tree` in records and snapshots."""
        self._controls.value.trees &= ~tree
        self._controls.publish()
        self._membership.unwatch(tree)

    def set_filter(self, wanted: KernelFilter) -> KernelFilter:
        """Filter records in the kernel, as far as the programs can. Return the filter that is now in effect."""
        # Only the iterator can mark sockets that were open before a tree was watched.
        has_marks = self._programs.has_iterator and self._programs.has_fork_hooks
        self._filter = filter_map.supported(wanted, has_marks=has_marks)
        self._set_filter_flags(0)  # pass everything while the filter is half written
        self._filter_map.value.load(self._filter)
        self._filter_map.publish()
        self._set_filter_flags(filter_map.flags(self._filter))
        return self._filter

    def forget(self) -> None:
        """Close the descriptors in a forked child. Detach nothing, as the parent still uses the programs."""
        self._buffers.forget()
        for shared in (self._drops, self._controls, self._filter_map):
            shared.close()
        self._programs.forget()
        self._poll.close()
        self._wakeup.forget()

    def detach(self) -> None:
        """Detach all programs, and remove them and their maps from the kernel."""
        self._buffers.close()
        for shared in (self._drops, self._controls, self._filter_map):
            shared.close()
        self._programs.close()
        self._poll.close()
        self._wakeup.close()

    def _set_filter_flags(self, flags: int) -> None:
        self._controls.value.filter_flags = flags
        self._controls.publish()

    def _drain(self) -> list[Fields]:
        records = self._buffers.drain()
        if records:
            self._fetch_drops()
        return records

    def _fetch_drops(self) -> None:
        drops = self._drops.fetch()
        self._dropped_records, self._dropped_members = drops.records, drops.members

    def _read_iterator(self, port: int) -> list[RawRecord]:
        self._controls.value.port = port
        self._controls.publish()
        return open_files.read_pass(self._programs.open_iterator())
