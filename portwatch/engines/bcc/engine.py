"""The engine on programs that bcc compiles when it starts, for kernels and hosts that core does not serve."""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import select
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from portwatch.engines import filter_map, perf, sock_diag_snapshot
from portwatch.engines import limits as caps
from portwatch.engines.bcc import hooks, syscalls
from portwatch.engines.bcc.compiler import compile_programs, quiet
from portwatch.engines.bcc.member_map import BccMemberMap
from portwatch.engines.bcc.order import Fields, Order
from portwatch.engines.bcc.perf_buffer import Buffer
from portwatch.engines.bcc.shared_map import SharedMap
from portwatch.engines.core.hooks import FORKS
from portwatch.engines.members import Members
from portwatch.engines.recursion_misses import recursion_misses
from portwatch.engines.wakeup import Wakeup
from portwatch.errors import EngineUnavailable, NotPermitted
from portwatch.filters.kernel_filter import UNRESTRICTED, KernelFilter
from portwatch.linux import capabilities, clock, mounts, procfs
from portwatch.linux.kernel import RELEASE
from portwatch.linux.lineage import Identity, Lineage
from portwatch.model import Holder, Record, Snapshot, Socket
from portwatch.record import RawRecord, decode
from portwatch.snapshot import open_files, port_users

BUFFER_BYTES = 16 << 20
"""Of all CPUs together: room for a storm of 40,000 records on one of two. More makes an overload longer."""
_LEAST_PAGES = 64
_FREE_PAGES = 128
"""For each CPU, as kernel.perf_event_mlock_kb usually lets everybody have."""
MPTCP = Path("/proc/sys/net/mptcp")
ITERATOR = "iter_sockets"


class _Control(ctypes.Structure):
    _fields_ = (("trees", ctypes.c_uint64), ("filter_flags", ctypes.c_uint32), ("port", ctypes.c_uint32))


class _Drops(ctypes.Structure):
    _fields_ = (("records", ctypes.c_uint64), ("members", ctypes.c_uint64))


class BccEngine:
    """Events from BPF, compiled here; on kprobes, or where the kernel has none on the stable hooks."""

    name = "bcc"

    def __init__(self, *, failures: bool = True, ephemeral: bool = False, pages: int | None = None) -> None:
        """Compiles the programs. Raises EngineUnavailable, saying what to install."""
        if missing := capabilities.missing_for_programs():  # said before half a second of compiling
            raise NotPermitted(f"for want of {', '.join(missing)}; run it as root (sudo portwatch)")
        self._failures = failures
        self._ephemeral = ephemeral
        self._pages = pages or _pages_for_each_cpu()
        self._hooks = hooks.STABLE_NAME
        self._limits: tuple[caps.Limit, ...] = hooks.STABLE_LIMITS
        self._why: str | None = None
        self._program = compile_programs(ephemeral=ephemeral)
        self._bpf = self._program.bpf
        self._descriptors: list[int] = []
        self._programs: list[int] = []
        self._iterator: int | None = None
        self._drops = SharedMap(self._bpf[b"drops"], _Drops)
        self._controls = SharedMap(self._bpf[b"controls"], _Control)
        self._filter_map = SharedMap(self._bpf[b"filters"], filter_map.FilterMap)
        self._fork_programs: dict[str, int] = {}
        """By raw tracepoint; none where the kernel has no such."""
        self._membership: Members | Lineage = Lineage()
        self._buffers: dict[int, tuple[int, Buffer]] = {}
        """By CPU, with the event that fills it."""
        self._left: list[Fields] = []
        """By CPUs that have gone."""
        self._told_lost = 0
        self._counted_lost = 0
        self._missed = 0
        self._order = Order(self._drain)
        self._filter = UNRESTRICTED
        self._wakeup = Wakeup()
        self._poll = select.epoll()
        self._poll.register(self._wakeup, select.EPOLLIN)
        # A snapshot alone needs the iterator only; without it, what sock_diag can tell.
        self._open_iterator_link()

    @property
    def info(self) -> caps.EngineInfo:
        """What the hooks that are attached can see."""
        of_snapshots: tuple[caps.Limit, ...] = ()
        if self._iterator is None:
            of_snapshots = (caps.OUTSIDE, *sock_diag_snapshot.limits())
            if RELEASE < port_users.LISTS_BOUND_SINCE:
                of_snapshots += (caps.BOUND_HOLDERS,)
        limits = tuple(dict.fromkeys(self._limits + of_snapshots))
        return caps.EngineInfo(self.name, self._hooks, limits, self._why)

    @property
    def lost(self) -> int:
        """What there was no room for: records, as the programs count or the kernel tells, and members."""
        return max(self._told_lost, self._counted_lost) + self._missed

    @property
    def recursion_misses(self) -> int:
        """How often a program was left out by the kernel since attach."""
        return sum(map(recursion_misses, [*self._programs, *(one.fd for one in self._bpf.funcs.values())]))

    def attach(self) -> None:
        """Attaches every program; from here on nothing that happens is missed."""
        self._open_all_buffers()
        if self._attach_kprobes():
            self._hooks = hooks.KPROBES_NAME
        else:
            self._attach_stable()
        self._load_fork_programs()
        # The compiler's memory, of no use from here on.
        self._bpf.free_bcc_memory()

    def read(self, timeout: float | None) -> list[Record]:
        """What happened, in order: waits until something has, until `wake`, or for `timeout` seconds."""
        if not self._order.is_waiting:
            for fd, _ in self._poll.poll(timeout):
                if fd == self._wakeup.fileno():
                    self._wakeup.clear()
        return self.read_up_to_now()

    def read_up_to_now(self) -> list[Record]:
        """Every record of what had happened when this was called."""
        epoch, own_pid = clock.monotonic_epoch(), os.getpid()
        raw = list(map(RawRecord._make, self._order.take()))
        if self._filter.cgroups is not None:
            self._filter_map.value.exclude_cgroups(self._filter, {one.cgroup for one in raw})
        records = [decode(one, epoch, own_pid) for one in raw]
        if self._fork_programs:
            return records
        return [replace(one, trees=self._membership.of(one.actor)) if one.actor else one for one in records]

    def wake(self) -> None:
        """Ends a `read` that waits; may be called from any thread and from a signal handler."""
        self._wakeup.set()

    def snapshot(self) -> Snapshot:
        """Every open socket, with all its holders; from here on, CPUs that have come are listened to."""
        if self._buffers:
            self._follow_cpus()
        if isinstance(self._membership, Members):
            self._count_drops()
            self._membership.find_missed(self._missed + self.recursion_misses)
        else:
            self._membership.forget_ended()
        if self._iterator is None:
            return sock_diag_snapshot.take_snapshot(self._membership)
        return open_files.open_sockets(self._pass_over_files(0), ephemeral=self._ephemeral)

    def port_users(self, socket: Socket) -> tuple[Holder, ...]:
        """Who uses the port of `socket`, listening or not, as of now."""
        if self._iterator is None:
            return port_users.listed_port_users(socket)
        return port_users.port_users(socket, self._pass_over_files(socket.port))

    def watch(self, root: Identity, tree: int) -> None:
        """From here on, records and snapshots say by the bit `tree` what concerns a process tree."""
        if self._fork_programs and not isinstance(self._membership, Members):
            self._watch_forks()
        self._controls.value.trees |= tree
        self._controls.publish()
        self._membership.watch(root, tree)

    def unwatch(self, tree: int) -> None:
        """Forgets a tree."""
        self._controls.value.trees &= ~tree
        self._controls.publish()
        self._membership.unwatch(tree)

    def set_filter(self, wanted: KernelFilter) -> KernelFilter:
        """Record only what passes a filter, as far as the programs can; return the filter that applies now."""
        # What a pass over files does not show, the programs cannot know for a tree's.
        can = self._iterator is not None and bool(self._fork_programs)
        attained = filter_map.supported(wanted, has_marks=can)
        self._set_filter_flags(0)  # pass everything while the filter is half written
        self._filter_map.value.load(attained)
        self._filter_map.publish()
        self._set_filter_flags(filter_map.flags(attained))
        self._filter = attained
        return attained

    def detach(self) -> None:
        """Takes everything out of the kernel again."""
        for fd in reversed(self._descriptors):
            os.close(fd)
        self._descriptors.clear()
        self._iterator = None
        self._close_buffers(self._buffers)
        self._drops.close()
        self._controls.close()
        self._filter_map.close()
        with quiet([]):
            self._bpf.cleanup()
        atexit.unregister(self._bpf.cleanup)  # bcc's own, which would keep all of it until then
        self._poll.close()
        self._wakeup.close()

    def _set_filter_flags(self, flags: int) -> None:
        self._controls.value.filter_flags = flags
        self._controls.publish()

    def _open_all_buffers(self) -> None:
        """As large as is asked for, or as this process may lock."""
        cpus = _online_cpus()
        try:
            self._open_buffers(cpus)
        except PermissionError:
            self._close_buffers(self._buffers)
            self._pages = min(self._pages, _FREE_PAGES)
            try:
                self._open_buffers(cpus)
            except PermissionError as error:
                raise NotPermitted(
                    f"the buffers are refused ({error}); if that is for the memory that they lock: "
                    f"{capabilities.RAISE_MEMLOCK}, or {capabilities.IPC_LOCK.name}"
                ) from error

    def _open_buffers(self, cpus: Iterable[int]) -> None:
        for cpu in cpus:
            event = perf.open_output(cpu)
            try:
                memory = mmap.mmap(event, (1 + self._pages) * mmap.PAGESIZE)
            except OSError:
                os.close(event)
                raise
            self._buffers[cpu] = event, Buffer(memory)
            self._bpf[b"records"][ctypes.c_int(cpu)] = ctypes.c_int(event)
            self._poll.register(event, select.EPOLLIN)

    def _close_buffers(self, cpus: Iterable[int]) -> None:
        for cpu in list(cpus):
            event, buffer = self._buffers.pop(cpu)
            found, lost = buffer.read()
            self._left += found
            self._told_lost += lost
            buffer.close()
            self._poll.unregister(event)
            os.close(event)

    def _follow_cpus(self) -> None:
        """An event goes with its CPU, and does not come back with it."""
        online = set(_online_cpus())
        self._close_buffers(self._buffers.keys() - online)
        with suppress(OSError):  # of a CPU that has gone again
            self._open_buffers(online - self._buffers.keys())

    def _drain(self) -> list[Fields]:
        records, self._left = self._left, []
        for _, buffer in self._buffers.values():
            found, lost = buffer.read()
            records += found
            self._told_lost += lost
        if records:
            self._count_drops()
        return records

    def _count_drops(self) -> None:
        drops = self._drops.fetch()
        self._counted_lost, self._missed = drops.records, drops.members

    def _attach_kprobes(self) -> bool:
        """Attaches the one set; takes it back where this kernel has no kprobes."""
        limits = hooks.KPROBES_LIMITS + (() if self._failures else hooks.WITHOUT_FAILURES)
        of_failures = hooks.FAILURE_KPROBES + (hooks.MPTCP_KPROBES if MPTCP.exists() else ())
        probes = hooks.KPROBES + (of_failures if self._failures else ())
        refusals = []
        for probe in probes:
            refusal = self._refusal_of(probe)
            if refusal and not probe.lost:
                self._detach_kprobes()
                self._why = f"kprobes: none can sit on {probe.function} ({refusal})"
                return False
            if refusal:
                refusals.append(f"{probe.function} ({refusal})")
                limits += probe.lost
        if refusals:
            self._why = f"none can sit on {', '.join(refusals)}"
        self._limits = limits
        return True

    def _refusal_of(self, probe: hooks.Kprobe) -> str | None:
        """Attaches all of a probe, or nothing; then in bcc's or the kernel's words, why."""
        function = probe.function.encode()
        said: list[str] = []
        try:
            with quiet(said):
                self._bpf.attach_kprobe(event=function, fn_name=probe.entry.encode())
                if probe.exit:
                    try:
                        self._bpf.attach_kretprobe(event=function, fn_name=probe.exit.encode())
                    except Exception:
                        self._bpf.detach_kprobe(function)
                        raise
        except Exception as error:  # bcc raises nothing more precise
            return said[0] if said else str(error)
        return None

    def _detach_kprobes(self) -> None:
        with quiet([]):
            for event in list(self._bpf.kprobe_fds):
                self._bpf.detach_kprobe_event(event)

    def _attach_stable(self) -> None:
        root = mounts.open_cgroup_root()
        self._descriptors.append(root)
        try:
            for name, tracepoint in hooks.RAW_TRACEPOINTS.items():
                program = self._load(name, syscalls.RAW_TRACEPOINT)
                self._descriptors.append(syscalls.attach_raw_tracepoint(program, tracepoint))
            for hook in hooks.CGROUP:
                program = self._load(hook.program, hook.kind, hook.attach_type)
                self._descriptors.append(syscalls.attach_cgroup(program, root, hook.attach_type))
        except PermissionError as error:
            raise NotPermitted(
                f"the kernel does not let the programs in ({error.strerror}): lockdown or a security module "
                "forbids it, or another tool holds the root cgroup for itself"
            ) from error
        if not (self._failures and self._attach_tracepoints()):
            self._limits += hooks.WITHOUT_FAILURES

    def _attach_tracepoints(self) -> bool:
        opened = perf.open_tracepoints(hooks.TRACEPOINTS)
        self._descriptors += opened.values()
        for name, event in opened.items():
            perf.attach(event, self._load(name, syscalls.TRACEPOINT))
        return bool(opened)

    def _load(self, name: str, kind: int, attach_type: int = 0, function: int = 0) -> int:
        library, module = _library(self._bpf), self._bpf.module
        size = library.bpf_function_size(module, name.encode())
        address = library.bpf_function_start(module, name.encode())
        fd = syscalls.load(syscalls.Code(name, address, size // 8), kind, attach_type, function)
        self._descriptors.append(fd)
        self._programs.append(fd)
        return fd

    def _open_iterator_link(self) -> None:
        function = self._program.iterator_function
        if function is not None:
            try:
                program = self._load(ITERATOR, syscalls.TRACING, syscalls.TRACE_ITER, function)
                self._iterator = syscalls.attach_iterator(program)
            except (OSError, EngineUnavailable):  # the helpers that it calls came later than it did
                self._iterator = None
            else:
                self._descriptors.append(self._iterator)

    def _load_fork_programs(self) -> None:
        try:
            for name, tracepoint in FORKS.items():
                self._fork_programs[tracepoint] = self._load(name, syscalls.RAW_TRACEPOINT)
        except (OSError, EngineUnavailable):  # raw tracepoints came with 4.17
            self._fork_programs.clear()
            self._limits += (caps.TREES, caps.OUTSIDE)

    def _watch_forks(self) -> None:
        procfs.require_kernel_pids()
        for tracepoint, program in self._fork_programs.items():
            self._descriptors.append(syscalls.attach_raw_tracepoint(program, tracepoint))
        self._membership = Members(BccMemberMap(self._bpf[b"members"]))

    def _pass_over_files(self, port: int) -> list[RawRecord]:
        assert self._iterator is not None
        self._controls.value.port = port
        self._controls.publish()
        return open_files.read_pass(syscalls.open_iterator(self._iterator))


def _pages_for_each_cpu() -> int:
    """A power of two."""
    pages = BUFFER_BYTES // os.sysconf("SC_NPROCESSORS_ONLN") // os.sysconf("SC_PAGESIZE")
    return 1 << max(_LEAST_PAGES, pages).bit_length() - 1


def _online_cpus() -> list[int]:
    ranges = Path("/sys/devices/system/cpu/online").read_text("ascii").strip().split(",")
    ends = [[int(end) for end in one.split("-")] for one in ranges]
    return [cpu for first, *last in ends for cpu in range(first, (last or [first])[0] + 1)]


def _library(bpf: Any) -> Any:
    """libbcc, as the bcc that made `bpf` has loaded it."""
    return sys.modules[type(bpf).__module__].lib
