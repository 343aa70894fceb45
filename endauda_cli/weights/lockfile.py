"""``weights/weights.lock.json``: what was seen when an artefact was first fetched.

Few published weights come with a digest. So the first download writes down what it got, and every later one (on
this machine, or on another that has a copy of the file) must get the same. To accept a change, delete the entry.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import DownloadError
from endauda_cli.files import RECORD_BYTES, WriterLock, open_regular, read_text
from endauda_cli.names import id_fault
from endauda_cli.workspace import write_text

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
PATH = "weights/weights.lock.json"
"""Relative to the workspace."""
WAIT_S = 30.0


@dataclass(frozen=True)
class Seen:
    """Size and SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What was seen of an artefact."""

    url: str
    """Where it came from; of what was found in a Drive folder, the files' own links."""
    first_seen: str
    """Date, ISO 8601."""
    downloads: dict[str, Seen]
    """What was fetched, by link (or path, if the user had fetched it)."""
    files: dict[str, Seen]
    """What lies in the workspace, by path relative to it."""


def look(path: Path) -> Seen:
    """What a file is."""
    with open_regular(path, None) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Seen(file.tell(), digest)


def read_records(root: Path) -> dict[str, Record]:
    """All records of a workspace, by the artefact's name.

    Raises:
        DownloadError: if the file is damaged.
    """
    path = root / PATH
    if not path.exists():
        return {}
    try:
        content = json.loads(read_text(path, RECORD_BYTES))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r:.40}, but this version reads {FORMAT}")
        return {name: _record(entry) for name, entry in content["artefacts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"{error}"[:200]
        raise DownloadError(
            f"{path}: cannot be read ({reason}); mend it, or delete it to trust the next downloads anew"
        ) from error


def add_record(root: Path, name: str, record: Record) -> None:
    """Write a record down, beside those that other processes add at the same time."""
    path = root / PATH
    lock = WriterLock(path.with_name(f".{path.name}.lock"))
    if not lock.acquire(WAIT_S):
        raise DownloadError(f"{path}: another process has been writing it for {WAIT_S:.0f} s; try again")
    try:
        records = {**read_records(root), name: record}
        content = {"format": FORMAT, "artefacts": {key: asdict(r) for key, r in sorted(records.items())}}
        write_text(path, json.dumps(content, indent=1) + "\n")
    finally:
        lock.release()


def _record(entry: dict[str, Any]) -> Record:
    for path in entry["files"]:  # these are looked at in the workspace
        if (fault := id_fault(path)) is not None:
            raise ValueError(f"{path!r:.80} {fault}, but a path inside the workspace was expected")
    return Record(
        str(entry["url"]),
        str(entry["first_seen"]),
        {key: _seen(value) for key, value in entry["downloads"].items()},
        {key: _seen(value) for key, value in entry["files"].items()},
    )


def _seen(entry: dict[str, Any]) -> Seen:
    size, digest = entry["size"], entry["sha256"]
    if type(size) is not int or not 0 <= size < 1 << 60:
        raise ValueError(f"size {size!r:.40}, but a number of bytes was expected")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"sha256 {digest!r:.80}, but 64 hexadecimal digits were expected")
    return Seen(size, digest)
