"""The engine on BPF programs that were compiled with the package."""

from __future__ import annotations

import ctypes
import os
import select
from collections import deque
from pathlib import Path
from struct import Struct

from portwatch.engines import filter_map, perf
from portwatch.engines import limits as caps
from portwatch.engines.core.hooks import FORKS, HOOK_SETS, HookSet
from portwatch.engines.core.libbpf import Libbpf, Object
from portwatch.engines.core.member_map import LibbpfMemberMap
from portwatch.engines.core.ring import HEADER, Ring
from portwatch.engines.members import Members
from portwatch.engines.recursion_misses import recursion_misses
from portwatch.engines.wakeup import Wakeup
from portwatch.errors import EngineUnavailable, NotPermitted
from portwatch.filters.kernel_filter import UNRESTRICTED, KernelFilter
from portwatch.linux import capabilities, clock, mounts, procfs
from portwatch.linux.kernel import VMLINUX
from portwatch.linux.lineage import Identity
from portwatch.model import Holder, Record, Snapshot, Socket
from portwatch.record import LAYOUT, RawRecord, decode
from portwatch.snapshot import open_files, port_users

OBJECT = Path(__file__).with_name("core.bpf.o")
RING_BYTES = 4 << 20
"""Counts twice in resident memory, as it is mapped twice; emptied long before it is full (_BACKLOG_SLICES)."""
ITERATOR = "iter_sockets"

_STRIDE = Struct(f"<{HEADER}x{LAYOUT.format[1:]}")
"""A record as it lies in the ring, behind its header."""
_SLICE = 512 * _STRIDE.size
_BACKLOG_SLICES = 320
"""Of 120 KB each, at the most: the ring is emptied faster than records are decoded, so a storm that it
could not hold waits in our own memory, which is there for other things when it is over."""


class _Settings(ctypes.Structure):
    _fields_ = (("ephemeral", ctypes.c_bool), ("failures", ctypes.c_bool), ("socket_helpers", ctypes.c_bool))


class _SharedVariables(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("lost", "missed", "port", "trees", "filter_flags")),
        ("filter", filter_map.FilterMap),
    )


class CoreEngine:
    """Events and snapshots from BPF, on the first set of hooks that this kernel lets us attach."""

    name = "core"

    def __init__(
        self,
        *,
        failures: bool = True,
        ephemeral: bool = False,
        ring_bytes: int = RING_BYTES,
        hooks: str = "auto",
    ) -> None:
        """Raises EngineUnavailable where BTF, libbpf or the object is missing."""
        if not VMLINUX.exists():
            raise EngineUnavailable(
                f"this kernel has no BTF ({VMLINUX} is missing), by which the programs find its fields; "
                "a kernel with CONFIG_DEBUG_INFO_BTF (5.8 or later) has it"
            )
        self._candidates = tuple(HOOK_SETS.values()) if hooks == "auto" else (HOOK_SETS[hooks],)
        self._hooks = self._candidates[-1]
        self._why: str | None = None
        self._failures = failures
        self._ephemeral = ephemeral
        self._ring_bytes = ring_bytes
        self._limits = self._hooks.limits
        self._libbpf = Libbpf()
        self._object = self._open(socket_helpers=True)
        self._shared: _SharedVariables | None = None
        self._has_socket_helpers = True
        self._membership: Members | None = None
        self._iterator: int | None = None
        self._ring: Ring | None = None
        self._wakeup = Wakeup()
        self._poll = select.epoll()
        self._poll.register(self._wakeup, select.EPOLLIN)
        self._backlog: deque[memoryview] = deque()
        self._filter = UNRESTRICTED
        self._skippable: tuple[int, ...] = ()

    @property
    def info(self) -> caps.EngineInfo:
        """What the hooks that are attached can see."""
        return caps.EngineInfo(self.name, self._hooks.name, self._limits, self._why)

    @property
    def lost(self) -> int:
        """Records for which the ring had no room, and members for which their map had none, since attach."""
        return int(self._shared.lost + self._shared.missed) if self._shared else 0

    @property
    def recursion_misses(self) -> int:
        """How often a program was left out by the kernel since attach."""
        return sum(map(recursion_misses, self._skippable))

    def attach(self) -> None:
        """Loads and attaches every program of a set; from here on nothing that happens is missed."""
        for hooks in self._candidates:
            try:
                self._limits = self._attach(hooks)
            except EngineUnavailable as error:
                self._object.close()
                self._shared = None
                if hooks is self._candidates[-1]:
                    raise
                self._why = f"{hooks.name}: {error}"
            else:
                self._hooks = hooks
                break
        self._ring = Ring(self._object.map_fd("records"), self._ring_bytes, LAYOUT.size)
        self._poll.register(self._ring.fileno(), select.EPOLLIN)

    def read(self, timeout: float | None) -> list[Record]:
        """What happened, in order: waits until something has, until `wake`, or for `timeout` seconds."""
        assert self._ring, "attach first"
        if not self._backlog and self._ring.produced == self._ring.consumed:
            for fd, _ in self._poll.poll(timeout):
                if fd == self._wakeup.fileno():
                    self._wakeup.clear()
        if len(self._backlog) < _BACKLOG_SLICES:
            self._empty_ring()
        return self._decode(self._backlog.popleft()) if self._backlog else []

    def read_up_to_now(self) -> list[Record]:
        """Every record of what had happened when this was called."""
        assert self._ring, "attach first"
        end = self._ring.produced
        while self._ring.consumed < end:
            self._empty_ring()
        records = [record for batch in self._backlog for record in self._decode(batch)]
        self._backlog.clear()
        return records

    def wake(self) -> None:
        """Ends a `read` that waits; may be called from any thread and from a signal handler."""
        self._wakeup.set()

    def snapshot(self) -> Snapshot:
        """Every open socket that a process holds, in every network namespace, with all its holders."""
        if self._shared and self._membership:
            self._membership.find_missed(self._shared.missed + self.recursion_misses)
        return open_files.open_sockets(self._pass_over_files(0), ephemeral=self._ephemeral)

    def port_users(self, socket: Socket) -> tuple[Holder, ...]:
        """Who uses the port of `socket`, listening or not, as of now."""
        return port_users.port_users(socket, self._pass_over_files(socket.port))

    def watch(self, root: Identity, tree: int) -> None:
        """From here on, records and snapshots say by the bit `tree` what concerns a process tree."""
        assert self._shared, "attach first"
        if self._membership is None:
            procfs.require_kernel_pids()
            for name in FORKS:
                self._object.attach(name)
            self._membership = Members(LibbpfMemberMap(self._libbpf, self._object.map_fd("members")))
        self._shared.trees |= tree
        self._membership.watch(root, tree)

    def unwatch(self, tree: int) -> None:
        """Forgets a tree."""
        if self._shared and self._membership:
            self._shared.trees &= ~tree
            self._membership.unwatch(tree)

    def set_filter(self, wanted: KernelFilter) -> KernelFilter:
        """Record only what passes a filter, as far as the programs can; return the filter that applies now."""
        assert self._shared, "attach first"
        attained = filter_map.supported(wanted, has_marks=self._has_socket_helpers)
        self._shared.filter_flags = 0  # pass everything while the filter is half written
        self._shared.filter.load(attained)
        self._shared.filter_flags = filter_map.flags(attained)
        self._filter = attained
        return attained

    def detach(self) -> None:
        """Takes everything out of the kernel again."""
        if self._ring:
            self._poll.unregister(self._ring.fileno())
            self._ring.close()
            self._ring = None
        self._shared = None
        self._skippable = ()
        self._object.close()
        self._poll.close()
        self._wakeup.close()

    def _attach(self, hooks: HookSet) -> tuple[caps.Limit, ...]:
        """Returns what is then not seen."""
        if hooks.on_functions and self._libbpf.forbids_fentry() and not capabilities.missing_for_programs():
            raise NotPermitted(
                "this kernel, or what guards it, lets no program sit on its functions "
                "(BPF_TRACE_FENTRY: Operation not permitted)"
            )
        tracing = [*hooks.tracing]
        if self._failures:
            tracing += hooks.for_failures
        if self._ephemeral:
            tracing += hooks.for_ephemeral
        root = mounts.open_cgroup_root() if hooks.cgroup else None
        tracepoints = perf.open_tracepoints(hooks.tracepoints) if self._failures else {}
        sees_failures = self._failures and bool(tracepoints or not hooks.tracepoints)
        try:
            others = {*hooks.cgroup, *tracepoints, *FORKS, ITERATOR}
            try:
                self._load({*tracing, *others}, hooks.needs_socket_helpers)
            except NotPermitted:
                raise
            except EngineUnavailable:
                absent = self._absent(hooks)
                if not absent:
                    raise
                tracing = [name for name in tracing if name not in absent]
                self._load({*tracing, *others}, hooks.needs_socket_helpers)
            self._skippable = tuple(map(self._object.program_fd, [*tracing, *FORKS, *tracepoints]))
            # What sees closes comes before what sees opens: no open is told whose close is missed.
            for name in tracing:
                self._object.attach(name)
            for name in hooks.cgroup:
                self._attach_to_cgroup(name, root)
            for name, fd in tuple(tracepoints.items()):
                self._object.attach(name, perf_fd=fd)
                del tracepoints[name]  # libbpf closes it from here on
        finally:
            for fd in (*tracepoints.values(), *([] if root is None else [root])):
                os.close(fd)
        limits = hooks.limits if sees_failures else hooks.limits + hooks.without_failures
        return limits if self._has_socket_helpers else limits + hooks.without_socket_helpers

    def _absent(self, hooks: HookSet) -> set[str]:
        """The programs for functions that this kernel has not. Slow, so asked only when a load fails."""
        if not hooks.where_there:
            return set()
        present = self._libbpf.kernel_functions(set(hooks.where_there.values()))
        return {program for program, function in hooks.where_there.items() if function not in present}

    def _open(self, *, socket_helpers: bool) -> Object:
        opened = Object(self._libbpf, OBJECT)
        opened.set_constants(
            _Settings(ephemeral=self._ephemeral, failures=self._failures, socket_helpers=socket_helpers)
        )
        return opened

    def _load(self, names: set[str], needs_socket_helpers: bool = False) -> None:
        """Loads these programs: with the helpers for sockets, or else, if they can do without, without."""
        refusal = None
        for socket_helpers in (True,) if needs_socket_helpers else (True, False):
            self._object.close()
            self._iterator = None
            self._object = self._open(socket_helpers=socket_helpers)
            self._object.keep_only(names)
            self._object.resize("records", self._ring_bytes)
            try:
                self._object.load()
            except NotPermitted:
                raise
            except EngineUnavailable as error:
                refusal = refusal or error
            else:
                self._shared = self._object.variables(_SharedVariables)
                self._has_socket_helpers = socket_helpers
                return
        assert refusal
        raise refusal

    def _attach_to_cgroup(self, name: str, root: int | None) -> None:
        try:
            self._object.attach(name, cgroup_fd=root)
        except NotPermitted:
            if capabilities.missing_for_programs():
                raise
            raise NotPermitted(
                f"{name} does not attach: another tool holds the root cgroup for itself "
                "(bpftool cgroup show /sys/fs/cgroup shows which), or a security module forbids it"
            ) from None

    def _empty_ring(self) -> None:
        assert self._ring
        # Slices of one block, not copies of their own: these stay in the heap when they are done with.
        batch = memoryview(self._ring.read())
        self._backlog.extend(batch[start : start + _SLICE] for start in range(0, len(batch), _SLICE))

    def _decode(self, batch: memoryview) -> list[Record]:
        epoch, own_pid = clock.monotonic_epoch(), os.getpid()
        raw = list(map(RawRecord._make, _STRIDE.iter_unpack(batch)))
        if self._shared and self._filter.cgroups is not None:
            self._shared.filter.exclude_cgroups(self._filter, {one.cgroup for one in raw})
        return [decode(one, epoch, own_pid) for one in raw]

    def _pass_over_files(self, port: int) -> list[RawRecord]:
        if self._shared is None:
            self._load({ITERATOR})
        if self._iterator is None:
            self._iterator = self._object.attach_iterator(ITERATOR)
        assert self._shared
        self._shared.port = port
        return open_files.read_pass(self._object.open_iterator(self._iterator))
