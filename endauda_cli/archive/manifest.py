"""The JSON half of an archive: what it is, and which file holds which image.

Each JSON file carries a checksum of its own content, so a flipped byte cannot rename a class or an image.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from endauda_cli.archive.layout import ARCHIVE_FILE, TEMPORARY_SUFFIX
from endauda_cli.domains import IGNORE
from endauda_cli.errors import ArchiveError
from endauda_cli.files import RECORD_BYTES, read_bytes, replacing, sync, sync_folder
from endauda_cli.names import checked_id

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "endauda-certainty"
FORMAT_VERSION = 3
"""Of what is written; 3 added grids."""
READABLE = (2, FORMAT_VERSION)
MAX_PIXELS = 178_956_970
"""Of an image: what Pillow takes. A flat one has hardly any bytes, so its size cannot be told from those."""
MAX_CLASS_NAME = 256

Attribute = str | int | float | bool | None | Sequence["Attribute"] | Mapping[str, "Attribute"]


class ForeignIdError(ArchiveError):
    """An image id that leads elsewhere: no damage, for the checksum fits, but a stranger's work."""


@dataclass(frozen=True)
class ArchiveInfo:
    """What holds for the whole archive: class names in train id order, and where the certainties are from."""

    classes: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class ImageEntry:
    """One stored image: size in pixels and a digest of its label map and certainties."""

    height: int
    width: int
    digest: str

    def __post_init__(self) -> None:
        sides = (self.height, self.width)
        if not all(type(side) is int and 0 < side <= MAX_PIXELS for side in sides) or (
            self.height * self.width > MAX_PIXELS
        ):
            size = f"{self.width!r:.20}x{self.height!r:.20}"
            raise ValueError(f"an image of {size} pixels, where archives hold up to {MAX_PIXELS:,}")
        if not isinstance(self.digest, str) or len(self.digest) > 64:
            raise ValueError("a digest that is none")


@dataclass(frozen=True)
class ShardManifest:
    """What one shard file holds, and how to tell that it is whole."""

    file: str
    bytes: int
    sha256: str
    images: Mapping[str, ImageEntry]


def read_info(archive: Path) -> ArchiveInfo:
    """Reads ``archive.json``.

    Raises ArchiveError if the folder is missing, is no archive, is damaged, or is of another format version.
    """
    if not archive.is_dir():
        raise ArchiveError(f"{archive}: no such folder; `endauda export-teacher` makes archives")
    path = archive / ARCHIVE_FILE
    if not path.exists():
        raise ArchiveError(
            f"{archive}: not a certainty archive, there is no {ARCHIVE_FILE} in it; expected the folder "
            "that `endauda export-teacher` wrote"
        )
    content = _read_json(path)
    classes, attributes = content.get("classes"), content.get("attributes")
    if not isinstance(classes, list) or not classes or not isinstance(attributes, dict):
        raise ArchiveError(f"{path}: classes or attributes are missing; export this teacher again")
    check_classes(path, classes)
    return ArchiveInfo(tuple(classes), attributes)


def check_classes(path: Path, classes: Sequence[object]) -> None:
    """Raises ArchiveError if these cannot be the classes of an archive."""
    if len(classes) > IGNORE:
        raise ArchiveError(f"{path}: {len(classes):,} classes, but an archive holds at most {IGNORE}")
    for number, name in enumerate(classes):
        if not isinstance(name, str) or len(name) > MAX_CLASS_NAME or not _plain(name):
            raise ArchiveError(
                f"{path}: the name of class {number}, {name!r:.80}, is none: a text of at most {MAX_CLASS_NAME} "
                "letters is expected, without zeros and halves of letters; export this teacher again"
            )


def _plain(text: str) -> bool:
    return not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text)


def create_info(archive: Path, info: ArchiveInfo) -> None:
    """Writes ``archive.json`` unless another writer was first; then theirs stays."""
    path = archive / ARCHIVE_FILE
    temporary = path.with_name(f"{ARCHIVE_FILE}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        content = {"classes": list(info.classes), "attributes": dict(info.attributes)}
        temporary.write_bytes(_to_json(content, indent=1))
        sync(temporary)
        try:
            os.link(temporary, path)  # unlike a rename, fails if the file exists
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(archive)


def read_manifest(path: Path) -> ShardManifest:
    """Reads one shard's manifest. Raises ArchiveError if it is damaged, FileNotFoundError if it is gone."""
    content = _read_json(path)
    if content.get("file") != path.with_suffix(".h5").name:
        raise ArchiveError(
            f"{path}: the manifest of {content.get('file')!r:.80}, so it was renamed; name it as it was"
        )
    try:
        images = {
            checked_id(id, path, ForeignIdError): ImageEntry(*entry)
            for id, entry in content["images"].items()
        }
        size, digest = content["bytes"], content["sha256"]
        if type(size) is not int or not isinstance(digest, str):
            raise TypeError("its size or SHA-256 is none")
        return ShardManifest(content["file"], size, digest, images)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ArchiveError(f"{path}: not a shard's manifest ({exc!r:.200}); export its images again") from exc


def write_manifest(path: Path, manifest: ShardManifest) -> None:
    images = {id: astuple(entry) for id, entry in manifest.images.items()}
    content = {"file": manifest.file, "bytes": manifest.bytes, "sha256": manifest.sha256, "images": images}
    replace_file(path, _to_json(content))


def replace_file(path: Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Puts ``data`` under ``path`` at once: whoever looks sees all of it or nothing.

    ``durable`` waits until the disk has it. Raises ArchiveError if the disk is full or refuses.
    """
    try:
        with replacing(
            path, durable=durable, temporary=path.with_name(path.name + TEMPORARY_SUFFIX)
        ) as temporary:
            temporary.write_bytes(data)
    except OSError as exc:
        raise ArchiveError(
            f"{path}: cannot write {len(data):,} bytes ({exc.strerror}); if the disk is full, free some "
            "space. What is stored stays, and the same command run again goes on from there"
        ) from exc


def _to_json(content: Mapping[str, object], indent: int | None = None) -> bytes:
    content = {"format": FORMAT, "version": FORMAT_VERSION, **content}
    content["checksum"] = _checksum(content)
    separators = None if indent else (",", ":")  # the manifests of small images are a part of the whole
    return (json.dumps(content, indent=indent, separators=separators, ensure_ascii=False) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path, RECORD_BYTES))
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise ArchiveError(f"{path}: cannot be read ({exc.strerror})") from exc
    except (ValueError, RecursionError) as exc:
        raise ArchiveError(f"{path}: cannot be read as JSON ({exc!s:.200}); the file is damaged") from exc
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArchiveError(f"{path}: not a file of a certainty archive (no format {FORMAT!r} in it)")
    if content.get("version") not in READABLE:
        raise ArchiveError(
            f"{path}: archive format version {content.get('version')!r:.80}, but this endauda reads versions "
            f"{READABLE[0]} to {READABLE[-1]}; update endauda or export this teacher again"
        )
    try:
        matches = content.pop("checksum", None) == _checksum(content)
    except (ValueError, RecursionError) as exc:  # lone surrogates, nested deeper than can be written
        raise ArchiveError(f"{path}: cannot be read ({exc!s:.200}); the file is damaged") from exc
    if not matches:
        raise ArchiveError(
            f"{path}: the content does not match its checksum; the file is damaged or was edited"
        )
    return content


def _checksum(content: Mapping[str, object]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
