"""Calls libbpf.so.1 through ctypes, to load and attach programs and to access maps."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections import deque
from collections.abc import Iterable
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from errno import EINVAL, EPERM
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from portwatch.engines.permissions import ASK_DOCTOR, missing_capabilities
from portwatch.errors import EngineUnavailable, NotPermitted
from portwatch.linux import capabilities, kernel

Layout = TypeVar("Layout", bound=ctypes.Structure)

_PrintFunction = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)

# name: (result type, argument types)
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "libbpf_major_version": (c_uint32, []),
    "libbpf_minor_version": (c_uint32, []),
    "libbpf_set_print": (c_void_p, [_PrintFunction]),
    "btf__load_vmlinux_btf": (c_void_p, []),
    "btf__find_by_name_kind": (c_int, [c_void_p, c_char_p, c_uint32]),
    "btf__free": (None, [c_void_p]),
    "bpf_prog_load": (c_int, [c_int, c_char_p, c_char_p, c_void_p, c_size_t, c_void_p]),
    "bpf_object__open_file": (c_void_p, [c_char_p, c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__find_map_by_name": (c_void_p, [c_void_p, c_char_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__btf_fd": (c_int, [c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__attach": (c_void_p, [c_void_p]),
    "bpf_program__attach_cgroup": (c_void_p, [c_void_p, c_int]),
    "bpf_program__attach_perf_event": (c_void_p, [c_void_p, c_int]),
    "bpf_program__attach_iter": (c_void_p, [c_void_p, c_void_p]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_void_p, c_void_p, c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_void_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__initial_value": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "bpf_iter_create": (c_int, [c_int]),
    "bpf_link__fd": (c_int, [c_void_p]),
    "bpf_link__destroy": (c_int, [c_void_p]),
}

_BTF_KIND_FUNC = 12
_BPF_PROG_TYPE_TRACING = 26
_BPF_TRACE_FENTRY = 24
_RETURN_0 = (ctypes.c_uint64 * 2)(0xB7, 0x95)

_WARNINGS_MAX = 100
_LIBBPF_ERRNO_START = 4000
"""Error numbers from this number on are libbpf's own, which strerror(3) does not know."""

INSTALL = "apt-get install libbpf1 (Fedora: dnf install libbpf)"
REINSTALL = "reinstall portwatch (in a source tree: make build); building it needs a C compiler for BPF"


class _LoadOptions(ctypes.Structure):
    """The beginning of struct bpf_prog_load_opts. libbpf treats the fields beyond `sz` bytes as zero."""

    _fields_ = (("sz", c_size_t), ("attempts", c_int), ("expected_attach_type", c_int))


class _Warnings(threading.local):
    """The warnings that libbpf has printed in this thread. libbpf prints in the thread that calls it."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_WARNINGS_MAX)

    def add(self, line: str) -> None:
        """Add a line, and drop the oldest line if there are too many."""
        self._lines.append(line)

    def take(self) -> list[str]:
        """Return and remove all lines."""
        lines = list(self._lines)
        self._lines.clear()
        return lines


_warnings = _Warnings()
_libc = ctypes.CDLL(None)
_libc.vsnprintf.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]


def _keep_warning(level: int, template: bytes, arguments: int) -> None:
    if level == 0:
        buffer = ctypes.create_string_buffer(4096)
        # Both x86-64 and arm64 pass a va_list argument as a pointer.
        _libc.vsnprintf(buffer, len(buffer), template, arguments)
        _warnings.add(buffer.value.decode("utf-8", "backslashreplace").strip())


def _print(level: int, template: bytes, arguments: int) -> int:
    _keep_warning(level, template, arguments)
    return 0


_PRINT = _PrintFunction(_print)
"""The print callback of libbpf.

It must never be freed. libbpf keeps one callback for the whole process, and calls it from any thread."""


class Libbpf:
    """The library's functions."""

    def __init__(self, soname: str = "libbpf.so.1") -> None:
        """Raise EngineUnavailable if libbpf is missing or older than 1.0."""
        try:
            library = ctypes.CDLL(soname, use_errno=True)
            for name, (result, arguments) in _PROTOTYPES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise EngineUnavailable(f"libbpf 1.0 or later is required ({error}): {INSTALL}") from None
        self.functions = SimpleNamespace(**{name: getattr(library, name) for name in _PROTOTYPES})
        """The functions in `_PROTOTYPES`. Without a prototype, ctypes would truncate a pointer to an int."""
        self.functions.libbpf_set_print(_PRINT)

    @property
    def version(self) -> str:
        """The version, such as 1.1."""
        return f"{self.functions.libbpf_major_version()}.{self.functions.libbpf_minor_version()}"

    def forbids_fentry(self) -> bool:
        """Return True if the kernel refuses fentry programs for all functions.

        Try to load a program that names no function to attach to. A kernel that allows fentry answers EINVAL,
        not EPERM. This takes microseconds, while a failed attempt to load the whole object takes 30 ms.
        """
        options = _LoadOptions(ctypes.sizeof(_LoadOptions), 1, _BPF_TRACE_FENTRY)
        self.functions.bpf_prog_load(
            _BPF_PROG_TYPE_TRACING, b"", b"GPL", _RETURN_0, len(_RETURN_0), byref(options)
        )
        return ctypes.get_errno() == EPERM

    def kernel_functions(self, names: Iterable[str]) -> set[str]:
        """Return the functions in `names` that the running kernel has, and has not inlined everywhere."""
        btf = self.functions.btf__load_vmlinux_btf()
        if not btf:
            raise self.failure("cannot read the kernel's BTF", ctypes.get_errno())
        present = {
            name
            for name in names
            if self.functions.btf__find_by_name_kind(btf, name.encode(), _BTF_KIND_FUNC) > 0
        }
        self.functions.btf__free(btf)
        return present

    def failure(self, what: str, errno: int) -> EngineUnavailable:
        """Return the exception for a failed call. Its text includes libbpf's first relevant warning."""
        # After any EPERM, libbpf also warns about RLIMIT_MEMLOCK, even if that limit is not the cause.
        relevant = (line for line in _warnings.take() if "RLIMIT_MEMLOCK" not in line)
        warning = next((line for line in relevant if line.startswith("libbpf:")), "")
        reason = os.strerror(errno) if errno < _LIBBPF_ERRNO_START else "libbpf cannot read it"
        text = f"{what}: {reason}"
        if missing := missing_capabilities():
            # This does not depend on `errno`, because some kernels answer EINVAL if CAP_PERFMON is missing.
            return NotPermitted(f"{text}; {missing}")
        text += f" ({warning})" if warning else ""
        # The verifier answers EINVAL for a helper that lockdown forbids, as it does for an unknown helper.
        if errno in (EPERM, EINVAL) and kernel.lockdown() == kernel.CONFIDENTIALITY:
            return NotPermitted(
                f"{text}: the kernel is locked down in confidentiality mode, in which BPF programs may not "
                f"read kernel memory; {kernel.LOCKDOWN_HELP}"
            )
        if errno == EPERM and (limit := capabilities.memlock()) is not None:
            return NotPermitted(
                f"{text}: this kernel limits BPF memory to RLIMIT_MEMLOCK, which is {limit >> 10} KiB and "
                f"cannot be raised without CAP_SYS_RESOURCE; {capabilities.RAISE_MEMLOCK}"
            )
        if errno == EPERM:
            return NotPermitted(
                f"{text}: no capability is missing, so a security module or a container's seccomp profile "
                f"forbids it; {ASK_DOCTOR}"
            )
        return EngineUnavailable(text)


class Object:
    """A BPF object file, which is opened, configured, loaded and attached. `close` detaches and unloads it."""

    def __init__(self, libbpf: Libbpf, path: Path) -> None:
        if not path.exists():
            raise EngineUnavailable(f"the BPF object {path} is missing: {REINSTALL}")
        self._path = path
        self._libbpf = libbpf
        self._functions = libbpf.functions
        self._links: list[int] = []
        self._perf_fds: list[int] = []
        self._handle = self._functions.bpf_object__open_file(str(path).encode(), None)
        if not self._handle:
            raise EngineUnavailable(f"libbpf cannot read the BPF object {path}: {REINSTALL}")

    def programs(self) -> dict[str, int]:
        """Return the handles of all programs by name."""
        handles, program = {}, None
        while program := self._functions.bpf_object__next_program(self._handle, program):
            handles[self._functions.bpf_program__name(program).decode()] = program
        return handles

    def select_programs(self, names: set[str]) -> None:
        """Make `load` load only these programs."""
        for name, program in self.programs().items():
            self._functions.bpf_program__set_autoload(program, name in names)

    def load(self) -> None:
        """Load the selected programs into the kernel, which verifies them."""
        result = self._functions.bpf_object__load(self._handle)
        if result:
            raise self._libbpf.failure("the kernel refuses to load the BPF programs", -result)

    def map_fd(self, name: str) -> int:
        """Return the file descriptor of a map. Call this after `load`."""
        return int(self._functions.bpf_map__fd(self._map(name)))

    def resize(self, name: str, entries: int) -> None:
        """Set the size of a map. Call this before `load`."""
        self._functions.bpf_map__set_max_entries(self._map(name), entries)

    def set_constants(self, layout: ctypes.Structure) -> None:
        """Set the programs' constants. Call this before `load`."""
        size = c_size_t()
        address = self._functions.bpf_map__initial_value(self._map(".rodata"), byref(size))
        if size.value != ctypes.sizeof(layout):
            raise self._wrong_version()
        ctypes.memmove(address, byref(layout), size.value)

    def variables(self, layout: type[Layout]) -> Layout:
        """Return the programs' variables, in memory shared with the programs. Call this after `load`.

        The memory is mapped here, because libbpf before 1.5 maps it only for generated skeletons.
        """
        memory = mmap.mmap(self.map_fd(".bss"), ctypes.sizeof(layout))
        return layout.from_buffer(memory)

    def program_fd(self, name: str) -> int:
        """Return the file descriptor of a loaded program."""
        return int(self._functions.bpf_program__fd(self._program(name)))

    def attach(self, name: str, cgroup_fd: int | None = None, perf_fd: int | None = None) -> None:
        """Attach a program to a cgroup, to a perf event, or to the attach point that its ELF section names."""
        program = self._program(name)
        if cgroup_fd is not None:
            link = self._functions.bpf_program__attach_cgroup(program, cgroup_fd)
        elif perf_fd is not None:
            link = self._functions.bpf_program__attach_perf_event(program, perf_fd)
            self._perf_fds.append(perf_fd)
        else:
            link = self._functions.bpf_program__attach(program)
        if not link:
            raise self._libbpf.failure(f"cannot attach {name}", ctypes.get_errno())
        self._links.append(link)

    def attach_iterator(self, name: str) -> int:
        """Attach an iterator program, and return the link that `open_iterator` takes."""
        link = self._functions.bpf_program__attach_iter(self._program(name), None)
        if not link:
            raise self._libbpf.failure(f"cannot attach {name}", ctypes.get_errno())
        self._links.append(link)
        return int(link)

    def open_iterator(self, link: int) -> int:
        """Return a file descriptor from which one pass of the iterator can be read."""
        fd = self._functions.bpf_iter_create(self._functions.bpf_link__fd(link))
        if fd < 0:
            raise self._libbpf.failure("cannot start the iterator", -fd)
        return int(fd)

    def forget(self) -> None:
        """Close all descriptors in a forked child, without libbpf.

        libbpf would also detach the programs from the perf events, which the child shares with its parent.
        """
        functions = self._functions
        descriptors = {functions.bpf_link__fd(link) for link in self._links} | set(self._perf_fds)
        descriptors |= {functions.bpf_program__fd(program) for program in self.programs().values()}
        previous = None
        while previous := functions.bpf_object__next_map(self._handle, previous):
            descriptors.add(functions.bpf_map__fd(previous))
        descriptors.add(functions.bpf_object__btf_fd(self._handle))
        for descriptor in descriptors:
            if descriptor >= 0:  # the descriptor is negative if its object was not loaded
                os.close(descriptor)
        self._links.clear()
        self._handle = None

    def close(self) -> None:
        """Detach and unload all programs."""
        for link in self._links:
            self._functions.bpf_link__destroy(link)
        self._links.clear()
        if self._handle:
            self._functions.bpf_object__close(self._handle)
            self._handle = None

    def _map(self, name: str) -> int:
        handle = self._functions.bpf_object__find_map_by_name(self._handle, name.encode())
        if not handle:
            raise self._wrong_version()
        return int(handle)

    def _program(self, name: str) -> int:
        try:
            return self.programs()[name]
        except KeyError:
            raise self._wrong_version() from None

    def _wrong_version(self) -> EngineUnavailable:
        return EngineUnavailable(
            f"the BPF object {self._path} belongs to another version of portwatch: {REINSTALL}"
        )
