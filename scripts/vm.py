"""Runs the scenario tests in a virtual machine, on another kernel: vm.py NAME... | all.

The machine has this one's file system (it cannot write to it) and a kernel of scripts/kernels.py.
It is emulated in software, so it needs neither /dev/kvm nor root; by one thread, so as many run at once as
there are CPUs.
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
"""Seconds after which a machine is taken to hang."""
PATIENCE = 180
"""What tests are told to wait for something, in seconds, since all is slow in emulation."""


async def test(kernel: kernels.Kernel, image: Path) -> bool:
    """Boots a kernel, and tells whether all tests passed there."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = RESULTS / f"{kernel.name}.xml"
    status = result.with_suffix(".status")
    for left in (result, status):
        left.unlink(missing_ok=True)
    begin = time.monotonic()
    await _run(kernel.name, _command(image, result, kernel.engines), result.with_suffix(".log"))
    took = f"{time.monotonic() - begin:.0f} s in all"
    # The guest's own word: vng (1.42) tells 255 of whatever runs in a machine without a udev.
    if not (result.exists() and status.exists()):
        print(f"{kernel.name}: the machine ended without a result, {took}", flush=True)
        return False
    suite = ElementTree.parse(result).getroot()[0]  # noqa: S314  # our own pytest wrote it
    counts = ", ".join(f"{suite.get(what)} {what}" for what in ("tests", "failures", "errors", "skipped"))
    print(f"{kernel.name} ({kernels.release_of(image)}): {counts}, {took}", flush=True)
    return status.read_text() == "0\n" and suite.get("failures") == suite.get("errors") == "0"


def _command(image: Path, result: Path, engines: tuple[str, ...]) -> list[str]:
    inside = {
        "PORTWATCH_TEST_PATIENCE": str(PATIENCE),
        "PORTWATCH_TEST_ENGINES": " ".join(engines),
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
    }
    return [
        str(Path(sys.executable).with_name("vng")),
        "--disable-kvm",
        "--verbose",  # without a udev in the machine, its console is the only way out of it
        f"--run={image}",
        "--user=root",
        "--cpus=2",
        "--memory=2G",
        # One thread for all of its CPUs: with one for each, QEMU (7.2 at least) can go on running a function's
        # first instruction as it was before ftrace changed it, for ever, and the machine hangs.
        "--qemu-opts=-accel tcg,thread=single",
        f"--rwdir={RESULTS}",
        "--exec",
        shlex.join(["env", *(f"{name}={value}" for name, value in inside.items()), str(GUEST), str(result)]),
    ]


_LONGEST_LINE = 1 << 24
"""Of what pytest says about a failure."""
_PASSED_ON = ("PORTWATCH_TEST_ENGINES", "PYTEST_ADDOPTS", "PYTHONPATH")


async def _run(name: str, command: list[str], log: Path) -> None:
    """To its end; whatever it started is ended with it. What its kernel says goes to `log` only."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    machine = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=DEVNULL,
        stdout=PIPE,  # a file, its emulator would truncate
        stderr=STDOUT,
        limit=_LONGEST_LINE,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        await asyncio.wait_for(_follow(name, machine, log), TIME_LIMIT)
    except asyncio.TimeoutError:
        print(f"{name}: no end after {TIME_LIMIT} s", flush=True)
    finally:
        if machine.returncode is None:
            os.killpg(machine.pid, signal.SIGKILL)
            await machine.wait()


async def _follow(name: str, machine: asyncio.subprocess.Process, log: Path) -> None:
    assert machine.stdout
    with log.open("wb") as kept:
        async for line in machine.stdout:
            kept.write(line)
            if not line.startswith(b"["):
                print(f"{name}: {line.decode('utf-8', 'replace').rstrip()}", flush=True)
    await machine.wait()


async def test_all(wanted: Sequence[kernels.Kernel]) -> list[str]:
    """Tests these, and returns the names of those that failed."""
    this = asyncio.current_task()
    assert this
    # A machine that is left behind would run for an hour.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    images = [kernels.image_of(kernel) for kernel in wanted]
    free = asyncio.Semaphore(os.cpu_count() or 1)

    async def test_when_free(kernel: kernels.Kernel, image: Path) -> bool:
        async with free:
            return await test(kernel, image)

    passed = await asyncio.gather(*map(test_when_free, wanted, images))
    return [kernel.name for kernel, is_good in zip(wanted, passed, strict=True) if not is_good]


def main(names: list[str]) -> str | None:
    """Every kernel that is asked for, also when an earlier one fails."""
    wanted = kernels.KERNELS if names == ["all"] else [kernels.named(name) for name in names]
    try:
        failed = asyncio.run(test_all(wanted))
    except asyncio.CancelledError:
        return "ended by SIGTERM"
    return f"failed: {', '.join(failed)}" if failed else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
