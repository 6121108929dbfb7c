"""Handlers behind the daemon's own server, over real connections."""

import asyncio
import socket
import threading

from support import PATIENCE

from portwatch.server.app import HttpServer


class HttpServerThread(threading.Thread):
    """Answers by what `routes` gives for a loop, in a loop of its own."""

    def __init__(self, routes):
        super().__init__()
        self._routes = routes
        self._begun = threading.Event()
        self.start()
        assert self._begun.wait(PATIENCE)

    def run(self):
        asyncio.run(self._serve())

    async def _serve(self):
        self.loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._server = HttpServer(self._routes(self.loop))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.address = listening.getsockname()
            await self._server.open([listening])
            self._begun.set()
            await self._ended.wait()
            await self._server.close()

    @property
    def connections(self):
        """How many there are."""
        return len(self._server._runner.server.connections)

    def stop(self):
        self.loop.call_soon_threadsafe(self._ended.set)
        self.join()

    def ask(self, path="/", small=False):
        """A connection that has asked, and has read nothing; its buffer may be a small one."""
        client = socket.socket()
        client.settimeout(PATIENCE)
        if small:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(self.address)
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        return client
