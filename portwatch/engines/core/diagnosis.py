"""What the core engine needs."""

from __future__ import annotations

from collections.abc import Iterator

from portwatch.engines.core.engine import OBJECT
from portwatch.engines.core.libbpf import Libbpf
from portwatch.engines.diagnosis import Fact, State, run_checks


def diagnose() -> Iterator[Fact]:
    """Yield the facts."""
    return run_checks({"libbpf": _libbpf, "bpf object": _object})


def _libbpf() -> tuple[State, str, str | None]:
    return "ok", f"version {Libbpf().version}", None


def _object() -> tuple[State, str, str | None]:
    if OBJECT.exists():
        return "ok", f"{OBJECT}, {OBJECT.stat().st_size >> 10} KiB", None
    return "not ok", f"{OBJECT} is missing", "install portwatch again, where a C compiler for BPF is to be had"
