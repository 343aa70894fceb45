"""Functions over pixels, compiled by numba; and rows of an image shared out to threads.

Machine code is kept beside the source, else in the user's own cache folder, so only the first call on a machine
waits for the compiler. Compiled functions leave Python's lock.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numba

from endauda_cli.pipeline import cores

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_ROWS = 64
"""Rows per thread below which sharing out costs more than it gains."""


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code, made at its first call for each kind of arguments."""
    compile: Callable[..., Any] = partial(numba.njit, nogil=True, error_model="numpy")
    try:
        return compile(cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no folder to keep it in: a read-only installation of a user without a home
        return compile()(function)  # type: ignore[no-any-return]


def in_bands(height: int, work: Callable[[int, int], object]) -> None:
    """``work(first, last)`` for bands of rows that make up the height, in as many threads as there are cores."""
    bands = max(1, min(cores(), height // LEAST_ROWS))
    edges = [height * i // bands for i in range(bands + 1)]
    if bands == 1:
        work(0, height)
    else:
        list(_pool(os.getpid()).map(work, edges[:-1], edges[1:]))


@cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """This process's threads; after a fork, its own."""
    return ThreadPoolExecutor(cores(), "bands")
