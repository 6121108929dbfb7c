"""Schedules the checks of the table against the kernel."""

from __future__ import annotations

import time

from portwatch.engines.protocol import Engine
from portwatch.watch.counts import Counts

_RETRY_AFTER = 5.0
"""Seconds after which a check that failed is repeated."""
_CHECK_AFTER_MISSES = 5.0
"""Seconds from one check to the next if BPF programs were skipped. Most skips lose no record, so this can
wait."""
_MISSES_INTERVAL = 1.0
"""Seconds for which the number of skips is cached. Counting takes at least 20 µs, and every read needs the
number."""


class CheckSchedule:
    """Tells when the next check is due. Its times are those of time.monotonic().

    A check is due every `interval` seconds. It is due earlier if records were lost or BPF programs were
    skipped. After skipped programs, each check that finds no difference doubles the delay until the next check
    of this kind. Otherwise a machine where programs are skipped all the time would spend much CPU time on
    checks.

    Not thread-safe.
    """

    def __init__(self, engine: Engine, counts: Counts, interval: float) -> None:
        self._engine = engine
        self._counts = counts
        """The losses and skips that earlier checks have already handled. The hub updates these counts."""
        self._interval = interval
        self._checked_at = -interval
        self._next_repair = 0.0
        self._retry_at = 0.0
        self._miss_delay = _CHECK_AFTER_MISSES
        """The current number of seconds from one check to the next if BPF programs were skipped."""
        self._misses = 0
        self._misses_expire = 0.0

    def due(self) -> float:
        """Return the time at which the next check or repair is due."""
        due = self._checked_at + self._interval
        if self._has_lost():
            due = min(due, self._next_repair)
        if self._may_have_missed():
            due = min(due, self._checked_at + self._miss_delay)
        return max(due, self._retry_at)

    def is_repair_due(self) -> bool:
        """Return True if records were lost and the pause after the last repair is over."""
        return self._has_lost() and time.monotonic() >= self._next_repair

    def is_interval_over(self) -> bool:
        """Return True if at least `interval` seconds have passed since the last check."""
        return time.monotonic() >= self._checked_at + self._interval

    def checked(self, has_missed: bool, has_found: bool) -> None:
        """Note that a check has ended.

        `has_missed` is True if BPF programs were skipped before the check. `has_found` is True if the check
        found a difference.
        """
        self._checked_at = time.monotonic()
        is_false_alarm = has_missed and not has_found
        self._miss_delay = min(2 * self._miss_delay, self._interval) if is_false_alarm else _CHECK_AFTER_MISSES

    def repaired(self, seconds: float) -> None:
        """Note that a repair has ended, and how many seconds it took."""
        # Under constant loss, spend at most a third of the time on repairs and the rest on reading.
        self._next_repair = time.monotonic() + 2 * seconds

    def failed(self) -> float:
        """Note that a check has failed. Return the number of seconds until the next attempt."""
        self._retry_at = time.monotonic() + _RETRY_AFTER
        return _RETRY_AFTER

    def _has_lost(self) -> bool:
        return self._engine.lost > self._counts.lost

    def _may_have_missed(self) -> bool:
        """Return True if BPF programs were skipped since the last check."""
        if (now := time.monotonic()) >= self._misses_expire:
            self._misses_expire = now + _MISSES_INTERVAL
            self._misses = self._engine.recursion_misses
        return self._misses > self._counts.recursion_misses
