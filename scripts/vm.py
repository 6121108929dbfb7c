"""Run the tests that depend on the kernel in virtual machines: vm.py NAME... | all.

A virtual machine boots a kernel from scripts/kernels.py and sees the host's file system, read-only. It is
emulated in software, so it needs neither /dev/kvm nor root. Each emulator uses one thread, so as many machines
run at once as the host has CPUs.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import kernels

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "build" / "vm"
GUEST = ROOT / "tests" / "vm" / "guest.sh"
TIME_LIMIT = 5400
"""Seconds after which a machine is killed, because it seems to hang."""
PATIENCE = 180
"""PORTWATCH_TEST_PATIENCE in the machine, in seconds: emulation is slow."""


async def test(kernel: kernels.Kernel, image: Path) -> bool:
    """Boot a kernel and run the tests. Return True if all tests passed."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = RESULTS / f"{kernel.name}.xml"
    status, log = result.with_suffix(".status"), result.with_suffix(".log")
    for stale in (result, status):
        stale.unlink(missing_ok=True)
    begin = time.monotonic()
    await _run(kernel.name, _command(image, result, kernel.engines), log)
    took = f"{time.monotonic() - begin:.0f} s in total"
    # The exit status comes from a file, because vng (1.42) exits with 255 if the machine has no udev.
    if not (result.exists() and status.exists()):
        print(f"{kernel.name}: the machine exited without a result, {took}; see {log}", flush=True)
        return False
    suite = ElementTree.parse(result).getroot()[0]  # noqa: S314  # our own pytest wrote it
    counts = ", ".join(f"{suite.get(count)} {count}" for count in ("tests", "failures", "errors", "skipped"))
    print(f"{kernel.name} ({kernels.release_of(image)}): {counts}, {took}", flush=True)
    return status.read_text() == "0\n" and suite.get("failures") == suite.get("errors") == "0"


def _command(image: Path, result: Path, engines: tuple[str, ...]) -> list[str]:
    environment = {
        "PORTWATCH_TEST_PATIENCE": str(PATIENCE),
        "PORTWATCH_TEST_ENGINES": " ".join(engines),
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
    }
    return [
        str(Path(sys.executable).with_name("vng")),
        "--disable-kvm",
        "--verbose",  # send output through the console, which works even without udev in the machine
        f"--run={image}",
        "--user=root",
        "--cpus=2",
        "--memory=2G",
        # Emulate all CPUs in one thread. With one thread per CPU, the machine can hang: QEMU (7.2 at least) may
        # keep executing the first instruction of a function as it was before ftrace patched it.
        "--qemu-opts=-accel tcg,thread=single",
        f"--rwdir={RESULTS}",
        "--exec",
        shlex.join(
            ["env", *(f"{name}={value}" for name, value in environment.items()), str(GUEST), str(result)]
        ),
    ]


_LONGEST_LINE = 1 << 24
"""Longest line of output that is accepted, in bytes. pytest prints long lines about failures."""
_PASSED_ON = ("PORTWATCH_TEST_ENGINES", "PYTEST_ADDOPTS", "PYTHONPATH")
"""Environment variables that the machine inherits."""


async def _run(name: str, command: list[str], log: Path) -> None:
    """Run a machine until it exits. Write its output to `log`, and print it without kernel messages.

    On a timeout or cancellation, kill the machine's process group.
    """
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    machine = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=DEVNULL,
        stdout=PIPE,  # not `log` itself, which the emulator would truncate
        stderr=STDOUT,
        limit=_LONGEST_LINE,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        await asyncio.wait_for(_follow(name, machine, log), TIME_LIMIT)
    except asyncio.TimeoutError:
        print(f"{name}: stopped after {TIME_LIMIT} s without a result", flush=True)
    finally:
        if machine.returncode is None:
            os.killpg(machine.pid, signal.SIGKILL)
            await machine.wait()


async def _follow(name: str, machine: asyncio.subprocess.Process, log: Path) -> None:
    """Write the machine's output to `log`, and print it without kernel messages."""
    assert machine.stdout
    with log.open("wb") as file:
        async for line in machine.stdout:
            file.write(line)
            if not line.startswith(b"["):
                print(f"{name}: {line.decode('utf-8', 'replace').rstrip()}", flush=True)
    await machine.wait()


async def test_all(selected: Sequence[kernels.Kernel]) -> list[str]:
    """Test these kernels and return the names of those that failed."""
    task = asyncio.current_task()
    assert task
    # Without this, SIGTERM would leave machines behind that run for up to TIME_LIMIT.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    images = [kernels.image_of(kernel) for kernel in selected]
    free = asyncio.Semaphore(os.cpu_count() or 1)

    async def test_when_free(kernel: kernels.Kernel, image: Path) -> bool:
        async with free:
            return await test(kernel, image)

    results = await asyncio.gather(*map(test_when_free, selected, images))
    return [kernel.name for kernel, has_passed in zip(selected, results, strict=True) if not has_passed]


def main(names: list[str]) -> str | None:
    """Test the named kernels. If one fails, go on with the others. Return an error message, or None."""
    selected = kernels.KERNELS if names == ["all"] else [kernels.named(name) for name in names]
    try:
        failed = asyncio.run(test_all(selected))
    except asyncio.CancelledError:
        return "terminated by SIGTERM"
    return f"failed: {', '.join(failed)}" if failed else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
