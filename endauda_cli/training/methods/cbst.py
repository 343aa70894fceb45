"""CBST (Zou et al., 2018, arXiv 1810.07911): pseudo labels whose share is the same for every class.

What each constant is and where it is from: docs/methods.md.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from endauda_cli.adaptation import size_of
from endauda_cli.domains import IGNORE
from endauda_cli.training.data import Joined, Rows
from endauda_cli.training.methods.arrays import Array, float_array, like
from endauda_cli.training.methods.method import (
    MAIN,
    TARGET,
    Batch,
    Forward,
    Material,
    Method,
    adaptation,
)
from endauda_cli.training.rounds import FOLDER, KEPT, LABELS, Rules, find, make

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from endauda_cli.config import TrainConfig
    from endauda_cli.models import Student
    from endauda_cli.progress import Reporter
    from endauda_cli.training.data import Rowed, Stream
    from endauda_cli.training.rounds import Maps

SAMPLED = 4
"""Of each image's pixels of a class, so manieth counts for its threshold."""


class Cbst(Method):
    """Rounds: label the target's surest pixels, as many of each class; then learn these and some of the source.

    The source's images of a round, and all of the target's, are drawn from alike. Crops of target images lie around
    classes that are rarely predicted, where there are such.
    """

    network = "cbst"
    flip = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "steps": 11_358,
        "batch_size": 2,
        "learning_rate": 5e-5,
        "power": 0.0,
        "nesterov": False,
        "size": (2048, 1024),
        "source_size": (1914, 1052),
        "crop": (1024, 512),
        "mirror": True,
        "scale_jitter": (0.5, 1.5),
        "freeze_norms": True,
        "class_balance": False,
        "often_balance": False,
        "hard_percentile": 0.0,
    }

    @staticmethod
    def streams(material: Material) -> tuple[dict[str, Stream], str]:
        """The labelled source and the unlabelled target."""
        return adaptation(material), "cbst"

    @staticmethod
    def narrowed(streams: Mapping[str, Stream], config: TrainConfig) -> dict[str, Stream]:
        """Of the source, the images of all rounds, one round after another, as a permutation has them."""
        source = streams[MAIN]
        examples = source.examples
        numbers = [
            min(len(examples), max(1, math.floor(len(examples) * share)))
            for share in _rising(
                config.rounds, config.source_portion, config.source_portion_step, config.source_portion_most
            )
        ]
        order = np.random.default_rng([config.seed, len(examples)]).permutation(len(examples))
        drawn = [examples[order[i % len(order)]] for i in range(sum(numbers))]
        kept = replace(source, examples=drawn, contents=None, rounds=tuple(numbers))
        return {**streams, MAIN: kept}

    def until(self, step: int) -> int:
        """The step at which the next round begins."""
        return next(end for end in self._ends() if end > step)

    def begin(
        self, student: Student, rows: Mapping[str, Rows], rounds: tuple[int, ...], folder: Path, step: int,
        report: Reporter,
    ) -> Mapping[str, Rows]:  # fmt: skip
        """Images of the round's source and of the target with its pseudo labels, in one stream.

        Certainties say which is which: 100 of the target, 0 of the source; or they are the target's soft labels.
        """
        config, (source, target), starts = self.config, (rows[MAIN], rows[TARGET]), self._starts()
        number = sum(start <= step for start in starts) - 1
        if step == starts[number]:
            portion = _rising(config.rounds, config.portion, config.portion_step, config.portion_most)[number]
            rules = self.rules(partial(class_thresholds, portion=portion, stride=SAMPLED))
            pseudo = make(
                student, target.images, self.preprocessing, config.label_scale, rules, folder, number, report
            )
        else:
            pseudo = find(folder, number)
        numbers = rounds or (len(source.images),) * config.rounds
        first = sum(numbers[:number]) if rounds else 0
        taken, every = range(first, first + numbers[number]), range(len(target.images))
        mined = np.flatnonzero(pseudo.shares < config.mine_below)
        classes = None if pseudo.soft is None else len(pseudo.shares)
        marks = _Plane(target.images, 100) if pseudo.soft is None else pseudo.soft
        around = _Mining(pseudo.labels, mined, config.mine_chance, len(taken))
        return {
            MAIN: Rows(
                Joined((source.images, taken), (target.images, every)),
                Joined((source.labels, taken), (pseudo.labels, every)),
                Joined((_Plane(source.images, 0, classes), taken), (marks, every)),
                source.beyond,
                around.centre,
            )
        }

    def loss(self, forward: Forward, batch: Batch, step: int) -> Tensor:
        """Cross entropy with labels and pseudo labels."""
        x, labels, _ = batch[MAIN]
        loss: Tensor = self.criterion(forward(x), labels)
        return loss

    def rules(self, thresholds: Callable[[Maps], NDArray[np.float32]]) -> Rules:
        """How a round labels the target."""
        return Rules(thresholds, pseudo_labels)

    def file_bytes(self, images: Mapping[str, int], folder: Path, step: int) -> int:
        """Labels of rounds, and soft ones with some regularisers: a byte per pixel, and one per class."""
        width, height = size_of(self.config, of_source=False)
        soft = self.rules(partial(class_thresholds, portion=0)).soft is not None
        each = images[TARGET] * width * height * (1 + (self.criterion.num_classes if soft else 0))
        to_come = {str(number) for number, start in enumerate(self._starts()) if start >= step}
        there = {path.parent.name for path in folder.glob(f"{FOLDER}/*/{LABELS}")}
        return each * max(0, min(KEPT, len(there | to_come)) - len(there))

    def _starts(self) -> list[int]:
        """The steps at which rounds begin."""
        return [0, *self._ends()[:-1]]

    def _ends(self) -> list[int]:
        """The steps before which rounds end."""
        steps, number = self.config.steps, self.config.rounds
        return [steps * (i + 1) // number for i in range(number)]


def _rising(rounds: int, first: float, step: float, most: float) -> list[float]:
    """A share of each round."""
    return [min(first + i * step, most) for i in range(rounds)]


class _Plane:
    """Of each image a plane of one value, or one for each class: (h, w) or (C, h, w) uint8, without memory."""

    def __init__(self, images: Rowed, value: int, classes: int | None = None) -> None:
        self._images, self._value = images, np.uint8(value)
        self._before = () if classes is None else (classes,)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        plane: NDArray[np.uint8] = np.broadcast_to(self._value, (*self._before, *self._images[i].shape[:2]))
        return plane


class _Mining:
    """Patch mining: where crops of target images lie.

    Args:
        labels: (N, h, w) pseudo labels.
        classes: that are mined.
        chance: 0..1, that an image is looked at for them.
        before: rows of the source before the target's.
    """

    def __init__(
        self, labels: Rowed, classes: Sequence[int] | NDArray[Any], chance: float, before: int
    ) -> None:
        self._labels, self._classes, self._chance, self._before = labels, classes, chance, before

    def centre(self, row: int, rng: random.Random) -> tuple[int, int] | None:
        """A pixel of a mined class, of those that the image shows."""
        if row < self._before or not len(self._classes) or rng.random() >= self._chance:
            return None
        labels = self._labels[row - self._before]
        shown = [number for number in self._classes if (labels == number).any()]
        if not shown:
            return None
        places = np.argwhere(labels == rng.choice(shown))
        place = places[rng.randrange(len(places))]
        return int(place[0]), int(place[1])


# ---------------------------------------------------------------------------- kernels


def class_thresholds(probabilities: Iterable[Array], portion: float, stride: int = 1) -> Any:
    """The certainty that the surest ``portion`` of each class's pixels have at least.

    Of the n pixels that a class is predicted at, over all maps, sorted by falling probability, it is that of number
    floor(portion n), counted from 1. A class with no such pixel, for it is never predicted or too rarely, gets 1.0,
    which only a probability of 1 passes.

    Args:
        probabilities: softmax maps (C, H, W), 0..1, of any floating type and of any sizes; a generator will do, for
            each is looked at once.
        portion: 0..1.
        stride: of each map's pixels of a class, in reading order, every so manieth is counted.

    Returns:
        (C,) float32, a tensor if the first map is one, else an array.

    Raises:
        ValueError: without a map, or with another portion or stride.
    """
    if not 0 <= portion <= 1 or stride < 1:
        raise ValueError(f"portion {portion}, stride {stride}: 0 to 1, and at least 1")
    first: Array | None = None
    sure: list[list[NDArray[np.float32]]] = []
    for each in probabilities:
        values = float_array(each)
        if first is None:
            first, sure = each, [[] for _ in values]
        predicted, certainty = values.argmax(0), values.max(0)  # the lower class where two are equal
        for number in np.unique(predicted):
            sure[number].append(certainty[predicted == number][::stride])
    if first is None:
        raise ValueError("no map of probabilities")
    found = np.array([_threshold(of_class, portion) for of_class in sure], np.float32)
    return like(torch.from_numpy(found), first)


def _threshold(certainties: list[NDArray[np.float32]], portion: float) -> np.float32:
    count = math.floor(portion * sum(map(len, certainties)))
    if count == 0:
        return np.float32(1)
    every = np.concatenate(certainties)
    every.partition(len(every) - count)
    return np.float32(every[len(every) - count])


def pseudo_labels(probabilities: Array, thresholds: Array) -> Any:
    """Of every pixel the class whose probability is highest in multiples of its threshold, if that is at least one.

    Args:
        probabilities: (C, H, W), 0..1.
        thresholds: (C,), above 0, of :func:`class_thresholds`.

    Returns:
        (H, W) uint8 train ids, 255 where no class reaches its threshold; of equal classes the lowest. A tensor for a
        tensor.
    """
    weighed = _weighed(probabilities, thresholds)
    labels = weighed.argmax(0).astype(np.uint8)
    labels[~(weighed.max(0) >= 1)] = IGNORE
    return like(torch.from_numpy(labels), probabilities)


def _weighed(probabilities: Array, thresholds: Array) -> NDArray[np.float32]:
    """(C, H, W): probabilities in multiples of the thresholds."""
    values, least = float_array(probabilities), float_array(thresholds)
    if values.ndim != 3 or least.shape != values.shape[:1]:
        raise ValueError(f"probabilities {values.shape} and thresholds {least.shape}: (C, H, W) and (C,)")
    ratio: NDArray[np.float32] = values / least[:, None, None]
    return ratio
