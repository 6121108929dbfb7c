"""Compiles and loads the BPF programs of the bcc engine, and keeps the descriptors of their links open."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

from portwatch.engines.bcc import syscalls
from portwatch.engines.bcc.compiler import compile_programs, quiet
from portwatch.engines.bcc.member_map import BccMemberMap
from portwatch.engines.common_hooks import FORKS, ITERATOR
from portwatch.engines.recursion_misses import recursion_misses
from portwatch.errors import EngineUnavailable


class Programs:
    """The programs of bpf/bcc.bpf.c, compiled for the running kernel. `close` detaches them all."""

    def __init__(self, *, ephemeral: bool) -> None:
        """Compile the programs. Raise EngineUnavailable if bcc is missing or the compilation fails."""
        compiled = compile_programs(ephemeral=ephemeral)
        self.bpf = compiled.bpf
        self._descriptors: list[int] = []
        self._loaded: list[int] = []
        self._fork_programs: dict[str, int] = {}
        """The loaded programs that track process trees, by raw tracepoint."""
        self._iterator = self._attach_iterator(compiled.iterator_function)

    @property
    def has_iterator(self) -> bool:
        """True if this kernel lets the programs iterate over all open files."""
        return self._iterator is not None

    @property
    def has_fork_hooks(self) -> bool:
        """True if `load_fork_programs` has loaded the programs that track process trees."""
        return bool(self._fork_programs)

    @property
    def recursion_misses(self) -> int:
        """How often the kernel skipped one of the programs."""
        loaded_by_bcc = (function.fd for function in self.bpf.funcs.values())
        return sum(map(recursion_misses, [*self._loaded, *loaded_by_bcc]))

    def table(self, name: str) -> Any:
        """Return a map as bcc's Table object."""
        return self.bpf[name.encode()]

    def load(self, name: str, kind: int, attach_type: int = 0, function: int = 0) -> int:
        """Load a program, and return its descriptor.

        Raise OSError or EngineUnavailable if the kernel refuses to load the program.
        """
        # The bcc package that compiled the programs has already loaded libbcc. Use the same library.
        library = sys.modules[type(self.bpf).__module__].lib
        size = library.bpf_function_size(self.bpf.module, name.encode())
        address = library.bpf_function_start(self.bpf.module, name.encode())
        code = syscalls.Code(name, address, size // 8)
        program = self.keep(syscalls.load(code, kind, attach_type, function))
        self._loaded.append(program)
        return program

    def keep(self, descriptor: int) -> int:
        """Keep a descriptor open until `close`, and return it."""
        self._descriptors.append(descriptor)
        return descriptor

    def load_fork_programs(self) -> bool:
        """Load the programs that track process trees.

        Return False if the kernel has no raw tracepoints (before 4.17).
        """
        try:
            for name, tracepoint in FORKS.items():
                self._fork_programs[tracepoint] = self.load(name, syscalls.RAW_TRACEPOINT)
        except (OSError, EngineUnavailable):
            self._fork_programs.clear()
        return self.has_fork_hooks

    def attach_fork_hooks(self) -> BccMemberMap:
        """Start tracking process trees, and return the map of their processes."""
        for tracepoint, program in self._fork_programs.items():
            self.keep(syscalls.attach_raw_tracepoint(program, tracepoint))
        return BccMemberMap(self.table("members"))

    def open_iterator(self) -> int:
        """Return a descriptor from which one pass over all open files can be read."""
        assert self._iterator is not None
        return syscalls.open_iterator(self._iterator)

    def free_compiler_memory(self) -> None:
        """Free the compiler's memory. No program can be loaded afterwards."""
        self.bpf.free_bcc_memory()

    def forget(self) -> None:
        """Close the descriptors in a forked child. Detach nothing, because the parent still uses the programs.

        Maps that no Python code has accessed stay open, because bcc has freed its list of maps. This is
        harmless, because an open map keeps no program attached.
        """
        kprobes = self.bpf.kprobe_fds.values()
        functions = (function.fd for function in self.bpf.funcs.values())
        tables = (table.map_fd for table in self.bpf.tables.values())
        for fd in {*self._descriptors, *kprobes, *functions, *tables}:
            os.close(fd)
        self._descriptors.clear()
        self._iterator = None
        atexit.unregister(self.bpf.cleanup)  # `cleanup` would detach the parent's kprobes

    def close(self) -> None:
        """Detach and unload all programs."""
        for fd in reversed(self._descriptors):
            os.close(fd)
        self._descriptors.clear()
        self._iterator = None
        with quiet([]):
            self.bpf.cleanup()
        atexit.unregister(self.bpf.cleanup)  # otherwise it keeps self.bpf alive until exit

    def _attach_iterator(self, function: int | None) -> int | None:
        if function is None:
            return None
        try:
            program = self.load(ITERATOR, syscalls.TRACING, syscalls.TRACE_ITER, function)
            return self.keep(syscalls.attach_iterator(program))
        except (OSError, EngineUnavailable):  # some kernels lack a helper that our iterator calls
            return None
