"""Memory of `portwatch tail` after its start, and after it has used every page of its ring buffer."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from common import COMMAND, begin, forked, judge, running, show

PAIRS = 25_000


def open_and_close():
    for _ in range(PAIRS):
        with socket.create_server(("127.0.0.1", 0)):
            pass
    time.sleep(3600)


def mebibytes(pid):
    """Return RSS, Pss and peak RSS of a process in MiB."""
    status = (Path(f"/proc/{pid}/status").read_text() + Path(f"/proc/{pid}/smaps_rollup").read_text()).split()
    return tuple(int(status[status.index(name) + 1]) / 1024 for name in ("VmRSS:", "Pss:", "VmHWM:"))


def report(when, pid):
    resident, proportional, peak = mebibytes(pid)
    judge(f"{when}: RSS", resident, "MB", most=40)
    show(f"{when}: Pss", f"{proportional:.1f} MB   (peak RSS: {peak:.1f} MB)")


def read_events(stream, pid, count):
    """Read events until `count` events of the process have been delivered or lost."""
    for event in map(json.loads, stream):
        if event["kind"] == "gap":
            show("", f"disturbed: {event['lost']} records were lost, perhaps those of other programs")
        count -= event["lost"] or event["ns_pid"] == pid
        if count <= 0:
            return


def main():
    begin("Memory of portwatch tail")
    with subprocess.Popen(
        (sys.executable, "-c", "import sys; sys.stdin.read()"), stdin=subprocess.PIPE
    ) as bare:
        time.sleep(0.5)
        show("python without imports: RSS", f"{mebibytes(bare.pid)[0]:.1f} MB")
        bare.stdin.close()
    with socket.create_server(("127.0.0.1", 0)), running(COMMAND, "tail", "--json", "--engine", "core") as tail:
        tail.stdout.readline()
        time.sleep(2)
        report("after the start", tail.pid)
        with forked(open_and_close) as child:
            read_events(tail.stdout, child, 2 * PAIRS)
            time.sleep(0.5)
            report(f"after {2 * PAIRS:,} events", tail.pid)


if __name__ == "__main__":
    main()
