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

from portwatch import clock, mounts, procfs, rights
from portwatch.engines import capabilities as caps
from portwatch.engines import perf, places
from portwatch.engines.bcc import hooks, syscalls
from portwatch.engines.bcc.buffer import Buffer
from portwatch.engines.bcc.compiler import compile_programs, quiet
from portwatch.engines.bcc.members import MemberTable
from portwatch.engines.bcc.order import Fields, Order
from portwatch.engines.bcc.shared import Shared
from portwatch.engines.core.hooks import FORKS
from portwatch.engines.skips import skips_of
from portwatch.engines.wakeup import Wakeup
from portwatch.errors import EngineUnavailable, NotPermitted
from portwatch.kernel import RELEASE
from portwatch.model import Holder, Record, Snapshot, Socket
from portwatch.record import Raw, decode
from portwatch.snapshot import files, listed, usage
from portwatch.tree import Identity, Lineage, Members
from portwatch.width import EVERYTHING, Width

BUFFER_BYTES = 16 << 20
"""Of all CPUs together: room for a storm of 40,000 records on one of two. More makes an overload longer."""
_LEAST_PAGES = 64
_FREE_PAGES = 128
"""For each CPU, as kernel.perf_event_mlock_kb usually lets everybody have."""
MPTCP = Path("/proc/sys/net/mptcp")
ITERATOR = "held_sockets"


class _Request(ctypes.Structure):
    _fields_ = (("trees", ctypes.c_uint64), ("narrow", ctypes.c_uint32), ("port", ctypes.c_uint32))


class _Failed(ctypes.Structure):
    _fields_ = (("records", ctypes.c_uint64), ("members", ctypes.c_uint64))


class BccEngine:
    """Events from BPF, compiled here; on kprobes, or where the kernel has none on the stable hooks."""

    name = "bcc"

    def __init__(self, *, failures: bool = True, ephemeral: bool = False, pages: int | None = None) -> None:
        """Compiles the programs. Raises EngineUnavailable, saying what to install."""
        if missing := rights.missing_for_programs():  # said before half a second of compiling
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
        self._failed = Shared(self._bpf[b"failed"], _Failed)
        self._requests = Shared(self._bpf[b"requests"], _Request)
        self._places = Shared(self._bpf[b"places"], places.Places)
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
        self._width = EVERYTHING
        self._wakeup = Wakeup()
        self._poll = select.epoll()
        self._poll.register(self._wakeup, select.EPOLLIN)
        # A snapshot alone needs the iterator only; without it, what sock_diag can tell.
        self._open_iterator_link()

    @property
    def capabilities(self) -> caps.Capabilities:
        """What the hooks that are attached can see."""
        of_snapshots: tuple[caps.Limit, ...] = ()
        if self._iterator is None:
            of_snapshots = (caps.OUTSIDE, *listed.limits())
            if RELEASE < usage.LISTS_BOUND_SINCE:
                of_snapshots += (caps.BOUND_HOLDERS,)
        limits = tuple(dict.fromkeys(self._limits + of_snapshots))
        return caps.Capabilities(self.name, self._hooks, limits, self._why)

    @property
    def lost(self) -> int:
        """What there was no room for: records, as the programs count or the kernel tells, and members."""
        return max(self._told_lost, self._counted_lost) + self._missed

    @property
    def skipped(self) -> int:
        """How often a program was left out by the kernel since attach."""
        return sum(map(skips_of, [*self._programs, *(one.fd for one in self._bpf.funcs.values())]))

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
        raw = list(map(Raw._make, self._order.take()))
        if self._width.homes is not None:
            self._places.value.leave_out(self._width, {one.cgroup for one in raw})
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
            self._count_failed()
            self._membership.find_missed(self._missed + self.skipped)
        else:
            self._membership.forget_ended()
        if self._iterator is None:
            return listed.held_sockets(self._membership)
        return files.open_sockets(self._pass_over_files(0), ephemeral=self._ephemeral)

    def users_of(self, socket: Socket) -> tuple[Holder, ...]:
        """Who uses the port of `socket`, listening or not, as of now."""
        if self._iterator is None:
            return usage.users_listed(socket)
        return usage.users_of(socket, self._pass_over_files(socket.port))

    def watch(self, root: Identity, tree: int) -> None:
        """From here on, records and snapshots say by the bit `tree` what concerns a process tree."""
        if self._fork_programs and not isinstance(self._membership, Members):
            self._watch_forks()
        self._requests.value.trees |= tree
        self._requests.publish()
        self._membership.watch(root, tree)

    def unwatch(self, tree: int) -> None:
        """Forgets a tree."""
        self._requests.value.trees &= ~tree
        self._requests.publish()
        self._membership.unwatch(tree)

    def narrow(self, width: Width) -> Width:
        """Has only what a width holds recorded, as far as it can be had; returns what is recorded now."""
        # What a pass over files does not show, the programs cannot know for a tree's.
        can = self._iterator is not None and bool(self._fork_programs)
        attained = places.attainable(width, marks=can)
        self._set_narrow(0)  # nothing is missed while places are half told
        self._places.value.fill(attained)
        self._places.publish()
        self._set_narrow(places.narrow(attained))
        self._width = attained
        return attained

    def detach(self) -> None:
        """Takes everything out of the kernel again."""
        for fd in reversed(self._descriptors):
            os.close(fd)
        self._descriptors.clear()
        self._iterator = None
        self._close_buffers(self._buffers)
        self._failed.close()
        self._requests.close()
        self._places.close()
        with quiet([]):
            self._bpf.cleanup()
        atexit.unregister(self._bpf.cleanup)  # bcc's own, which would keep all of it until then
        self._poll.close()
        self._wakeup.close()

    def _set_narrow(self, narrow: int) -> None:
        self._requests.value.narrow = narrow
        self._requests.publish()

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
                    f"{rights.RAISE_MEMLOCK}, or {rights.IPC_LOCK.name}"
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
            self._count_failed()
        return records

    def _count_failed(self) -> None:
        failed = self._failed.fetch()
        self._counted_lost, self._missed = failed.records, failed.members

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
        procfs.require_all_processes()
        for tracepoint, program in self._fork_programs.items():
            self._descriptors.append(syscalls.attach_raw_tracepoint(program, tracepoint))
        self._membership = Members(MemberTable(self._bpf[b"members"]))

    def _pass_over_files(self, port: int) -> list[Raw]:
        assert self._iterator is not None
        self._requests.value.port = port
        self._requests.publish()
        return files.read_pass(syscalls.open_iterator(self._iterator))


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
