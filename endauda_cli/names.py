"""The door for names and ids: what passes it can be part of a path, on any system, and does not leave its folder.

A *name* is one folder or file: of a teacher, a run, a label set, a data set. An *id* is an image's: its file name
without the suffix, in archives also with folders before it (``ulm/0003``). Both come from files that strangers made
(archives, manifests, journals, lock files, TOML) as well as from the command line, and each is checked where it
enters, before anything is read, written or removed under it. Standard library only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from endauda_cli.errors import EndaudaError

MAX_BYTES = 230
"""Of a name: file systems take 255, and suffixes and the marks of temporary files come on top."""
MAX_ID_BYTES = 1024
_SEEN = dict.fromkeys(
    map(ord, "\u00a0\u1680\u202f\u205f\u3000\u200c\u200d" + "".join(map(chr, range(0x2000, 0x200B))))
)
"""Spaces of other widths, as in the names of macOS's screenshots, and the joiners of scripts and emoji: no harm."""


def name_fault(name: object) -> str | None:
    """Why something cannot be a name, as the end of a sentence; ``None`` if it can."""
    if isinstance(name, str) and name.startswith("."):
        return "begins with a dot"
    return _part_fault(name)


def id_fault(id: object) -> str | None:
    """Why something cannot be an image's id, as the end of a sentence; ``None`` if it can."""
    if not isinstance(id, str):
        return "is no text"
    if len(id) > MAX_ID_BYTES or len(id.encode(errors="surrogatepass")) > MAX_ID_BYTES:
        return f"is longer than {MAX_ID_BYTES} bytes"
    return next((fault for part in id.split("/") if (fault := _part_fault(part))), None)


def checked_id(id: object, where: Path | str, error: type[EndaudaError] = DataError) -> str:
    """The id, if it is one.

    Args:
        id: as it was read.
        where: the file that it was read from.
        error: what to raise.

    Raises:
        EndaudaError: names the file and says what is wrong with the id.
    """
    fault = id_fault(id)
    if fault is not None:
        shown = f"{id!r:.80}{'…' if len(repr(id)) > 80 else ''}"
        raise error(
            f"{where}: {shown} is no image id, it {fault}; an id is the name of an image file without its suffix, and "
            "nothing is read, written or removed under this one"
        )
    assert isinstance(id, str)
    return id


def _part_fault(part: object) -> str | None:
    if not isinstance(part, str):
        return "is no text"
    if not part.strip():
        return "is empty or has an empty part"
    if part in (".", ".."):
        return "leads to another folder"
    if (
        "/" in part
        or "\\" in part
        or (len(part) > 1 and part[1] == ":" and part[0].isascii() and part[0].isalpha())
    ):
        return "is a path"
    if not part.translate(_SEEN).isprintable():
        return "holds characters that cannot be shown or written"
    if len(part) > MAX_BYTES or len(part.encode()) > MAX_BYTES:
        return f"is longer than {MAX_BYTES} bytes"
    return None
