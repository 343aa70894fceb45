"""Pseudo labels of a round of self-training: made by the network as it is when the round begins, and found again."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from endauda_cli.distributed import barrier, rank, world_size
from endauda_cli.domains import IGNORE
from endauda_cli.errors import CheckpointError
from endauda_cli.progress import Note, Reporter, counted
from endauda_cli.workspace import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from endauda_cli.models import Student
    from endauda_cli.training.cache import RowFile
    from endauda_cli.training.data import Joined
    from endauda_cli.transforms import Preprocessing

    UInt8 = NDArray[np.uint8]
    Maps = Iterator[NDArray[np.float32]]

FOLDER = "rounds"
"""In a run's folder: one folder per round."""
LABELS, SOFT, FACTS = "labels.npy", "soft.npy", "round.json"
KEPT = 2
"""Rounds whose labels stay: the newest, and that before."""


class Pseudo(NamedTuple):
    """What a round learns of the target."""

    labels: UInt8
    """(N, h, w) train ids, 255 = none; of a file."""
    shares: NDArray[np.float64]
    """(C,): of all pixels, those that each class was predicted at."""
    soft: UInt8 | None = None
    """(N, C, h, w) soft labels in 255ths, all 0 where there is none; of a file."""


class Rules(NamedTuple):
    """How probabilities become labels."""

    thresholds: Callable[[Maps], NDArray[np.float32]]
    """Of all maps (C, h, w), each class's (C,)."""
    labels: Callable[[NDArray[np.float32], NDArray[np.float32]], UInt8]
    """Of a map and the thresholds, (h, w)."""
    soft: Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]] | None = None
    """Of the same, soft labels (C, h, w), which are kept too."""


def make(
    student: Student,
    images: UInt8 | RowFile | Joined,
    preprocessing: Preprocessing,
    scale: float,
    rules: Rules,
    folder: Path,
    number: int,
    report: Reporter,
) -> Pseudo:
    """Pseudo labels of all images, kept in the run's folder until the round after the next begins.

    Each image is looked at twice, for its probabilities are too many to be kept. Every rank finds the thresholds, those
    of the first count; labels each rank writes of its own images.

    Args:
        student: is run as it is tested, and left as it was.
        images: (N, h, w, 3) uint8 RGB.
        preprocessing: of the student.
        scale: of the images that it sees.
        rules: of the method.
        folder: of the run.
        number: of the round, from 0.
        report: told of progress, and how much is labelled.
    """
    place = folder / FOLDER / str(number)
    if rank() == 0:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(folder / FOLDER / str(number - KEPT), ignore_errors=True)
        place.mkdir(parents=True)
    barrier()
    count, modes = len(images), [(module, module.training) for module in student.modules()]
    student.eval()
    word = f"pseudo labels of round {number + 1}"

    def probabilities(i: int) -> NDArray[np.float32]:
        return probabilities_of(student, images[i], preprocessing, scale)

    pixels: list[NDArray[np.int64]] = []

    def looked_at() -> Maps:
        for i in counted(range(count), count, f"{word}: looking", report):
            found = probabilities(i)
            pixels.append(np.bincount(found.argmax(0).ravel(), minlength=len(found)))
            yield found

    thresholds = rules.thresholds(looked_at())
    shares = np.sum(pixels, axis=0) / np.sum(pixels)
    height, width = images[0].shape[:2]
    if rank() == 0:
        _fresh(place / LABELS, (count, height, width))
        if rules.soft is not None:
            _fresh(place / SOFT, (count, len(shares), height, width))
        facts = {"thresholds": thresholds.tolist(), "shares": shares.tolist()}
        write_text(place / FACTS, json.dumps(facts, indent=1) + "\n")
    barrier()
    facts = json.loads((place / FACTS).read_text(encoding="utf-8"))
    thresholds = np.array(facts["thresholds"], np.float32)
    file = np.lib.format.open_memmap(place / LABELS, "r+")
    soft_file = None if rules.soft is None else np.lib.format.open_memmap(place / SOFT, "r+")
    mine = range(rank(), count, world_size())
    labelled = 0
    for i in counted(mine, len(mine), f"{word}: labelling", report):
        said = probabilities(i)
        file[i] = rules.labels(said, thresholds)
        if rules.soft is not None and soft_file is not None:
            soft_file[i] = (255 * rules.soft(said, thresholds)).round()
        labelled += int(np.count_nonzero(file[i] != IGNORE))
    file.flush()
    if soft_file is not None:
        soft_file.flush()
    for module, training in modes:
        module.training = training
    barrier()
    if rank() == 0:
        write_text(place / FACTS, json.dumps({**facts, "complete": True}, indent=1) + "\n")
    share = 100 * labelled / max(1, len(mine) * height * width)
    report(Note(f"round {number + 1}: {share:.1f} % of the target's pixels have a pseudo label"))
    barrier()
    return find(folder, number)


def find(folder: Path, number: int) -> Pseudo:
    """The labels that a round began with.

    Raises:
        CheckpointError: if they are not there.
    """
    place = folder / FOLDER / str(number)
    try:
        facts = json.loads((place / FACTS).read_text(encoding="utf-8"))
        labels = np.load(place / LABELS, mmap_mode="r", allow_pickle=False)
        if not facts["complete"]:
            raise ValueError
        soft = place / SOFT
        softened = np.load(soft, mmap_mode="r", allow_pickle=False) if soft.exists() else None
        return Pseudo(labels, np.array(facts["shares"], np.float64), softened)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{place}: the pseudo labels of round {number + 1} are not there, which the run stopped within; copy the "
            "folder too from where the run was made, or name another run with --name"
        ) from error


def _fresh(path: Path, shape: tuple[int, ...]) -> None:
    np.lib.format.open_memmap(path, "w+", np.uint8, shape).flush()


@torch.no_grad()
def probabilities_of(
    student: Student, image: UInt8, preprocessing: Preprocessing, scale: float
) -> NDArray[np.float32]:
    """What the network says of an image and of its mirror image, on average.

    Args:
        student: in eval mode.
        image: (h, w, 3) uint8 RGB.
        preprocessing: of the student.
        scale: of what it sees.

    Returns:
        (C, h, w) softmax, taken at that size.
    """
    device = next(student.parameters()).device
    pixels = torch.from_numpy(np.array(image))[None].to(device)  # a copy, for files are mapped read-only
    size = image.shape[0], image.shape[1]
    x = preprocessing.normalise(pixels)
    if scale != 1:
        x = F.interpolate(
            x, [max(1, round(side * scale)) for side in size], mode="bilinear", align_corners=False
        )

    def said(x: Tensor) -> Tensor:
        logits = student(x).float()
        return F.interpolate(logits, size, mode="bilinear", align_corners=True).softmax(1)

    both: Tensor = (said(x) + said(x.flip(3)).flip(3)) / 2
    return both[0].cpu().numpy()
