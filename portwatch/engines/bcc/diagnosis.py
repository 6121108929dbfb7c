"""Checks of what the bcc engine depends on."""

from __future__ import annotations

from collections.abc import Iterator

from portwatch.engines.bcc import headers
from portwatch.engines.bcc.compiler import find_bcc
from portwatch.engines.diagnosis import Check, Fact, Finding, run_checks
from portwatch.errors import EngineUnavailable
from portwatch.linux.kernel import VMLINUX


def _bcc() -> Finding:
    try:
        version = getattr(find_bcc(), "__version__", None)
    except EngineUnavailable as error:
        if VMLINUX.exists():
            return Finding("ok", f"{error}; core does not need bcc")
        return Finding("limited", str(error))
    if VMLINUX.exists():
        return Finding("ok", f"version {version}, which needs no kernel headers here")
    return Finding("ok", f"version {version}, with the headers in {headers.of_running_kernel().build}")


_CHECKS: dict[str, Check] = {"bcc": _bcc}


def diagnose() -> Iterator[Fact]:
    """Yield the facts that this engine depends on."""
    return run_checks(_CHECKS)
