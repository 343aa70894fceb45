"""Who is told when machine code is made, without loading what makes it (``jit``): half a second that some runs save."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from endauda_cli.progress import Tick

if TYPE_CHECKING:
    from collections.abc import Iterator

    from endauda_cli.progress import Reporter

COMPILING = "compiling loops, once per machine"

_told: list[Reporter] = []


@contextlib.contextmanager
def compiling_told(report: Reporter) -> Iterator[None]:
    """While open, say so when machine code is made: the first run on a machine waits for it."""
    _told.append(report)
    try:
        yield
    finally:
        _told.remove(report)


def tell(done: int, total: int | None) -> None:
    """Compiling begins, ``None``, or has ended."""
    if _told:
        _told[-1](Tick(COMPILING, done, total))
