"""JSON responses. Every error is `{"message": ..., "detail": ...}`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

COMMON_HEADERS = {
    "Server": "portwatch",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every response. They tell browsers not to guess the content type, and not to let other sites frame
or embed the response."""


def refusal(kind: type[web.HTTPError], message: str, detail: str | None = None) -> web.HTTPError:
    """Return an exception to raise. `message` says what is wrong, and `detail` says what to do."""
    return kind(text=_body(message, detail), content_type="application/json")


def error_response(
    status: int, message: str, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return an error as a response, for code that cannot raise it."""
    return web.Response(
        text=_body(message, detail),
        status=status,
        content_type="application/json",
        headers={**COMMON_HEADERS, **(headers or {})},
    )


def json_response(text: str) -> web.Response:
    """Return serialized JSON as a response that caches must not store."""
    return web.Response(text=text, content_type="application/json", headers={"Cache-Control": "no-store"})


def _body(message: str, detail: str | None) -> str:
    return json.dumps({"message": message, "detail": detail})
