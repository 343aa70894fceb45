"""Loops over pixels as machine code: numba, as this project uses it.

Import this module only where the loops are: numba takes a good part of a second to import.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numba

if TYPE_CHECKING:
    from collections.abc import Callable


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function at its first call, without Python's lock, so that threads run it side by side.

    The machine code is kept beside the source, or in the user's cache folder where that is read-only, so
    only the first run waits for the compiler. Where neither can be written, each process compiles anew.
    """
    compile: Callable[..., Any] = partial(numba.njit, nogil=True, error_model="numpy")
    try:
        return compile(cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # numba found no folder for its cache
        return compile()(function)  # type: ignore[no-any-return]
