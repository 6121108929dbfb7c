"""What every request passes: whether it is meant for us, and how long its connection may idle."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from portwatch.server.responses import refusal

PATIENCE = 10.0
"""Seconds for a request to arrive in, for some of an answer to be taken, and for the next request to come."""


def host_guard(hosts: Collection[str]) -> Middleware:
    """A middleware that lets those through who name us by a number, as localhost, or by one of these names."""
    ours = frozenset(name.lower() for name in (*hosts, "localhost", socket.gethostname()))

    @web.middleware
    async def judge(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_over_socket_file(request) and not _is_ours(request.headers.get("Host", ""), ours):
            raise refusal(
                web.HTTPMisdirectedRequest,
                "this Host is not ours",
                "ask by number or as localhost, or name it with --host",
            )
        return await handler(request)

    return judge


def is_over_socket_file(request: web.Request) -> bool:
    """Whether it came over a socket file, which only its owner can open."""
    transport = request.transport
    opened = transport.get_extra_info("socket") if transport else None
    return opened is not None and opened.family == socket.AF_UNIX


def _is_ours(host: str, ours: Collection[str]) -> bool:
    """A page of somebody else's reaches us by a name that it had lead to us, never by a number."""
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    name = name.rstrip(".").lower()
    if name in ours:
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


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
