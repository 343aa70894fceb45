"""Store: decoded, resized training images and labels, so that a step reads instead of decoding.

One file of N equal rows per set, memory mapped. Its name is a digest of what it is made of, so a changed
file or size makes another cache; rows that are filled are marked, so a killed run goes on filling.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.errors import DataError
from endauda_cli.progress import Reporter, Tick
from endauda_cli.threads import ordered_map

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]


def cached_rows(
    folder: Path,
    title: str,
    files: Sequence[Path],
    recipe: str,
    shape: tuple[int, ...],
    read: Callable[[int], UInt8],
    workers: int,
    report: Reporter,
) -> UInt8:
    """An array (N, *shape) uint8 on disk, filled by ``read`` where an earlier run has not done so.

    Args:
        folder: of caches; any file in it may be deleted while no run is using it.
        title: what the progress bar says.
        files: what row i is made of; a file that changes makes another cache.
        recipe: what else the rows depend on.
        shape: of a row.
        read: makes row i.
        workers: rows made at once.
        report: told of progress.

    Raises:
        DataError: if there is no room on the disk, or a file cannot be read.
    """
    key = hashlib.sha256(recipe.encode())
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{file}: no such file") from error
        key.update(f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    path = folder / f"{key.hexdigest()[:24]}.bin"
    if not path.exists():
        path.with_suffix(".filled").unlink(missing_ok=True)  # somebody made room by deleting the large file
    rows = _open(path, (len(files), *shape))
    filled = _open(path.with_suffix(".filled"), (len(files),))
    todo = [int(i) for i in np.flatnonzero(filled == 0)]

    def fill(i: int) -> int:
        rows[i] = read(i)
        return i

    with ThreadPoolExecutor(workers) as pool:
        report(Tick(title, 0, len(todo), kept=0))
        for done, i in enumerate(ordered_map(pool, fill, todo, workers + 2), 1):
            filled[i] = 1  # after its row, so a kill in between only means doing it again
            report(Tick(title, done, len(todo), kept=done))
    return rows


def _open(path: Path, shape: tuple[int, ...]) -> UInt8:
    size = int(np.prod(shape))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("ab") as file:
            if hasattr(os, "posix_fallocate"):
                # Reserved now: writing a mapped page that the disk has no room for would kill the process.
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise DataError(
            f"{path}: no room for {size / 2**20:.0f} MiB of decoded images ({error}); free disk space, or "
            "name another folder with --cache"
        ) from error
    return np.memmap(path, np.uint8, "r+", shape=shape)
