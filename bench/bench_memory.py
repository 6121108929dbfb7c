"""What `portwatch tail` holds of memory: at rest, and when its ring buffer has been touched all over."""

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
    """Resident, and its share of what it shares, now; and the most it ever had resident."""
    status = (Path(f"/proc/{pid}/status").read_text() + Path(f"/proc/{pid}/smaps_rollup").read_text()).split()
    return tuple(int(status[status.index(name) + 1]) / 1024 for name in ("VmRSS:", "Pss:", "VmHWM:"))


def say(when, pid):
    resident, share, most = mebibytes(pid)
    judge(f"{when}: RSS", resident, "MB", most=40)
    show(f"{when}: Pss", f"{share:.1f} MB   (most resident so far: {most:.1f} MB)")


def read_events(stream, pid, count):
    for event in map(json.loads, stream):
        if event["kind"] == "gap":
            show("", f"but {event['lost']} records were lost, to which others here may have added")
        count -= event["lost"] or event["ns_pid"] == pid
        if count <= 0:
            return


def main():
    begin("How much memory: portwatch tail")
    with subprocess.Popen(
        (sys.executable, "-c", "import sys; sys.stdin.read()"), stdin=subprocess.PIPE
    ) as bare:
        time.sleep(0.5)
        show("python without anything: RSS", f"{mebibytes(bare.pid)[0]:.1f} MB")
        bare.stdin.close()
    with socket.create_server(("127.0.0.1", 0)), running(COMMAND, "tail", "--json", "--engine", "core") as tail:
        tail.stdout.readline()
        time.sleep(2)
        say("after the start", tail.pid)
        with forked(open_and_close) as child:
            read_events(tail.stdout, child, 2 * PAIRS)
            time.sleep(0.5)
            say(f"after {2 * PAIRS:,} events", tail.pid)


if __name__ == "__main__":
    main()
