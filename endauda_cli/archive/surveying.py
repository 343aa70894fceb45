"""What an archive holds and lacks, as far as its folder tells: no map is read, nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from endauda_cli.archive import index, layout
from endauda_cli.archive.manifest import read_info

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Survey:
    """An archive from outside."""

    classes: tuple[str, ...]
    stored: frozenset[str]
    """Ids of the images that are there, as far as file sizes tell."""
    lost: frozenset[str]
    """Ids of the images whose files are gone or cut short."""
    waiting: int
    """Finished images that are in no shard yet: a writer is at work, or was stopped."""
    orphans: tuple[str, ...]
    """Shard files without a readable manifest."""
    raw_bytes: int
    """Of the stored images' label maps and certainties, uncompressed."""
    bytes: int
    """On disk."""


def survey(archive: Path) -> Survey:
    """Looks at an archive in milliseconds per thousand images.

    Raises ArchiveError if it is no archive, is damaged, or is of another format version.
    """
    classes = read_info(archive).classes
    found = index.scan(archive, classes)
    return Survey(
        classes,
        frozenset(found.stored),
        frozenset(found.lost),
        sum(len(layout.waiting_images(part)) for part in layout.parts(archive)),
        tuple(path.name for path in index.orphans(archive)),
        sum((len(classes) + 1) * at.entry.height * at.entry.width for at in found.stored.values()),
        index.stored_bytes(archive),
    )
