"""The layout of the record is the same in C and Python, and its fields are decoded."""

import os
import re
import struct

import pytest
from support import ROOT

from portwatch.linux import clock, procfs
from portwatch.record import KINDS, LAYOUT, PORT_CHOSEN, RawRecord, decode, decode_name, socket_of

HEADER = ROOT / "bpf" / "portwatch.h"
CODES = {"__u64": "Q", "__u32": "I", "__s32": "i", "__u16": "H", "__u8": "B", "char": "s"}


def raw_record(**fields):
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


def test_the_layout_is_the_same_as_in_the_c_header():
    body = re.search(r"struct portwatch_record \{(.*?)\n\};", HEADER.read_text(), re.DOTALL)[1]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    fields = re.findall(r"(\w+) (\w+)(?:\[(\d+)\])?;", body)
    assert tuple(name for _, name, _ in fields) == RawRecord._fields
    codes = "".join(f"{size}s" if size else CODES[kind] for kind, _, size in fields)
    assert struct.calcsize("<" + codes) == LAYOUT.size == struct.calcsize("@" + codes)
    assert struct.Struct("<" + codes).unpack(bytes(range(LAYOUT.size))) == LAYOUT.unpack(
        bytes(range(LAYOUT.size))
    )


def test_the_kinds_are_the_same_as_in_the_c_header():
    names = re.findall(r"PORTWATCH_(\w+)(?: = 1)?,\s*(?:/\*|\n)", HEADER.read_text().split("};")[0])
    assert [name.lower() for name in names] == [*KINDS.values(), "holder"]


def test_decode_returns_kind_socket_actor_and_time_of_day():
    record = decode(raw_record(), epoch=1_000, own_pid=1)
    assert (record.kind, record.time, record.errno) == ("open", 1_005, None)
    assert (record.socket.address, record.socket.port, record.socket.backlog) == ("127.0.0.1", 8080, 5)
    assert (record.actor.pid, record.actor.process, record.actor.uid) == (10, "nginx", 33)
    assert record.actor.start_time == clock.boot_time() + 12_345 * clock.TICK_NS


def test_a_close_by_this_process_has_no_actor():
    pid = os.getpid()
    start = procfs.stat(pid)[2] - clock.boot_time()
    own = {"pid": 70_000, "ns_pid": pid, "start": start + 1}  # the pid in the initial pid namespace
    assert decode(raw_record(kind=2, **own), 0, own_pid=pid).actor is None
    assert decode(raw_record(kind=1, **own), 0, own_pid=pid).actor.pid == 70_000
    assert decode(raw_record(kind=2, **{**own, "ns_pid": pid + 1}), 0, own_pid=pid).actor.pid == 70_000
    # A process with the same ns_pid but another start time is in another pid namespace.
    namesake = {**own, "start": start + clock.TICK_NS}
    assert decode(raw_record(kind=2, **namesake), 0, own_pid=pid).actor.pid == 70_000


def test_a_close_by_this_process_is_recognised_even_if_the_hosts_procfs_is_in_use(monkeypatch):
    start = procfs.own_start() - clock.boot_time()
    monkeypatch.setattr(procfs, "_root", "/nosuch")
    pid = os.getpid() + 1  # a pid that is not in the cache
    assert decode(raw_record(kind=2, pid=70_000, ns_pid=pid, start=start), 0, own_pid=pid).actor is None


def test_errno_is_the_name_of_the_error_or_its_number_if_it_has_no_name():
    assert decode(raw_record(kind=4, error=-98), 0, 0).errno == "EADDRINUSE"
    assert decode(raw_record(kind=4, error=-4095), 0, 0).errno == "4095"


def test_the_flags_and_the_device_of_an_ipv6_mptcp_socket_are_decoded():
    socket = socket_of(
        raw_record(
            family=10,
            protocol=262,
            address=bytes(15) + b"\1",
            flags=3 | PORT_CHOSEN,
            device=b"eth0".ljust(16, b"\0"),
        )
    )
    assert (socket.proto, socket.family, socket.address) == ("tcp", "ipv6", "::1")
    assert (socket.v6only, socket.mptcp, socket.device) == (True, True, "eth0")


def test_fields_that_the_record_leaves_empty_are_none():
    socket = socket_of(raw_record(cookie=0, inode=0, protocol=17, state=7))
    assert (socket.cookie, socket.inode, socket.backlog, socket.v6only, socket.device) == (None,) * 5


@pytest.mark.parametrize(("comm", "name"), [(b"a\0b", "a"), (b"\xff\0", "\\xff"), ("é".encode() + b"\0", "é")])
def test_names_end_at_the_first_nul_and_bytes_that_are_not_utf_8_are_escaped(comm, name):
    assert decode_name(comm) == name
