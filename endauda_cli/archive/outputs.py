"""What one teacher says of a set of images: an archive, an archive read with other classes, a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]


@runtime_checkable
class TeacherOutputs(Protocol):
    """Label maps and certainties of one teacher, by image id. Threads may share it.

    C classes, H rows and W columns of an image. An id that is not there, and damage, are an ``EndaudaError``.
    """

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the images, sorted."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the train id."""

    def __contains__(self, id: object) -> bool: ...

    def size(self, id: str) -> tuple[int, int]:
        """(H, W) in pixels."""

    def digest(self, id: str) -> str:
        """Another one means other labels or certainties."""

    def labels(self, id: str) -> UInt8:
        """(H, W) uint8 train ids, 255 = none."""

    def plane(self, id: str, c: int) -> UInt8:
        """The certainty of a class: (H, W) uint8, percent 0..100."""

    def planes(self, id: str, classes: Sequence[int]) -> UInt8:
        """The certainties of some classes, in that order: (len(classes), H, W) uint8, percent 0..100."""

    def certainty(self, id: str) -> UInt8:
        """The certainties of all classes: (C, H, W) uint8, percent 0..100."""
