import os
import socket
import stat

import pytest

from portwatch import PortwatchError
from portwatch.server import sockets
from portwatch.server.sockets import Address


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("127.0.0.1:9935", Address("127.0.0.1", 9935)),
        ("localhost:1", Address("localhost", 1)),
        ("[::1]:9935", Address("::1", 9935)),
        ("unix:/run/portwatch.sock", Address(path="/run/portwatch.sock")),
    ],
)
def test_an_address_is_read_and_written_alike(text, meant):
    assert sockets.parse(text) == meant
    assert str(meant) == text


@pytest.mark.parametrize(
    "text",
    [
        "9935",
        "a..b:80",
        ":9935",
        "127.0.0.1",
        "127.0.0.1:http",
        "127.0.0.1:65536",
        "::1:9935",
        "unix:run.sock",
        "unix:",
    ],
)
def test_what_is_no_address_is_said(text):
    with pytest.raises(ValueError, match=r"is no|names no"):
        sockets.parse(text)


def test_a_socket_file_is_its_owners_alone_and_goes_with_the_daemon(tmp_path):
    where = Address(path=str(tmp_path / "sock"))
    opened = sockets.listen(where)
    assert stat.S_IMODE(os.stat(where.path).st_mode) == 0o600
    sockets.forget(where, opened)
    assert not os.path.exists(where.path)


def test_a_socket_file_that_was_left_behind_is_replaced(tmp_path):
    where = Address(path=str(tmp_path / "sock"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(where.path)
    opened = sockets.listen(where)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(where.path)
    sockets.forget(where, opened)


def test_a_daemon_that_answers_keeps_its_socket_file(tmp_path):
    where = Address(path=str(tmp_path / "sock"))
    opened = sockets.listen(where)
    with pytest.raises(PortwatchError, match="another daemon answers there"):
        sockets.listen(where)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(where.path)
    sockets.forget(where, opened)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "precious"
    path.write_text("kept")
    with pytest.raises(PortwatchError, match="which is no socket"):
        sockets.listen(Address(path=str(path)))
    assert path.read_text() == "kept"


def test_a_port_that_is_taken_is_said_with_what_shows_by_whom():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortwatchError, match=f"portwatch who tcp/{port}"):
            sockets.listen(Address("127.0.0.1", port))


def test_both_families_can_have_one_port():
    first = sockets.listen(Address("0.0.0.0", 0))
    port = first.getsockname()[1]
    second = sockets.listen(Address("::", port))
    first.close()
    second.close()
