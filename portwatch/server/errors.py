"""How requests are refused: always as `{"message": ..., "detail": ...}`."""

from __future__ import annotations

import json

from aiohttp import web


def refusal(kind: type[web.HTTPError], message: str, detail: str | None = None) -> web.HTTPError:
    """Something to raise, with what is wrong and what would be right."""
    return kind(text=body(message, detail), content_type="application/json")


def body(message: str, detail: str | None = None) -> str:
    """The JSON form."""
    return json.dumps({"message": message, "detail": detail})
