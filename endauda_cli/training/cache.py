"""Store: decoded, resized training images and labels, so that a step reads instead of decoding.

One file of N equal rows per set, memory mapped, and beside it a check sum per row, which says that the row is filled
and with what. The name is a digest of what the rows are made of, so a changed file or size makes another cache; a
killed run goes on filling, and what a power cut or a disk has spoilt is decoded again instead of learnt from.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import threading
import time
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.errors import DataError
from endauda_cli.files import cannot_write, is_file_of, lock_file, read_bytes
from endauda_cli.progress import Note, Reporter, Tick
from endauda_cli.threads import ordered_map
from endauda_cli.training.pruning import ROWS, SUMS, Use, supersede, unlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]

_LOCK_TRIES, _POLL_S = 100, 0.05


def cached_rows(
    folder: Path,
    title: str,
    files: Sequence[Path],
    recipe: str,
    shape: tuple[int, ...],
    read: Callable[[int], UInt8],
    workers: int,
    report: Reporter,
    use: Use | None = None,
) -> RowFile:
    """Rows on disk, filled by ``read`` where an earlier run has not done so; a complete cache need not be writable.

    Args:
        folder: of caches; any file in it may be deleted while no run is using it.
        title: what the progress bar says.
        files: what row i is made of; a file that changes makes another cache.
        recipe: what else the rows depend on.
        shape: of a row.
        read: makes row i; also later, from any thread, if what lies on the disk is damaged.
        workers: rows made at once.
        report: told of progress, of damage and of what was removed.
        use: who needs them for what; caches that nobody can use any more because of this one are removed.

    Raises:
        DataError: if there is no room on the disk, rows are missing where nothing can be written, or a file cannot be
            read.
    """
    path, names = _place(folder, files, recipe)
    if use is not None:
        supersede(path, names, use, report)
    rows = RowFile(path, (len(files), *shape), read, report)
    todo = rows.missing()
    if todo:
        rows.reserve()

    def fill(i: int) -> int:
        rows[i] = read(i)
        return i

    with ThreadPoolExecutor(workers) as pool:
        report(Tick(title, 0, len(todo), kept=0))
        for done, _ in enumerate(ordered_map(pool, fill, todo, workers + 2), 1):
            report(Tick(title, done, len(todo), kept=done))
    rows.map()
    return rows


def missing_bytes(folder: Path, files: Sequence[Path], recipe: str, shape: tuple[int, ...]) -> int:
    """What :func:`cached_rows` would write; nothing is.

    Raises:
        DataError: if a file is not there.
    """
    path, names = _place(folder, files, recipe)
    sums, row = _sums(path.with_suffix(SUMS), len(names)), math.prod(shape)
    with suppress(OSError):
        if path.stat().st_size >= len(names) * row:
            return int(np.count_nonzero(sums == 0)) * row
    return len(names) * row


def _place(folder: Path, files: Sequence[Path], recipe: str) -> tuple[Path, list[str]]:
    """Where a cache lies, and what its rows are made of."""
    key, names = hashlib.sha256(recipe.encode()), []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{file}: no such file") from error
        names.append(str(file.resolve()))
        key.update(f"{names[-1]}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return folder / f"{key.hexdigest()[:24]}{ROWS}", names


class RowFile:
    """N equal rows of uint8 in a file, each compared with its check sum when this process first reads it.

    A row that is not what was written is made again, and written again where that is possible. Read through a map
    where the disk has one (some network shares and FUSE do not), else row by row; always written by a call, which
    reports a full disk instead of killing the process. While it lives, no other process removes the file.

    Args:
        path: of the file, which is made if it is absent.
        shape: (N, ...).
        read: makes row i.
        report: told once if rows are damaged.

    Raises:
        DataError: if the file can be neither written nor read.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], read: Callable[[int], UInt8], report: Reporter
    ) -> None:
        self.shape = shape
        self._path, self._read, self._report = path, read, report
        self._bytes = math.prod(shape[1:])
        self._lock, self._told = threading.Lock(), False
        self._file, self._why_not = _held(path)
        weakref.finalize(self, os.close, self._file)
        self._sums_file: int | None = None
        self._sums = _sums(path.with_suffix(SUMS), len(self))
        if os.fstat(self._file).st_size < math.prod(shape):
            self._sums[:] = 0  # somebody made room by deleting the large file, or it was copied in part
        self._whole = np.zeros(len(self), bool)
        self._map: UInt8 | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[UInt8]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> UInt8:
        if self._map is not None:
            row: UInt8 = self._map[i]
        else:
            content = os.pread(self._file, self._bytes, int(i) * self._bytes)
            if len(content) < self._bytes:
                return self._mended(i)
            row = np.frombuffer(content, np.uint8).reshape(self.shape[1:])
        if not self._whole[i]:
            if _sum(row) != self._sums[i]:
                return self._mended(i)
            self._whole[i] = True
        return row

    def __setitem__(self, i: int, row: UInt8) -> None:
        content = np.ascontiguousarray(row, np.uint8)
        found = _sum(content)
        with self._lock:
            sums_file = self._open_sums()
            _write(self._file, content.tobytes(), int(i) * self._bytes)
            self._sums[i] = found  # after its row, so a kill in between only means doing it again
            _write(sums_file, self._sums[i].tobytes(), int(i) * self._sums.itemsize)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.stack(list(self))

    def missing(self) -> list[int]:
        """Rows that were never filled."""
        return [int(i) for i in np.flatnonzero(self._sums == 0)]

    def map(self) -> None:
        """Read through a map from now on, if the disk has one."""
        with suppress(OSError), open(self._file, "rb", closefd=False) as file:
            self._map = np.asarray(np.memmap(file, np.uint8, "r", shape=self.shape))

    def reserve(self) -> None:
        """Take the room now, before anything is decoded.

        Raises:
            DataError: if there is none, or the file cannot be written.
        """
        size = math.prod(self.shape)
        try:
            if self._why_not is not None:
                raise self._why_not
            self._open_sums()
            _reserve(self._file, self._path, size)
        except OSError as error:
            if error.errno in _FULL:
                if not self._sums.any():
                    with suppress(OSError):
                        unlink(self._path)
                raise DataError(
                    f"{self._path}: no room for {size / 2**20:.0f} MiB of decoded images ({error.strerror}); free "
                    "disk space, or name another folder with --cache"
                ) from error
            filled = len(self) - len(self.missing())
            raise DataError(
                f"{self._path}: holds {filled} of {len(self)} decoded images and {cannot_write(error)}, or name "
                "another folder with --cache"
            ) from error

    def _open_sums(self) -> int:
        """The file of check sums; it says what this process knows, if it was none of so many rows."""
        if self._sums_file is None:
            path = self._path.with_suffix(SUMS)
            self._sums_file = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
            weakref.finalize(self, os.close, self._sums_file)
            if os.fstat(self._sums_file).st_size != self._sums.nbytes or not self._sums.any():
                os.ftruncate(self._sums_file, 0)
                os.ftruncate(self._sums_file, self._sums.nbytes)
        return self._sums_file

    def _mended(self, i: int) -> UInt8:
        """Row i from the files that it is made of."""
        with self._lock:
            told, self._told = self._told, True
        if not told:
            how = "they are decoded again" if self._why_not is None else "they are decoded at every use"
            self._report(
                Note(
                    f"{self._path}: decoded images in this cache are damaged, as a power cut or a disk leaves them; "
                    f"{how} from their files, and not learnt from",
                    "warning",
                )
            )
        row = self._read(int(i))
        if self._why_not is None:
            with suppress(OSError):  # a full disk: the row is right all the same
                self[i] = row
        return row


def _sum(row: UInt8) -> int:
    """Of a row's bytes; never 0, which says that a row is not filled."""
    return zlib.crc32(row.data) or 1


def _sums(path: Path, count: int) -> NDArray[np.uint32]:
    """(N,) uint32, 0 where a row is not filled: what the file says, if it is one of so many rows."""
    sums = np.zeros(count, "<u4")
    with suppress(OSError):
        content = read_bytes(path, sums.nbytes)
        if len(content) == sums.nbytes:
            sums[:] = np.frombuffer(content, "<u4")
    return sums


def _write(descriptor: int, content: bytes, offset: int) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    if os.write(descriptor, content) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _held(path: Path) -> tuple[int, OSError | None]:
    """The file, open and locked so that nobody removes it; and why it cannot be written, if so."""
    for _ in range(_LOCK_TRIES):
        descriptor, why_not = _opened(path)
        try:
            lock_file(descriptor, shared=True)
            if is_file_of(descriptor, path):
                return descriptor, why_not
        except BlockingIOError:  # somebody is removing it just now
            time.sleep(_POLL_S)
        os.close(descriptor)
    return _opened(path)


def _opened(path: Path) -> tuple[int, OSError | None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666), None
    except OSError as error:
        why_not = error
    try:
        if why_not.errno in _READ_ONLY:
            return os.open(path, os.O_RDONLY | _BINARY), why_not
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); let your user read it, or name another folder with "
            "--cache"
        ) from error
    raise DataError(f"{path}: {cannot_write(why_not)}, or name another folder with --cache") from why_not


_BINARY = getattr(os, "O_BINARY", 0)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def _reserve(descriptor: int, path: Path, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV):
                raise
    with path.open("ab") as file:  # the system cannot reserve; appended, for another process may fill it, too
        while (missing := size - os.fstat(descriptor).st_size) > 0:
            os.write(file.fileno(), bytes(min(missing, 1 << 20)))
