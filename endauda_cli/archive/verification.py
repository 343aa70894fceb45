"""Whether an archive still holds what was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.archive import index, layout, shard
from endauda_cli.archive.image_files import ImageFile, check_image
from endauda_cli.archive.manifest import ShardManifest, read_info
from endauda_cli.errors import ArchiveError
from endauda_cli.files import file_sha256
from endauda_cli.progress import Reporter, Tick, silent

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence


_NO_MANIFEST = "its manifest is missing or damaged; the next export reads the shard and makes a new one"


@dataclass(frozen=True)
class DamagedShard:
    """A file that is not what was written, the images that it held (none where nobody needs to delete it,
    because the next export sees to it), and what is wrong with it."""

    file: str
    ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class VerifyResult:
    """``ok`` images are bit by bit what was written. ``missing`` ids are in no file that is whole."""

    path: Path
    ok: int
    damaged: tuple[DamagedShard, ...]
    missing: tuple[str, ...]

    @property
    def intact(self) -> bool:
        return not self.damaged and not self.missing


def verify(path: str | os.PathLike[str], report: Reporter = silent) -> VerifyResult:
    """Reads every byte of an archive and decodes every plane.

    To mend an archive, delete the damaged files and export again: what is missing is made anew.
    Raises ArchiveError if ``path`` is no archive, if ``archive.json`` itself is damaged, or if a file that may
    be whole cannot be read.
    """
    archive = Path(path)
    classes = read_info(archive).classes
    without_manifest = index.orphans(archive)
    # Parts first, as in index.scan.
    ok, damaged = _check_parts(archive, classes)
    manifests = index.read_manifests(archive)
    expected = ok.union(*(manifest.images for manifest in manifests))
    for number, manifest in enumerate(manifests):
        report(Tick("verifying", number, len(manifests), manifest.file, "files"))
        try:
            _check_shard(archive / manifest.file, manifest, classes)
            ok.update(manifest.images)
        except FileNotFoundError:
            continue  # removed on purpose, perhaps: what counts is whether its images are elsewhere
        except Exception as exc:  # decoders raise many things on damage
            if not shard.is_damage(exc):
                raise shard.unreadable(archive / manifest.file, exc) from exc
            damaged.append(DamagedShard(manifest.file, tuple(sorted(manifest.images)), shard.reason(exc)))
    # A live writer may have been between a shard and its manifest: those that still have none.
    orphans = set(index.orphans(archive)).intersection(without_manifest)
    damaged += [DamagedShard(path.name, (), _NO_MANIFEST) for path in sorted(orphans)]
    report(Tick("verifying", len(manifests), len(manifests), unit="files"))
    return VerifyResult(archive, len(ok), tuple(damaged), tuple(sorted(expected - ok)))


def _check_parts(archive: Path, classes: Sequence[str]) -> tuple[set[str], list[DamagedShard]]:
    """The images that wait for a shard and are whole, and the files that are not: the next export drops those."""
    ok: set[str] = set()
    damaged = []
    for path in (path for part in layout.parts(archive) for path in layout.waiting_images(part)):
        try:
            file = index.open_part_file(path, classes)
            for id, image in file.images.items():
                check_image(file, id, image.entry)
                ok.add(id)
        except FileNotFoundError:
            continue  # its writer moved it into a shard right now
        except Exception as exc:
            if not shard.is_damage(exc):
                raise shard.unreadable(path, exc) from exc
            damaged.append(DamagedShard(f"{path.parent.name}/{path.name}", (), shard.reason(exc)))
    return ok, damaged


def _check_shard(path: Path, manifest: ShardManifest, classes: Sequence[str]) -> None:
    size = path.stat().st_size
    if size != manifest.bytes:
        raise ArchiveError(f"{size:,} bytes; expected {manifest.bytes:,}")
    if file_sha256(path) != manifest.sha256:
        raise ArchiveError("the SHA-256 of the file does not match its manifest")
    file = ImageFile(path, classes)
    for id, entry in manifest.images.items():
        try:
            check_image(file, id, entry)
        except Exception as exc:
            if not shard.is_damage(exc):
                raise
            raise ArchiveError(f"image {id!r}: {shard.reason(exc)}") from exc
