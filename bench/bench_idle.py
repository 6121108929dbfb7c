"""Wakeups and CPU time while no port changes, compared with polling by ss."""

import os
import resource
import subprocess
import time
from pathlib import Path

from common import COMMAND, begin, judge, running, show

SECONDS = 20
PAUSE = 3
"""Seconds between the start of `tail` and the measurement."""
ATTEMPTS = 3
EXPECTED = {"core": 0, "poll": 2 * SECONDS}
"""Expected wakeups by engine. A run with more wakeups than that is repeated."""


def wakeups(pid):
    """Return the voluntary context switches of all threads of a process."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def run_time(pid):
    """Return the CPU time of all threads of a process in milliseconds."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e6


def tail(engine):
    """Run `tail` for SECONDS; return its wakeups, milliseconds of CPU time, and lines of output."""
    with running(COMMAND, "tail", "--json", "--no-snapshot", "--engine", engine) as process:
        time.sleep(PAUSE)
        os.set_blocking(process.stdout.fileno(), False)
        process.stdout.read()
        before = wakeups(process.pid), run_time(process.pid)
        time.sleep(SECONDS)
        used = wakeups(process.pid) - before[0], run_time(process.pid) - before[1]
        lines = (process.stdout.read() or b"").count(b"\n")
        os.set_blocking(process.stdout.fileno(), True)
        return *used, lines


def quietest(engine):
    """Repeat runs that other programs disturb by opening ports. Return the run with the fewest wakeups."""
    runs = []
    while len(runs) < ATTEMPTS and (not runs or runs[-1][0] > EXPECTED[engine]):
        runs.append(tail(engine))
    return min(runs)


def polling():
    """Run `ss -lntp` once a second for SECONDS; return its CPU time in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(SECONDS):
        subprocess.run(("ss", "-lntp"), check=True, stdout=subprocess.DEVNULL)
        time.sleep(1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main():
    begin(f"Idle: {SECONDS} s without changes, between two reconciliations")
    for engine in EXPECTED:
        count, milliseconds, lines = quietest(engine)
        if engine == "core":
            judge("tail --engine core: wakeups", count, "", most=0)
        else:
            show("tail --engine poll: wakeups", f"{count}")
        show(
            f"tail --engine {engine}: CPU",
            f"{milliseconds:.1f} ms, {milliseconds / SECONDS / 10:.3f} % of one CPU",
        )
        if lines:
            show("", f"disturbed by {lines} events: other programs opened or closed ports")
    milliseconds = polling()
    show("ss -lntp every second: CPU", f"{milliseconds:.1f} ms, {milliseconds / SECONDS / 10:.3f} % of one CPU")


if __name__ == "__main__":
    main()
