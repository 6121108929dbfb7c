"""Finds the distribution's bcc, and compiles the BPF programs with it."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from portwatch.engines.bcc import headers, layout, shared_map
from portwatch.engines.bcc.btf import Btf
from portwatch.errors import EngineUnavailable
from portwatch.linux.kernel import RELEASE, VMLINUX

log = logging.getLogger("portwatch")

DIST_PACKAGES = ("/usr/lib/python3/dist-packages", "/usr/lib/python3/site-packages")
INSTALL = "apt-get install python3-bpfcc (Fedora: dnf install python3-bcc)"
_HERE = Path(__file__).parent
SOURCES = next(
    (folder for folder in (_HERE / "bpf", _HERE.parents[2] / "bpf") if folder.is_dir()), _HERE / "bpf"
)
"""The folder of the C sources: bpf/ beside this module if installed, or bpf/ at the top of a source tree."""
_LRU_MAPS_SINCE = (4, 10)
_KERNEL_SOURCE = "BCC_KERNEL_SOURCE"
_BCC_VARIABLES = (_KERNEL_SOURCE, "BCC_LINUX_VERSION_CODE", "ARCH")
"""The environment variables that bcc reads. If BCC_LINUX_VERSION_CODE is set, bcc also prints to stdout."""
_PROCESS_LOCK = threading.RLock()
"""Held during changes of stderr, the environment and the working directory, which all threads share."""


def find_bcc() -> ModuleType:
    """Import and return the distribution's bcc. The package of the same name on PyPI is unrelated.

    Raise EngineUnavailable if bcc is missing or cannot be imported.
    """
    for folders in ([], *([folder] for folder in DIST_PACKAGES)):
        module = _import_bcc(folders)
        if module and hasattr(module, "BPF"):
            return module
        _forget()
    raise EngineUnavailable(f"bcc is not installed: {INSTALL}")


def _import_bcc(folders: list[str]) -> ModuleType | None:
    before = sys.path[:]
    # Put the folders first, for this import only, so that no other package called bcc is found first.
    sys.path[:0] = folders
    try:
        return importlib.import_module("bcc")
    except ModuleNotFoundError as error:
        if error.name == "bcc":
            return None
        raise _broken(error) from error
    except Exception as error:  # bcc may not fit its C library or this Python: any exception is possible
        raise _broken(error) from error
    finally:
        sys.path[:] = before


def _broken(error: Exception) -> EngineUnavailable:
    _forget()
    return EngineUnavailable(
        f"bcc is installed, but importing it fails ({type(error).__name__}: {error}): "
        "apt-get install --reinstall python3-bpfcc libbpfcc"
    )


def _forget() -> None:
    for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
        del sys.modules[name]


@dataclass(frozen=True, slots=True)
class CompiledPrograms:
    """The programs, compiled for the running kernel."""

    bpf: Any
    """The bcc.BPF object."""
    iterator_function: int | None
    """The BTF id of the iterator over open files, or None if the kernel does not have it."""


def compile_programs(*, ephemeral: bool) -> CompiledPrograms:
    """Compile bpf/bcc.bpf.c for the running kernel.

    Raise EngineUnavailable if bcc or the kernel's headers are missing, or if compiling fails.
    """
    bcc = find_bcc()
    source = (SOURCES / "bcc.bpf.c").read_text("utf-8")
    function = None
    if VMLINUX.exists():
        header = (SOURCES / "kernel.h").read_text("utf-8")
        btf = Btf(VMLINUX.read_bytes(), layout.names(header))
        function = btf.function(layout.ITERATOR_FUNCTION)
        source = layout.render(header, btf) + source
        kernel_headers = headers.MINIMAL
    else:
        kernel_headers = headers.of_running_kernel()
        source = '#define KERNEL_HEADERS\n#include "headers.h"\n' + source
    flags = [
        f"-I{SOURCES}",
        *kernel_headers.flags,
        f"-DEPHEMERAL={int(ephemeral)}",
        f"-DSHARED_FLAGS={shared_map.FLAGS}",
        # A system call that never returns leaves its entry in the map of calls. An LRU map evicts such entries,
        # but kernels before 4.10 have no LRU maps.
        f'-DCALLS_TYPE="{"lru_hash" if RELEASE >= _LRU_MAPS_SINCE else "hash"}"',
        "-Wno-address-of-packed-member",
        "-Wno-macro-redefined",
    ]
    output: list[str] = []
    try:
        with _environment(kernel_headers.source), quiet(output):
            bpf = bcc.BPF(text=source.encode(), cflags=flags)
    except Exception as error:  # bcc raises nothing more precise
        raise EngineUnavailable(
            f"bcc cannot compile the BPF programs: {_first_error(output) or error}"
        ) from error
    return CompiledPrograms(bpf, function)


@contextmanager
def quiet(output: list[str]) -> Iterator[None]:
    """Redirect stderr, to which bcc's libraries write. On exit, append what they wrote to `output`."""
    with _PROCESS_LOCK, open(os.memfd_create("stderr"), "w+b") as redirected:
        saved = os.dup(2)
        os.dup2(redirected.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            redirected.seek(0)
            output += redirected.read().decode(errors="replace").splitlines()
            if output:
                log.debug("output of bcc: %s", "\n".join(output))


def _first_error(output: list[str]) -> str | None:
    lines = [line for line in output if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else None)


@contextmanager
def _environment(kernel_source: Path) -> Iterator[None]:
    """Make bcc use the kernel headers in `kernel_source`, and hide the user's own variables from bcc."""
    with _PROCESS_LOCK:
        before = {name: os.environ.pop(name) for name in _BCC_VARIABLES if name in os.environ}
        os.environ[_KERNEL_SOURCE] = str(kernel_source)
        # bcc looks for headers in the working directory first, where another user may have put files.
        working_directory = os.open(".", os.O_PATH | os.O_DIRECTORY)
        os.chdir(SOURCES)
        try:
            yield
        finally:
            os.fchdir(working_directory)
            os.close(working_directory)
            del os.environ[_KERNEL_SOURCE]
            os.environ.update(before)
