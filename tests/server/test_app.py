"""Every route answers errors and malformed requests in the same form, with the same headers."""

import contextlib
import http.client
import json
import socket

import pytest
from aiohttp import web
from daemon import PATIENCE, serving
from http_server import HttpServerThread, read_response

from portwatch import PortwatchError

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (PortwatchError("no more events can be read"), 503, "no more events can be read"),
        (RuntimeError("secret"), 500, "internal error"),
        (web.HTTPNotFound(), 404, "Not Found"),
    ],
)
def test_an_exception_in_a_handler_is_answered_with_a_json_error(error, status, message):
    async def fail(_request):
        raise error

    server = HttpServerThread(lambda _: [web.get("/", fail)])
    actual_status, body = read_response(server.send_request())
    server.stop()
    assert (actual_status, set(body), body["message"]) == (status, {"message", "detail"}, message)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nosuch", 404), ("POST", "/healthz", 405), ("DELETE", "/readyz", 405)],
)
def test_a_request_with_an_unknown_path_or_method_is_answered_with_a_json_error(daemon, method, path, status):
    actual_status, _, body = daemon.request(path, method)
    assert actual_status == status
    assert set(body) == {"message", "detail"}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (HEAD + b"X: " + b"x" * 10_000 + b"\r\n\r\n", 400),
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (HEAD + b"Host: localhost\r\n\r\n", 400),
        (HEAD + b"Expect: wonders\r\n\r\n", 417),
    ],
    ids=["nonsense", "long header", "long path", "two hosts", "unknown expectation"],
)
def test_a_malformed_request_is_answered_with_a_json_error_and_not_logged(request_, status):
    with serving() as daemon:
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as client:
            client.sendall(request_)
            response = http.client.HTTPResponse(client)
            response.begin()
            assert (response.status, response.getheader("Server")) == (status, "portwatch")
            assert set(json.loads(response.read())) == {"message", "detail"}
        assert daemon.request("/healthz")[0] == 200
        assert daemon.stop()[2] == ""


def test_after_an_oversized_request_the_daemon_still_answers_other_connections(daemon):
    with (
        socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as client,
        contextlib.suppress(ConnectionError),
    ):
        client.sendall(HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n")
        assert b" 400 Bad Request" in client.recv(100)
    assert daemon.request("/healthz")[0] == 200


def test_response_headers_forbid_type_sniffing_and_framing(daemon):
    headers = daemon.request("/healthz")[1]
    assert (headers["X-Content-Type-Options"], headers["X-Frame-Options"]) == ("nosniff", "DENY")
    assert headers.get_all("Server") == ["portwatch"]
