"""When two processes are the same, and when two sockets block each other."""

from dataclasses import replace

import pytest

from portwatch.model import Endpoint, Process, Socket, oldest

NGINX = Process(10, 1_000_000_000, "nginx", 33)


def tcp(address="127.0.0.1", **fields):
    family = "ipv6" if ":" in address else "ipv4"
    return Socket(None, None, 1, "tcp", family, address, 80, **fields)


def test_a_process_stays_the_same_when_its_name_and_uid_change():
    assert NGINX.is_same_as(replace(NGINX, process="worker", uid=0))


@pytest.mark.parametrize("other", [replace(NGINX, start_time=2), replace(NGINX, pid=11)])
def test_a_process_with_another_pid_or_start_time_is_another_process(other):
    assert not NGINX.is_same_as(other)


def test_the_oldest_process_is_the_one_that_started_first():
    later = replace(NGINX, pid=9, start_time=2_000_000_000)
    sibling = replace(NGINX, pid=11)
    assert oldest([later, sibling, NGINX]) == NGINX
    assert oldest([]) is None


def test_sockets_bound_to_the_same_address_and_port_have_the_same_endpoint():
    first, second = replace(tcp(), cookie=1, inode=1), replace(tcp(), cookie=2, inode=2)
    assert first.endpoint == second.endpoint == Endpoint(1, "tcp", "127.0.0.1", 80)


@pytest.mark.parametrize(
    ("address", "other", "blocks"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("::1", "127.0.0.1", False),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("::ffff:127.0.0.1", "0.0.0.0", True),
        ("::ffff:127.0.0.1", "127.0.0.2", False),
    ],
)
def test_sockets_block_each_other_if_their_addresses_overlap(address, other, blocks):
    assert tcp(address).blocks(tcp(other)) is blocks
    assert tcp(other).blocks(tcp(address)) is blocks


def test_an_ipv6_wildcard_socket_with_v6only_does_not_block_an_ipv4_socket():
    assert not tcp("::", v6only=True).blocks(tcp())


@pytest.mark.parametrize("fields", [{"netns": 2}, {"proto": "udp"}, {"port": 81}])
def test_sockets_with_another_namespace_protocol_or_port_do_not_block_each_other(fields):
    assert not replace(tcp(), **fields).blocks(tcp())


@pytest.mark.parametrize(
    ("device", "other", "blocks"),
    [("eth0", "eth0", True), ("eth0", "eth1", False), (None, "eth0", True), ("eth0", None, True)],
)
def test_sockets_bound_to_different_devices_do_not_block_each_other(device, other, blocks):
    assert tcp(device=device).blocks(tcp(device=other)) is blocks
