"""Runs the daemon's HTTP server in a thread of the test process, with routes that the test provides."""

import asyncio
import json
import socket
import threading

from support import PATIENCE

from portwatch.server.app import HttpServer


class HttpServerThread(threading.Thread):
    """Serves the routes that `make_routes` returns. Its argument is the thread's event loop."""

    def __init__(self, make_routes):
        super().__init__()
        self._make_routes = make_routes
        self._is_serving = threading.Event()
        self.start()
        assert self._is_serving.wait(PATIENCE)

    def run(self):
        asyncio.run(self._serve())

    async def _serve(self):
        self.loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._server = HttpServer(self._make_routes(self.loop))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.address = listening.getsockname()
            await self._server.open([listening])
            self._is_serving.set()
            await self._stopping.wait()
            await self._server.close()

    @property
    def connections(self):
        """The number of open connections."""
        return len(self._server._runner.server.connections)

    def stop(self):
        self.loop.call_soon_threadsafe(self._stopping.set)
        self.join()

    def send_request(self, path="/", small_buffer=False):
        """Send a request, and return the connection without reading the response."""
        client = socket.socket()
        client.settimeout(PATIENCE)
        if small_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(self.address)
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        return client


def read_response(client):
    """Read a response and close the connection. Return the status and the decoded JSON body."""
    with client, client.makefile("rb") as lines:
        status = int(lines.readline().split()[1])
        while lines.readline() != b"\r\n":
            pass
        return status, json.loads(lines.read())
