"""Code shared by the routes that return open ports: parameters, process-tree filters and JSON entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from aiohttp import web

from portwatch.errors import PortwatchError
from portwatch.event import Listener
from portwatch.filters import Filter
from portwatch.server import params
from portwatch.server.responses import json_response, refusal
from portwatch.server.state import DaemonState
from portwatch.server.threads import Limiter
from portwatch.watch.trees import held_by_trees

PARAMETERS = (*params.SCOPE_NAMES, "pid", "not_pid")
_MAX_CONCURRENT = 4


class Listings:
    """Builds responses about open ports in threads, a limited number at a time."""

    def __init__(self, state: DaemonState) -> None:
        self._state = state
        self._limiter = Limiter(_MAX_CONCURRENT)

    def listeners(self, pids: Filter[int], *, refresh: bool = False) -> Iterable[Listener]:
        """Return the open ports held by the process trees that `pids` selects.

        If `refresh` is true or `pids` is not empty, read the holders from the kernel first.
        """
        filters_by_tree = pids != Filter()
        listeners = self._state.listeners(refresh=refresh or filters_by_tree)
        if not filters_by_tree:
            return listeners
        try:
            return held_by_trees(pids, listeners, self._state.readiness()["engine"])
        except PortwatchError as error:
            raise refusal(web.HTTPNotFound, str(error)) from None

    async def respond(self, build: Callable[[], str]) -> web.Response:
        """Run `build` in a thread and respond with its JSON. 10,000 listeners take a third of a second."""
        if not self._state.readiness()["ready"]:
            raise refusal(
                web.HTTPServiceUnavailable,
                "not ready yet: the first snapshot is still being taken",
                "try again when /readyz answers 200",
            )
        return json_response(await self._limiter.run(build))


def pids_of(request: web.Request) -> Filter[int]:
    """Return the process-tree filter of a request: its parameters `pid` and `not_pid`."""
    return Filter(*(params.values(request.query, name, params.pid) for name in ("pid", "not_pid")))


def port_entry(listener: dict[str, Any]) -> dict[str, Any]:
    """Return a listener's JSON form with two more fields, `process_name` and `network`."""
    return {"process_name": listener["process"], "network": listener["proto"], **listener}
