"""Reading /proc/net/{tcp,tcp6,udp,udp6}."""

import socket
import sys

import pytest

from portwatch.linux.netns import own
from portwatch.snapshot import proc_net

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LITTLE_ENDIAN = pytest.mark.skipif(
    sys.byteorder != "little", reason="the rows are from a little-endian machine"
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
def test_parse_address_reads_words_in_the_byte_order_of_the_machine(text, address, port):
    assert proc_net.parse_address(text) == (address, port)


@LITTLE_ENDIAN
def test_reading_stops_at_the_first_tcp_socket_that_does_not_listen():
    lines = iter([HEADER, row("0100007F:1F90", "0A", 5), row("0100007F:1F91", "01", 6), "never read"])
    (listener,) = proc_net.open_rows(lines, 1, "tcp", "ipv4", "0A")
    assert (listener.port, listener.inode, listener.netns, listener.cookie) == (8080, 5, 1, None)
    assert next(lines) == "never read"


@LITTLE_ENDIAN
def test_an_unconnected_udp_socket_is_found_even_after_connected_ones():
    lines = iter([HEADER, row("0100007F:0035", "01", 5), row("0100007F:0036", "07", 6)])
    assert [udp.port for udp in proc_net.open_rows(lines, 1, "udp", "ipv4", "07")] == [54]


def test_an_empty_file_has_no_sockets():
    assert list(proc_net.open_rows(iter([]), 1, "tcp", "ipv4", "0A")) == []


def test_read_namespace_lists_the_sockets_of_this_process():
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        listed = {(found.proto, found.address, found.port) for found in proc_net.read_namespace(own())}
        assert ("tcp", *tcp.getsockname()) in listed
        assert ("udp", *udp.getsockname()) in listed
