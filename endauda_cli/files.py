"""Files: read with a bound, written whole or not at all, locked, and with room on the disk. Standard library only."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader
    from pathlib import Path

if sys.platform != "win32":
    import fcntl

_POLL_S = 0.05

SETTINGS_BYTES = 16 << 20
"""More than any file of settings or of a description has, which somebody writes by hand or a program in one go."""
RECORD_BYTES = 1 << 30
"""More than any record has that grows by a line or an entry per image or step."""
IMAGE_BYTES = 2 << 30
"""More than any image file has."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: Path | str, most: int | None) -> BufferedReader:
    """A file that anybody may have made, open for reading: the door for every file that is not our own.

    Never waits for a pipe, never opens a device that has no end.

    Args:
        path: the file.
        most: bytes that a file of its kind can have; ``None`` where its reader takes no more memory than it needs.

    Raises:
        OSError: if it is absent, cannot be opened, is no regular file (EINVAL) or larger (EFBIG); its ``strerror``
            says so in a few words.
    """
    flags = (
        os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    )
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        kind = stat.S_IFMT(status.st_mode)
        if kind != stat.S_IFREG:
            raise OSError(
                errno.EINVAL, f"{_KINDS.get(kind, 'no file')}, where a regular file is expected", str(path)
            )
        if most is not None and status.st_size > most:
            raise _too_large(path, size_text(status.st_size), most)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path | str, most: int) -> bytes:
    """What the file holds; see :func:`open_regular`, which says what is raised."""
    with open_regular(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:  # it grew, or is one of those that have no size, as in /proc
        raise _too_large(path, "more", most)
    return content


def read_text(path: Path | str, most: int = SETTINGS_BYTES) -> str:
    """The same as text: UTF-8, without the mark that editors on Windows put before it.

    Raises:
        OSError: as :func:`open_regular`.
        UnicodeDecodeError: if it is no UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def _too_large(path: Path | str, size: str, most: int) -> OSError:
    return OSError(errno.EFBIG, f"{size}, but a file of this kind has at most {size_text(most)}", str(path))


@contextmanager
def replacing(path: Path, *, durable: bool = False, temporary: Path | None = None) -> Iterator[Path]:
    """A file to write, which gets the name ``path`` when the block ends: whoever looks sees all of it or nothing.

    Args:
        path: in a folder that is there.
        durable: wait until the disk has content and name.
        temporary: the file to write; removed if the block does not end well.

    Raises:
        OSError: if the disk is full or refuses; what was under ``path`` stays.
    """
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def sync(path: Path) -> None:
    """Wait until the disk has a file's content."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can: Windows opens none, some network shares refuse."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class WriterLock:
    """An exclusive lock on a file, which the system gives up when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self.enforced = False

    def acquire(self, wait_s: float = 0.0) -> bool:
        """Whether the lock is held now; tries for ``wait_s`` seconds.

        Where the system has no such locks (Windows, some network shares) it counts as held, but is not
        ``enforced``.
        """
        deadline = time.monotonic() + wait_s
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def release(self) -> None:
        """Gives the lock up and removes its file."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self) -> bool:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the last holder removed the folder just now
            return False
        except FileExistsError:  # the same between two looks that mkdir takes; or a file stands there
            if self._path.parent.exists() and not self._path.parent.is_dir():
                raise
            return False
        try:
            self.enforced = _lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return False
        if not _same_file(descriptor, self._path):  # its holder removed it between open and lock
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True


def _lock(descriptor: int) -> bool:
    """Whether the system has locks. Raises BlockingIOError if another process holds this one."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def free_bytes(folder: Path) -> int | None:
    """What the disk of a folder, which need not be there yet, has room for; ``None`` if nobody can tell."""
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    try:
        usage = shutil.disk_usage(existing)
    except OSError:
        return None
    # Some network shares say that they have no size at all.
    return usage.free if usage.total > 0 else None


def size_text(size: float) -> str:
    """``12.3 GB``, ``0.4 MB``."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
