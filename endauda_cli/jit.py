"""Functions over pixels, compiled by numba.

Machine code is kept beside the source, else in the user's own cache folder, so only the first call on a machine
waits for the compiler. Compiled functions leave Python's lock.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

# Settings for other programs, from the environment or a file of numba's in the current folder, which yields to it:
# numba does not even load with no threads at all, and loops over pixels that are not compiled take hours, or read
# memory as only machine code can. Whoever imports numba imports this module first.
if not os.environ.get("NUMBA_NUM_THREADS", "").strip().lstrip("+0").isdecimal():
    os.environ["NUMBA_NUM_THREADS"] = str(os.cpu_count() or 1)
os.environ["NUMBA_DISABLE_JIT"] = "0"

import numba
from numba.core import event
from numba.core.caching import FunctionCache

from endauda_cli import compiling

if TYPE_CHECKING:
    from collections.abc import Callable


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code, made at its first call for each kind of arguments.

    Where the code cannot be kept, each process compiles anew.
    """
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    # No folder to keep it in: a read-only installation of a user without a home.
    with contextlib.suppress(RuntimeError):
        dispatcher._cache = _Cache(function)
    return dispatcher  # type: ignore[no-any-return]


class _Listener(event.Listener):
    """Functions compile each other, and threads wait for one that does."""

    def __init__(self) -> None:
        self.depth = 0

    def on_start(self, event: Any) -> None:
        self.depth += 1
        if self.depth == 1:
            compiling.tell(0, None)

    def on_end(self, event: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            compiling.tell(1, 1)


event.register("numba:compile", _Listener())


class _Cache(FunctionCache):
    """Numba's cache, but for its troubles: without it there is the compiler.

    A full disk ends numba's own in an error, and so does, in every run from then on, a file that a power cut
    left empty.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # unpickling damaged bytes raises many things
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)
