"""What an engine offers, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from portwatch.engines.limits import EngineInfo
from portwatch.filters import KernelFilter
from portwatch.linux.lineage import Identity
from portwatch.model import Holder, Record, Snapshot, Socket


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of an engine."""

    failures: bool = True
    """Binds and listens that fail, too."""
    ephemeral: bool = False
    """UDP ports that the kernel chose, too."""
    interval: float = 1.0
    """Seconds between two polls, for engines that poll."""
    hooks: str = "auto"
    """The set of hooks, for engines that have several."""


class Engine(Protocol):
    """Sees ports open and close. All but `wake` are called from one thread at a time."""

    @property
    def name(self) -> str:
        """What `--engine` calls it."""

    @property
    def info(self) -> EngineInfo:
        """Its hooks on this machine, and what they cannot see."""

    @property
    def lost(self) -> int:
        """How many records it had to drop since `attach`."""

    @property
    def recursion_misses(self) -> int:
        """How often since `attach` the kernel left out a program, so that something may not have been seen."""

    def attach(self) -> None:
        """Begins to see. Raises EngineUnavailable."""

    def read(self, timeout: float | None) -> list[Record]:
        """Waits for records, for `wake`, or for `timeout` seconds, and returns what there is."""

    def read_up_to_now(self) -> list[Record]:
        """Every record of what had happened when this was called, without waiting."""

    def wake(self) -> None:
        """Ends a `read` that waits; from any thread."""

    def snapshot(self) -> Snapshot:
        """What is open now; needs no `attach`."""

    def port_users(self, socket: Socket) -> tuple[Holder, ...]:
        """Who is in the way of a socket that was refused its address."""

    def watch(self, root: Identity, tree: int) -> None:
        """From here on, records and snapshots say by the bit `tree` what concerns a process tree.

        Raises PortwatchError if the process has ended.
        """

    def unwatch(self, tree: int) -> None:
        """Forgets a tree."""

    def set_filter(self, wanted: KernelFilter) -> KernelFilter:
        """Record only what passes a filter, as far as this engine can; return the filter that applies now.

        Snapshots are not filtered.
        """

    def detach(self) -> None:
        """Ends it; leaves nothing behind."""
