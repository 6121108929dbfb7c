"""What answers over a connection when no handler does: every error in the one form."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.http import HttpProcessingError

from portwatch.errors import PortwatchError
from portwatch.server.errors import answer

log = logging.getLogger("portwatch")


class Connection(web.RequestHandler):
    """Aiohttp's: the log says nothing of what anybody may send, and the answer nothing of our mistakes."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request, and where a handler failed."""
        if isinstance(exc, ConnectionError):  # whoever asked has gone
            raise exc
        if isinstance(exc, HttpProcessingError):
            refused = answer(status, "this is no request that can be read", " ".join((message or "").split()))
        elif isinstance(exc, PortwatchError):
            refused = answer(503, str(exc))
        else:
            log.error("%s %s failed", request.method, request.path, exc_info=exc)
            refused = answer(500, "that went wrong on our side", "the daemon's log says how")
        if request.writer.output_size:
            raise ConnectionResetError("its answer had begun")
        refused.force_close()
        return refused

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends an answer, if it is an error in our form."""
        if (
            isinstance(resp, web.HTTPException)
            and resp.status >= 400
            and not resp.content_type.endswith("json")
        ):
            kept = {name: value for name, value in resp.headers.items() if name == "Allow"}
            resp = answer(resp.status, resp.reason, headers=kept)
        return await super().finish_response(request, resp, start_time)
