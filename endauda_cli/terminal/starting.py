"""The first and the last moment of the process. Standard library only."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress


def hush() -> None:
    """Until ``ending`` handles signals: end at once, without a traceback from the midst of an import."""

    def stop(number: int, frame: object) -> None:
        with suppress(OSError):
            os.write(2, b"endauda: interrupted before it began\n")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def leave(code: int) -> None:
    """End the process. After an interrupt nothing is waited for: a thread may hang in a library's call."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # all has been said
    if code > 128:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        if threading.active_count() > 1 or "torch" in sys.modules:
            os._exit(code)
    sys.exit(code)
