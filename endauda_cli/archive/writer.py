"""Writing archives, by any number of processes at once."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from endauda_cli import __version__
from endauda_cli.archive import grids, index, layout, shard
from endauda_cli.archive.image_files import ImageFile, check_image
from endauda_cli.archive.manifest import (
    MAX_PIXELS,
    ArchiveInfo,
    Attribute,
    ImageEntry,
    ShardManifest,
    check_classes,
    create_info,
    read_info,
    replace_file,
    write_manifest,
)
from endauda_cli.domains import IGNORE
from endauda_cli.errors import ArchiveError
from endauda_cli.files import WriterLock
from endauda_cli.names import checked_id
from endauda_cli.types import Codec

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from numpy.typing import NDArray

    from endauda_cli.archive.grids import Grids
    from endauda_cli.archive.shard import CodedImage

MAX_CERTAINTY = 100

# A shard is put together in memory, so its packed size is bounded too.
_SHARD_BYTES = 128 << 20
_LOCK_WAIT_S = 10.0
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# These may differ from run to run; all other attributes say what the certainties are.
_INFORMATIVE = ("codec", "created_by")


class CertaintyWriter:
    """Adds images of one teacher to an archive, which it makes if need be; goes on where another run stopped.

    An image is safe once ``write`` returns. Shards are made beside the writing; what goes wrong there is raised
    by a later call. Leaving the ``with`` block gathers what is left into a shard;
    after an exception, or a kill, the next writer does. For one thread at a time, but for ``code``.

    classes: class names in train id order, at most 255.
    attributes: JSON values that say where the certainties are from (teacher, source, domain, weights digest,
    preprocessing, ...); all but ``codec`` and ``created_by`` must be the same in every run.
    shard_size: images per file.
    tag: this writer's name among those that write at the same time, such as ``0-of-4``.

    Raises ArchiveError if the archive has other classes or attributes, if another process writes under this
    tag, or if the folder cannot be written; ValueError if an argument makes no sense.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        classes: Sequence[str],
        codec: Codec | str = Codec.SOFTMAX,
        attributes: Mapping[str, Attribute] | None = None,
        shard_size: int = 64,
        tag: str = "0-of-1",
    ) -> None:
        if not _TAG.fullmatch(tag):
            raise ValueError(f"tag {tag!r}: letters, digits, dot, dash and underscore, at most 64")
        if not 1 <= len(classes) <= IGNORE:
            raise ValueError(f"{len(classes)} classes: an archive holds 1 to {IGNORE}")
        if shard_size < 1:
            raise ValueError(f"shard_size {shard_size}: a shard holds at least one image")
        self.path = Path(path)
        self._codec = Codec(codec)
        self._shard_size = shard_size
        self._info = self._open_archive(tuple(classes), attributes or {})
        self._part = _Part(self.path, tag, self._info)
        self._closed = False
        try:
            self._take_tag(tag)
            self._part.recover()
            self._adopt_others()
            self._done = set(index.scan(self.path, self._info.classes).stored)
        except BaseException:
            self._leave_tag()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._leave_tag()

    @property
    def done(self) -> set[str]:
        """Ids of the images in the archive: all that there were when this writer opened it, and its own."""
        return set(self._done)

    def write(self, id: str, label: NDArray[np.uint8], certainty: NDArray[np.uint8]) -> None:
        """Stores one image for good: ``store(code(...))``.

        label: (H, W) uint8 train ids, 255 = ignore. certainty: (C, H, W) uint8, percent 0..100.
        Raises ArchiveError if the arrays do not fit, the id is already there, or the disk is full.
        """
        self.store(self.code(id, label, certainty))

    def code(self, id: str, label: NDArray[np.uint8], certainty: NDArray[np.uint8]) -> CodedImage:
        """Checks and compresses one image, which is the work; for as many threads as there are cores.

        Raises ArchiveError if the arrays do not fit.
        """
        self._check_arrays(id, label, certainty)
        label, certainty = np.ascontiguousarray(label), np.ascontiguousarray(certainty)
        return shard.code_image(self._codec, id, label, certainty)

    def code_grids(self, id: str, label: NDArray[np.uint8], said: Grids) -> CodedImage:
        """As ``code``, of what a network said on its own grid.

        Raises ArchiveError if the arrays do not fit, or grids of this form do not fit the image (``GridForm.fits``).
        """
        self._check_label(id, label)
        try:
            grids.check(said, len(self._info.classes), (label.shape[0], label.shape[1]))
        except ValueError as exc:
            raise ArchiveError(f"{self.path}: image {id!r}: {exc}") from exc
        return shard.code_grids(id, np.ascontiguousarray(label), said)

    def store(self, image: CodedImage) -> None:
        """Stores a coded image for good.

        Raises ArchiveError if the id is there, or the disk is full; ValueError if the writer was closed.
        """
        if self._closed:
            raise ValueError(f"{self.path}: this writer was closed; open another one")
        self._check_id(image.id)
        self._part.add(image)
        self._done.add(image.id)
        if self._part.waiting >= self._shard_size or self._part.bytes >= _SHARD_BYTES:
            self._part.seal()

    def close(self) -> None:
        """Gathers the last images into a shard and lets other processes use the tag."""
        try:
            self._part.seal()
            self._part.wait()
        finally:
            self._leave_tag()

    def _open_archive(self, classes: tuple[str, ...], attributes: Mapping[str, Attribute]) -> ArchiveInfo:
        """Makes the archive, or makes sure that it is the one meant."""
        given: dict[str, Attribute] = {
            **_as_stored(attributes),
            "codec": str(self._codec),
            "created_by": f"endauda {__version__}",
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            check_classes(self.path, classes)
            if not (self.path / layout.ARCHIVE_FILE).exists():
                create_info(self.path, ArchiveInfo(classes, given))
        except OSError as exc:
            raise ArchiveError(f"{self.path}: cannot make an archive here ({exc.strerror})") from exc
        stored = read_info(self.path)
        _expect_same_classes(self.path, stored.classes, classes)
        _expect_same_attributes(self.path, stored.attributes, given)
        return stored

    def _take_tag(self, tag: str) -> None:
        folder = self._part.folder
        try:
            mine = self._part.lock.acquire(_LOCK_WAIT_S)
        except OSError as exc:
            raise ArchiveError(f"{folder}: cannot write here ({exc.strerror})") from exc
        if not mine:
            raise ArchiveError(
                f"{folder}: another process is writing under the tag {tag!r}; wait for it, or give each "
                "process its own tag (`--shard i/n`)"
            )

    def _leave_tag(self) -> None:
        self._closed = True
        self._part.stop()
        self._part.lock.release()
        self._part.remove()

    def _adopt_others(self) -> None:
        """Finishes the shards of writers that were killed, unless one of that tag is alive."""
        for folder in layout.parts(self.path):
            other = _Part(self.path, layout.part_tag(folder), self._info)
            if folder == self._part.folder or not folder.is_dir():
                continue
            try:
                if not other.lock.acquire():
                    continue
            except OSError:  # another user's: theirs to finish
                continue
            try:
                if other.lock.enforced:
                    other.recover()
                    other.seal()
                    other.wait()
            finally:
                other.stop()
                other.lock.release()
            other.remove()

    def _check_id(self, id: str) -> None:
        checked_id(id, self.path, ArchiveError)
        if id in self._done:
            raise ArchiveError(f"{self.path}: image {id!r} is already there; ids must be unique")

    def _check_arrays(self, id: str, label: NDArray[Any], certainty: NDArray[Any]) -> None:
        self._check_label(id, label)
        where, count = f"{self.path}: image {id!r}", len(self._info.classes)
        if certainty.dtype != np.uint8:
            raise ArchiveError(f"{where}: the certainty is {certainty.dtype}; expected uint8")
        expected = (count, *label.shape)
        if certainty.shape != expected:
            raise ArchiveError(
                f"{where}: the certainty has shape {certainty.shape}; expected (C, H, W) = {expected}, for "
                f"{count} classes and the label map's size"
            )
        if (highest := int(certainty.max())) > MAX_CERTAINTY:
            raise ArchiveError(
                f"{where}: the certainty goes up to {highest}; expected percent, 0..{MAX_CERTAINTY}"
            )

    def _check_label(self, id: str, label: NDArray[Any]) -> None:
        where, count = f"{self.path}: image {id!r}", len(self._info.classes)
        if label.dtype != np.uint8:
            raise ArchiveError(f"{where}: the label map is {label.dtype}; expected uint8")
        if label.ndim != 2 or label.size == 0:
            raise ArchiveError(f"{where}: the label map has shape {label.shape}; expected (H, W)")
        if label.size > MAX_PIXELS:
            raise ArchiveError(
                f"{where}: {label.size:,} pixels, but archives hold images of up to {MAX_PIXELS:,}; cut it into tiles"
            )
        wrong = label[(label >= count) & (label != IGNORE)]
        if wrong.size:
            raise ArchiveError(
                f"{where}: the label map holds {int(wrong[0])}; expected train ids below {count}, or "
                f"{IGNORE} for ignore"
            )


class _Part:
    """The folder of one writer's finished images that do not fill a shard yet."""

    def __init__(self, archive: Path, tag: str, info: ArchiveInfo) -> None:
        self.folder = layout.part(archive, tag)
        self.lock = WriterLock(self.folder / "lock")
        self._archive = archive
        self._tag = tag
        self._info = info
        self._files: dict[Path, Mapping[str, ImageEntry]] = {}
        self._bytes = 0
        self._pool = ThreadPoolExecutor(1, "seal")
        self._sealing: Future[None] | None = None
        self._at_work = threading.Lock()
        self._stopped = False

    @property
    def waiting(self) -> int:
        """Images that are not on their way into a shard."""
        return sum(map(len, self._files.values()))

    @property
    def bytes(self) -> int:
        """Of the files of those images."""
        return self._bytes

    def add(self, image: CodedImage) -> None:
        data = shard.image_file(image)
        path = layout.waiting_image(self.folder, shard.sha256(data))
        # Not waited for until the disk has it: after a power cut the name tells whether the content is whole.
        replace_file(path, data, durable=False)
        self._remember(path, {image.id: image.entry}, len(data))

    def seal(self) -> None:
        """Begins to make a shard of the images, if there are any; the disk takes its time, so coding goes on.

        Raises ArchiveError if the shard before could not be made. Killed anywhere in it, nothing is lost.
        """
        self.wait()
        if self._files:
            self._sealing = self._pool.submit(self._make_shard, self._files)
            self._files, self._bytes = {}, 0

    def wait(self) -> None:
        """Until the last shard is made. Raises ArchiveError if it could not be."""
        if self._sealing is not None:
            sealing, self._sealing = self._sealing, None
            sealing.result()

    def stop(self) -> None:
        """Until nothing is written any more, whatever came of it: what is no shard is still in the folder."""
        self._pool.shutdown()
        # A Ctrl-C that came while the thread was started leaves one that the pool knows nothing of.
        with self._at_work:
            self._stopped = True

    def _make_shard(self, files: Mapping[Path, Mapping[str, ImageEntry]]) -> None:
        with self._at_work:
            if not self._stopped:
                self._write_shard(files)

    def _write_shard(self, files: Mapping[Path, Mapping[str, ImageEntry]]) -> None:
        data = shard.shard_file(self._info, map(_read_own, files))
        path = self._archive / layout.shard_name(self._tag, self._next_number())
        replace_file(path, data)
        images = {id: entry for entries in files.values() for id, entry in entries.items()}
        try:
            write_manifest(
                layout.manifest_path(path), ShardManifest(path.name, len(data), shard.sha256(data), images)
            )
        except BaseException:
            path.unlink(missing_ok=True)  # its images are still here, and a shard without manifest is damage
            raise
        for file in files:
            file.unlink()

    def recover(self) -> None:
        """Takes over what a killed writer of this tag left, and drops what it had not finished."""
        for path in (
            *self.folder.glob(f"*{layout.TEMPORARY_SUFFIX}"),
            *self._archive.glob(f"shard-*{layout.TEMPORARY_SUFFIX}"),
        ):
            if (
                path.parent == self.folder
                or layout.shard_tag(Path(path.stem).with_suffix(".h5").name) == self._tag
            ):
                path.unlink(missing_ok=True)
        for path in index.orphans(self._archive):
            if layout.shard_tag(path.name) == self._tag:
                _complete_orphan(path, self._info.classes)
        shards, _ = index.scan_shards(self._archive)
        finished = index.read_part(self.folder, self._info.classes)
        for path in layout.waiting_images(self.folder):
            images = finished.get(path, {})
            if images.keys() <= shards.keys():  # of a power cut, or already in a shard
                path.unlink()
            else:
                self._remember(path, images, path.stat().st_size)

    def remove(self) -> None:
        """Removes the folder if nothing is in it."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _remember(self, path: Path, images: Mapping[str, ImageEntry], size: int) -> None:
        self._files[path] = images
        self._bytes += size

    def _next_number(self) -> int:
        names = [path.name for path in layout.shards(self._archive)]
        return 1 + max(
            (layout.shard_number(name) for name in names if layout.shard_tag(name) == self._tag), default=-1
        )


def _read_own(path: Path) -> CodedImage:
    try:
        return shard.read_image_file(path)
    except (ArchiveError, OSError) as exc:
        raise ArchiveError(
            f"{path}: cannot be read any more: {shard.reason(exc)}; run the same command again, it replaces "
            "what is missing"
        ) from exc


def _complete_orphan(path: Path, classes: Sequence[str]) -> None:
    """Gives a shard without a manifest one. If anything in it is damaged, sets it aside as ``*.damaged``.

    Raises ArchiveError if it may be whole, but cannot be read.
    """
    try:
        manifest = index.manifest_of(path, classes)
        file = ImageFile(path, classes)
        for id, entry in manifest.images.items():
            check_image(file, id, entry)
    except Exception as exc:  # decoders raise many things on damage
        if not shard.is_damage(exc) and not isinstance(exc, FileNotFoundError):
            raise shard.unreadable(path, exc) from exc
        for file_path in (path, layout.manifest_path(path)):
            with contextlib.suppress(FileNotFoundError):
                file_path.replace(file_path.with_name(f"{file_path.name}.damaged"))
    else:
        write_manifest(layout.manifest_path(path), manifest)


def refuse_other_archive(path: Path, classes: Sequence[str], attributes: Mapping[str, Attribute]) -> None:
    """Raise what a :class:`CertaintyWriter` would raise of classes and attributes; nothing is written.

    Raises ArchiveError if an archive lies there that has others.
    """
    check_classes(path, tuple(classes))
    if (path / layout.ARCHIVE_FILE).exists():
        stored = read_info(path)
        _expect_same_classes(path, stored.classes, tuple(classes))
        _expect_same_attributes(path, stored.attributes, _as_stored(attributes))


def _as_stored(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """As they will be read: tuples are lists."""
    plain: dict[str, Attribute] = json.loads(json.dumps(dict(attributes)))
    return {"scale": "percent, truncated to 0..100", **plain}


def _expect_same_classes(path: Path, stored: tuple[str, ...], given: tuple[str, ...]) -> None:
    if stored == given:
        return
    if len(stored) != len(given):
        difference = f"it holds {len(stored)} classes, not {len(given)}"
    else:
        c = next(c for c in range(len(given)) if stored[c] != given[c])
        difference = f"its class {c} is {stored[c]!r}, not {given[c]!r}"
    raise ArchiveError(f"{path}: an archive of other classes, {difference}; write to another folder")


def _expect_same_attributes(
    path: Path, stored: Mapping[str, Attribute], given: Mapping[str, Attribute]
) -> None:
    for name in sorted(stored.keys() | given.keys()):
        if name not in _INFORMATIVE and stored.get(name) != given.get(name):
            raise ArchiveError(
                f"{path}: made with {name} {stored.get(name)!r}, but this run has {given.get(name)!r}; "
                "write to another folder, or remove this one to start over"
            )
