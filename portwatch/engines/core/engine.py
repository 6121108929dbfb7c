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
"""The size of the ring. Its data area is mapped twice, so it counts twice in resident memory."""

_STRIDE = Struct(f"<{HEADER}x{LAYOUT.format[1:]}")
"""The layout of a record in the ring, including its header."""
_SLICE = 512 * _STRIDE.size
_BACKLOG_SLICES = 320
"""The ring is not read while this many slices of 120 KB wait to be decoded.

Copying records is faster than decoding them. So the records of a storm, which would overflow the ring, are
copied to ordinary memory first. That memory is freed afterwards.
"""


class CoreEngine:
    """An engine that uses the best set of hooks that this kernel allows."""

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
                f"this kernel has no BTF ({VMLINUX} is missing), so the programs cannot find the fields of "
                "its structs; boot a kernel with CONFIG_DEBUG_INFO_BTF (5.8 or later)"
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
        """Slices that are copied from the ring but not decoded yet, oldest first."""
        self._filter = UNRESTRICTED

    @property
    def info(self) -> EngineInfo:
        """The attached hooks and their limits."""
        return EngineInfo(self.name, self._hooks.name, self._limits, self._why)

    @property
    def lost(self) -> int:
        """How many records and tree members were dropped since `attach` because the ring or a map was full."""
        shared = self._programs.shared
        return int(shared.dropped_records + shared.dropped_members) if shared else 0

    @property
    def recursion_misses(self) -> int:
        """How often the kernel has skipped a BPF program since `attach`."""
        return self._programs.recursion_misses

    def attach(self) -> None:
        """Load and attach the first set of hooks that works. From then on, the programs see every event."""
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
        """Wait for a record, a call of `wake`, or the timeout. Return the records in order of their events."""
        assert self._ring, "attach first"
        if not self._backlog and self._ring.produced == self._ring.consumed:
            for fd, _ in self._poll.poll(timeout):
                if fd == self._wakeup.fileno():
                    self._wakeup.clear()
        if len(self._backlog) < _BACKLOG_SLICES:
            self._copy_ring()
        return self._decode(self._backlog.popleft()) if self._backlog else []

    def read_up_to_now(self) -> list[Record]:
        """Return all unread records of events that happened before this call."""
        assert self._ring, "attach first"
        end = self._ring.produced
        while self._ring.consumed < end:
            self._copy_ring()
        records = [record for batch in self._backlog for record in self._decode(batch)]
        self._backlog.clear()
        return records

    def wake(self) -> None:
        """Make `read` return, if it is waiting. Any thread or signal handler may call this."""
        self._wakeup.set()

    def snapshot(self) -> Snapshot:
        """Return every open socket that a process holds, in any network namespace, with all its holders."""
        shared = self._programs.shared
        if shared and self._membership:
            self._membership.find_missed(shared.dropped_members + self.recursion_misses)
        return open_files.snapshot_of(self._read_iterator(0), ephemeral=self._ephemeral)

    def port_users(self, socket: Socket) -> tuple[Holder, ...]:
        """Return the processes that have the port of `socket` in use, whether they listen on it or not."""
        return port_users.port_users(socket, self._read_iterator(socket.port))

    def watch(self, root: Identity, tree: int) -> None:
        """From now on, set the bit `tree` in records and snapshots about `root` and its descendants."""
        shared = self._programs.shared
        assert shared, "attach first"
        if self._membership is None:
            procfs.require_kernel_pids()
            self._membership = Members(self._programs.attach_fork_hooks())
        shared.trees |= tree
        self._membership.watch(root, tree)

    def unwatch(self, tree: int) -> None:
        """Stop setting the bit `tree` in records and snapshots."""
        shared = self._programs.shared
        if shared and self._membership:
            shared.trees &= ~tree
            self._membership.unwatch(tree)

    def set_filter(self, wanted: KernelFilter) -> KernelFilter:
        """Filter records in the kernel, as far as the programs can. Return the filter that is now in effect."""
        shared = self._programs.shared
        assert shared, "attach first"
        self._filter = filter_map.supported(wanted, has_marks=self._programs.has_socket_helpers)
        shared.filter_flags = 0  # pass everything while the filter is half written
        shared.filter.load(self._filter)
        shared.filter_flags = filter_map.flags(self._filter)
        return self._filter

    def forget(self) -> None:
        """Close all descriptors in a forked child. Detach nothing, as the parent still uses the programs."""
        if self._ring:
            self._ring.forget()
        self._programs.forget()
        self._poll.close()
        self._wakeup.forget()

    def detach(self) -> None:
        """Detach all programs, and remove them and their maps from the kernel."""
        if self._ring:
            self._poll.unregister(self._ring.fileno())
            self._ring.close()
            self._ring = None
        self._programs.close()
        self._poll.close()
        self._wakeup.close()

    def _copy_ring(self) -> None:
        assert self._ring
        # The slices share one large block, which is freed after a storm. Small copies would stay in the heap.
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
