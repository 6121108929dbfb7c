"""What the bcc engine needs."""

from __future__ import annotations

from collections.abc import Iterator

from portwatch.engines.bcc import headers
from portwatch.engines.bcc.compiler import find_bcc
from portwatch.engines.diagnosis import Fact, State, run_checks
from portwatch.errors import EngineUnavailable
from portwatch.linux.kernel import VMLINUX


def diagnose() -> Iterator[Fact]:
    """Yield the facts."""
    return run_checks({"bcc": _bcc})


def _bcc() -> tuple[State, str, str | None]:
    try:
        version = getattr(find_bcc(), "__version__", None)
    except EngineUnavailable as error:
        needed = not VMLINUX.exists()
        return "limited" if needed else "ok", f"{error}{'' if needed else '; core does without'}", None
    if VMLINUX.exists():
        return "ok", f"version {version}, which needs no kernel headers here", None
    return "ok", f"version {version}, with the headers in {headers.of_running_kernel().build}", None
