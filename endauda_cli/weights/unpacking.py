"""Zip and tar archives of strangers, into a folder of their own.

Only plain files come out, under plain relative names. Refused before anything is written: names that lead out,
links, devices, sparse files, encrypted or doubled members, and archives that would unpack to absurdly more than
they are. What a header says is not believed: written bytes are counted, too.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from endauda_cli.errors import DownloadError
from endauda_cli.files import free_bytes, size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_RATIO = 200
"""Times its own size that an archive may unpack to; checkpoints and PNGs hardly shrink, zeros shrink by 1000."""
SMALL = 64 << 20
"""Bytes that any archive may unpack to, whatever its own size."""
MAX_MEMBERS = 20_000
"""Files and folders in an archive; of checkpoints, or of folders that they lie in, there are a few dozen."""
MAX_DEPTH = 32
"""Folders inside each other: each member's are looked at."""
MAX_HEADER = 1 << 18
"""Bytes of one extended tar header, which is read into memory whole, as are hundreds in a row."""
MAX_NAME = 255
"""Bytes of one name between two slashes: what file systems take."""
MAX_PATH = 1024
"""Bytes of a path inside an archive."""
BLOCK = 1 << 20
_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    MemoryError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the standard library raises on damage, the last ones where it trusts a header."""


class BadArchiveError(DownloadError):
    """An archive is damaged or does what it must not; fetching it again may help, keeping it does not."""


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    is_folder: bool
    trouble: str | None
    """Why it is refused, if it is."""
    open: Callable[[], IO[bytes] | None]


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, and not a PyTorch checkpoint (which is a zip, too)."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                return not any(name.endswith("/data.pkl") for name in archive.namelist())
        except _ERRORS:
            return True  # to be complained of as one
    try:
        with tarfile.open(path, tarinfo=_CheckedTarInfo):
            return True
    except (*_ERRORS, OSError):
        return False


def unpack(archive: Path, folder: Path, selects: Callable[[str], bool], shown: str) -> list[Path]:
    """Unpack the selected files of an archive into an empty folder; all of them, or the folder stays empty.

    Args:
        archive: the file.
        folder: created if it is not there.
        selects: whether a path inside the archive is wanted.
        shown: what to call the archive in messages.

    Returns:
        Paths of the files, relative to the folder.

    Raises:
        BadArchiveError: if the archive is damaged or does what it must not.
        DownloadError: if the disk has too little room.
    """
    limit = max(SMALL, MAX_RATIO * archive.stat().st_size)
    try:
        _inspect(archive, limit, shown)
        return _extract(archive, folder, selects, limit, shown)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        # bz2 and gzip tell of damage with an OSError, but without the system's number of it
        if isinstance(error, _ERRORS) or (isinstance(error, OSError) and error.errno is None):
            raise BadArchiveError(f"{shown}: the archive is damaged ({error}); fetch it again") from error
        if isinstance(error, OSError):
            raise DownloadError(
                f"{folder}: unpacking {shown} failed ({error.strerror or error}); free some space and run again"
            ) from error
        raise


def _inspect(archive: Path, limit: int, shown: str) -> None:
    """Look at every member before the first is written."""
    total = 0
    files: set[PurePosixPath] = set()
    folders = {PurePosixPath()}
    many = BadArchiveError(f"{shown}: holds more than {MAX_MEMBERS:,} files; not unpacked")
    if zipfile.is_zipfile(archive):  # which says how many it holds, unlike a tar
        with zipfile.ZipFile(archive) as listed:
            if len(listed.infolist()) > MAX_MEMBERS:
                raise many
    for number, member in enumerate(_members(archive), 1):
        if number > MAX_MEMBERS:
            raise many
        trouble = member.trouble or _trouble_of_name(member.name)
        # some systems take A and a for the same name
        path = PurePosixPath(member.name.casefold())
        above = set(path.parents)
        if trouble is None and (above & files or path in (files if member.is_folder else folders)):
            trouble = "is both a file and a folder"
        elif trouble is None and path in files:
            trouble = "is there twice"
        if trouble is not None:
            raise BadArchiveError(f"{shown}: {member.name!r} {trouble}; nothing was unpacked")
        folders |= above
        (folders if member.is_folder else files).add(path)
        total += member.size
        if total > limit:
            raise BadArchiveError(
                f"{shown}: {size_text(archive.stat().st_size)} that would unpack to {size_text(total)} or more, "
                "as no honest archive does; nothing was unpacked"
            )
    free = free_bytes(archive.parent)
    if free is not None and free < total:
        raise DownloadError(
            f"{archive.parent}: unpacking {shown} takes {size_text(total)}, but {size_text(free)} are free; "
            "free some space and run the same command again"
        )


def _extract(
    archive: Path, folder: Path, selects: Callable[[str], bool], limit: int, shown: str
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written, found = 0, []
    for member in _members(archive):
        if member.is_folder or not selects(str(PurePosixPath(member.name))):
            continue
        relative = Path(*PurePosixPath(member.name).parts)
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        source = member.open()
        if source is None:
            raise BadArchiveError(f"{shown}: {member.name!r} cannot be read; nothing was unpacked")
        with source, target.open("xb") as file:
            while block := source.read(BLOCK):
                written += len(block)
                if written > limit:
                    raise BadArchiveError(f"{shown}: unpacks to more than it says; nothing was unpacked")
                file.write(block)
        found.append(relative)
    return found


def _trouble_of_name(name: str) -> str | None:
    pure = PurePosixPath(name)
    if "\\" in name or ":" in name or not name.isprintable():
        return "is no plain name"
    if pure.is_absolute() or ".." in pure.parts or not (pure.parts or name in ("./", ".")):
        return "leads out of the folder"
    if len(name.encode()) > MAX_PATH or any(len(part.encode()) > MAX_NAME for part in pure.parts):
        return "is too long a name"
    if len(pure.parts) > MAX_DEPTH:
        return "lies too deep"
    return None


def _members(archive: Path) -> Iterator[_Member]:
    return _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive)


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            trouble = None
            if kind and not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                trouble = "is a link or a device, not a file"
            elif info.flag_bits & 1:
                trouble = "is encrypted"
            # orig_filename: ZipFile quietly cuts names at a zero byte and turns backslashes
            yield _Member(
                info.orig_filename,
                info.file_size,
                info.is_dir(),
                trouble,
                partial(archive.open, info),
            )


class _CheckedTarInfo(tarfile.TarInfo):
    """Refuses extended headers that would fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _CheckedTarInfo:
        info = super().frombuf(buf, encoding, errors)
        plain = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.DIRTYPE)
        if info.type not in plain and info.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size_text(info.size)}")
        return info


def _tar_members(path: Path) -> Iterator[_Member]:
    with tarfile.open(path, tarinfo=_CheckedTarInfo) as archive:
        while (info := archive.next()) is not None:
            trouble = None
            if info.issparse():
                trouble = "is a sparse file"
            elif info.size < 0:
                trouble = "says that it has fewer than 0 bytes"
            elif not (info.isreg() or info.isdir()):
                trouble = "is a link or a device, not a file"
            yield _Member(info.name, info.size, info.isdir(), trouble, partial(archive.extractfile, info))
        # tarfile takes a file that was cut or damaged between two members for a shorter one; the zeros at the
        # end tell. Behind them a compressed file has its checksum.
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends too early")
        padding = 0
        while block := archive.fileobj.read(BLOCK):
            padding += len(block)
            if padding > SMALL:
                raise tarfile.ReadError("it goes on behind its end")
