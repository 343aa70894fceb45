"""Loops over pixels as machine code: numba, as this project uses it.

Import this module only where the loops are: numba takes a good part of a second to import.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numba
from numba.core.caching import FunctionCache

if TYPE_CHECKING:
    from collections.abc import Callable


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function at its first call, without Python's lock, so that threads run it side by side.

    The machine code is kept beside the source, or in the user's cache folder where that is read-only, so
    only the first run waits for the compiler. Where it cannot be kept, each process compiles anew.
    """
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    with contextlib.suppress(RuntimeError):  # numba found no folder for its cache
        dispatcher._cache = _Cache(function)
    return dispatcher  # type: ignore[no-any-return]


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
