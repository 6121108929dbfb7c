"""The record that BPF programs send: its layout, as in bpf/portwatch.h, and its decoder."""

from __future__ import annotations

from errno import errorcode
from functools import lru_cache
from socket import AF_INET6, inet_ntop
from struct import Struct
from typing import NamedTuple

from portwatch.linux import clock, netns, procfs
from portwatch.linux.containers import of_recorded_process
from portwatch.model import Process, Record, RecordKind, Socket

LAYOUT = Struct("<7Q5Ii4H16sII16s16s88s")

KINDS: dict[int, RecordKind] = {1: "open", 2: "close", 3: "backlog", 4: "bind_failed", 5: "listen_failed"}
PROTOCOL_NAMES = {6: "tcp", 17: "udp", 262: "tcp"}
V6ONLY, MPTCP, PORT_CHOSEN = 1, 2, 4
TCP_ESTABLISHED, TCP_LISTEN = 1, 10


class RawRecord(NamedTuple):
    """The fields of struct portwatch_record, in order."""

    time: int
    cookie: int
    sock: int
    inode: int
    cgroup: int
    start: int
    trees: int
    netns: int
    pid: int
    ns_pid: int
    uid: int
    backlog: int
    error: int
    kind: int
    family: int
    protocol: int
    port: int
    address: bytes
    flags: int
    state: int
    device: bytes
    comm: bytes
    leaf: bytes


@lru_cache(maxsize=4096)
def _address(family: int, packed: bytes) -> str:
    return inet_ntop(family, packed if family == AF_INET6 else packed[:4])


@lru_cache(maxsize=4096)
def decode_name(padded: bytes) -> str:
    """Decode a NUL-padded name from the kernel. Bytes that are not UTF-8 are escaped."""
    return padded.partition(b"\0")[0].decode("utf-8", "backslashreplace")


@lru_cache(maxsize=4096)
def _process(pid: int, start: int, ns_pid: int, uid: int, cgroup: int, comm: bytes, leaf: bytes) -> Process:
    start_time = clock.process_start(start // clock.TICK_NS)
    cgroup_info = of_recorded_process(pid, start_time, cgroup, decode_name(leaf))
    return Process(pid, start_time, decode_name(comm), uid, ns_pid, *cgroup_info)


def socket_of(raw: RawRecord) -> Socket:
    """Return the socket of a record."""
    return Socket(
        raw.cookie or None,
        raw.inode or None,
        raw.netns,
        PROTOCOL_NAMES[raw.protocol],
        "ipv6" if raw.family == AF_INET6 else "ipv4",
        _address(raw.family, raw.address),
        raw.port,
        decode_name(raw.device) or None,
        bool(raw.flags & MPTCP),
        bool(raw.flags & V6ONLY) if raw.family == AF_INET6 else None,
        raw.backlog if raw.state == TCP_LISTEN else None,
        raw.sock or None,
        netns.name_of(raw.netns),
    )


def process_of(raw: RawRecord) -> Process:
    """Return the process of a record."""
    return _process(raw.pid, raw.start, raw.ns_pid, raw.uid, raw.cgroup, raw.comm, raw.leaf)


@lru_cache(maxsize=4)
def _is_own_start(pid: int, start: int) -> bool:  # noqa: ARG001  # part of the cache key
    """Return True if this process, whose pid is `pid`, started at `start`.

    `pid` is part of the cache key, because a fork of this process must not reuse the cached answer.
    """
    return procfs.own_start() == clock.process_start(start // clock.TICK_NS)


def decode(raw: RawRecord, epoch: int, own_pid: int) -> Record:
    """Decode a record. `epoch` is added to its time to get the time of day.

    A close by this process gets the actor None, because another process really closed the socket. The iterator
    of our snapshot held a reference to the file at that moment, so the close happened later, in this process.
    """
    kind = KINDS[raw.kind]
    # `own_pid` is a pid of this pid namespace, so compare it with ns_pid.
    is_own_close = kind == "close" and raw.ns_pid == own_pid and _is_own_start(own_pid, raw.start)
    return Record(
        kind,
        raw.time + epoch,
        socket_of(raw),
        None if is_own_close else process_of(raw),
        errorcode.get(-raw.error, str(-raw.error)) if raw.error else None,
        raw.trees,
    )
