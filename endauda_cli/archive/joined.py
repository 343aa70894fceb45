"""An archive read with the classes of another task: joined by name, not by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.archive.reader import CertaintyReader
from endauda_cli.domains import IGNORE
from endauda_cli.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from endauda_cli.archive.codecs import Bytes


class JoinedReader(CertaintyReader):
    """Reads an archive as if it had been written for some of its classes, in another order.

    A pixel whose label is none of these gets the most certain of the classes that are left, which is what the
    network would have said without the others; if it was certain of none, it has no label.

    Raises ArchiveError if the archive lacks a class.
    """

    def __init__(self, reader: CertaintyReader, classes: Sequence[str]) -> None:
        missing = [name for name in classes if name not in reader.classes]
        if missing:
            raise ArchiveError(
                f"{reader.path}: has {len(reader.classes)} classes, and {missing[0]!r} is not among them"
            )
        self.__dict__.update(reader.__dict__)
        self._names = tuple(classes)
        self._place = [reader.classes.index(name) for name in classes]
        self._number = np.full(256, IGNORE, np.uint8)
        self._number[self._place] = np.arange(len(classes), dtype=np.uint8)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the train id."""
        return self._names

    def labels(self, id: str) -> Bytes:
        """The label map: (H, W) uint8 train ids, 255 = ignore. Raises ArchiveError on damage."""
        given = super().labels(id)
        labels = self._number[given]
        lost = (labels == IGNORE) & (given < len(self._info.classes))
        if lost.any():
            planes = self.certainty(id)[:, lost]
            labels[lost] = np.where(planes.max(0) > 0, planes.argmax(0), IGNORE)
        return labels

    def planes(self, id: str, classes: Sequence[int]) -> Bytes:
        """The certainties of some classes, by their new numbers; see ``CertaintyReader``."""
        return super().planes(id, self._own(classes))

    def _own(self, classes: Sequence[int]) -> list[int]:
        for c in classes:
            if not 0 <= c < len(self._names):
                raise ArchiveError(
                    f"{self.path}: there is no class {c}; {len(self._names)} of its classes are used, from 0 on"
                )
        return [self._place[c] for c in classes]


def join_classes(reader: CertaintyReader, classes: Sequence[str]) -> CertaintyReader:
    """The reader itself where it has these classes, else one that looks them up by name.

    Raises:
        ArchiveError: if one is missing.
    """
    return reader if reader.classes == tuple(classes) else JoinedReader(reader, classes)
