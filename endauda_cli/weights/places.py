"""Where a download lies while it comes, and where it goes."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from endauda_cli.errors import DownloadError
from endauda_cli.files import WriterLock, sync, sync_folder
from endauda_cli.progress import Note
from endauda_cli.weights.lockfile import Seen, look
from endauda_cli.weights.transport import is_plain_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from endauda_cli.progress import Reporter


WAIT_S = 3600.0


def staging(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def direct(url: str) -> str:
    """Share links whose page is known to have a switch for the file itself."""
    parts = urlsplit(url)
    if parts.hostname in ("www.dropbox.com", "dropbox.com"):
        query = "&".join([p for p in parts.query.split("&") if p and not p.startswith("dl=")] + ["dl=1"])
        return parts._replace(query=query).geturl()
    return url


def name_in(url: str) -> str:
    """Of the file that a link ends with; empty if it ends with none."""
    name = re.split(r"[/\\]", unquote(urlsplit(url).path))[-1]
    return name if is_plain_name(name) else ""


def in_the_way(place: Path, seen: Seen) -> Path | None:
    """What lies where a file should go, if it is not that file."""
    if place.is_dir() or (place.exists() and look(place) != seen):
        return place
    return next((above for above in place.parents if above.exists() and not above.is_dir()), None)


def words(seen: Seen | None) -> str:
    return "nothing" if seen is None else f"{seen.size:,} bytes with SHA-256 {seen.sha256[:16]}..."


def move(path: Path, place: Path) -> None:
    """Rename into place, lasting."""
    if path == place:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    sync(path)
    os.replace(path, place)
    sync_folder(place.parent)


@contextmanager
def only_one(target: Path, name: str, report: Reporter) -> Iterator[None]:
    """Hold the artefact's lock; another process that fetches it is waited for."""
    lock = WriterLock(target.with_name(f".{target.name}.lock"))
    if not lock.acquire():
        report(Note(f"{name}: another process is fetching it; waiting"))
        if not lock.acquire(WAIT_S):
            raise DownloadError(f"{target}: another process has been fetching it for an hour; try again")
    try:
        yield
    finally:
        lock.release()
