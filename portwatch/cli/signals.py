"""How SIGINT, SIGTERM and SIGHUP end a command."""

from __future__ import annotations

import os
import signal

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_on_signals(*, as_success: bool) -> None:
    """End silently on each of these signals: with exit code 0 if `as_success`, else killed by the signal.

    No handler raises an exception: ctypes prints and drops one that is raised while libbpf calls back into
    Python. No cleanup is needed, because the kernel detaches the BPF programs when our descriptors close.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # ignored by nohup, or by a shell for background jobs
            signal.signal(number, (lambda *_: os._exit(0)) if as_success else signal.SIG_DFL)
