"""HTTP routes, one module for each resource. `all_routes` lists them."""

from __future__ import annotations

from aiohttp import web

from portwatch.outputs.metrics import Tally
from portwatch.server.journal_queries import JournalQueries
from portwatch.server.listings import Listings
from portwatch.server.routes import (
    events,
    health,
    history,
    listening_ports,
    metrics,
    openapi,
    page,
    who,
)
from portwatch.server.state import DaemonState
from portwatch.server.stream import Stream


def all_routes(
    state: DaemonState, stream: Stream, tally: Tally, journal: JournalQueries | None
) -> list[web.RouteDef]:
    """Return every route of the daemon."""
    listings = Listings(state)
    return [
        *page.routes(),
        *metrics.routes(state, tally),
        *listening_ports.routes(state, listings),
        *who.routes(listings),
        *events.routes(stream),
        *history.routes(journal),
        *health.routes(state),
        *openapi.routes(),
    ]
