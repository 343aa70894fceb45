"""Engine: who may write a label set now: processes of one recipe side by side, and nobody else."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from endauda_cli.errors import ConfigError
from endauda_cli.files import WriterLock, cannot_write
from endauda_cli.progress import Note, Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT_S = 60.0
"""For those who look at the same moment; none of them needs long."""
POLL_S = 0.2


@contextmanager
def only_recipe(folder: Path, fingerprint: str, shard: tuple[int, int], report: Reporter) -> Iterator[None]:
    """Hold a label set for this recipe; parts of it may be made at once by as many processes.

    A process that is told to do exactly what another one is doing waits, and then finds it done.

    Args:
        folder: of the label set; made if need be.
        fingerprint: of the recipe.
        shard: (number, of): the part.
        report: told who is waited for.

    Raises:
        ConfigError: if a process fuses other labels into the folder, and which one; or if it cannot be written.
    """
    number, of = shard
    mine = WriterLock(folder / f".fuse-{fingerprint}-{number}-of-{of}.lock")
    told = False
    try:
        while not _admitted(folder, fingerprint, mine):
            if not told:
                report(Note(f"{folder}: {mine.holder} fuses the same labels; waiting for it", "warning"))
                told = True
            time.sleep(POLL_S)
    except OSError as error:
        raise ConfigError(f"{folder}: {cannot_write(error)}") from error
    try:
        yield
    finally:
        mine.release()


def _admitted(folder: Path, fingerprint: str, mine: WriterLock) -> bool:
    """Whether ``mine`` is held now. Only one process looks at a time, so two recipes never let each other in."""
    door = WriterLock(folder / ".fuse.lock")
    if not door.acquire(WAIT_S):
        raise ConfigError(f"{folder}: {door.holder} has not let others in for {WAIT_S:.0f} s; run again")
    try:
        for path in sorted(folder.glob(".fuse-*.lock")):
            if path.name.startswith(f".fuse-{fingerprint}-"):
                continue
            other = WriterLock(path)
            if not other.acquire():
                raise ConfigError(
                    f"{folder}: {other.holder} is fusing labels with other options or from other archives here; wait "
                    "for it, or give these another --name"
                )
            other.release()  # of a process that is no more
        return mine.acquire()
    finally:
        door.release()
