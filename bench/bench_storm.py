"""Loss, order and delay of the events while one CPU opens and closes 20,000 ports as fast as it can."""

import statistics
import time

from common import begin, judge, show, workload

from portwatch import PortWatcher

PAIRS = 20_000
BLOCKS = 5


class Storm:
    """One run of the workload and the events that it caused."""

    def __init__(self, program):
        self.events = []
        self.lost = 0
        self._pid = program.pid
        with PortWatcher(callback=self._record, snapshot=False) as watcher:
            watcher.listeners()  # returns only after the start is complete
            self.nanoseconds = program.nanoseconds("listen_close", PAIRS)
            self.ended = time.monotonic()
            while len(self.events) < 2 * PAIRS and time.monotonic() < self.ended + 10:
                time.sleep(0.001)
            self.delivered = time.monotonic()

    def _record(self, event):
        if event.kind == "gap":
            self.lost += event.lost
        elif event.ns_pid == self._pid and event.origin == "event":
            self.events.append((event.cookie, event.kind, event.time))

    def out_of_order(self):
        """Return how many sockets have other events than one open and one later close."""
        by_socket = {}
        for cookie, kind, timestamp in self.events:
            by_socket.setdefault(cookie, []).append((kind, timestamp))
        return sum(
            [kind for kind, _ in events] != ["open", "close"] or events[0][1] > events[1][1]
            for events in by_socket.values()
        )


def main():
    begin(f"Burst: {PAIRS:,} times socket, bind, listen, close, as fast as one CPU can")
    storms, untraced = [], []
    with workload() as program:
        program.nanoseconds("listen_close", PAIRS)
        for _ in range(BLOCKS):
            untraced.append(program.nanoseconds("listen_close", PAIRS))
            storms.append(Storm(program))
    judge(
        "events delivered, minimum of all runs", min(len(storm.events) for storm in storms), "", least=2 * PAIRS
    )
    judge("events lost, maximum of all runs", max(storm.lost for storm in storms), "", most=0)
    judge("sockets with events out of order", sum(storm.out_of_order() for storm in storms), "", most=0)
    delays = [storm.delivered - storm.ended for storm in storms]
    judge("delay from the last close to its event, maximum", max(delays), "s", most=1)
    took = [delay + PAIRS * storm.nanoseconds / 1e9 for delay, storm in zip(delays, storms, strict=True)]
    show(
        "events caused by the workload, per second",
        f"{2e9 / statistics.median(s.nanoseconds for s in storms):,.0f}",
    )
    show("events delivered to the callback, per second", f"{2 * PAIRS / statistics.median(took):,.0f}")
    base, traced = statistics.median(untraced), statistics.median(storm.nanoseconds for storm in storms)
    show("socket, bind, listen, close without tracing", f"{base / 1000:.1f} µs")
    show(
        "socket, bind, listen, close with tracing",
        f"{traced / 1000:.1f} µs ({100 * (traced / base - 1):+.0f} %)",
    )


if __name__ == "__main__":
    main()
