"""A teacher's outputs read with the classes of another task: joined by name, not by number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.domains import IGNORE
from endauda_cli.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from endauda_cli.archive.codecs import Bytes
    from endauda_cli.archive.outputs import TeacherOutputs


class JoinedReader:
    """Reads outputs as if they had been made for some of their classes, in another order.

    A pixel whose label is none of these gets the most certain of the classes that are left, which is what the
    network would have said without the others; if it was certain of none, it has no label.

    Raises ArchiveError if a class is missing.
    """

    def __init__(self, outputs: TeacherOutputs, classes: Sequence[str]) -> None:
        self._outputs = outputs
        self._where = getattr(outputs, "path", "a teacher")
        missing = [name for name in classes if name not in outputs.classes]
        if missing:
            raise ArchiveError(
                f"{self._where}: has {len(outputs.classes)} classes, and {missing[0]!r} is not among them"
            )
        self._names = tuple(classes)
        self._place = [outputs.classes.index(name) for name in classes]
        self._number = np.full(256, IGNORE, np.uint8)
        self._number[self._place] = np.arange(len(classes), dtype=np.uint8)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the images, sorted."""
        return self._outputs.ids

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the train id."""
        return self._names

    def __contains__(self, id: object) -> bool:
        return id in self._outputs

    def size(self, id: str) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self._outputs.size(id)

    def digest(self, id: str) -> str:
        """Of what the teacher said, whatever is read of it."""
        return self._outputs.digest(id)

    def labels(self, id: str) -> Bytes:
        """The label map: (H, W) uint8 train ids, 255 = ignore. Raises ArchiveError on damage."""
        given = self._outputs.labels(id)
        labels = self._number[given]
        lost = (labels == IGNORE) & (given < len(self._outputs.classes))
        if lost.any():
            planes = self.certainty(id)[:, lost]
            labels[lost] = np.where(planes.max(0) > 0, planes.argmax(0), IGNORE)
        return labels

    def plane(self, id: str, c: int) -> Bytes:
        """The certainty of class ``c``: (H, W) uint8, percent 0..100."""
        plane: Bytes = self.planes(id, [c])[0]
        return plane

    def planes(self, id: str, classes: Sequence[int]) -> Bytes:
        """The certainties of some classes: (len(classes), H, W) uint8, percent 0..100."""
        for c in classes:
            if not 0 <= c < len(self._names):
                raise ArchiveError(
                    f"{self._where}: there is no class {c}; {len(self._names)} of its classes are used, from 0 on"
                )
        return self._outputs.planes(id, [self._place[c] for c in classes])

    @property
    def tensors(self) -> Callable[[str, Sequence[int]], Any] | None:
        """``planes`` on the device where a network left them; ``None`` of what lies on disk."""
        ask = getattr(self._outputs, "tensors", None)
        return ask and (lambda id, classes: ask(id, [self._place[c] for c in classes]))

    def certainty(self, id: str) -> Bytes:
        """The certainties of all classes: (C, H, W) uint8, percent 0..100."""
        return self.planes(id, range(len(self._names)))


def join_classes(outputs: TeacherOutputs, classes: Sequence[str]) -> TeacherOutputs:
    """The outputs themselves where they have these classes, else read by name.

    Raises:
        ArchiveError: if one is missing.
    """
    return outputs if outputs.classes == tuple(classes) else JoinedReader(outputs, classes)
