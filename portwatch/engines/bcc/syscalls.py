"""bpf(2) for what bcc loads wrongly, attaches for good, or attaches only where tracefs is mounted.

bcc 0.26 passes a program's attach type where the library expects flags, and attaches to a
cgroup so that the program stays there when we are killed. A link goes with its descriptor.
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

TRACEPOINT, CGROUP_SOCK, SOCK_OPS, RAW_TRACEPOINT, CGROUP_SOCK_ADDR, TRACING = 5, 9, 13, 17, 18, 26
TRACE_ITER = 28


@dataclass(frozen=True, slots=True)
class Code:
    """A compiled program: the address and the number of its instructions."""

    name: str
    address: int
    count: int


def load(code: Code, kind: int, attach_type: int = 0, function: int = 0) -> int:
    """Has the kernel verify a program; `function` is the BTF id of what a TRACING one runs for."""
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
        if error.errno == EPERM:  # EACCES, of which Python makes a PermissionError too, is the verifier's
            raise
        raise EngineUnavailable(
            f"the kernel refuses the program {code.name} ({error.strerror}): {_verdict(attr)}"
        ) from None


def attach_cgroup(program: int, cgroup: int, attach_type: int) -> int:
    """A link that holds a program at a cgroup for as long as it is open."""
    return bpf(_LINK_CREATE, struct.pack("=IIII", program, cgroup, attach_type, 0))


def attach_raw_tracepoint(program: int, name: str) -> int:
    """Likewise at a tracepoint."""
    buffer = ctypes.create_string_buffer(name.encode())
    return bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QIxxxx", ctypes.addressof(buffer), program))


def attach_iterator(program: int) -> int:
    """A link from which `open_iterator` starts passes."""
    return bpf(_LINK_CREATE, struct.pack("=IIII", program, 0, TRACE_ITER, 0))


def open_iterator(link: int) -> int:
    """A file descriptor whose reading is one pass."""
    return bpf(_ITER_CREATE, struct.pack("=II", link, 0))


def _verdict(attr: bytes) -> str:
    """What the verifier says last of a program, asked once more with a log."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    with_log = attr[:24] + struct.pack("=IIQ", 1, _LOG_BYTES, ctypes.addressof(log)) + attr[40:]
    with suppress(OSError):
        os.close(bpf(_PROG_LOAD, with_log))
    said = [line for line in log.value.decode(errors="replace").splitlines() if line.strip()]
    said = [line for line in said if not line.startswith(("processed ", "verification time", "stack depth"))]
    return said[-1] if said else "it gives no reason"
