"""/proc/net: how rows are read."""

import socket
import sys

import pytest

from portwatch.linux.netns import own
from portwatch.snapshot import proc_net

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LITTLE_ENDIAN = pytest.mark.skipif(
    sys.byteorder != "little", reason="the rows were written on a little-endian machine"
)


def row(local, state, inode):
    return f"   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  0  0 {inode} 1 0\n"


@LITTLE_ENDIAN
@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("0100007F:1F90", "127.0.0.1", 8080),
        ("00000000:0050", "0.0.0.0", 80),
        ("00000000000000000000000001000000:0035", "::1", 53),
        ("0000000000000000FFFF00000100007F:0035", "::ffff:127.0.0.1", 53),
    ],
)
def test_addresses_are_words_in_the_machines_order(text, address, port):
    assert proc_net.parse_address(text) == (address, port)


@LITTLE_ENDIAN
def test_of_tcp_only_the_listeners_at_the_head_are_read():
    lines = iter([HEADER, row("0100007F:1F90", "0A", 5), row("0100007F:1F91", "01", 6), "never read"])
    (found,) = proc_net.open_rows(lines, 1, "tcp", "ipv4", "0A")
    assert (found.port, found.inode, found.netns, found.cookie) == (8080, 5, 1, None)
    assert next(lines) == "never read"


@LITTLE_ENDIAN
def test_of_udp_the_unconnected_are_found_wherever_they_stand():
    lines = iter([HEADER, row("0100007F:0035", "01", 5), row("0100007F:0036", "07", 6)])
    assert [one.port for one in proc_net.open_rows(lines, 1, "udp", "ipv4", "07")] == [54]


def test_an_empty_file_is_no_socket():
    assert list(proc_net.open_rows(iter([]), 1, "tcp", "ipv4", "0A")) == []


def test_our_own_sockets_are_listed():
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        found = {(one.proto, one.address, one.port) for one in proc_net.read_namespace(own())}
        assert ("tcp", *tcp.getsockname()) in found
        assert ("udp", *udp.getsockname()) in found
