"""Runs of programs that the kernel left out.

A program does not run on a CPU where it runs already. Where the kernel may preempt it in the middle, another
process can come to the same hook meanwhile, and pass it unseen: on fentry in preemptible kernels, on raw
tracepoints in the newest (in a slow virtual machine with 7.2, a few forks and ends of 10,000; none with 6.12).
"""

from __future__ import annotations

import ctypes
import struct

from portwatch.linux.libc import bpf

_OBJ_GET_INFO_BY_FD = 15
_INFO = ctypes.c_char * 232
_MISSES_AT = 208
"""recursion_misses in struct bpf_prog_info; before Linux 5.12 the kernel leaves it as it was, 0."""


def recursion_misses(program: int) -> int:
    """How many there were of a program; of each it is open whether it was about anything that concerns us."""
    info = _INFO()
    bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, ctypes.sizeof(info), ctypes.addressof(info)))
    return int(struct.unpack_from("=Q", info, _MISSES_AT)[0])
