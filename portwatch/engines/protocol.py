"""The interface of engines, and the options that they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from portwatch.engines.limits import EngineInfo
from portwatch.filters import KernelFilter
from portwatch.linux.lineage import Identity
from portwatch.model import Holder, Record, Snapshot, Socket


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of an engine. Each engine ignores those that do not apply to it."""

    failures: bool = True
    """Report failed bind() and listen() calls."""
    ephemeral: bool = False
    """Report UDP ports that the kernel chose."""
    interval: float = 1.0
    """Seconds between two polls."""
    hooks: str = "auto"
    """The name of a set of hooks, or "auto" for the best that works."""


class Engine(Protocol):
    """A source of records about ports.

    One thread at a time may call its methods; only `wake` may be called from any thread.
    """

    @property
    def name(self) -> str:
        """The name that `--engine` takes."""

    @property
    def info(self) -> EngineInfo:
        """The hooks on this machine, and their limits."""

    @property
    def lost(self) -> int:
        """How many records and processes of trees were dropped since `attach`: a buffer or map was full."""

    @property
    def recursion_misses(self) -> int:
        """How often since `attach` the kernel skipped a program, so that an event may have been missed."""

    def attach(self) -> None:
        """Start to record events. Raise EngineUnavailable if this machine does not allow it."""

    def read(self, timeout: float | None) -> list[Record]:
        """Wait for records, for `wake`, or for `timeout` seconds; return the records that have arrived."""

    def read_up_to_now(self) -> list[Record]:
        """Return all records of what happened before the call, without waiting."""

    def wake(self) -> None:
        """Make a waiting `read` return."""

    def snapshot(self) -> Snapshot:
        """Return all open sockets. Works without `attach`."""

    def port_users(self, socket: Socket) -> tuple[Holder, ...]:
        """Return the processes whose sockets conflict with the address that `socket` was refused."""

    def watch(self, root: Identity, tree: int) -> None:
        """Mark records and snapshots of a process tree with the bit `tree` from now on.

        Raise PortwatchError if the root process has ended.
        """

    def unwatch(self, tree: int) -> None:
        """Stop marking a process tree."""

    def set_filter(self, wanted: KernelFilter) -> KernelFilter:
        """Record only what passes a filter, as far as this engine can; return the filter that applies now.

        Snapshots are not filtered.
        """

    def forget(self) -> None:
        """Close the descriptors, in a forked child: the parent's engine goes on, so nothing is detached.

        A child that kept them would keep the programs attached when the parent has ended.
        """

    def detach(self) -> None:
        """Stop recording, and remove everything from the kernel. The engine cannot be used again."""
