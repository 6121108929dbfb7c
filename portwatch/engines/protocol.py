"""The interface that all engines implement, and their options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from portwatch.engines.limits import EngineInfo
from portwatch.filters import KernelFilter
from portwatch.linux.lineage import Identity
from portwatch.model import Holder, Record, Snapshot, Socket


@dataclass(frozen=True, slots=True)
class Options:
    """Settings for any engine. An engine ignores the settings that do not apply to it."""

    failures: bool = True
    """Report failed bind() and listen() calls."""
    ephemeral: bool = False
    """Report UDP ports that the kernel chose, too."""
    interval: float = 1.0
    """Seconds between two polls."""
    hooks: str = "auto"
    """The name of a set of hooks, or "auto" for the best set that works."""


class Engine(Protocol):
    """A source of records about ports.

    Only one thread at a time may call its methods. `wake` is the exception: any thread may call it at any time.
    """

    @property
    def name(self) -> str:
        """The name that `--engine` takes."""

    @property
    def info(self) -> EngineInfo:
        """The hooks that the engine uses on this machine, and their limits."""

    @property
    def lost(self) -> int:
        """How many records and tree members were dropped since `attach` because a buffer or map was full."""

    @property
    def recursion_misses(self) -> int:
        """How often the kernel has skipped a BPF program since `attach`. Each skip may have missed an event."""

    def attach(self) -> None:
        """Start recording events. Raise EngineUnavailable if this machine does not allow it."""

    def read(self, timeout: float | None) -> list[Record]:
        """Wait until there is a record, `wake` is called, or `timeout` seconds have passed. Return the records.

        If `timeout` is None, the wait has no time limit.
        """

    def read_up_to_now(self) -> list[Record]:
        """Return all unread records of events that happened before this call. Do not wait."""

    def wake(self) -> None:
        """Make `read` return, if it is waiting."""

    def snapshot(self) -> Snapshot:
        """Return all open sockets. This works before `attach`, too."""

    def port_users(self, socket: Socket) -> tuple[Holder, ...]:
        """Return the processes whose sockets prevent `socket` from using its address."""

    def watch(self, root: Identity, tree: int) -> None:
        """From now on, set the bit `tree` in records and snapshots about `root` and its descendants.

        Raise PortwatchError if `root` has ended.
        """

    def unwatch(self, tree: int) -> None:
        """Stop setting the bit `tree` in records and snapshots."""

    def set_filter(self, wanted: KernelFilter) -> KernelFilter:
        """Filter records in the kernel, as far as this engine can. Return the filter that is now in effect.

        The filter in effect may pass more than `wanted`, but never less. Snapshots are not filtered.
        """

    def forget(self) -> None:
        """Close all descriptors in a forked child. Detach nothing, because the parent still uses the engine.

        If the child kept the descriptors open, the programs would stay attached after the parent has ended.
        """

    def detach(self) -> None:
        """Stop recording, and remove everything from the kernel. The engine cannot be used again."""
