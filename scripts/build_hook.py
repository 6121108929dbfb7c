"""Compiles bpf/core.bpf.c when the package is built, and puts the object into the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("bpf/core.bpf.c")
OBJECT = Path("portwatch/engines/core/core.bpf.o")
# From LLVM 20 on the usual is v3, of which 5.10 does not know the atomic instructions.
FLAGS = ("-mcpu=v2", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-c")


class CompileBpf(BuildHookInterface[Any]):
    """clang where the system has it, else the one in PyPI's ziglang: 90 MB, taken in only then."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build needs beside hatchling."""
        return [] if _system_clang() else ["ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  # hatchling's signature
        """Compiles before files are gathered."""
        root = Path(self.root)
        command = [*_compiler(), *FLAGS, str(root / SOURCE), "-o", str(root / OBJECT)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
        build_data["artifacts"].append(f"/{OBJECT}")


def _system_clang() -> str | None:
    """A clang that can compile for BPF: some distributions' and Apple's cannot."""
    clang = shutil.which("clang")
    if not clang:
        return None
    check = subprocess.run([clang, "--print-targets"], capture_output=True, text=True, check=False)
    return clang if "bpfel" in check.stdout else None


def _compiler() -> list[str]:
    if clang := _system_clang():
        return [clang, "-target", "bpf"]
    return [sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding"]
