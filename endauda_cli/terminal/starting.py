"""The first and the last moment of the process. Standard library only."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from io import TextIOWrapper


def hush() -> None:
    """Until ``ending`` handles signals: end at once, without a traceback from the midst of an import."""

    def stop(number: int, frame: object) -> None:
        with suppress(OSError):
            os.write(2, b"endauda: interrupted before it began\n")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def mend_surroundings() -> None:
    """See to it that words can be printed, whatever the caller has left of streams, locale and ``COLUMNS``."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed (``>&-``); the next file that is opened would take its place
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace"))
    if isinstance(sys.stdout, TextIOWrapper):  # as stderr has it: no locale keeps a name from being shown
        sys.stdout.reconfigure(errors="backslashreplace")
    columns = os.environ.get("COLUMNS", "1")
    if not (
        columns.isdecimal() and 0 < int(columns[:5]) < 10_000
    ):  # rich prints nothing into 0, and fills them all
        del os.environ["COLUMNS"]


def unloadable(error: ImportError | OSError) -> str | None:
    """What to do about a library that is missing, broken or of another version; ``None`` for a module of ours."""
    name = getattr(error, "name", None) or ""
    if name.partition(".")[0] == __name__.partition(".")[0]:
        return None
    what = str(error).strip().partition("\n")[0].rstrip(".")
    return (
        f"this installation lacks a library, or has one that does not fit: {what}; see what "
        f"'{sys.executable} -m pip check' says and install that, or endauda anew"
    )


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
