"""Files: written whole or not at all, locked, and with room on the disk. Standard library only."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

if sys.platform != "win32":
    import fcntl

_POLL_S = 0.05


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
