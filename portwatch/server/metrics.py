"""What Prometheus asks for."""

from __future__ import annotations

import gzip
from collections.abc import Callable

from aiohttp import web
from prometheus_client.exposition import gzip_accepted

from portwatch.outputs.metrics import Tally, View, exposition
from portwatch.server import query
from portwatch.server.beside import Turns

_LEVEL = 1
"""4 ms for 10,000 ports; the usual 9 takes 35, for three tenths less to send."""


class Scrapes:
    """Its handler."""

    def __init__(self, view: Callable[[], View], tally: Tally) -> None:
        """`view` waits a moment: it is called off the loop's thread."""
        self._view = view
        self._tally = tally
        self._turn = Turns(1)

    async def respond(self, request: web.Request) -> web.Response:
        """`GET /metrics`. One at a time: several at once would keep events waiting longer."""
        query.only_known(request.query, ())
        accept = ",".join(request.headers.getall("Accept", ()))
        zips = gzip_accepted(",".join(request.headers.getall("Accept-Encoding", ())))

        def scrape() -> tuple[bytes, str]:
            body, content_type = exposition(self._view(), self._tally, accept)
            return gzip.compress(body, _LEVEL) if zips else body, content_type

        body, content_type = await self._turn.do(scrape)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding", "Cache-Control": "no-store"}
        if zips:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)
