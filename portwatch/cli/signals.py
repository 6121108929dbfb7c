"""How SIGINT, SIGTERM and SIGHUP end a command."""

from __future__ import annotations

import os
import signal

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_on_signals(*, as_success: bool) -> None:
    """End at once on each of these, silently; with `as_success`, with exit code 0.

    Not by an exception: raised while libbpf calls back into Python, it would be printed and lost. The kernel
    detaches the programs when our descriptors are closed.
    """
    for ending in ENDINGS:
        if signal.getsignal(ending) != signal.SIG_IGN:  # ignored by nohup, or by a shell for background jobs
            signal.signal(ending, (lambda *_: os._exit(0)) if as_success else signal.SIG_DFL)
