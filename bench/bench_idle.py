"""What watching costs while nothing happens: wakeups and CPU, against polling."""

import os
import resource
import subprocess
import time
from pathlib import Path

from common import COMMAND, begin, judge, running, show

SECONDS = 20
SETTLE = 3
TRIES = 3
EXPECTED = {"core": 0, "poll": 2 * SECONDS}
"""Wakeups; with more of them another try is made."""


def wakeups(pid):
    """How often a thread of a process gave up the CPU to wait, all threads together."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def run_time(pid):
    """Milliseconds on a CPU, all threads together."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e6


def tail(engine):
    """Wakeups, milliseconds of CPU, and lines written, while nothing happens."""
    with running(COMMAND, "tail", "--json", "--no-snapshot", "--engine", engine) as process:
        time.sleep(SETTLE)
        os.set_blocking(process.stdout.fileno(), False)
        process.stdout.read()
        before = wakeups(process.pid), run_time(process.pid)
        time.sleep(SECONDS)
        found = wakeups(process.pid) - before[0], run_time(process.pid) - before[1]
        lines = (process.stdout.read() or b"").count(b"\n")
        os.set_blocking(process.stdout.fileno(), True)
        return *found, lines


def quietest(engine):
    """Of a few tries the one with the fewest wakeups: others may open and close ports here."""
    tries = []
    while len(tries) < TRIES and (not tries or tries[-1][0] > EXPECTED[engine]):
        tries.append(tail(engine))
    return min(tries)


def polling():
    """Milliseconds of CPU of `ss -lntp` once a second."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(SECONDS):
        subprocess.run(("ss", "-lntp"), check=True, stdout=subprocess.DEVNULL)
        time.sleep(1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main():
    begin(f"At rest: {SECONDS} s in which nothing should happen, between two reconciliations")
    for engine in EXPECTED:
        count, milliseconds, lines = quietest(engine)
        if engine == "core":
            judge("tail --engine core: wakeups", count, "", most=0)
        else:
            show("tail --engine poll: wakeups", f"{count}")
        show(
            f"tail --engine {engine}: CPU", f"{milliseconds:.1f} ms, {milliseconds / SECONDS / 10:.3f} % of one"
        )
        if lines:
            show("", f"but {lines} events came meanwhile: something else opens and closes ports here")
    milliseconds = polling()
    show("ss -lntp every second: CPU", f"{milliseconds:.1f} ms, {milliseconds / SECONDS / 10:.3f} % of one")


if __name__ == "__main__":
    main()
