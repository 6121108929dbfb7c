"""What stands before every request: whether it is meant for us."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from portwatch.server.errors import refusal


def guard(hosts: Collection[str]) -> Middleware:
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
