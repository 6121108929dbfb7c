"""`GET /`: the page, one file, which nothing from elsewhere can add to."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from aiohttp import web

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class Page:
    """Read once; its script and style run by what they hash to, and no others do."""

    def __init__(self) -> None:
        self._text = resources.files("portwatch.server").joinpath("page.html").read_text("utf-8")
        hashes = " ".join(
            f"{kind}-src '{_hash_of(content)}'" + ";" for kind, content in _INLINE.findall(self._text)
        )
        self._policy = (
            f"default-src 'none'; {hashes} connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )

    async def respond(self, _request: web.Request) -> web.Response:
        """The page itself."""
        return web.Response(
            text=self._text,
            content_type="text/html",
            headers={"Content-Security-Policy": self._policy, "Cache-Control": "no-cache"},
        )


def _hash_of(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
