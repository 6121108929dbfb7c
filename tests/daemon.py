"""portwatch serve as a process, and what asks it."""

import http.client
import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

PATIENCE = 30
POLL = ("--engine", "poll", "--interval", "0.05", "--netns", "self")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Daemon:
    """One that runs: `ask` it, or `subscribe`."""

    def __init__(self, process, port):
        self.process = process
        self.port = port

    def ask(self, path, method="GET", **headers):
        """Status, headers and body, which is decoded where it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(
            method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        response = connection.getresponse()
        body = response.read()
        connection.close()
        is_json = response.getheader("Content-Type", "").startswith("application/json")
        return response.status, response.headers, json.loads(body) if is_json and body else body

    def ports(self, query=""):
        return self.ask(f"/api/v0/listening-ports{query}")[2]["ports"]

    @contextmanager
    def subscribe(self, query="", **headers):
        """The stream's events, as (id, kind, data)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", f"/api/v0/events{query}", headers=names)
        response = connection.getresponse()
        assert response.status == 200
        assert response.readline() == b"retry: 1000\n"
        assert response.readline() == b"\n"
        try:
            yield _events(response)
        finally:
            connection.close()

    def end(self, number=15):
        """Its status, output and errors."""
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output, errors


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
    """A daemon that is ready."""
    port = port or free_port()
    serve = [sys.executable, "-m", "portwatch", "serve", "--listen", f"127.0.0.1:{port}", *engine, *arguments]
    process = subprocess.Popen(
        [*prefix, *serve],
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


def _wait_ready(daemon):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if daemon.process.poll() is not None:
            raise AssertionError(f"it ended: {daemon.process.communicate()}")
        try:
            if daemon.ask("/readyz")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise AssertionError("it was never ready")
