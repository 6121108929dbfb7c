"""20,000 ports opened and closed as fast as a core can: what arrives, in which order, and how late."""

import statistics
import time

from common import begin, judge, show, workload

from portwatch import PortWatcher

PAIRS = 20_000
BLOCKS = 5


class Storm:
    """What came of a storm."""

    def __init__(self, program):
        self.events = []
        self.lost = 0
        self._pid = program.pid
        with PortWatcher(callback=self._note, snapshot=False) as watcher:
            watcher.listeners()  # returns when what the start left to do is done
            self.nanoseconds = program.nanoseconds("listen_close", PAIRS)
            self.ended = time.monotonic()
            while len(self.events) < 2 * PAIRS and time.monotonic() < self.ended + 10:
                time.sleep(0.001)
            self.delivered = time.monotonic()

    def _note(self, event):
        if event.kind == "gap":
            self.lost += event.lost
        elif event.ns_pid == self._pid and event.origin == "event":
            self.events.append((event.cookie, event.kind, event.time))

    def out_of_order(self):
        """Sockets of which anything but one open and then its close was told."""
        told = {}
        for cookie, kind, moment in self.events:
            told.setdefault(cookie, []).append((kind, moment))
        return sum(
            [kind for kind, _ in events] != ["open", "close"] or events[0][1] > events[1][1]
            for events in told.values()
        )


def main():
    begin(f"A storm: {PAIRS:,} times socket, bind, listen, close, as fast as a core can")
    storms, untraced = [], []
    with workload() as program:
        program.nanoseconds("listen_close", PAIRS)
        for _ in range(BLOCKS):
            untraced.append(program.nanoseconds("listen_close", PAIRS))
            storms.append(Storm(program))
    judge("events that arrived, the fewest", min(len(storm.events) for storm in storms), "", least=2 * PAIRS)
    judge("lost, the most", max(storm.lost for storm in storms), "", most=0)
    judge("sockets told of out of order", sum(storm.out_of_order() for storm in storms), "", most=0)
    after = [storm.delivered - storm.ended for storm in storms]
    judge("from the end of the storm to its last event", max(after), "s", most=1)
    took = [late + PAIRS * storm.nanoseconds / 1e9 for late, storm in zip(after, storms, strict=True)]
    show("events a second: from the kernel", f"{2e9 / statistics.median(s.nanoseconds for s in storms):,.0f}")
    show("events a second: to the callback", f"{2 * PAIRS / statistics.median(took):,.0f}")
    base, traced = statistics.median(untraced), statistics.median(storm.nanoseconds for storm in storms)
    show("socket, bind, listen, close without", f"{base / 1000:.1f} µs")
    show("socket, bind, listen, close with", f"{traced / 1000:.1f} µs ({100 * (traced / base - 1):+.0f} %)")


if __name__ == "__main__":
    main()
