"""libbpf.so.1 through ctypes: the few calls that load, attach and share memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from errno import EINVAL, EPERM
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from portwatch.errors import EngineUnavailable, NotPermitted
from portwatch.linux import capabilities, kernel

Layout = TypeVar("Layout", bound=ctypes.Structure)

_PrintFunction = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)

# name: (what it returns, what it takes)
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
_BPF_NOEXIST, _BPF_EXIST = 1, 2
_RETURN_0 = (ctypes.c_uint64 * 2)(0xB7, 0x95)

_FIRST_OF_LIBBPF = 4000
"""Numbers from here on are libbpf's own, of which the C library knows nothing."""

INSTALL = "install it (Debian, Ubuntu: apt-get install libbpf1; Fedora: dnf install libbpf)"


_REBUILD = (
    "this installation is incomplete; install portwatch again, "
    "where a C compiler for BPF is to be had (make build)"
)


class _LoadOptions(ctypes.Structure):
    """The beginning of bpf_prog_load_opts; the rest is zeros to whoever is given no more."""

    _fields_ = (("sz", c_size_t), ("attempts", c_int), ("expected_attach_type", c_int))


class Libbpf:
    """The library, and the warnings that it last gave."""

    def __init__(self, soname: str = "libbpf.so.1") -> None:
        """Raises EngineUnavailable where libbpf is missing or older than 1.0."""
        try:
            library = ctypes.CDLL(soname, use_errno=True)
            for name, (result, arguments) in _PROTOTYPES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise EngineUnavailable(f"libbpf 1.0 or later is needed and {error}; {INSTALL}") from None
        self.functions = SimpleNamespace(**{name: getattr(library, name) for name in _PROTOTYPES})
        """Only those of `_PROTOTYPES`: of any other, ctypes would truncate a returned pointer to an int."""
        self._warnings: list[str] = []
        libc = ctypes.CDLL(None)
        libc.vsnprintf.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]

        # va_list is handed to a function as a pointer on x86-64 and arm64 alike.
        def keep_warning(level: int, template: bytes, arguments: int) -> int:
            if level == 0:
                buffer = ctypes.create_string_buffer(4096)
                libc.vsnprintf(buffer, len(buffer), template, arguments)
                self._warnings.append(buffer.value.decode("utf-8", "backslashreplace").strip())
            return 0

        self._print = _PrintFunction(keep_warning)  # ctypes frees a callback that nobody keeps
        self.functions.libbpf_set_print(self._print)

    @property
    def version(self) -> str:
        """Its version, such as 1.1."""
        return f"{self.functions.libbpf_major_version()}.{self.functions.libbpf_minor_version()}"

    def forbids_fentry(self) -> bool:
        """Whether the kernel takes no program for any of its functions, whichever it be.

        It is shown one for no function at all: where others are allowed, that is invalid, not
        forbidden. Microseconds, where the load of a whole object in vain costs 30 ms.
        """
        options = _LoadOptions(ctypes.sizeof(_LoadOptions), 1, _BPF_TRACE_FENTRY)
        self.functions.bpf_prog_load(
            _BPF_PROG_TYPE_TRACING, b"", b"GPL", _RETURN_0, len(_RETURN_0), byref(options)
        )
        return ctypes.get_errno() == EPERM

    def kernel_functions(self, names: Iterable[str]) -> set[str]:
        """Those of these functions that the running kernel has, not inlined wherever they are called."""
        btf = self.functions.btf__load_vmlinux_btf()
        if not btf:
            raise self.failure("the kernel's BTF cannot be read", ctypes.get_errno())
        found = {
            name
            for name in names
            if self.functions.btf__find_by_name_kind(btf, name.encode(), _BTF_KIND_FUNC) > 0
        }
        self.functions.btf__free(btf)
        return found

    def failure(self, what: str, errno: int) -> EngineUnavailable:
        """The exception for a call that failed, with what libbpf said about it."""
        # It takes a refusal for a sign of an old kernel, and complains of a limit, whatever was the reason.
        relevant = (line for line in self._warnings if "RLIMIT_MEMLOCK" not in line)
        said = next((line for line in relevant if line.startswith("libbpf:")), "")
        del self._warnings[:]
        reason = f"{what}: " + (os.strerror(errno) if errno < _FIRST_OF_LIBBPF else "libbpf cannot read it")
        if missing := capabilities.missing_for_programs():
            # Not every kernel says EPERM then: without CAP_PERFMON it is EINVAL.
            return NotPermitted(f"{reason}, for want of {', '.join(missing)}; run it as root (sudo portwatch)")
        reason += f" ({said})" if said else ""
        # The verifier does not know a helper that lockdown forbids: EINVAL.
        if errno in (EPERM, EINVAL) and kernel.lockdown() == kernel.CONFIDENTIALITY:
            return NotPermitted(
                f"{reason}: the kernel is locked down to confidentiality, so that programs may not read its "
                f"memory; {kernel.LOCKDOWN_HELP}"
            )
        if errno == EPERM and (limit := capabilities.memlock()) is not None:
            return NotPermitted(
                f"{reason}: this kernel keeps BPF to RLIMIT_MEMLOCK, which is {limit >> 10} KiB and cannot be "
                f"raised without CAP_SYS_RESOURCE; {capabilities.RAISE_MEMLOCK}"
            )
        if errno == EPERM:
            return NotPermitted(
                f"{reason}: no capability is missing, so it is a security module or a container's "
                "seccomp profile that forbids it; portwatch doctor shows what this machine allows"
            )
        return EngineUnavailable(reason)


class Object:
    """A BPF object: opened, set up, loaded; its links end with it."""

    def __init__(self, libbpf: Libbpf, path: Path) -> None:
        if not path.exists():
            raise EngineUnavailable(f"the BPF object {path} is missing: {_REBUILD}")
        self._path = path
        self._libbpf = libbpf
        self._functions = libbpf.functions
        self._links: list[int] = []
        self._handle = self._functions.bpf_object__open_file(str(path).encode(), None)
        if not self._handle:
            raise EngineUnavailable(f"libbpf cannot read the BPF object {path}: {_REBUILD}")

    def programs(self) -> dict[str, int]:
        """Every program, by name."""
        found, program = {}, None
        while program := self._functions.bpf_object__next_program(self._handle, program):
            found[self._functions.bpf_program__name(program).decode()] = program
        return found

    def keep_only(self, names: set[str]) -> None:
        """Leaves every other program unloaded."""
        for name, program in self.programs().items():
            self._functions.bpf_program__set_autoload(program, name in names)

    def load(self) -> None:
        """Has the kernel verify and take the programs."""
        result = self._functions.bpf_object__load(self._handle)
        if result:
            raise self._libbpf.failure("the kernel does not take the programs", -result)

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map."""
        return int(self._functions.bpf_map__fd(self._map(name)))

    def resize(self, name: str, entries: int) -> None:
        """Sets the size of a map, before it is loaded."""
        self._functions.bpf_map__set_max_entries(self._map(name), entries)

    def set_constants(self, layout: ctypes.Structure) -> None:
        """Fills in what the programs declare as constants, before they are loaded."""
        size = c_size_t()
        address = self._functions.bpf_map__initial_value(self._map(".rodata"), byref(size))
        if size.value != ctypes.sizeof(layout):
            raise self._stale()
        ctypes.memmove(address, byref(layout), size.value)

    def variables(self, layout: type[Layout]) -> Layout:
        """The variables of the programs, in memory that we share with them once they are loaded.

        libbpf itself maps them only for its generated skeletons, before 1.5.
        """
        memory = mmap.mmap(self.map_fd(".bss"), ctypes.sizeof(layout))
        return layout.from_buffer(memory)

    def program_fd(self, name: str) -> int:
        """The descriptor of a program that is loaded."""
        return int(self._functions.bpf_program__fd(self._program(name)))

    def attach(self, name: str, cgroup_fd: int | None = None, perf_fd: int | None = None) -> None:
        """Attaches a program where its section says, to a cgroup, or to a perf event."""
        program = self._program(name)
        if cgroup_fd is not None:
            link = self._functions.bpf_program__attach_cgroup(program, cgroup_fd)
        elif perf_fd is not None:
            link = self._functions.bpf_program__attach_perf_event(program, perf_fd)
        else:
            link = self._functions.bpf_program__attach(program)
        if not link:
            raise self._libbpf.failure(f"{name} does not attach", ctypes.get_errno())
        self._links.append(link)

    def attach_iterator(self, name: str) -> int:
        """A link from which `open_iterator` starts passes."""
        link = self._functions.bpf_program__attach_iter(self._program(name), None)
        if not link:
            raise self._libbpf.failure(f"{name} does not attach", ctypes.get_errno())
        self._links.append(link)
        return int(link)

    def open_iterator(self, link: int) -> int:
        """A file descriptor whose reading is one pass of the iterator."""
        fd = self._functions.bpf_iter_create(self._functions.bpf_link__fd(link))
        if fd < 0:
            raise self._libbpf.failure("the iterator does not start", -fd)
        return int(fd)

    def close(self) -> None:
        """Detaches and unloads everything."""
        for link in self._links:
            self._functions.bpf_link__destroy(link)
        self._links.clear()
        if self._handle:
            self._functions.bpf_object__close(self._handle)
            self._handle = None

    def _map(self, name: str) -> int:
        found = self._functions.bpf_object__find_map_by_name(self._handle, name.encode())
        if not found:
            raise self._stale()
        return int(found)

    def _program(self, name: str) -> int:
        try:
            return self.programs()[name]
        except KeyError:
            raise self._stale() from None

    def _stale(self) -> EngineUnavailable:
        return EngineUnavailable(f"the BPF object {self._path} is another version's: {_REBUILD}")
