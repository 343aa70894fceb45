"""Work done ahead by threads, in order and bounded.

Reading, resizing and coding leave Python's lock, so threads overlap them with the network. ``ordered_map``
is what ``Executor.map`` lacks: at most ``ahead`` results are alive, so a data set of any length streams.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from endauda_cli.options import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future

Item = TypeVar("Item")
Result = TypeVar("Result")

LEAST_ROWS = 64
"""Rows per thread below which sharing out costs more than it gains."""


def ordered_map(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """``function`` of each item, in order, computed in the pool at most ``ahead`` items early.

    An error in ``function`` is raised at its item's turn, one in ``items`` after the results of the items before
    it; work not begun is then cancelled.
    """
    waiting: deque[Future[Result]] = deque()
    iterator, failure = iter(items), None
    try:
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failure is not None:
            raise failure
    finally:
        for future in waiting:
            future.cancel()


def in_bands(height: int, work: Callable[[int, int], object]) -> None:
    """``work(first, last)`` for bands of rows that make up the height, in as many threads as there are cores."""
    bands = max(1, min(cores(), height // LEAST_ROWS))
    edges = [height * i // bands for i in range(bands + 1)]
    if bands == 1:
        work(0, height)
    else:
        list(shared_pool("bands", cores()).map(work, edges[:-1], edges[1:]))


def shared_pool(name: str, size: int) -> ThreadPoolExecutor:
    """This process's threads of that name; after a fork, its own."""
    return _pool(name, size, os.getpid())


@cache
def _pool(name: str, size: int, pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, name)
