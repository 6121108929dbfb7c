"""Write the table of tested kernels into docs/engines.md, from the results of `make test-vm-all`."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from kernels import KERNELS, Kernel, named

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "engines.md"
RESULTS = ROOT / "build" / "vm"
BEGIN, END = "<!-- kernels: scripts/kernels_table.py writes this table -->\n", "<!-- /kernels -->\n"
_ROW = re.compile(r"test_([st]\d\d)\w*\[(core-fentry|core-stable|core|bcc|poll)\b")
_NEEDS = {"core-fentry": "needs 5.12"}


@dataclass(slots=True)
class Outcome:
    """The scenarios that ran on one engine, grouped by the outcome of their tests."""

    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    """Scenarios that this kernel does not support."""
    not_run: set[str] = field(default_factory=set)
    """Scenarios that were skipped for another reason."""
    limited: set[str] = field(default_factory=set)
    """Scenarios that passed, but that this engine does not see at the moment they happen.

    The engine declares them as limits.
    """

    def __str__(self) -> str:
        """Return the text of the engine's cell in the table."""
        complete = self.passed - self.failed - self.absent - self.not_run - self.limited
        parts = [f"{len(complete)} rows"]
        for label, rows in (
            ("fails", self.failed),
            ("limited", self.limited - self.failed),
            ("not in this kernel", self.absent),
            ("not run", self.not_run),
        ):
            if rows:
                parts.append(f"{label}: {' '.join(sorted(rows))}")
        return "; ".join(parts)


def outcomes(result: Path) -> tuple[str, dict[str, Outcome]]:
    """Read a result file. Return the kernel's release and the outcome of each engine."""
    root = ElementTree.parse(result).getroot()  # noqa: S314  # our own pytest wrote it
    properties = {item.get("name", ""): item.get("value", "") for item in root.iter("property")}
    by_engine: dict[str, Outcome] = defaultdict(Outcome)
    for case in root.iter("testcase"):
        match = _ROW.match(case.get("name", ""))
        if not match:
            continue
        row, outcome = match[1].upper(), by_engine[match[2]]
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed.add(row)
        elif (skipped := case.find("skipped")) is not None:
            is_absent = skipped.get("message", "").startswith("this kernel ")
            (outcome.absent if is_absent else outcome.not_run).add(row)
        else:
            outcome.passed.add(row)
    for engine, outcome in by_engine.items():
        outcome.limited = set(properties.get(f"limited on {engine}", "").split()) & outcome.passed
    return properties["kernel"], dict(by_engine)


def table(results: list[Path]) -> str:
    """Return the table as Markdown."""
    kernels = [(named(result.stem), *outcomes(result)) for result in results]
    engines = list(dict.fromkeys(engine for _, _, by_engine in kernels for engine in by_engine))
    lines = [
        "| kernel | " + " | ".join(f"`{engine.replace('-', ' ')}`" for engine in engines) + " |",
        "|---|" + "---|" * len(engines),
    ]
    for kernel, release, by_engine in kernels:
        cells = (str(by_engine.get(engine) or _why_not(engine, kernel)) for engine in engines)
        lines.append(f"| {release} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _why_not(engine: str, kernel: Kernel) -> str:
    """Return the text of the cell of an engine that has no results."""
    return _NEEDS[engine] if engine in _NEEDS and engine not in kernel.engines else "not run"


def main() -> None:
    """Replace the table between the two comment lines in the document."""
    results = [path for kernel in KERNELS if (path := RESULTS / f"{kernel.name}.xml").exists()]
    if not results:
        sys.exit("there are no results yet; run: make test-vm-all")
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table(results) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
