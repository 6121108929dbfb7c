"""The engine whose BPF programs are compiled when the package is built."""

from __future__ import annotations

import os
import select
from collections import deque
from struct import Struct

from portwatch.engines import filter_map
from portwatch.engines.core.hooks import HOOK_SETS
from portwatch.engines.core.programs import Programs
from portwatch.engines.core.ring import HEADER, Ring
from portwatch.engines.limits import EngineInfo
from portwatch.engines.members import Members
from portwatch.engines.wakeup import Wakeup
from portwatch.errors import EngineUnavailable
from portwatch.filters.kernel_filter import UNRESTRICTED, KernelFilter
from portwatch.linux import clock, procfs
from portwatch.linux.kernel import VMLINUX
from portwatch.linux.lineage import Identity
from portwatch.model import Holder, Record, Snapshot, Socket
from portwatch.record import LAYOUT, RawRecord, decode
from portwatch.snapshot import open_files, port_users

RING_BYTES = 4 << 20
"""Counts twice in resident memory, because the data area is mapped twice."""

_STRIDE = Struct(f"<{HEADER}x{LAYOUT.format[1:]}")
"""A record in the ring, including its header."""
_SLICE = 512 * _STRIDE.size
_BACKLOG_SLICES = 320
"""The ring is not read while this many slices, of 120 KB each, wait to be decoded.

Copying records is faster than decoding them. So a storm that would overflow the ring is kept in ordinary
memory, which is free for other uses afterwards.
"""


class CoreEngine:
    """Records and snapshots from BPF, on the best set of hooks that this kernel allows."""

    name = "core"

    def __init__(
        self,
        *,
        failures: bool = True,
        ephemeral: bool = False,
        ring_bytes: int = RING_BYTES,
        hooks: str = "auto",
    ) -> None:
        """Raise EngineUnavailable if BTF, libbpf or the BPF object is missing."""
        if not VMLINUX.exists():
            raise EngineUnavailable(
                f"this kernel has no BTF ({VMLINUX} is missing), which tells the programs where its fields "
                "are; boot a kernel with CONFIG_DEBUG_INFO_BTF (5.8 or later)"
            )
        self._candidates = tuple(HOOK_SETS.values()) if hooks == "auto" else (HOOK_SETS[hooks],)
        self._hooks = self._candidates[-1]
        self._limits = self._hooks.limits
        self._why: str | None = None
        self._ephemeral = ephemeral
        self._programs = Programs(failures=failures, ephemeral=ephemeral, ring_bytes=ring_bytes)
        self._membership: Members | None = None
        self._ring: Ring | None = None
        self._wakeup = Wakeup()
        self._poll = select.epoll()
        self._poll.register(self._wakeup, select.EPOLLIN)
        self._backlog: deque[memoryview] = deque()
        """Slices of the ring that are not decoded yet, oldest first."""
        self._filter = UNRESTRICTED

    @property
    def info(self) -> EngineInfo:
        """The attached hooks and their limits."""
        return EngineInfo(self.name, self._hooks.name, self._limits, self._why)

    @property
    def lost(self) -> int:
        """How many records and processes of trees were dropped since `attach`: the ring or the map was full."""
        shared = self._programs.shared
        return int(shared.dropped_records + shared.dropped_members) if shared else 0

    @property
    def recursion_misses(self) -> int:
        """How often the kernel skipped a program since `attach`."""
        return self._programs.recursion_misses

    def attach(self) -> None:
        """Load and attach the first set of hooks that works. From then on no event is missed."""
        for hooks in self._candidates:
            try:
                self._limits = self._programs.attach(hooks)
            except EngineUnavailable as error:
                self._programs.close()
                if hooks is self._candidates[-1]:
                    raise
                self._why = f"{hooks.name}: {error}"
            else:
                self._hooks = hooks
                break
        self._ring = self._programs.open_ring()
        self._poll.register(self._ring.fileno(), select.EPOLLIN)

    def read(self, timeout: float | None) -> list[Record]:
        """Wait for records, `wake` or the timeout, and return records in the order of their events."""
        assert self._ring, "attach first"
        if not self._backlog and self._ring.produced == self._ring.consumed:
            for fd, _ in self._poll.poll(timeout):
                if fd == self._wakeup.fileno():
                    self._wakeup.clear()
        if len(self._backlog) < _BACKLOG_SLICES:
            self._copy_ring()
        return self._decode(self._backlog.popleft()) if self._backlog else []

    def read_up_to_now(self) -> list[Record]:
        """Return all records of what happened before the call."""
        assert self._ring, "attach first"
        end = self._ring.produced
        while self._ring.consumed < end:
            self._copy_ring()
        records = [record for batch in self._backlog for record in self._decode(batch)]
        self._backlog.clear()
        return records

    def wake(self) -> None:
        """Make a waiting `read` return. Any thread or signal handler may call it."""
        self._wakeup.set()

    def snapshot(self) -> Snapshot:
        """Return every open socket that a process holds, in every network namespace, with all its holders."""
        shared = self._programs.shared
        if shared and self._membership:
            self._membership.find_missed(shared.dropped_members + self.recursion_misses)
        return open_files.snapshot_of(self._read_iterator(0), ephemeral=self._ephemeral)

    def port_users(self, socket: Socket) -> tuple[Holder, ...]:
        """Return the current users of the port of `socket`, listening or not."""
        return port_users.port_users(socket, self._read_iterator(socket.port))

    def watch(self, root: Identity, tree: int) -> None:
        """Mark records and snapshots of a process tree with the bit `tree` from now on."""
        shared = self._programs.shared
        assert shared, "attach first"
        if self._membership is None:
            procfs.require_kernel_pids()
            self._membership = Members(self._programs.attach_fork_hooks())
        shared.trees |= tree
        self._membership.watch(root, tree)

    def unwatch(self, tree: int) -> None:
        """Stop marking a process tree."""
        shared = self._programs.shared
        if shared and self._membership:
            shared.trees &= ~tree
            self._membership.unwatch(tree)

    def set_filter(self, wanted: KernelFilter) -> KernelFilter:
        """Record only what passes a filter, as far as the programs can; return the filter that applies now."""
        shared = self._programs.shared
        assert shared, "attach first"
        self._filter = filter_map.supported(wanted, has_marks=self._programs.has_socket_helpers)
        shared.filter_flags = 0  # pass everything while the filter is half written
        shared.filter.load(self._filter)
        shared.filter_flags = filter_map.flags(self._filter)
        return self._filter

    def forget(self) -> None:
        """Close all descriptors, in a forked child, and detach nothing."""
        if self._ring:
            self._ring.forget()
        self._programs.forget()
        self._poll.close()
        self._wakeup.forget()

    def detach(self) -> None:
        """Remove everything from the kernel."""
        if self._ring:
            self._poll.unregister(self._ring.fileno())
            self._ring.close()
            self._ring = None
        self._programs.close()
        self._poll.close()
        self._wakeup.close()

    def _copy_ring(self) -> None:
        assert self._ring
        # Slices of one large block, not copies: small blocks would stay in the heap after a storm.
        batch = memoryview(self._ring.read())
        self._backlog.extend(batch[start : start + _SLICE] for start in range(0, len(batch), _SLICE))

    def _decode(self, batch: memoryview) -> list[Record]:
        epoch, own_pid = clock.monotonic_epoch(), os.getpid()
        raw_records = list(map(RawRecord._make, _STRIDE.iter_unpack(batch)))
        if self._programs.shared and self._filter.cgroups is not None:
            self._programs.shared.filter.exclude_cgroups(self._filter, {raw.cgroup for raw in raw_records})
        return [decode(raw, epoch, own_pid) for raw in raw_records]

    def _read_iterator(self, port: int) -> list[RawRecord]:
        return open_files.read_pass(self._programs.open_iterator(port))
