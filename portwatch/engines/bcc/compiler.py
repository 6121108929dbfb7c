"""bcc itself: found where the distribution puts it, and made to compile our programs."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
"""In an installed package beside us, in the source tree where core's are."""
_MINIMAL_LRU = (4, 10)
_KERNEL_SOURCE = "BCC_KERNEL_SOURCE"
_HEEDED = (_KERNEL_SOURCE, "BCC_LINUX_VERSION_CODE", "ARCH")
"""Variables that bcc goes by; that it went by the second it would say on standard output."""
_PROCESS = threading.RLock()
"""Held by whoever changes what is the whole process's."""


def find_bcc() -> ModuleType:
    """The bcc of the distribution; PyPI has another package of that name. Raises EngineUnavailable."""
    for path in ((), *((folder,) for folder in DIST_PACKAGES)):
        module = _import_from(list(path))
        if module and hasattr(module, "BPF"):
            return module
        _forget()
    raise EngineUnavailable(f"bcc is not installed: {INSTALL}")


def _import_from(path: list[str]) -> ModuleType | None:
    before = sys.path[:]
    # In front, for the one import: a package of the same name must not hide it.
    sys.path[:0] = path
    try:
        return importlib.import_module("bcc")
    except ModuleNotFoundError as error:
        if error.name == "bcc":
            return None
        raise _broken(error) from error
    except Exception as error:  # whatever its C library or its Python does not agree with
        raise _broken(error) from error
    finally:
        sys.path[:] = before


def _broken(error: Exception) -> EngineUnavailable:
    _forget()
    return EngineUnavailable(
        f"bcc is installed and does not load ({type(error).__name__}: {error}): "
        "apt-get install --reinstall python3-bpfcc libbpfcc"
    )


def _forget() -> None:
    for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
        del sys.modules[name]


class CompiledPrograms:
    """What was compiled, and what of the running kernel it was compiled for."""

    def __init__(self, bpf: Any, iterator_function: int | None) -> None:
        self.bpf = bpf
        self.iterator_function = iterator_function
        """The BTF id of the function that stands for the pass over open files."""


def compile_programs(*, ephemeral: bool) -> CompiledPrograms:
    """Compiles bpf/bcc.bpf.c for the running kernel. Raises EngineUnavailable."""
    bcc = find_bcc()
    source = (SOURCES / "bcc.bpf.c").read_text("utf-8")
    function = None
    if VMLINUX.exists():
        header = (SOURCES / "kernel.h").read_text("utf-8")
        btf = Btf(VMLINUX.read_bytes(), layout.names(header))
        function = btf.function(layout.ITERATOR)
        source = layout.render(header, btf) + source
        found = headers.OWN
    else:
        found = headers.of_running_kernel()
        source = '#define KERNEL_HEADERS\n#include "headers.h"\n' + source
    flags = [
        f"-I{SOURCES}",
        *found.flags,
        f"-DEPHEMERAL={int(ephemeral)}",
        f"-DSHARED_FLAGS={shared_map.FLAGS}",
        # Calls that never end must not fill it; before 4.10 there is no map that forgets.
        f'-DCALLS_TYPE="{"lru_hash" if RELEASE >= _MINIMAL_LRU else "hash"}"',
        "-Wno-address-of-packed-member",
        "-Wno-macro-redefined",
    ]
    said: list[str] = []
    try:
        with _environment(found.source), quiet(said):
            bpf = bcc.BPF(text=source.encode(), cflags=flags)
    except Exception as error:  # bcc raises nothing more precise
        raise EngineUnavailable(f"bcc cannot compile the programs: {_first_error(said) or error}") from error
    return CompiledPrograms(bpf, function)


@contextmanager
def quiet(said: list[str]) -> Iterator[None]:
    """Keeps from the terminal what bcc's libraries write to standard error; afterwards the list holds it."""
    with _PROCESS, open(os.memfd_create("said"), "w+b") as caught:
        saved = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            said += caught.read().decode(errors="replace").splitlines()
            if said:
                log.debug("bcc said: %s", "\n".join(said))


def _first_error(said: list[str]) -> str | None:
    lines = [line for line in said if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else None)


@contextmanager
def _environment(kernel_source: Path) -> Iterator[None]:
    """Has bcc find headers there, and nothing else that it goes by."""
    with _PROCESS:
        before = {name: os.environ.pop(name) for name in _HEEDED if name in os.environ}
        os.environ[_KERNEL_SOURCE] = str(kernel_source)
        # Before all that it is told of, bcc looks into the working directory, which may be anybody's.
        here = os.open(".", os.O_PATH | os.O_DIRECTORY)
        os.chdir(SOURCES)
        try:
            yield
        finally:
            os.fchdir(here)
            os.close(here)
            del os.environ[_KERNEL_SOURCE]
            os.environ.update(before)
