"""The record: one layout on both sides, and what its fields become."""

import os
import re
import struct

import pytest
from support import ROOT

from portwatch.linux import clock, procfs
from portwatch.record import KINDS, LAYOUT, PORT_CHOSEN, RawRecord, decode, socket_of, text

HEADER = ROOT / "bpf" / "portwatch.h"
CODES = {"__u64": "Q", "__u32": "I", "__s32": "i", "__u16": "H", "__u8": "B", "char": "s"}


def raw(**fields):
    values = {
        "time": 5,
        "cookie": 7,
        "sock": 0,
        "inode": 8,
        "cgroup": 1,
        "start": 123_456_789_012,
        "trees": 0,
        "netns": 9,
        "pid": 10,
        "ns_pid": 1,
        "uid": 33,
        "backlog": 5,
        "error": 0,
        "kind": 1,
        "family": 2,
        "protocol": 6,
        "port": 8080,
        "address": bytes([127, 0, 0, 1]) + bytes(12),
        "flags": 0,
        "state": 10,
        "device": bytes(16),
        "comm": b"nginx".ljust(16, b"\0"),
        "leaf": bytes(88),
        **fields,
    }
    return RawRecord(**values)


def test_the_layout_is_the_headers():
    body = re.search(r"struct portwatch_record \{(.*?)\n\};", HEADER.read_text(), re.DOTALL)[1]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    fields = re.findall(r"(\w+) (\w+)(?:\[(\d+)\])?;", body)
    assert tuple(name for _, name, _ in fields) == RawRecord._fields
    codes = "".join(f"{size}s" if size else CODES[kind] for kind, _, size in fields)
    assert struct.calcsize("<" + codes) == LAYOUT.size == struct.calcsize("@" + codes)
    assert struct.Struct("<" + codes).unpack(bytes(range(LAYOUT.size))) == LAYOUT.unpack(
        bytes(range(LAYOUT.size))
    )


def test_the_kinds_are_the_headers():
    names = re.findall(r"PORTWATCH_(\w+)(?: = 1)?,\s*(?:/\*|\n)", HEADER.read_text().split("};")[0])
    assert [name.lower() for name in names] == [*KINDS.values(), "held"]


def test_a_record_becomes_what_happened_at_its_time_of_day():
    record = decode(raw(), epoch=1_000, own_pid=1)
    assert (record.kind, record.time, record.errno) == ("open", 1_005, None)
    assert (record.socket.address, record.socket.port, record.socket.backlog) == ("127.0.0.1", 8080, 5)
    assert (record.actor.pid, record.actor.process, record.actor.uid) == (10, "nginx", 33)
    assert record.actor.start_time == clock.boot_time() + 12_345 * clock.TICK_NS


def test_a_close_in_our_own_process_is_by_nobody_known():
    pid = os.getpid()
    start = procfs.stat(pid)[2] - clock.boot_time()
    ours = {"pid": 70_000, "ns_pid": pid, "start": start + 1}  # as the kernel outside of a container has it
    assert decode(raw(kind=2, **ours), 0, own_pid=pid).actor is None
    assert decode(raw(kind=1, **ours), 0, own_pid=pid).actor.pid == 70_000
    assert decode(raw(kind=2, **{**ours, "ns_pid": pid + 1}), 0, own_pid=pid).actor.pid == 70_000
    neighbours = {**ours, "start": start + clock.TICK_NS}
    assert decode(raw(kind=2, **neighbours), 0, own_pid=pid).actor.pid == 70_000, "of our number, elsewhere"


def test_we_know_ourselves_also_where_others_are_read_from_the_hosts_procfs(monkeypatch):
    start = procfs.own_start() - clock.boot_time()
    monkeypatch.setattr(procfs, "_root", "/nosuch")
    pid = os.getpid() + 1  # not asked for before
    assert decode(raw(kind=2, pid=70_000, ns_pid=pid, start=start), 0, own_pid=pid).actor is None


def test_an_errno_is_told_by_name():
    assert decode(raw(kind=4, error=-98), 0, 0).errno == "EADDRINUSE"
    assert decode(raw(kind=4, error=-4095), 0, 0).errno == "4095"


def test_v6_and_mptcp_and_devices():
    socket = socket_of(
        raw(
            family=10,
            protocol=262,
            address=bytes(15) + b"\1",
            flags=3 | PORT_CHOSEN,
            device=b"eth0".ljust(16, b"\0"),
        )
    )
    assert (socket.proto, socket.family, socket.address) == ("tcp", "ipv6", "::1")
    assert (socket.v6only, socket.mptcp, socket.device) == (True, True, "eth0")


def test_what_is_not_known_is_none():
    socket = socket_of(raw(cookie=0, inode=0, protocol=17, state=7))
    assert (socket.cookie, socket.inode, socket.backlog, socket.v6only, socket.device) == (None,) * 5


@pytest.mark.parametrize(("comm", "shown"), [(b"a\0b", "a"), (b"\xff\0", "\\xff"), ("é".encode() + b"\0", "é")])
def test_names_end_at_their_nul_and_may_hold_any_byte(comm, shown):
    assert text(comm) == shown


def test_our_own_start_is_the_one_that_stat_tells():
    _, parent, start = procfs.stat(os.getpid())
    assert parent == os.getppid()
    assert clock.boot_time() < start
