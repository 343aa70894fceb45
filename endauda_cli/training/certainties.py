"""What the teachers of a label set were certain of, for the losses that learn from more than its labels.

A row is made once and cached: an image's archives hold a plane per teacher and class, and decoding them takes
seconds at Cityscapes' size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from endauda_cli.archive import CertaintyReader, join_classes
from endauda_cli.archive.layout import has_images
from endauda_cli.config import SOFT_STRIDE
from endauda_cli.domains import IGNORE
from endauda_cli.errors import ArchiveError, WorkspaceError
from endauda_cli.names import name_fault
from endauda_cli.training.data import MAIN
from endauda_cli.transforms import resize
from endauda_cli.types import Loss
from endauda_cli.workspace import RECORD_FILE, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.archive import TeacherOutputs
    from endauda_cli.training.data import Certainties, Stream
    from endauda_cli.training.methods import Material

    UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class _OfTeachers:
    """What both kinds have: teachers, with the task's classes."""

    teachers: Sequence[TeacherOutputs]

    def digest(self, image: str) -> str:
        return " ".join(teacher.digest(image) for teacher in self.teachers)


class OfLabels(_OfTeachers):
    """Of each pixel's label alone: (h, w), 0 where there is none. Other classes' planes are not decoded."""

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        return size

    def row(self, image: str, labels: UInt8) -> UInt8:
        height, width = labels.shape
        total = np.zeros(labels.shape, np.uint16)
        classes = [c for c in np.unique(labels).tolist() if c != IGNORE]
        for teacher in self.teachers:
            for c in classes:
                # At the pixels that the labels were taken from.
                plane = resize(teacher.plane(image, c), (width, height), "nearest")
                np.add(total, plane, out=total, where=labels == c)
        return np.rint(total / len(self.teachers)).astype(np.uint8)


class OfClasses(_OfTeachers):
    """Of all classes, averaged over squares: (C, h / 4, w / 4).

    What is lost is what is finer than four of the student's pixels, and half a percent by rounding.
    """

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        return len(self.teachers[0].classes), size[0] // SOFT_STRIDE, size[1] // SOFT_STRIDE

    def row(self, image: str, labels: UInt8) -> UInt8:
        classes, height, width = self.shape((labels.shape[0], labels.shape[1]))
        total = torch.zeros(classes, height, width)
        for teacher in self.teachers:
            for mean, plane in zip(total, teacher.certainty(image), strict=True):
                mean += F.adaptive_avg_pool2d(torch.from_numpy(plane).float()[None], (height, width))[0]
        row: UInt8 = (total / len(self.teachers)).round().to(torch.uint8).numpy()
        return row


KINDS: dict[str, Callable[[Sequence[TeacherOutputs]], Certainties]] = {
    Loss.WEIGHTED: OfLabels,
    Loss.SOFT: OfClasses,
}
"""What each loss learns from beside labels; those that are not here need nothing more."""


def with_certainties(streams: Mapping[str, Stream], loss: str, material: Material) -> dict[str, Stream]:
    """The streams; if the loss needs it, the main one with what the teachers of its labels were certain of.

    Args:
        streams: what a method learns from.
        loss: a ``Loss``.
        material: where archives lie, and the task whose classes they are read with.

    Raises:
        WorkspaceError: if it is not known who these teachers are, or one has no archive.
        ArchiveError: if an archive cannot be read, or lacks a class or an image.
    """
    if loss not in KINDS:
        return dict(streams)
    main = streams[MAIN]
    assert main.labels is not None  # a loss that has teachers goes with labels that were fused
    teachers = [
        _opened(path, material.task.classes, [example.id for example in main.examples], loss)
        for path in _archives(main.labels, loss, material)
    ]
    return {**streams, MAIN: replace(main, certainties=KINDS[loss](teachers))}


def _archives(folder: Path, loss: str, material: Material) -> list[Path]:
    """Of the teachers that the labels of a folder were fused from."""
    record: dict[str, Any] = read_json(folder / RECORD_FILE) or {}
    source, names = record.get("source"), record.get("teachers")
    if not (isinstance(names, list) and names) or any(name_fault(name) for name in (source, *names)):
        raise WorkspaceError(
            f"--loss {loss}: {folder / RECORD_FILE} does not say which teachers these labels were fused from; fuse "
            f"them with 'endauda fuse', or learn the labels alone with --loss {Loss.HARD}"
        )
    paths = [material.workspace.archive(str(source), name) for name in names]
    for path in paths:
        if not has_images(path):
            raise WorkspaceError(
                f"--loss {loss}: {path} holds no archive, but these labels were fused from {path.name}'s; make it "
                f"again with 'endauda export-teacher {path.name}', or learn the labels alone with --loss {Loss.HARD}"
            )
    return paths


def _opened(path: Path, classes: Sequence[str], images: Sequence[str], loss: str) -> TeacherOutputs:
    teacher = join_classes(CertaintyReader(path), classes)
    missing = [image for image in images if image not in teacher]
    if missing:
        raise ArchiveError(
            f"--loss {loss}: {path} lacks {len(missing)} of {len(images)} images, first {missing[0]}; run 'endauda "
            f"export-teacher {path.name}' again, it adds what is missing"
        )
    return teacher
