"""``weights/weights.lock.json``: what was seen when an artefact was first fetched.

Few published weights come with a digest. So the first download writes down what it got, and every later one (on
this machine, or on another that has a copy of the file) must get the same. To accept a change, delete the entry.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import DownloadError
from endauda_cli.files import WriterLock
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
    with path.open("rb") as file:
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
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, but this version reads {FORMAT}")
        return {name: _record(entry) for name, entry in content["artefacts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(
            f"{path}: cannot be read ({error}); mend it, or delete it to trust the next downloads anew"
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
    return Record(
        str(entry["url"]),
        str(entry["first_seen"]),
        {key: _seen(value) for key, value in entry["downloads"].items()},
        {key: _seen(value) for key, value in entry["files"].items()},
    )


def _seen(entry: dict[str, Any]) -> Seen:
    return Seen(int(entry["size"]), str(entry["sha256"]))
