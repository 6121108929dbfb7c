"""Loads the BPF programs of the core engine, and attaches them to one set of hooks."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from portwatch.engines import filter_map, perf
from portwatch.engines.common_hooks import FORKS, ITERATOR
from portwatch.engines.core.hooks import HookSet
from portwatch.engines.core.libbpf import Libbpf, Object
from portwatch.engines.core.member_map import LibbpfMemberMap
from portwatch.engines.core.ring import Ring
from portwatch.engines.limits import Limit
from portwatch.engines.permissions import ROOT_CGROUP_IS_TAKEN
from portwatch.engines.recursion_misses import recursion_misses
from portwatch.errors import EngineUnavailable, NotPermitted
from portwatch.linux import capabilities, mounts
from portwatch.record import LAYOUT

OBJECT = Path(__file__).with_name("core.bpf.o")


class _Settings(ctypes.Structure):
    """The constants of bpf/core.bpf.c, which are set before the programs are loaded."""

    _fields_ = (("ephemeral", ctypes.c_bool), ("failures", ctypes.c_bool), ("socket_helpers", ctypes.c_bool))


class SharedVariables(ctypes.Structure):
    """The variables of bpf/core.bpf.c, in memory shared with the programs."""

    _fields_ = (
        *(
            (name, ctypes.c_uint64)
            for name in ("dropped_records", "dropped_members", "port", "trees", "filter_flags")
        ),
        ("filter", filter_map.FilterMap),
    )


class Programs:
    """The programs in core.bpf.o.

    `attach` loads the programs of a set of hooks. If no program is loaded yet, `open_iterator` loads only the
    iterator.
    """

    def __init__(self, *, failures: bool, ephemeral: bool, ring_bytes: int) -> None:
        """Raise EngineUnavailable if libbpf or the object is missing."""
        self._failures = failures
        self._ephemeral = ephemeral
        self._ring_bytes = ring_bytes
        self._libbpf = Libbpf()
        self._object = self._open(socket_helpers=True)
        self._iterator: int | None = None
        self._skippable: tuple[int, ...] = ()
        self.shared: SharedVariables | None = None
        """The programs' variables, or None if no programs are loaded."""
        self.has_socket_helpers = True

    @property
    def recursion_misses(self) -> int:
        """How often the kernel skipped one of the programs since they were attached."""
        return sum(map(recursion_misses, self._skippable))

    def attach(self, hooks: HookSet) -> tuple[Limit, ...]:
        """Load and attach a set of hooks. Return the limits that it has on this machine.

        Raise EngineUnavailable if the kernel refuses.
        """
        if hooks.uses_fentry and self._libbpf.forbids_fentry() and not capabilities.missing_for_programs():
            raise NotPermitted(
                "this kernel or a security module does not allow BPF programs on kernel functions "
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
            tracing = self._load_set(hooks, tracing, others)
            self._skippable = tuple(map(self._object.program_fd, [*tracing, *FORKS, *tracepoints]))
            # Programs that see closes come first, so that no open is reported whose close is missed.
            for name in tracing:
                self._object.attach(name)
            for name in hooks.cgroup:
                self._attach_to_cgroup(name, root)
            for name, fd in tuple(tracepoints.items()):
                self._object.attach(name, perf_fd=fd)
                del tracepoints[name]  # libbpf now owns the descriptor, and closes it
        finally:
            for fd in (*tracepoints.values(), *([] if root is None else [root])):
                os.close(fd)
        limits = hooks.limits if sees_failures else hooks.limits + hooks.without_failures
        return limits if self.has_socket_helpers else limits + hooks.without_socket_helpers

    def open_ring(self) -> Ring:
        """Return the ring from which the programs' records can be read."""
        return Ring(self._object.map_fd("records"), self._ring_bytes, LAYOUT.size)

    def attach_fork_hooks(self) -> LibbpfMemberMap:
        """Start tracking process trees, and return the map of their processes."""
        for name in FORKS:
            self._object.attach(name)
        return LibbpfMemberMap(self._libbpf, self._object.map_fd("members"))

    def open_iterator(self, port: int) -> int:
        """Return a descriptor from which one record can be read for each open file that is a socket on `port`.

        Port 0 selects every open socket. This works before `attach`, too.
        """
        if self.shared is None:
            self._load({ITERATOR})
        if self._iterator is None:
            self._iterator = self._object.attach_iterator(ITERATOR)
        assert self.shared
        self.shared.port = port
        return self._object.open_iterator(self._iterator)

    def forget(self) -> None:
        """Close all descriptors in a forked child. Detach nothing, as the parent still uses the programs."""
        self.shared = None
        self._skippable = ()
        self._object.forget()

    def close(self) -> None:
        """Detach and unload all programs."""
        self.shared = None
        self._skippable = ()
        self._object.close()

    def _open(self, *, socket_helpers: bool) -> Object:
        opened = Object(self._libbpf, OBJECT)
        opened.set_constants(
            _Settings(ephemeral=self._ephemeral, failures=self._failures, socket_helpers=socket_helpers)
        )
        return opened

    def _load_set(self, hooks: HookSet, tracing: list[str], others: set[str]) -> list[str]:
        """Load `tracing` and `others`. Return `tracing` without the optional programs that were left out."""
        try:
            self._load({*tracing, *others}, hooks.needs_socket_helpers)
        except NotPermitted:
            raise
        except EngineUnavailable:
            # The functions are looked up only after a refusal, because reading all of the kernel's BTF is slow.
            absent = self._optional_programs_without_function(hooks)
            if not absent:
                raise
            tracing = [name for name in tracing if name not in absent]
            self._load({*tracing, *others}, hooks.needs_socket_helpers)
        return tracing

    def _optional_programs_without_function(self, hooks: HookSet) -> set[str]:
        if not hooks.optional:
            return set()
        present = self._libbpf.kernel_functions(set(hooks.optional.values()))
        return {program for program, function in hooks.optional.items() if function not in present}

    def _load(self, names: set[str], needs_socket_helpers: bool = False) -> None:
        """Load these programs with the socket helpers. If the kernel refuses, load them without the helpers.

        If `needs_socket_helpers` is true, try only with the helpers. If every attempt fails, raise the error of
        the first attempt.
        """
        refusal = None
        for socket_helpers in (True,) if needs_socket_helpers else (True, False):
            self._object.close()
            self._iterator = None
            self._object = self._open(socket_helpers=socket_helpers)
            self._object.select_programs(names)
            self._object.resize("records", self._ring_bytes)
            try:
                self._object.load()
            except NotPermitted:
                raise
            except EngineUnavailable as error:
                refusal = refusal or error
            else:
                self.shared = self._object.variables(SharedVariables)
                self.has_socket_helpers = socket_helpers
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
                f"cannot attach {name} to the root cgroup: {ROOT_CGROUP_IS_TAKEN}, "
                "or a security module forbids it"
            ) from None
