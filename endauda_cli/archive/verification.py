"""Whether an archive still holds what was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.archive import index, shard
from endauda_cli.archive.manifest import PART_SUFFIX, ShardManifest, read_info
from endauda_cli.errors import ArchiveError
from endauda_cli.events import Reporter, Tick, silent

if TYPE_CHECKING:
    import os


_NO_MANIFEST = "its manifest is missing or damaged; the next export reads the shard and makes a new one"


@dataclass(frozen=True)
class DamagedShard:
    """A file that is not what was written, the images that it held, and what is wrong with it."""

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
    Raises ArchiveError if ``path`` is no archive, or if ``archive.json`` itself is damaged.
    """
    archive = Path(path)
    read_info(archive)
    # Parts first, as in index.scan.
    ok = {
        id
        for part in archive.glob(f"*{PART_SUFFIX}")
        for images in index.read_part(part).values()
        for id in images
    }
    damaged = [DamagedShard(path.name, (), _NO_MANIFEST) for path in index.orphans(archive)]
    manifests = index.read_manifests(archive)
    expected = ok.union(*(manifest.images for manifest in manifests))
    for number, manifest in enumerate(manifests):
        report(Tick("verify", number, len(manifests), manifest.file))
        try:
            _check_shard(archive / manifest.file, manifest)
            ok.update(manifest.images)
        except FileNotFoundError:
            continue  # removed on purpose, perhaps: what counts is whether its images are elsewhere
        except Exception as exc:  # h5py raises many things on damage
            damaged.append(DamagedShard(manifest.file, tuple(sorted(manifest.images)), str(exc)))
    report(Tick("verify", len(manifests), len(manifests)))
    return VerifyResult(archive, len(ok), tuple(damaged), tuple(sorted(expected - ok)))


def _check_shard(path: Path, manifest: ShardManifest) -> None:
    size = path.stat().st_size
    if size != manifest.bytes:
        raise ArchiveError(f"{size:,} bytes; expected {manifest.bytes:,}")
    if shard.file_sha256(path) != manifest.sha256:
        raise ArchiveError("the SHA-256 of the file does not match its manifest")
    file = shard.ImageFile(path)
    for id, entry in manifest.images.items():
        try:
            shard.check_image(file, id, entry)
        except Exception as exc:
            raise ArchiveError(f"image {id!r}: {exc}") from exc
