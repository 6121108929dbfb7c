"""Tests of the Host header check and of the time limits for slow clients."""

import contextlib
import http.client
import socket

import pytest
from aiohttp import web
from daemon import PATIENCE as DAEMON_PATIENCE
from daemon import serving
from http_server import HttpServerThread
from support import wait_until

from portwatch.server import middleware

LARGE = 32 << 20
"""A number of bytes that exceeds every socket buffer."""


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9935", "127.0.0.1.evil.example", ""])
def test_a_request_for_another_host_is_refused(daemon, host):
    status, _, body = daemon.request("/api/v0/listening-ports", Host=host)
    assert status == 421
    assert "ports" not in body


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1:9935", "[::1]:9935", "[::1]", "10.1.2.3", socket.gethostname()],
)
def test_an_ip_address_or_a_name_of_this_machine_is_accepted_as_host(daemon, host):
    assert daemon.request("/healthz", Host=host)[0] == 200


def test_over_a_unix_socket_every_host_header_is_accepted(tmp_path):
    path = tmp_path / "sock"
    with serving("--listen", f"unix:{path}"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 200


def test_a_client_that_never_completes_its_request_is_disconnected(daemon):
    assert middleware.IDLE_TIMEOUT * 2 < DAEMON_PATIENCE
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=DAEMON_PATIENCE) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_a_client_that_stops_reading_its_response_is_disconnected(monkeypatch):
    monkeypatch.setattr(middleware, "IDLE_TIMEOUT", 0.2)

    async def respond(_request):
        return web.Response(body=bytes(LARGE))

    server = HttpServerThread(lambda _: [web.get("/", respond)])
    with server.send_request(small_buffer=True) as client:
        assert client.recv(1)
        assert server.connections == 1
        wait_until(lambda: not server.connections, "the connection to be closed")
    server.stop()
