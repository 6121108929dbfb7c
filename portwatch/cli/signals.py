"""How SIGINT, SIGTERM and SIGHUP end a command."""

from __future__ import annotations

import os
import signal

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_on_signals(*, as_success: bool) -> None:
    """Let SIGINT, SIGTERM and SIGHUP end this process silently.

    If `as_success` is true, the process exits with 0. Otherwise the signal kills it.

    The handlers raise no exception, because a signal may arrive while libbpf calls back into Python. ctypes
    would then print the exception and drop it. No cleanup is needed, because the kernel detaches the BPF
    programs when our descriptors close.
    """
    for number in _SIGNALS:
        # A signal that is ignored at the start stays ignored: nohup does this, and shells for background jobs.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, (lambda *_: os._exit(0)) if as_success else signal.SIG_DFL)
