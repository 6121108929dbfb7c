"""Connections over which no request comes, or no answer goes."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web
from aiohttp.typedefs import Handler

PATIENCE = 10.0
"""Seconds for a request to arrive in, for some of an answer to be taken, and for the next request to come."""


class SlowConnections:
    """Ends those whose first request does not come in time, and those who take none of their answer.

    For both aiohttp waits for ever; for a later request on the same connection it has a time limit of its
    own. What a handler sends by itself is its own to look after.
    """

    def __init__(self) -> None:
        self._asked: set[web.RequestHandler] = set()
        self._at_work: set[web.RequestHandler] = set()
        self._waits: dict[web.RequestHandler, tuple[int, float]] = {}
        """What each has to take yet, and since when it has been so much."""

    @web.middleware
    async def note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A middleware that learns who has asked, and is being answered."""
        self._asked.add(request.protocol)
        self._at_work.add(request.protocol)
        try:
            return await handler(request)
        finally:
            self._at_work.discard(request.protocol)

    async def end(self, server: web.Server) -> None:
        """Looks for them until it is cancelled."""
        while True:
            await asyncio.sleep(PATIENCE / 4)
            connections = server.connections
            self._asked.intersection_update(connections)
            waiting = [one for one in connections if one not in self._at_work]
            self._waits = {one: wait for one in waiting if (wait := self._wait_of(one))}
            for one, (_, since) in self._waits.items():
                if time.monotonic() - since > PATIENCE and one.transport:
                    one.transport.abort()

    def _wait_of(self, one: web.RequestHandler) -> tuple[int, float] | None:
        """None where there is nothing to wait for."""
        unread = one.transport.get_write_buffer_size() if one.transport else 0
        if not unread and one in self._asked:
            return None
        before, since = self._waits.get(one, (unread, time.monotonic()))
        return (unread, time.monotonic()) if unread < before else (unread, since)
