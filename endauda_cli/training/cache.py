"""Store: decoded, resized training images and labels, so that a step reads instead of decoding.

One file of N equal rows per set, memory mapped. Its name is a digest of what it is made of, so a changed
file or size makes another cache; rows that are filled are marked, so a killed run goes on filling.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.errors import DataError
from endauda_cli.files import cannot_write
from endauda_cli.progress import Reporter, Tick
from endauda_cli.threads import ordered_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import BufferedWriter
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
) -> UInt8 | RowFile:
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
    if _size(path) != math.prod((len(files), *shape)):
        # Somebody made room by deleting the large file, or it was copied in part.
        with suppress(OSError):
            path.with_suffix(".filled").unlink(missing_ok=True)
    rows = _open(path, (len(files), *shape))
    filled = _open(path.with_suffix(".filled"), (len(files),))
    todo = [int(i) for i in np.flatnonzero(np.asarray(filled) == 0)]

    def fill(i: int) -> int:
        rows[i] = read(i)
        return i

    with ThreadPoolExecutor(workers) as pool:
        report(Tick(title, 0, len(todo), kept=0))
        for done, i in enumerate(ordered_map(pool, fill, todo, workers + 2), 1):
            filled[i] = 1  # after its row, so a kill in between only means doing it again
            report(Tick(title, done, len(todo), kept=done))
    return rows


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


class RowFile:
    """Rows of a file that cannot be mapped, as some network shares and FUSE have them: read and written one by one."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._bytes = math.prod(shape[1:])
        self._descriptor = os.open(path, os.O_RDWR)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[UInt8]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> UInt8:
        content = os.pread(self._descriptor, self._bytes, int(i) * self._bytes)
        return np.frombuffer(content, np.uint8).reshape(self.shape[1:])

    def __setitem__(self, i: int, row: UInt8 | int) -> None:
        content = np.asarray(row, np.uint8).tobytes()
        if os.pwrite(self._descriptor, content, int(i) * self._bytes) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.stack(list(self))


def _open(path: Path, shape: tuple[int, ...]) -> UInt8 | RowFile:
    size = math.prod(shape)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            _reserve(file, size)
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise DataError(
                f"{path}: no room for {size / 2**20:.0f} MiB of decoded images ({error.strerror}); free disk space, "
                "or name another folder with --cache"
            ) from error
        raise DataError(f"{path}: {cannot_write(error)}, or name another folder with --cache") from error
    try:
        return np.memmap(path, np.uint8, "r+", shape=shape)
    except OSError:
        return RowFile(path, shape)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _reserve(file: BufferedWriter, size: int) -> None:
    """Take the room now: writing a mapped page that the disk has no room for would kill the process."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV):
                raise
    while (missing := size - os.fstat(file.fileno()).st_size) > 0:  # the system cannot reserve
        os.write(file.fileno(), bytes(min(missing, 1 << 20)))
