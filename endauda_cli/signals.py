"""How a process ends that is asked to: Ctrl-C, and SIGTERM, which Slurm and ``docker stop`` send before they kill.

While an engine works (:func:`working`), the signal comes as :class:`Stopped`, so that files are closed; a training
step is finished and saved first (:func:`deferred`). At any other time, in the midst of an import say, and when a
second signal comes, nothing is worth a wait: the process ends at once. All stores survive that.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)

ECHO_S = 0.5
"""Whoever started this process (torchrun, make, srun) passes the terminal's Ctrl-C on: that is no second one."""


AGAIN_S = 0.01
"""A destructor has ended by then, or the signal comes once more."""
GRACE_S = 1.0
CLOSING_S = 20.0
"""Less than the 30 s after which torchrun kills; see ``watched``."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As shells give it: 130 or 143."""
        return 128 + self.number


Leave = Callable[[Stopped], None]


@dataclass
class _State:
    leave: Leave | None = None
    """Ends the process; ``None`` while signals are not ours."""
    first: int | None = None
    """The signal that came."""
    came_at: float = 0.0
    working: int = 0
    deferring: int = 0
    dropped: bool = False
    """Whether Python dropped the ``Stopped`` that was raised."""
    coming: bool = False
    """Whether it is to be raised again."""
    heard: bool = False
    """Whether a thread hears of signals."""
    leaving: threading.Lock = field(default_factory=threading.Lock)
    """Held by the thread that ends the process."""
    leaver: int | None = None
    """Its identity."""


_state = _State()


@contextmanager
def handled(leave: Leave) -> Iterator[None]:
    """While open, SIGINT and SIGTERM are handled as told above; a signal that the parent ignores stays ignored.

    Args:
        leave: ends the process at once.
    """
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may ask for signals
        return
    outer, _state = _state, _State(leave)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    dropped, sys.unraisablehook = sys.unraisablehook, _raise_again(sys.unraisablehook)
    try:
        for number in SIGNALS:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, _receive)
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it was set by other than Python, which cannot set it again
                signal.signal(number, handler)
        sys.unraisablehook = dropped
        _state = outer


@contextmanager
def working() -> Iterator[None]:
    """While open, there are files to close: a signal is raised as :class:`Stopped`."""
    _state.working += 1
    try:
        yield
    finally:
        _state.working -= 1


@contextmanager
def deferred() -> Iterator[None]:
    """While open, a signal is not raised; ask :func:`asked` at a point where all can be saved.

    A second one ends the process, also in the midst of a step that takes minutes.
    """
    if _state.leave is None:  # used as a library
        with handled(_raise), working(), deferred():
            yield
        return
    _state.deferring += 1
    try:
        with _heard(_insist):
            yield
    finally:
        _state.deferring -= 1


@contextmanager
def watched() -> Iterator[None]:
    """While open, a signal ends the process also where the main thread waits in a library's call, for other processes
    say, and Python cannot handle it: after ``GRACE_S``; and after ``CLOSING_S`` if what closes then waits likewise."""
    with _heard(_watch):
        yield


@contextmanager
def _heard(listen: Callable[[socket.socket, _State], None]) -> Iterator[None]:
    """While open, a thread hears of signals as they come: Python tells its handlers only between two calls, and of two
    signals that came during one it tells once."""
    here = threading.current_thread() is threading.main_thread()
    if not here or _state.heard or _state.leave in (None, _raise):
        yield
        return
    import socket  # every start imports this module

    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=listen, args=(ear, _state), name="signals", daemon=True).start()
    state, _state.heard = _state, True
    try:
        yield
    finally:
        state.heard = False
        signal.set_wakeup_fd(before)
        mouth.close()  # ends the thread


def _signals(ear: socket.socket) -> Iterator[int]:
    """Those of ours that come, until all is closed."""
    while heard := ear.recv(1):
        if heard[0] in SIGNALS and signal.getsignal(heard[0]) is _receive:
            yield heard[0]


def _insist(ear: socket.socket, state: _State) -> None:
    """The thread of ``deferred``."""
    first, came_at = None, 0.0
    with ear:
        for number in _signals(ear):
            if first is None:
                first, came_at = number, time.monotonic()
            elif time.monotonic() - came_at >= ECHO_S:
                _end(state, first)


def _watch(ear: socket.socket, state: _State) -> None:
    """The thread of ``watched``."""
    with ear:
        number = next(_signals(ear), None)
        if number is None:
            return
        for wait_s in (GRACE_S, CLOSING_S):
            ear.settimeout(wait_s)
            until = time.monotonic() + wait_s
            while time.monotonic() < until:
                try:
                    if not ear.recv(1):
                        return  # all is closed
                except TimeoutError:
                    break
            handled_by_python = state.first is not None and wait_s == GRACE_S
            if not handled_by_python:
                _end(state, number)


def _end(state: _State, number: int) -> None:
    """Leave the process, once: another thread may be about it, or this one when a signal comes once more."""
    if state.leave is None:
        return
    here = threading.get_ident()
    if not state.leaving.acquire(blocking=False):
        if state.leaver != here:
            time.sleep(60)
        return
    state.leaver = here
    try:
        state.leave(Stopped(number))
    finally:
        state.leaving.release()


def asked() -> Stopped | None:
    """What a signal asked for, if one came."""
    return None if _state.first is None else Stopped(_state.first)


def heed(stopped: Stopped) -> None:
    """Take up a signal that came to another process of the same job, as if it had come here."""
    if _state.first is None:
        _state.first, _state.came_at = stopped.number, time.monotonic()


def _raise_again(
    report: Callable[[sys.UnraisableHookArgs], object],
) -> Callable[[sys.UnraisableHookArgs], None]:
    """A hook for what Python drops, an exception in the midst of a destructor say: a :class:`Stopped` comes again as
    soon as that has ended, instead of a traceback on the terminal; others are told as before."""

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, Stopped):
            report(dropped)
            return
        _state.dropped = _state.coming = True
        again = threading.Timer(AGAIN_S, _come_again, (_state, dropped.exc_value.number))
        again.daemon = True
        again.start()

    return hook


def _come_again(state: _State, number: int) -> None:
    """From another thread: has the handler called between two steps of the main thread."""
    if state is _state:
        _thread.interrupt_main(signal.Signals(number))


def remind() -> None:
    """Raise a :class:`Stopped` that got lost, at a point where all can be left.

    Raises:
        Stopped: if a signal has come, and an engine works that has not put it off.
    """
    here = threading.current_thread() is threading.main_thread()
    if here and _state.first is not None and _state.working and not _state.deferring:
        _state.dropped = False
        raise Stopped(_state.first)


def _receive(number: int, frame: object) -> None:
    now = time.monotonic()
    if _state.coming:  # not from outside
        _state.coming = False
        if _state.dropped:
            remind()
        return
    if _state.first is not None:
        if now - _state.came_at < ECHO_S:
            return
    else:
        _state.first, _state.came_at = number, now
        if _state.working:
            if not _state.deferring:
                raise Stopped(number)
            return
    _end(_state, _state.first)


def _raise(stopped: Stopped) -> None:
    raise stopped
