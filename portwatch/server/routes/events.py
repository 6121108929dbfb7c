"""`GET /api/v0/events`: first the events that the client missed, then new events, as server-sent events."""

from __future__ import annotations

from aiohttp import web

from portwatch.filters import Scope
from portwatch.server import params
from portwatch.server.stream import Stream

PARAMETERS = (*params.SCOPE_NAMES, "after")


def routes(stream: Stream) -> list[web.RouteDef]:
    """Return the route."""

    async def respond(request: web.Request) -> web.StreamResponse:
        params.only_known(request.query, PARAMETERS)
        scope = params.scope_of(request.query)
        after = params.number(request.query, "after")
        # A browser that reconnects repeats the original `after`, and adds the id of the last event it received.
        if "Last-Event-ID" in request.headers:
            after = _last_event_id(request.headers["Last-Event-ID"])
        return await stream.follow(request, None if scope == Scope() else scope, after)

    # HEAD is not allowed, because the response would never end.
    return [web.get("/api/v0/events", respond, allow_head=False)]


def _last_event_id(text: str) -> int:
    """Return the id as a seq. If it is not a number, return a seq that no event has, so that a gap is sent."""
    is_number = text.isascii() and text.isdecimal() and len(text) < len(str(params.LARGEST_NUMBER))
    return int(text) if is_number else params.LARGEST_NUMBER
