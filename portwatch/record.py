"""bpf/portwatch.h in Python: its layout, and how a record is decoded."""

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

HELD = 6
KINDS: dict[int, RecordKind] = {1: "open", 2: "close", 3: "backlog", 4: "bind_failed", 5: "listen_failed"}
PROTOCOLS = {6: "tcp", 17: "udp", 262: "tcp"}
V6ONLY, MPTCP, PORT_CHOSEN = 1, 2, 4
TCP_ESTABLISHED, TCP_LISTEN = 1, 10


class RawRecord(NamedTuple):
    """struct portwatch_record, field by field."""

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
def text(padded: bytes) -> str:
    """A name of the kernel's: up to its NUL; bytes that are no UTF-8 are shown escaped."""
    return padded.partition(b"\0")[0].decode("utf-8", "backslashreplace")


@lru_cache(maxsize=4096)
def _process(pid: int, start: int, ns_pid: int, uid: int, cgroup: int, comm: bytes, leaf: bytes) -> Process:
    start_time = clock.process_start(start // clock.TICK_NS)
    place = of_recorded_process(pid, start_time, cgroup, text(leaf))
    return Process(pid, start_time, text(comm), uid, ns_pid, *place)


def socket_of(raw: RawRecord) -> Socket:
    """The socket that a record is about."""
    return Socket(
        raw.cookie or None,
        raw.inode or None,
        raw.netns,
        PROTOCOLS[raw.protocol],
        "ipv6" if raw.family == AF_INET6 else "ipv4",
        _address(raw.family, raw.address),
        raw.port,
        text(raw.device) or None,
        bool(raw.flags & MPTCP),
        bool(raw.flags & V6ONLY) if raw.family == AF_INET6 else None,
        raw.backlog if raw.state == TCP_LISTEN else None,
        raw.sock or None,
        netns.name_of(raw.netns),
    )


def process_of(raw: RawRecord) -> Process:
    """The process that a record is about."""
    return _process(raw.pid, raw.start, raw.ns_pid, raw.uid, raw.cgroup, raw.comm, raw.leaf)


@lru_cache(maxsize=4)
def _are_we(pid: int, start: int) -> bool:  # noqa: ARG001  # of the cache's key: a fork of us is not us
    return procfs.own_start() == clock.process_start(start // clock.TICK_NS)


def decode(raw: RawRecord, epoch: int, own_pid: int) -> Record:
    """One record; `epoch` turns the kernel's clock into time of day.

    A close in our own process is a file that the snapshot held for a moment when
    its owner let go: who that was is not known here.
    """
    kind = KINDS[raw.kind]
    # By ns_pid: in a pid namespace the kernel's number for us is not the one we know.
    is_ours = kind == "close" and raw.ns_pid == own_pid and _are_we(own_pid, raw.start)
    return Record(
        kind,
        raw.time + epoch,
        socket_of(raw),
        None if is_ours else process_of(raw),
        errorcode.get(-raw.error, str(-raw.error)) if raw.error else None,
        raw.trees,
    )
