"""Reading archives, also while they are being written."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from endauda_cli.archive import index, shard
from endauda_cli.archive.manifest import Attribute, ImageEntry, read_info
from endauda_cli.archive.shard import StoredPlane
from endauda_cli.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    import h5py

    from endauda_cli.archive.codecs import Bytes

_OPEN_FILES = 8
_MAX_DECODERS = 16

T = TypeVar("T")


class CertaintyReader:
    """Label maps and certainties of one teacher, by image id.

    Sees every image that was finished when it was opened, also of an archive that is still being written.
    Whatever it returns was checked against the checksum from the time of writing. It can be shared by
    threads, survives a fork and can be pickled.

    Raises ArchiveError if ``path`` is no archive, is damaged, or is of another format version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._info = read_info(self.path)
        self._index = index.scan(self.path)
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

    def labels(self, id: str) -> Bytes:
        """The label map: (H, W) uint8 train ids, 255 = ignore. Raises ArchiveError on damage."""
        (label,) = self._decode(id, [self._read(id, lambda file, entry: shard.read_label(file, id, entry))])
        return label

    def plane(self, id: str, c: int) -> Bytes:
        """The certainty of class ``c``: (H, W) uint8, percent 0..100. Raises ArchiveError on damage."""
        (plane,) = self._planes(id, [c])
        return plane

    def planes(self, id: str, classes: Sequence[int]) -> Bytes:
        """The certainties of some classes, in that order: (len(classes), H, W) uint8, percent 0..100.

        Decodes in as many threads as there are cores.
        Raises ArchiveError if there is no such image or class, or if a plane is damaged.
        """
        height, width = self.size(id)
        planes = np.empty((len(classes), height, width), np.uint8)
        for row, plane in zip(planes, self._planes(id, classes), strict=True):
            row[:] = plane
        return planes

    def certainty(self, id: str) -> Bytes:
        """The certainties of all classes: (C, H, W) uint8, percent 0..100. Raises ArchiveError on damage."""
        return self.planes(id, range(len(self.classes)))

    def _planes(self, id: str, classes: Sequence[int]) -> list[Bytes]:
        for c in classes:
            if not 0 <= c < len(self._info.classes):
                raise ArchiveError(
                    f"{self.path}: there is no class {c}; it has {len(self._info.classes)} classes, from 0 on"
                )
        return self._decode(
            id, self._read(id, lambda file, entry: shard.read_planes(file, id, entry, classes))
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _files=_OpenFiles())

    def _locate(self, id: str) -> index.Location:
        location = self._index.stored.get(id) or self._index.lost.get(id)
        if location is None:
            raise ArchiveError(f"{self.path}: there is no image {id!r} among its {len(self):,} images")
        return location

    def _read(self, id: str, action: Callable[[h5py.File, ImageEntry], T]) -> T:
        location = self._locate(id)
        try:
            return self._files.use(location.file, lambda file: action(file, location.entry))
        except FileNotFoundError as exc:
            # Perhaps its writer has moved it from a part into a shard since this reader looked.
            self._index = index.scan(self.path)
            if self._index.stored.get(id, location) != location:
                return self._read(id, action)
            raise self._damage(id, "the file is gone") from exc
        except Exception as exc:  # on damage h5py raises OSError, KeyError, RuntimeError and others
            raise self._damage(id, str(exc)) from exc

    def _decode(self, id: str, stored: Sequence[StoredPlane]) -> list[Bytes]:
        try:
            if len(stored) == 1:
                return [stored[0].decode()]
            return list(_decoders().map(StoredPlane.decode, stored))
        except Exception as exc:  # decoders raise many things on damage
            raise self._damage(id, str(exc)) from exc

    def _damage(self, id: str, reason: str) -> ArchiveError:
        file = self._locate(id).file
        if id in self._index.lost:
            reason = "the file is gone or has another size than when it was written"
        return ArchiveError(
            f"{file}: image {id!r} cannot be read: {reason}; delete this file and run "
            "`endauda export-teacher` again, it replaces what is missing"
        )


@cache
def _decoders_of(pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        min(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            _MAX_DECODERS,
        ),
        "decode",
    )


def _decoders() -> ThreadPoolExecutor:
    """The threads that decode planes, shared by all readers of this process; after a fork, its own."""
    return _decoders_of(os.getpid())


class _OpenFiles:
    """The few files last used, open; one thread at a time, as HDF5 itself would have it."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, h5py.File] = OrderedDict()

    def use(self, path: Path, action: Callable[[h5py.File], T]) -> T:
        """Calls ``action`` with the open file. Raises what opening and the action raise."""
        if self._pid != os.getpid():
            self._reset()  # after a fork: the parent's handles and perhaps its lock are not ours
        with self._lock:
            if path not in self._files:
                self._files[path] = shard.open_file(path)
            self._files.move_to_end(path)
            while len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            return action(self._files[path])

    def close(self) -> None:
        if self._pid == os.getpid():
            with self._lock:
                while self._files:
                    self._files.popitem()[1].close()
