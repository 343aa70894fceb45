"""Functions over pixels, compiled by numba; and rows of an image shared out to threads.

Machine code is kept beside the source, else in the user's own cache folder, so only the first call on a machine
waits for the compiler. Compiled functions leave Python's lock.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

Function = TypeVar("Function", bound="Callable[..., object]")

LEAST_ROWS = 64
"""Rows per thread below which sharing out costs more than it gains."""


def jit(function: Function) -> Function:
    """The function as machine code, made at its first call for each kind of arguments."""
    try:
        compiled: Function = numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # no folder to keep it in: a read-only installation of a user without a home
        compiled = numba.njit(function, nogil=True)
    return compiled


def in_bands(height: int, work: Callable[[int, int], object]) -> None:
    """``work(first, last)`` for bands of rows that make up the height, in as many threads as there are cores."""
    bands = max(1, min(cores(), height // LEAST_ROWS))
    edges = [height * i // bands for i in range(bands + 1)]
    if bands == 1:
        work(0, height)
    else:
        list(_pool(os.getpid()).map(work, edges[:-1], edges[1:]))


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """This process's threads; after a fork, its own."""
    return ThreadPoolExecutor(cores(), "bands")
