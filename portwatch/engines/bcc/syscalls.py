"""Calls bpf(2) directly for operations that bcc does wrong or cannot do.

bcc 0.26 passes a program's attach type to libbcc in the place of flags. A program that bcc attaches to a cgroup
stays attached if this process is killed. A BPF link, in contrast, is removed when its descriptor is closed. bcc
can attach to tracepoints only if tracefs is mounted.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from errno import EPERM

from portwatch.errors import EngineUnavailable
from portwatch.linux.libc import bpf

_PROG_LOAD, _RAW_TRACEPOINT_OPEN, _LINK_CREATE, _ITER_CREATE = 5, 17, 28, 33
_LOG_BYTES = 1 << 16
_STATISTICS = ("processed ", "verification time", "stack depth")
"""The beginnings of the lines with statistics, which the verifier writes after its messages."""

TRACEPOINT, CGROUP_SOCK, SOCK_OPS, RAW_TRACEPOINT, CGROUP_SOCK_ADDR, TRACING = 5, 9, 13, 17, 18, 26
TRACE_ITER = 28


@dataclass(frozen=True, slots=True)
class Code:
    """The address and the number of the instructions of a compiled program. Each instruction has 8 bytes."""

    name: str
    address: int
    count: int


def load(code: Code, kind: int, attach_type: int = 0, function: int = 0) -> int:
    """Load a program, and return its descriptor. `function` is the BTF id of a TRACING program's target.

    Raise OSError if the kernel answers EPERM. Raise EngineUnavailable for other errors, mostly the verifier's.
    """
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16sIIIIQIIQII",
        kind,
        code.count,
        code.address,
        ctypes.addressof(licence),
        *(0, 0, 0, 0, 0),
        code.name.encode()[:15],
        0,
        attach_type,
        *(0, 0, 0, 0, 0, 0, 0),
        function,
    )
    try:
        return bpf(_PROG_LOAD, attr)
    except OSError as error:
        if error.errno == EPERM:  # not EACCES, another PermissionError, which comes from the verifier
            raise
        raise EngineUnavailable(
            f"the kernel rejects the BPF program {code.name} ({error.strerror}): {_verifier_message(attr)}"
        ) from None


def attach_cgroup(program: int, cgroup: int, attach_type: int) -> int:
    """Attach a program to a cgroup. Return a descriptor of the link, whose close detaches the program."""
    return bpf(_LINK_CREATE, struct.pack("=IIII", program, cgroup, attach_type, 0))


def attach_raw_tracepoint(program: int, name: str) -> int:
    """Attach a program to a raw tracepoint. Return a descriptor, whose close detaches the program."""
    buffer = ctypes.create_string_buffer(name.encode())
    return bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QIxxxx", ctypes.addressof(buffer), program))


def attach_iterator(program: int) -> int:
    """Attach an iterator program, and return the link that `open_iterator` takes."""
    return bpf(_LINK_CREATE, struct.pack("=IIII", program, 0, TRACE_ITER, 0))


def open_iterator(link: int) -> int:
    """Return a file descriptor from which one pass of the iterator can be read."""
    return bpf(_ITER_CREATE, struct.pack("=II", link, 0))


def _verifier_message(attr: bytes) -> str:
    """Load the program again, this time with a log, and return the verifier's last message."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    with_log = attr[:24] + struct.pack("=IIQ", 1, _LOG_BYTES, ctypes.addressof(log)) + attr[40:]
    with suppress(OSError):
        os.close(bpf(_PROG_LOAD, with_log))
    lines = [line for line in log.value.decode(errors="replace").splitlines() if line.strip()]
    messages = [line for line in lines if not line.startswith(_STATISTICS)]
    return messages[-1] if messages else "it gives no reason"
