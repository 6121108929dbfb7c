"""Calls that Python does not offer, with errors as Python has them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

from portwatch.errors import EngineUnavailable

LIBC = ctypes.CDLL(None, use_errno=True)
_BPF = {"x86_64": 321, "aarch64": 280}
_ATTR_SIZE = 128


def checked(result: int) -> int:
    """What a function of the C library returned. Raises OSError if that is less than 0."""
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def syscall(number: int, *arguments: object) -> int:
    """A system call by its number. Raises OSError."""
    return checked(int(LIBC.syscall(number, *arguments)))


def syscall_number(name: str, numbers: Mapping[str, int]) -> int:
    """The number that a system call has on this machine, of those that it has on several."""
    machine = os.uname().machine
    if machine not in numbers:
        raise EngineUnavailable(f"{name}'s number on {machine} is not known")
    return numbers[machine]


def bpf(command: int, attr: bytes) -> int:
    """The system call of that name, with the beginning of its attributes. Raises OSError."""
    buffer = ctypes.create_string_buffer(attr.ljust(_ATTR_SIZE, b"\0"), _ATTR_SIZE)
    return syscall(syscall_number("bpf", _BPF), command, buffer, _ATTR_SIZE)
