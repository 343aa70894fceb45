"""Where an archive's files lie, and what their names alone say (the page on the format is the package's).

Standard library only: the workspace, TAB and ``doctor`` ask it without opening an archive.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

from endauda_cli.files import RECORD_BYTES, open_regular, read_bytes
from endauda_cli.names import id_fault

if TYPE_CHECKING:
    from pathlib import Path

ARCHIVE_FILE = "archive.json"
TEMPORARY_SUFFIX = ".tmp"
MAX_HEADER = 1 << 20
"""Bytes of the first line of a waiting image's file, which is JSON."""

_PART_SUFFIX, _IMAGE_SUFFIX = ".part", ".image"
_SHARD_NAME = re.compile(r"shard-(?P<tag>.+)-(?P<number>\d{5,})\.h5")


def shard_name(tag: str, number: int) -> str:
    """Of a writer's shard."""
    return f"shard-{tag}-{number:05d}.h5"


def shard_tag(name: str) -> str | None:
    """The writer's tag in the name of a shard file; None if it is no such name."""
    match = _SHARD_NAME.fullmatch(name)
    return match["tag"] if match else None


def shard_number(name: str) -> int:
    """Its number; -1 if it is no such name."""
    match = _SHARD_NAME.fullmatch(name)
    return int(match["number"]) if match else -1


def shards(archive: Path) -> list[Path]:
    """Shard files by name, also those of which there is the manifest alone."""
    files = {path.with_suffix(".h5") for path in archive.glob("shard-*") if path.suffix in (".h5", ".json")}
    return sorted(path for path in files if shard_tag(path.name) is not None)


def manifest_path(shard: Path) -> Path:
    """Beside the shard."""
    return shard.with_suffix(".json")


def manifests(archive: Path) -> list[Path]:
    """The manifests that there are, by name."""
    return [path for path in map(manifest_path, shards(archive)) if path.exists()]


def part(archive: Path, tag: str) -> Path:
    """The folder of a writer's images that wait for a shard."""
    return archive / f"{tag}{_PART_SUFFIX}"


def part_tag(folder: Path) -> str:
    """Whose folder it is."""
    return folder.name.removesuffix(_PART_SUFFIX)


def parts(archive: Path) -> list[Path]:
    """These folders, by name."""
    return sorted(archive.glob(f"*{_PART_SUFFIX}"))


def waiting_image(part: Path, sha256: str) -> Path:
    """The file of a finished image in such a folder, named after its content."""
    return part / f"{sha256}{_IMAGE_SUFFIX}"


def waiting_images(part: Path) -> list[Path]:
    """These files, by name."""
    # Its writer may remove the folder right now, and then ``Path.glob`` raises.
    with contextlib.suppress(FileNotFoundError):
        return sorted(part.glob(f"*{_IMAGE_SUFFIX}"))
    return []


def has_images(archive: Path) -> bool:
    """Whether a folder is an archive that holds something; an import that failed at once leaves an empty one."""
    # Waiting images first: one that moves into a shard meanwhile is then seen at least once.
    return any(waiting_images(part) for part in parts(archive)) or bool(manifests(archive))


def image_ids(archive: Path) -> set[str]:
    """Ids of the finished images, as manifests and waiting files say of themselves; what is damaged says nothing."""
    ids: set[object] = set()
    waiting = [path for part in parts(archive) for path in waiting_images(part)]  # first, as in has_images
    ids.update(id for path in waiting if isinstance(id := _object(path, MAX_HEADER).get("id"), str))
    for path in manifests(archive):
        images = _object(path, None).get("images")
        ids.update(images if isinstance(images, dict) else ())
    return {id for id in ids if isinstance(id, str) and id_fault(id) is None}


def _object(path: Path, first_line: int | None) -> dict[str, Any]:
    """The JSON object in a file, or in its first line of so many bytes at most."""
    try:
        if first_line is None:
            value = json.loads(read_bytes(path, RECORD_BYTES))
        else:
            with open_regular(path, RECORD_BYTES) as file:
                value = json.loads(file.readline(first_line))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
