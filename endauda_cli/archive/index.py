"""Which image lies in which file, as the folder says right now."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from endauda_cli.archive import layout, shard
from endauda_cli.archive.image_files import ImageFile, entries
from endauda_cli.archive.manifest import ForeignIdError, ImageEntry, ShardManifest, read_manifest
from endauda_cli.errors import ArchiveError
from endauda_cli.files import file_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Location:
    """Where an image lies, and what its manifest says of it."""

    file: Path
    entry: ImageEntry


@dataclass(frozen=True)
class Index:
    """``stored`` can be read, as far as sizes tell; ``lost`` are in shards that are gone or cut short."""

    stored: Mapping[str, Location]
    lost: Mapping[str, Location]


def scan(archive: Path, classes: Sequence[str]) -> Index:
    """Joins all manifests and the finished images that wait for a shard.

    Shards whose manifest is damaged are left out (``verify`` names them). An image stored twice, which takes
    two writers at the same image, is read from the first file by name.
    """
    # Parts first: an image that moves from a part to a shard meanwhile is then seen at least once.
    stored = {
        id: Location(path, entry)
        for part in layout.parts(archive)
        for path, images in read_part(part, classes).items()
        for id, entry in images.items()
    }
    whole, lost = scan_shards(archive)
    stored.update(whole)
    return Index(stored, {id: location for id, location in lost.items() if id not in stored})


def scan_shards(archive: Path) -> tuple[dict[str, Location], dict[str, Location]]:
    """Images in shards of the right size, and in shards that are gone or cut short."""
    whole: dict[str, Location] = {}
    lost: dict[str, Location] = {}
    for manifest in read_manifests(archive):
        path = archive / manifest.file
        images = whole if has_size(path, manifest.bytes) else lost
        for id, entry in manifest.images.items():
            images.setdefault(id, Location(path, entry))
    return whole, lost


def read_manifests(archive: Path) -> list[ShardManifest]:
    """The manifests of all finished shards, by name; without damaged ones.

    Raises ForeignIdError if one holds an image id that leads elsewhere.
    """
    manifests = []
    for path in layout.manifests(archive):
        try:
            manifests.append(read_manifest(path))
        except ForeignIdError:
            raise
        except (ArchiveError, FileNotFoundError):
            continue
    return manifests


def read_part(part: Path, classes: Sequence[str]) -> dict[Path, dict[str, ImageEntry]]:
    """The finished images in a ``.part`` folder by file; leaves out what is damaged, as by a power cut.

    Raises ArchiveError if one that may be whole cannot be read.
    """
    files: dict[Path, dict[str, ImageEntry]] = {}
    for path in layout.waiting_images(part):
        try:
            files[path] = entries(open_part_file(path, classes).images)
        except FileNotFoundError:
            continue  # its writer moved it into a shard right now
        except ForeignIdError:
            raise
        except Exception as exc:
            if not shard.is_damage(exc):
                raise shard.unreadable(path, exc) from exc
    return files


def open_part_file(path: Path, classes: Sequence[str]) -> ImageFile:
    """Raises FileNotFoundError if it is gone, ArchiveError and others if it is damaged."""
    if file_sha256(path) != path.stem:
        raise ArchiveError("its content is not what its name says")
    return ImageFile(path, classes)


def orphans(archive: Path) -> list[Path]:
    """Shards without a readable manifest, because it is damaged or their writer was killed just before it."""
    named = {manifest.file for manifest in read_manifests(archive)}
    return [path for path in layout.shards(archive) if path.name not in named]


def has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def stored_bytes(archive: Path) -> int:
    """Bytes of all files in an archive's folder, without those that a writer moves just now."""
    total = 0
    for folder, _, names in os.walk(archive):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def manifest_of(path: Path, classes: Sequence[str]) -> ShardManifest:
    """Makes the manifest that a finished shard file should have. Raises ArchiveError if it is none."""
    images = entries(ImageFile(path, classes).images)
    return ShardManifest(path.name, path.stat().st_size, file_sha256(path), images)
