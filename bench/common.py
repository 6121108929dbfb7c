"""Helpers shared by the benchmarks: the report, statistics, and processes to measure."""

from __future__ import annotations

import http.client
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import portwatch

COMMAND = str(Path(sys.executable).with_name("portwatch"))
CPUS = sorted(os.sched_getaffinity(0))
_WIDTH = 52


def begin(title: str) -> None:
    """Print the title and a description of the machine. Exit with an error if not run as root."""
    if os.geteuid():
        sys.exit(f"{Path(sys.argv[0]).name}: the engine needs root; run: make bench")
    sys.stdout.reconfigure(line_buffering=True)
    print(f"\n== {title}")
    print(
        f"   Linux {platform.release()}, {len(CPUS)} CPUs ({_cpu_model()}), {_memory_gib():.0f} GiB, "
        f"{platform.python_implementation()} {platform.python_version()}, portwatch {portwatch.__version__}"
    )
    for pid, name in sorted(_other_tracers().items()):
        print(
            f"   Note: {name} ({pid}) has BPF programs attached. They also affect the figures called `without`."
        )


def show(what: str, figure: str) -> None:
    """Print a figure and what it measures."""
    print(f"   {what:<{_WIDTH}} {figure}")


def judge(what: str, value: float, unit: str, *, most: float | None = None, least: float | None = None) -> None:
    """Print a figure, the bar that it must meet (`most` or `least`), and whether it does."""
    bar = f"≤ {most:,g}" if most is not None else f"≥ {least:,g}"
    holds = (most is None or value <= most) and (least is None or value >= least)
    unit = unit and f" {unit}"
    show(what, f"{number(value)}{unit}   (bar: {bar}{unit}: {'holds' if holds else 'missed'})")


def number(value: float) -> str:
    """Format a number with three significant digits, or without decimals if it is whole or at least 100."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile: the smallest value such that at least `percent` % of the values are not larger."""
    return sorted(values)[max(0, -(-len(values) * percent // 100).__int__() - 1)]


def median_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and the bounds of its 95 % confidence interval, by bootstrap."""
    medians = sorted(statistics.median(random.choices(values, k=len(values))) for _ in range(2000))
    return statistics.median(values), medians[50], medians[-51]


def seconds(work: Callable[[], object]) -> float:
    """Return the run time of `work` in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(*command: str) -> None:
    """Run a command to its end and read its output, as a user of the command would."""
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def installed(name: str) -> bool:
    """Return True if the command is installed."""
    return shutil.which(name) is not None


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command with pipes for input and output; terminate it at the end of the block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.stdout.read()


@contextmanager
def daemon(*options: str) -> Iterator[tuple[int, int]]:
    """Run `portwatch serve`. Yield its pid and port once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    serve = (COMMAND, "serve", "--listen", f"127.0.0.1:{port}", *options)
    with running("sh", "-c", 'exec "$@" >/dev/null', "sh", *serve) as process:
        while process.poll() is None:
            with suppress(OSError):  # the daemon does not listen yet
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.02)
        yield process.pid, port


def megabytes(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """Run `work` in a forked child and kill it at the end of the block. Call this only before threads start."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with suppress(BaseException):
            work()
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class Workload:
    """A running workload.c. It has a CPU of its own and repeats one operation at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def nanoseconds(self, operation: str, count: int) -> float:
        """Perform an operation `count` times. Return the average time of one in nanoseconds."""
        self._process.stdin.write(f"{operation} {count}\n".encode())
        self._process.stdin.flush()
        return int(self._process.stdout.readline()) / count


@contextmanager
def workload() -> Iterator[Workload]:
    """Compile and run workload.c on the first CPU, in a new network namespace.

    This process moves to the other CPUs.
    """
    compiler = next(filter(installed, ("cc", "gcc", "clang")), None)
    if not compiler:
        sys.exit(
            "   needs a C compiler (Debian, Ubuntu: apt-get install gcc libc6-dev; Fedora: dnf install gcc)"
        )
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/workload"
        run(compiler, "-O2", "-o", program, str(Path(__file__).with_name("workload.c")))
        os.sched_setaffinity(0, CPUS[1:] or CPUS)
        # Tens of thousands of connections stay in TIME_WAIT. Other programs may need their ports.
        setup = 'ip link set lo up && echo 1000000 >/proc/sys/net/ipv4/tcp_max_tw_buckets && exec "$@"'
        pin = ("taskset", "--cpu-list", str(CPUS[0]))
        with running("unshare", "--net", *pin, "sh", "-c", setup, "sh", program) as process:
            yield Workload(process)


def _other_tracers() -> dict[int, str]:
    """Return {pid: name} of the processes that hold BPF links."""
    tracers = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) in ("anon_inode:bpf_link", "anon_inode:bpf-link"):
                tracers[int(link.parts[2])] = Path(*link.parts[:3], "comm").read_text(encoding="utf-8").strip()
    return tracers


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
