"""C library functions and system calls that Python does not wrap. Their errors are raised as OSError."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

from portwatch.errors import EngineUnavailable

LIBC = ctypes.CDLL(None, use_errno=True)
_BPF = {"x86_64": 321, "aarch64": 280}
_ATTR_SIZE = 128


def checked(result: int) -> int:
    """Return the result of a C library function. Raise OSError if it is negative."""
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def syscall(number: int, *arguments: object) -> int:
    """Make a system call and return its result. Raise OSError if it fails."""
    return checked(int(LIBC.syscall(number, *arguments)))


def syscall_number(name: str, numbers: Mapping[str, int]) -> int:
    """Return the number of a system call on this machine. `numbers` maps each known machine to the number.

    Raise EngineUnavailable if this machine is not among them.
    """
    machine = os.uname().machine
    if machine not in numbers:
        raise EngineUnavailable(f"the number of the system call {name} on {machine} is not known")
    return numbers[machine]


def bpf(command: int, attr: bytes) -> int:
    """Make a BPF system call and return its result. Raise OSError if it fails.

    `attr` is the beginning of `union bpf_attr`. The rest is filled with zeros.
    """
    buffer = ctypes.create_string_buffer(attr.ljust(_ATTR_SIZE, b"\0"), _ATTR_SIZE)
    return syscall(syscall_number("bpf", _BPF), command, buffer, _ATTR_SIZE)
