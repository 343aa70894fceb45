"""Engine: how certain a label set's rule was, made again from the archives that it was fused from.

A label set keeps labels alone. Of ``consensus`` the certainty is its belief, of ``certainty`` the teachers' mean.
``plf`` has its owners' own, ``majority`` none, and ``soft-label`` what is typical of ranks, which is no probability.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.archive import CertaintyReader, join_classes
from endauda_cli.errors import WorkspaceError
from endauda_cli.fusion.policy_files import POLICY_FILE, read_consensus
from endauda_cli.fusion.rules.beliefs import believed
from endauda_cli.types import FusionRule
from endauda_cli.workspace import RECORD_FILE, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.archive import TeacherOutputs

    UInt8 = NDArray[np.uint8]
    Fused = tuple[UInt8, NDArray[np.float32]]

WITHOUT = {
    FusionRule.PLF: "its certainties are those of the classes' owners, which --archive judges",
    FusionRule.MAJORITY: "a vote has no certainty",
    FusionRule.SOFT_LABEL: "its certainties are what is typical of a rank, no probabilities",
}


@contextmanager
def certainties_of(
    folder: Path, classes: Sequence[str], archive: Callable[[str], Path]
) -> Iterator[Callable[[str], Fused]]:
    """From an image's id to its (H, W) labels before the threshold, and how certain they are in percent.

    Args:
        folder: of the label set.
        classes: of the task.
        archive: from a teacher's name to the folder of its archive.

    Raises:
        WorkspaceError: if the set's rule has no such certainty, or it was not fused from archives.
        PolicyError, ArchiveError: if what it was fused with is gone or damaged.
    """
    record: dict[str, Any] = read_json(folder / RECORD_FILE) or {}
    rule, names, config = record.get("rule"), record.get("teachers"), record.get("config")
    if rule in WITHOUT:
        raise WorkspaceError(f"{folder}: rule {rule}: {WITHOUT[FusionRule(rule)]}")
    if not isinstance(names, list) or not isinstance(config, dict) or config.get("renormalise"):
        raise WorkspaceError(
            f"{folder}: not fused from archives as they are, so its certainties are not known"
        )
    with ExitStack() as stack:
        teachers = [
            join_classes(stack.enter_context(CertaintyReader(archive(name))), classes) for name in names
        ]
        if rule == FusionRule.CERTAINTY:
            yield partial(_mean, teachers)
            return
        model = read_consensus(folder / POLICY_FILE, classes, names)

        def belief(image: str) -> Fused:
            found = believed(*_said(teachers, image), model)
            return found.candidate, found.certainty

        yield belief


def _mean(teachers: Sequence[TeacherOutputs], image: str) -> Fused:
    mean = _said(teachers, image)[1].mean(0, dtype=np.float32)
    return mean.argmax(0).astype(np.uint8), mean.max(0)


def _said(teachers: Sequence[TeacherOutputs], image: str) -> tuple[UInt8, UInt8]:
    labels = np.stack([teacher.labels(image) for teacher in teachers])
    return labels, np.stack([teacher.certainty(image) for teacher in teachers])
