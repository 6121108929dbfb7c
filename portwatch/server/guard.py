"""What stands before every request: whether it is meant for us, and how it is refused."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from portwatch.server.errors import body, refusal

log = logging.getLogger("portwatch")

_HEADERS = {
    "Server": "portwatch",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def guard(hosts: Collection[str]) -> Middleware:
    """A middleware that lets those through who name us by a number, as localhost, or by one of these names."""
    ours = frozenset(name.lower() for name in (*hosts, "localhost", socket.gethostname()))

    @web.middleware
    async def judge(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_local(request) and not _is_ours(request.headers.get("Host", ""), ours):
            raise refusal(
                web.HTTPMisdirectedRequest,
                "this Host is not ours",
                "ask by number or as localhost, or name it with --host",
            )
        return await handler(request)

    return judge


@web.middleware
async def in_our_form(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A middleware that gives every error the one form, and tells nobody outside of our own mistakes."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400 or error.content_type == "application/json":
            raise
        kept = {name: value for name, value in error.headers.items() if name == "Allow"}
        return web.Response(
            text=body(error.reason), status=error.status, content_type="application/json", headers=kept
        )
    except ConnectionError:  # whoever asked has gone
        raise
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return web.Response(
            text=body("that went wrong on our side", "the daemon's log says how"),
            status=500,
            content_type="application/json",
        )


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """A signal's handler: no browser is to guess what an answer is, or to show it in a frame."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


def _is_local(request: web.Request) -> bool:
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
