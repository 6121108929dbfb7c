"""What runs beside the loop: work in threads that the end does not wait for, and tasks that no failure ends."""

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

_PAUSE = 1.0


async def run_in_thread(work: Callable[[], T]) -> T:
    """What work comes to, that is done in a thread of its own: whatever hangs there, nothing else does."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # it goes on, whether or not somebody waits for it

    def run() -> None:
        try:
            outcome.set_result(work())
        except Exception as error:  # it is whoever waits who is told
            outcome.set_exception(error)

    threading.Thread(target=run, name="portwatch-work", daemon=True).start()
    return await asyncio.wrap_future(outcome)


class Limiter:
    """So much at once: a turn is over when its work is, not when whoever asked for it has gone."""

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)

    async def run(self, work: Callable[[], T]) -> T:
        """What work comes to, that is done in its turn, apart."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()

        def limited() -> T:
            try:
                return work()
            finally:
                with suppress(RuntimeError):  # the loop has ended, and with it the waiting
                    loop.call_soon_threadsafe(self._free.release)

        return await run_in_thread(limited)


async def restart_on_failure(what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Does what nobody waits for, and begins it anew if it fails."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("%s failed, and begins anew", what)
            await asyncio.sleep(_PAUSE)
        else:
            return
