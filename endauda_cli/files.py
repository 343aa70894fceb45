"""Files: read with a bound, written whole or not at all, locked, and with room on the disk. Standard library only."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader
    from pathlib import Path

if sys.platform != "win32":
    import fcntl

_POLL_S = 0.05
_BLOCK = 1 << 20
_OWNER_BYTES = 4096
_BEAT_S = 5.0
DEAD_AFTER_S = 60.0
"""A process that has not renewed its lock for so long is no more; where the system has no locks, see ``_Lease``."""

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
    content = bytearray()
    with open_regular(path, most) as file:
        # Block by block: asked for ``most`` at once, Python takes as much memory first, whatever the file's size.
        while len(content) <= most and (block := file.read(min(_BLOCK, most + 1 - len(content)))):
            content += block
    if len(content) > most:  # it grew, or is one of those that have no size, as in /proc
        raise _too_large(path, "more", most)
    return bytes(content)


def file_sha256(path: Path | str, most: int | None = None) -> str:
    """Of what the file holds, in hex. Raises OSError: as :func:`open_regular`."""
    import hashlib  # every TAB imports this module

    with open_regular(path, most) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path | str, most: int = SETTINGS_BYTES) -> str:
    """The same as text: UTF-8, without the mark that editors on Windows put before it.

    Raises:
        OSError: as :func:`open_regular`.
        UnicodeDecodeError: if it is no UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


_TOML_BYTES = 1 << 20
_TOML_DOTS = 200
"""In a line: the standard library takes time and memory with the square of a dotted key's parts."""


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file, which a person writes: up to 1 MB, keys of up to 200 parts.

    Raises:
        OSError: as :func:`open_regular`.
        ValueError: if it is no TOML or no UTF-8, whatever is wrong with it.
    """
    return parse_toml(read_text(path, _TOML_BYTES))


def parse_toml(text: str) -> dict[str, Any]:
    """As :func:`read_toml`, of a text.

    Raises:
        ValueError: if it is no TOML.
    """
    import tomllib  # few workspaces have such a file, and every TAB asks

    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > _TOML_DOTS:
            raise ValueError(f"more than {_TOML_DOTS} dots in line {number}")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def toml_line(key: str, value: str | float | bool | list[str]) -> str:
    """A key of letters, digits and dashes with its value, as :func:`read_toml` reads it; a float is written in full."""
    if isinstance(value, list):
        return f"{key} = [{', '.join(map(toml_text, value))}]"
    if isinstance(value, str):
        return f"{key} = {toml_text(value)}"
    return f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"


def toml_text(text: str) -> str:
    """A string, or a key of any letters, between quotation marks."""
    told = "".join(f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 or c in '"\\' else c for c in text)
    return f'"{told}"'


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
    """Wait until the disk has a file's content, where the system can: some network shares and FUSE do not know how."""
    with path.open("rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can: Windows opens none, some network shares refuse."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class WriterLock:
    """An exclusive lock on a file, which is given up when its process ends, however it ends.

    The file says which process holds it. Where the system has no locks (Windows, some network shares) a second file
    beside it counts, whose time its process renews; see ``_Lease``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._lease: _Lease | None = None
        self.enforced = False
        """Whether it is the system that keeps others out."""

    def acquire(self, wait_s: float = 0.0) -> bool:
        """Whether the lock is held now; tries for ``wait_s`` seconds.

        Raises:
            OSError: if its file cannot be written.
        """
        deadline = time.monotonic() + wait_s
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def release(self) -> None:
        """Gives the lock up and removes its file."""
        if self._lease is not None:
            self._lease.end()
            self._lease = None
            self._path.unlink(missing_ok=True)
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def holder(self) -> str:
        """Who holds it, for a sentence: ``process 4711 on node3``; ``another process`` where that is not known."""
        for path in (_Lease.path_of(self._path), self._path):
            with suppress(OSError, ValueError):
                process, _, host = read_text(path, _OWNER_BYTES).partition("\n")[0].partition("@")
                if process.isdecimal() and len(process) < 12 and host.isprintable():
                    return f"process {process} on {host}"
        return "another process"

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
            self.enforced = lock_file(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return False
        if not self.enforced:
            os.close(descriptor)
            self._lease = _Lease.begin(self._path)
            return self._lease is not None
        if not is_file_of(descriptor, self._path):  # its holder removed it between open and lock
            os.close(descriptor)
            return False
        with suppress(OSError):  # a full disk: it is held all the same
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _owner().encode())
        self._descriptor = descriptor
        return True


class _Lease:
    """A lock without the system's help: a file that only one process can create, and whose time it renews.

    Who ends without removing it is found out: on this machine by its process, elsewhere by the time that stands
    still. Times are compared with that of a file written just now, for the clocks of machines that share a disk differ.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self._path, self._owner = path, owner
        self._ended = threading.Event()
        threading.Thread(target=self._renew, name="lock", daemon=True).start()

    @staticmethod
    def path_of(lock: Path) -> Path:
        return lock.with_name(f"{lock.name}.held")

    @staticmethod
    def begin(lock: Path) -> _Lease | None:
        """``None`` if a living process holds it."""
        path, owner = _Lease.path_of(lock), _owner()
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                if not _Lease._remove_dead(path):
                    return None
                continue
            try:
                os.write(descriptor, owner.encode())
            finally:
                os.close(descriptor)
            return _Lease(path, owner)
        return None

    def end(self) -> None:
        self._ended.set()
        if _content(self._path) == self._owner:
            self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(_BEAT_S):
            if _content(self._path) == self._owner:
                with suppress(OSError):
                    os.utime(self._path)

    @staticmethod
    def _remove_dead(path: Path) -> bool:
        """Whether the file is gone, which a process left that is no more."""
        aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            aside.write_bytes(b"")
            now = aside.stat().st_mtime
            owner, age = _content(path), now - path.stat().st_mtime
            if age < DEAD_AFTER_S and not (owner and _is_of_dead_process(owner)):
                return False
            # Renamed first: of several that find it dead one gets it, and nobody removes a living one's.
            os.replace(path, aside)
            if _content(aside) != owner:
                with suppress(OSError):
                    os.link(aside, path)
                return False
            return True
        except FileNotFoundError:  # its owner removed it, or another found it dead
            return True
        finally:
            aside.unlink(missing_ok=True)


def _content(path: Path) -> str:
    try:
        return read_text(path, _OWNER_BYTES)
    except (OSError, ValueError):
        return ""


def _owner() -> str:
    """``pid@host``, and on further lines what tells this machine, process and lock from all others."""
    return f"{os.getpid()}@{_host()}\n{_machine()}\n{time.time_ns()}.{threading.get_ident()}\n"


def _host() -> str:
    return os.uname().nodename if sys.platform != "win32" else os.environ.get("COMPUTERNAME", "this machine")


def _machine() -> str:
    """Where this process's number means this process: of two containers on one host each has its own."""
    parts = [_host()]
    with suppress(OSError):
        parts += [read_text("/proc/sys/kernel/random/boot_id").strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _is_of_dead_process(owner: str) -> bool:
    """Whether that process was one of this machine, and is no more."""
    lines = owner.split("\n")
    process = lines[0].partition("@")[0]
    if sys.platform == "win32" or len(lines) < 2 or lines[1] != _machine() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's
        return False
    return False


def lock_file(descriptor: int, shared: bool = False) -> bool:
    """Hold an open file until it is closed, alone or with all others that share it.

    Returns:
        Whether the system has locks.

    Raises:
        BlockingIOError: if it is held in a way that forbids this.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def is_file_of(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one that is found under the path."""
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


def cannot_write(error: OSError) -> str:
    """Why a file was not written and what helps against that: the end of a sentence that began with its name."""
    return f"cannot be written ({error.strerror or error}); {_HELPS.get(error.errno or 0, 'run again')}"


_FULL = "free disk space and run again"
_HELPS = {
    errno.ENOSPC: _FULL,
    getattr(errno, "EDQUOT", errno.ENOSPC): _FULL,
    errno.EACCES: "let your user write there, or work in another folder",
    errno.EPERM: "let your user write there, or work in another folder",
    errno.EROFS: "this disk can only be read; work on another one",
    errno.ENAMETOOLONG: "its name is too long for this disk; use a shorter one",
    errno.ENOENT: "another process removes files there; see that only one works in this folder, and run again",
    errno.EISDIR: "a folder stands there; move it away and run again",
    errno.ENOTDIR: "a file stands where a folder is needed; move it away and run again",
    errno.EEXIST: "a file stands where a folder is needed; move it away and run again",
    errno.EMFILE: "close other programs, or raise the limit with 'ulimit -n 4096', and run again",
    errno.ENFILE: "close other programs and run again",
    errno.EIO: "the disk reports a fault; look at it, or work on another one",
    errno.EFBIG: "free disk space, or raise the limit on the size of files (ulimit -f), and run again",
}


def size_text(size: float) -> str:
    """``12.3 GB``, ``0.4 MB``."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
