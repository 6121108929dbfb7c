"""Connections over which no request comes."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web
from aiohttp.typedefs import Handler

PATIENCE = 10.0
"""Seconds for a request to arrive in, and for a connection to ask for something again."""


class SlowConnections:
    """Ends those whose first request does not come in time, for which aiohttp waits for ever.

    For a later one on the same connection it has a time limit of its own.
    """

    def __init__(self) -> None:
        self._asked: set[web.RequestHandler] = set()

    @web.middleware
    async def note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A middleware that learns who has asked."""
        self._asked.add(request.protocol)
        return await handler(request)

    async def end(self, server: web.Server) -> None:
        """Looks for them until it is cancelled."""
        first_seen: dict[web.RequestHandler, float] = {}
        while True:
            await asyncio.sleep(PATIENCE / 4)
            now, connections = time.monotonic(), server.connections
            self._asked.intersection_update(connections)
            first_seen = {one: first_seen.get(one, now) for one in connections if one not in self._asked}
            for one, since in first_seen.items():
                if now - since > PATIENCE and one.transport:
                    one.transport.abort()
