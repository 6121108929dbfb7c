"""hatchling build hook: compile bpf/core.bpf.c and put the object into the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("bpf/core.bpf.c")
OBJECT = Path("portwatch/engines/core/core.bpf.o")
# LLVM 20 and later default to v3, whose atomic instructions Linux 5.10 does not have.
FLAGS = ("-mcpu=v2", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-c")


class CompileBpf(BuildHookInterface[Any]):
    """Compiles with the system's clang, or else with the one in the ziglang package (a download of 90 MB)."""

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
    """Return the path of a clang that can compile for BPF; Apple's and those of some distributions cannot."""
    clang = shutil.which("clang")
    if not clang:
        return None
    check = subprocess.run([clang, "--print-targets"], capture_output=True, text=True, check=False)
    return clang if "bpfel" in check.stdout else None


def _compiler() -> list[str]:
    """Return the start of the compiler's command line."""
    if clang := _system_clang():
        return [clang, "-target", "bpf"]
    return [sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding"]
