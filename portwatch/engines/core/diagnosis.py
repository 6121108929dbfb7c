"""Checks of what the core engine depends on."""

from __future__ import annotations

from collections.abc import Iterator

from portwatch.engines.core.libbpf import REINSTALL, Libbpf
from portwatch.engines.core.programs import OBJECT
from portwatch.engines.diagnosis import Check, Fact, Finding, run_checks


def _libbpf() -> Finding:
    return Finding("ok", f"version {Libbpf().version}")


def _object() -> Finding:
    if OBJECT.exists():
        return Finding("ok", f"{OBJECT}, {OBJECT.stat().st_size >> 10} KiB")
    return Finding("not ok", f"{OBJECT} is missing", REINSTALL)


_CHECKS: dict[str, Check] = {"libbpf": _libbpf, "bpf object": _object}


def diagnose() -> Iterator[Fact]:
    """Yield the facts that this engine depends on."""
    return run_checks(_CHECKS)
