import os
import socket
import stat

import pytest

from portwatch import PortwatchError
from portwatch.server import sockets
from portwatch.server.sockets import Address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9935", Address("127.0.0.1", 9935)),
        ("localhost:1", Address("localhost", 1)),
        ("[::1]:9935", Address("::1", 9935)),
        ("unix:/run/portwatch.sock", Address(path="/run/portwatch.sock")),
    ],
)
def test_the_text_form_of_an_address_is_the_text_it_was_parsed_from(text, address):
    assert sockets.parse(text) == address
    assert str(address) == text


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
def test_an_invalid_address_is_refused(text):
    with pytest.raises(ValueError, match="is not a"):
        sockets.parse(text)


@pytest.fixture
def file(tmp_path):
    return Address(path=str(tmp_path / "sock"))


def test_a_socket_file_has_mode_600_and_is_removed_when_it_is_closed(file):
    listening = sockets.listen(file)
    assert stat.S_IMODE(os.stat(file.path).st_mode) == 0o600
    sockets.close(file, listening)
    assert not os.path.exists(file.path)


def test_a_socket_file_on_which_nobody_listens_is_replaced(file):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(file.path)
    listening = sockets.listen(file)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(file.path)
    sockets.close(file, listening)


def test_the_socket_file_of_a_running_daemon_is_not_replaced(file):
    listening = sockets.listen(file)
    with pytest.raises(PortwatchError, match="another daemon is listening on it"):
        sockets.listen(file)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(file.path)
    sockets.close(file, listening)


def test_a_file_that_is_not_a_socket_is_not_replaced(tmp_path):
    path = tmp_path / "precious"
    path.write_text("kept")
    with pytest.raises(PortwatchError, match="is not a socket"):
        sockets.listen(Address(path=str(path)))
    assert path.read_text() == "kept"


def test_the_error_for_a_port_in_use_names_the_command_that_shows_its_holder():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortwatchError, match=f"portwatch who tcp/{port}"):
            sockets.listen(Address("127.0.0.1", port))


def test_a_daemon_can_listen_on_the_ipv4_and_ipv6_wildcard_addresses_of_one_port():
    first = sockets.listen(Address("0.0.0.0", 0))
    port = first.getsockname()[1]
    second = sockets.listen(Address("::", port))
    first.close()
    second.close()
