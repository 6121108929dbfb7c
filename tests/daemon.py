"""Helpers that run `portwatch serve` as a process, send it HTTP requests, and open and close ports."""

import http.client
import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

from support import wait_until

PATIENCE = 30
POLL = ("--engine", "poll", "--interval", "0.05", "--netns", "self")
SERVE = (sys.executable, "-m", "portwatch", "serve")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Daemon:
    """A running daemon and its client."""

    def __init__(self, process, port):
        self.process = process
        self.port = port

    def request(self, path, method="GET", **headers):
        """Return the status, the headers and the body of a response. A JSON body is decoded."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, headers=_header_names(headers))
        response = connection.getresponse()
        body = response.read()
        connection.close()
        is_json = response.getheader("Content-Type", "").startswith("application/json")
        return response.status, response.headers, json.loads(body) if is_json and body else body

    def listing(self, query=""):
        """Return the body of /api/v0/listening-ports."""
        return self.request(f"/api/v0/listening-ports{query}")[2]

    def ports(self, query=""):
        return self.listing(query)["ports"]

    def wait_for(self, port):
        """Wait until the daemon lists a port."""
        return wait_until(lambda: self.ports(f"?port={port}"), f"port {port} to be listed")

    def wait_until_gone(self, port):
        wait_until(lambda: not self.ports(f"?port={port}"), f"port {port} to be no longer listed")

    def who(self, port, **headers):
        """Return the only entry of /api/v0/who for a port."""
        (entry,) = self.request(f"/api/v0/who?port={port}", **headers)[2]["ports"]
        return entry

    def history(self, query=""):
        return self.request(f"/api/v0/history{query}")[2]

    @contextmanager
    def subscribe(self, query="", **headers):
        """Yield the stream's events as (id, kind, data)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", f"/api/v0/events{query}", headers=_header_names(headers))
        response = connection.getresponse()
        assert response.status == 200
        assert response.readline() == b"retry: 1000\n"
        assert response.readline() == b"\n"
        try:
            yield _events(response)
        finally:
            connection.close()

    def open_and_close_port(self):
        """Open and close a port, wait until the daemon has reported both changes, and return the port."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            self.wait_for(port)
        self.wait_until_gone(port)
        return port

    def open_and_close_ports(self, count):
        """Open and close `count` ports, wait until the daemon has reported them, and return them."""
        with ExitStack() as stack:
            servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
            ports = [server.getsockname()[1] for server in servers]
            self.wait_for(ports[-1])
        self.wait_until_gone(ports[-1])
        return ports

    def stop(self, signal_number=15):
        """Send a signal, and wait for the exit. Return the exit code, standard output and standard error."""
        self.process.send_signal(signal_number)
        output, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output, errors


def _header_names(headers):
    return {name.replace("_", "-"): value for name, value in headers.items()}


def _events(response):
    while True:
        fields = {}
        while (line := response.readline()) != b"\n":
            if not line:
                return
            if not line.startswith(b":"):
                name, _, value = line.decode().rstrip("\n").partition(": ")
                fields[name] = value
        if fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])


@contextmanager
def serving(*arguments, engine=POLL, port=None, environment=None, prefix=()):
    """Start a daemon, yield it when it is ready, and kill it at the end unless it has exited."""
    port = port or free_port()
    process = subprocess.Popen(
        [*prefix, *SERVE, "--listen", f"127.0.0.1:{port}", *engine, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    daemon = Daemon(process, port)
    try:
        _wait_ready(daemon)
        yield daemon
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def start_fails(*arguments):
    """Start a daemon whose start must fail. Return its standard error."""
    result = subprocess.run(
        [*SERVE, *POLL, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert result.returncode == 1
    return result.stderr


def _wait_ready(daemon):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if daemon.process.poll() is not None:
            raise AssertionError(f"the daemon exited: {daemon.process.communicate()}")
        try:
            if daemon.request("/readyz")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"the daemon was not ready within {PATIENCE} s")
