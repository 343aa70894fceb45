"""Reading archives, also while they are being written."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from endauda_cli.archive import index, shard
from endauda_cli.archive.image_files import ImageFile, decode_planes, read_label
from endauda_cli.archive.manifest import Attribute, read_info
from endauda_cli.errors import ArchiveError
from endauda_cli.options import cores
from endauda_cli.threads import shared_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from endauda_cli.archive.codecs import Bytes
    from endauda_cli.archive.image_files import StoredImage, Task
    from endauda_cli.types import Codec

_OPEN_FILES = 8
_MAX_DECODERS = 16

T = TypeVar("T")


class CertaintyReader:
    """Label maps and certainties of one teacher, by image id.

    Sees every image that was finished when it was opened, also of an archive that is still being written.
    Whatever it returns was checked against the checksum from the time of writing. It can be shared by
    threads, survives a fork while no other thread reads and can be pickled.

    Raises ArchiveError if ``path`` is no archive, is damaged, or is of another format version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._info = read_info(self.path)
        self._index = index.scan(self.path, self._info.classes)
        self._ids = tuple(sorted(self._index.stored.keys() | self._index.lost.keys()))
        self._files = _OpenFiles()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        self._files.close()

    @property
    def ids(self) -> tuple[str, ...]:
        """The images' ids, sorted; with those of damaged shards, which raise when they are read."""
        return self._ids

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the train id."""
        return self._info.classes

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """Where the certainties are from: as the writer was told; ``scale``, ``codec``, ``created_by``."""
        return MappingProxyType(dict(self._info.attributes))

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id: object) -> bool:
        return id in self._index.stored or id in self._index.lost

    def size(self, id: str) -> tuple[int, int]:
        """(H, W) in pixels."""
        entry = self._locate(id).entry
        return entry.height, entry.width

    def digest(self, id: str) -> str:
        """A digest of the image's label map and certainties, from the time of writing; needs no decoding."""
        return self._locate(id).entry.digest

    def codec(self, id: str) -> Codec:
        """How the image is coded; a rerun may have used another than the run before. Raises ArchiveError on damage."""
        return self._read(id, lambda _file, image: image.codec)

    def labels(self, id: str) -> Bytes:
        """The label map: (H, W) uint8 train ids, 255 = ignore. Raises ArchiveError on damage."""
        return self._read(id, read_label)

    def plane(self, id: str, c: int) -> Bytes:
        """The certainty of class ``c``: (H, W) uint8, percent 0..100. Raises ArchiveError on damage."""
        plane: Bytes = self.planes(id, [c])[0]
        return plane

    def planes(self, id: str, classes: Sequence[int]) -> Bytes:
        """The certainties of some classes, in that order: (len(classes), H, W) uint8, percent 0..100.

        Decodes in as many threads as there are cores.
        Raises ArchiveError if there is no such image or class, or if a plane is damaged.
        """
        for c in classes:
            if not 0 <= c < len(self._info.classes):
                raise ArchiveError(
                    f"{self.path}: there is no class {c}; it has {len(self._info.classes)} classes, from 0 on"
                )
        tasks = self._read(id, lambda file, image: decode_planes(file, image, classes))
        location = self._locate(id)
        try:
            planes = np.zeros((len(classes), *self.size(id)), np.uint8)
            _do_all(tasks, planes)
        except Exception as exc:  # decoders raise many things on damage
            raise self._unreadable(id, location, exc) from exc
        return planes

    def certainty(self, id: str) -> Bytes:
        """The certainties of all classes: (C, H, W) uint8, percent 0..100. Raises ArchiveError on damage."""
        return self.planes(id, range(len(self.classes)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _files=_OpenFiles())

    def _locate(self, id: str) -> index.Location:
        location = self._index.stored.get(id) or self._index.lost.get(id)
        if location is None:
            raise ArchiveError(f"{self.path}: there is no image {id!r} among its {len(self):,} images")
        return location

    def _read(self, id: str, action: Callable[[ImageFile, StoredImage], T]) -> T:
        location = self._locate(id)
        try:
            file = self._files.open(location.file, self._info.classes)
            return action(file, file.find(id, location.entry))
        except FileNotFoundError as exc:
            # Perhaps its writer has moved it from a part into a shard since this reader looked.
            now = index.scan(self.path, self._info.classes)
            # What is nowhere now stays among the ids, and is told when it is read.
            lost = {**self._index.lost, **now.lost}
            self._index = index.Index(
                {**self._index.stored, **now.stored}, {i: lost[i] for i in lost.keys() - now.stored.keys()}
            )
            if now.stored.get(id, location) != location:
                return self._read(id, action)
            raise self._unreadable(id, location, exc) from exc
        except Exception as exc:  # decoders raise many things on damage
            raise self._unreadable(id, location, exc) from exc

    def _unreadable(self, id: str, location: index.Location, error: Exception) -> ArchiveError:
        if not shard.is_damage(error) and location.file.exists():
            return shard.unreadable(location.file, error)
        reason, delete = shard.reason(error), "delete this file and "
        if not location.file.exists():
            reason, delete = "the file is gone", ""
        elif id in self._index.lost:
            reason = "the file has another size than when it was written"
        return ArchiveError(
            f"{location.file}: image {id!r} cannot be read: {reason}; {delete}run "
            "`endauda export-teacher` again, it replaces what is missing"
        )


def _do_all(tasks: Sequence[Task], planes: Bytes) -> None:
    """Does them in as many threads as there are idle cores: each gets about as much of the work."""
    with _Busy() as busy:
        shares: list[list[Task]] = [[] for _ in range(max(1, min(_threads() // busy, len(tasks))))]
        loads = [0] * len(shares)
        for task in sorted(tasks, key=lambda task: -task.cost):
            lightest = loads.index(min(loads))
            shares[lightest].append(task)
            loads[lightest] += task.cost

        def do(share: Sequence[Task]) -> None:
            for task in share:
                task.do(planes)

        others = [shared_pool("decode", _threads()).submit(do, share) for share in shares[1:]]
        try:
            do(shares[0])
        finally:
            errors = [other.exception() for other in others]  # waits: they write into ``planes``
        for error in errors:
            if error is not None:
                raise error


class _Busy:
    """Counts the threads that decode an image each, so that they do not all ask for all cores."""

    lock = threading.Lock()
    count = 0

    def __enter__(self) -> int:
        with _Busy.lock:
            _Busy.count += 1
            return _Busy.count

    def __exit__(self, *_: object) -> None:
        with _Busy.lock:
            _Busy.count -= 1

    @staticmethod
    def forget() -> None:
        """After a fork: those threads are the parent's."""
        _Busy.lock, _Busy.count = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Busy.forget)


def _threads() -> int:
    return min(cores(), _MAX_DECODERS)


class _OpenFiles:
    """The few files last used, open."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, ImageFile] = OrderedDict()

    def open(self, path: Path, classes: Sequence[str]) -> ImageFile:
        """The open file. Raises what opening raises."""
        if self._pid != os.getpid():
            self._reset()  # after a fork: the parent's lock may be held
        with self._lock:
            if path not in self._files:
                self._files[path] = ImageFile(path, classes)
            self._files.move_to_end(path)
            while len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
            return self._files[path]

    def close(self) -> None:
        if self._pid == os.getpid():
            with self._lock:
                self._files.clear()
