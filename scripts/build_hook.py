"""A hatchling build hook that compiles bpf/core.bpf.c and puts the object into the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("bpf/core.bpf.c")
OBJECT = Path("portwatch/engines/core/core.bpf.o")
# LLVM 20 and later default to v3. Linux 5.10 does not support the atomic instructions of v3.
FLAGS = ("-mcpu=v2", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-c")


class CompileBpf(BuildHookInterface[Any]):
    """Compiles with the system's clang if it supports BPF, and otherwise with the clang of ziglang (90 MB)."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return the build dependencies besides hatchling."""
        return [] if _system_clang() else ["ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  # hatchling's signature
        """Compile before hatchling collects the files."""
        root = Path(self.root)
        command = [*_compiler(), *FLAGS, str(root / SOURCE), "-o", str(root / OBJECT)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
        build_data["artifacts"].append(f"/{OBJECT}")


def _system_clang() -> str | None:
    """Return the path of the system's clang, or None if it is missing or cannot compile for BPF.

    Apple's clang and the clang of some distributions cannot compile for BPF.
    """
    clang = shutil.which("clang")
    if not clang:
        return None
    check = subprocess.run([clang, "--print-targets"], capture_output=True, text=True, check=False)
    return clang if "bpfel" in check.stdout else None


def _compiler() -> list[str]:
    """Return the compiler and its target options, as the start of a command line."""
    if clang := _system_clang():
        return [clang, "-target", "bpf"]
    return [sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding"]
