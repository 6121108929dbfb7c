"""Runs blocking work in daemon threads, which do not delay the exit, and restarts background tasks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

log = logging.getLogger("portwatch")

T = TypeVar("T")

_RESTART_DELAY = 1.0


async def run_in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a new thread and return its result.

    The event loop's executor is not used, because it has few threads, and Python waits for these threads at
    exit, even if one of them hangs.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # cancelling the caller must not cancel the work

    def run() -> None:
        try:
            outcome.set_result(work())
        except Exception as error:  # raised again in the caller
            outcome.set_exception(error)

    threading.Thread(target=run, name="portwatch-work", daemon=True).start()
    return await asyncio.wrap_future(outcome)


class Limiter:
    """Runs work in threads, at most `limit` at a time.

    A slot becomes free when its work ends, even if the caller is cancelled before that. Otherwise clients that
    disconnect and try again could start more work than the limit allows.
    """

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)

    async def run(self, work: Callable[[], T]) -> T:
        """Wait for a free slot, run `work` in a thread, and return its result."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()

        def limited() -> T:
            try:
                return work()
            finally:
                with suppress(RuntimeError):  # the loop is closed, so no request waits for a slot
                    loop.call_soon_threadsafe(self._free.release)

        return await run_in_thread(limited)


async def restart_on_failure(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run a background task. If it fails, log the failure and start it again."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("%s failed, restarting it", name)
            await asyncio.sleep(_RESTART_DELAY)
        else:
            return
