"""Engine: what ensembles and rules make of a few images, thinned out, and how that compares with a reference.

Every n-th row and column of an image says nearly as much about an ensemble as all of them, at a hundredth of the work;
a teacher's certainties of such images fit into memory, so every ensemble is fitted and fused as ``fuse`` would.

Legend of shapes: T teacher, C class, N image, H, W (thinned), S = N * H * W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.errors import DataError
from endauda_cli.fusion.choosing import Evidence, choose_both, common_size, wxh
from endauda_cli.fusion.rank_certainty import estimate_delta
from endauda_cli.fusion.rules import RULES, Recipe, consensus, fuse_image
from endauda_cli.labels import read_truth
from endauda_cli.progress import Reporter, counted, silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from endauda_cli.archive import TeacherOutputs
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task

    UInt8 = NDArray[np.uint8]
    Float = NDArray[np.float64]
    Float32 = NDArray[np.float32]
    Ensemble = tuple[str, ...]

PIXELS = 1000
"""Of each image, about."""


@dataclass(frozen=True)
class Thinned:
    """A teacher's words about some images, each without most rows and columns; speaks like an archive."""

    classes: tuple[str, ...]
    label: dict[str, UInt8] = field(default_factory=dict)
    planes_of: dict[str, UInt8] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.label)

    def __contains__(self, id: object) -> bool:
        return id in self.label

    def size(self, id: str) -> tuple[int, int]:
        height, width = self.label[id].shape
        return height, width

    def digest(self, id: str) -> str:
        return id

    def labels(self, id: str) -> UInt8:
        return self.label[id]

    def plane(self, id: str, c: int) -> UInt8:
        return np.asarray(self.planes_of[id][c])

    def planes(self, id: str, classes: Sequence[int]) -> UInt8:
        return np.asarray(self.planes_of[id][list(classes)])

    def certainty(self, id: str) -> UInt8:
        return self.planes_of[id]


@dataclass(frozen=True)
class Sight:
    """What there is to judge ensembles by.

    Attributes:
        task: source and target.
        teachers: name -> what it says of all these images.
        ids: the images that ensembles are fitted to.
        truths: labelled image -> (H, W) train ids; empty without labels.
    """

    task: Task
    teachers: Mapping[str, Thinned]
    ids: Sequence[str]
    truths: Mapping[str, UInt8]

    @property
    def num_classes(self) -> int:
        return len(self.task.classes)


def look(
    task: Task,
    readers: Mapping[str, TeacherOutputs],
    ids: Sequence[str],
    labelled: Sequence[Sample],
    report: Reporter,
) -> Sight:
    """Thin images out: those to fit to, and the labelled ones.

    Raises:
        DataError, ArchiveError: if sizes differ, or something cannot be read.
    """
    thinned = {name: Thinned(task.classes) for name in readers}
    every = list(dict.fromkeys([*ids, *(sample.id for sample in labelled)]))
    steps = {}
    for image in counted(every, len(every), "looking at the teachers", report):
        size = common_size(readers, image)
        steps[image] = _thin(size)
        for name, reader in readers.items():
            thinned[name].label[image] = np.ascontiguousarray(reader.labels(image)[steps[image]])
            thinned[name].planes_of[image] = np.ascontiguousarray(reader.certainty(image)[:, *steps[image]])
    truths = {}
    for sample in labelled:
        assert sample.label is not None
        truth, size = read_truth(sample.label, task.target), common_size(readers, sample.id)
        if truth.shape != size:
            raise DataError(
                f"{sample.label}: {wxh(truth.shape)} pixels, but the archives have {wxh(size)} for it"
            )
        truths[sample.id] = np.ascontiguousarray(truth[steps[sample.id]])
    return Sight(task, thinned, ids, truths)


def _thin(size: tuple[int, int]) -> tuple[slice, slice]:
    step = max(1, round(math.sqrt(size[0] * size[1] / PIXELS)))
    return slice(step // 2, None, step), slice(step // 2, None, step)


@dataclass(frozen=True)
class Made:
    """What an ensemble makes of images.

    Attributes:
        labels: rule -> image -> (H, W) labels.
        belief: image -> (S, C), what the ensemble believes of its pixels; of the images that it was fitted to.
    """

    labels: dict[str, dict[str, UInt8]]
    belief: dict[str, Float32]


def make(sight: Sight, ensemble: Ensemble) -> Made:
    """Fit and fuse as ``fuse --policy auto --threshold 0`` does, by every rule."""
    teachers = {name: sight.teachers[name] for name in ensemble}
    policy, model = choose_both(Evidence(sight.task, teachers, sight.ids, list), silent)
    delta = estimate_delta(teachers, sight.ids, silent)
    recipe = Recipe(sight.num_classes, policy.owners, threshold=0, delta=delta, model=model)
    labels: dict[str, dict[str, UInt8]] = {rule: {} for rule in RULES}
    belief = {}
    for image in dict.fromkeys([*sight.ids, *sight.truths]):
        given, planes = _said(teachers, image)
        for rule in RULES:
            labels[rule][image] = fuse_image(rule, given, partial(_planes, planes), recipe).label
        if image in sight.ids:
            place = consensus.places_of(*given.shape[1:]).ravel()
            belief[image] = consensus.believe(*_flat(given, planes), model, place)
    return Made(labels, belief)


def witnesses(sight: Sight) -> dict[str, float]:
    """As how many witnesses each teacher counts among all: 1 of its own mind, a half of two copies."""
    parts = [_flat(*_said(sight.teachers, image)) for image in sight.ids]
    labels, certainties = (np.concatenate(part, 1) for part in zip(*parts, strict=True))
    heard = consensus.hear(labels, certainties, sight.num_classes)
    return dict(zip(sight.teachers, map(float, heard.weights), strict=True))


def _said(teachers: Mapping[str, Thinned], image: str) -> tuple[UInt8, UInt8]:
    """(T, H, W) labels and (T, C, H, W) certainties."""
    labels = np.stack([teacher.labels(image) for teacher in teachers.values()])
    return labels, np.stack([teacher.certainty(image) for teacher in teachers.values()])


def _flat(labels: UInt8, planes: UInt8) -> tuple[UInt8, UInt8]:
    """(T, S) labels and (T, S, C) certainties of an image."""
    teachers, classes = planes.shape[:2]
    return labels.reshape(teachers, -1), planes.reshape(teachers, classes, -1).transpose(0, 2, 1)


def _planes(planes: UInt8, t: int, classes: Sequence[int]) -> UInt8:
    return planes[t, list(classes)]


def against_truth(labels: Mapping[str, UInt8], sight: Sight) -> Float:
    """What labels have in common with the truth of the labelled images, see ``_overlaps``."""
    classes = sight.num_classes
    parts = []
    for image, truth in sight.truths.items():
        known = truth.ravel() < classes
        one_hot = np.eye(classes, dtype=np.float32)[truth.ravel()[known]]
        parts.append((labels[image].ravel()[known], one_hot))
    return _overlaps(parts)


def against_belief(labels: Mapping[str, UInt8], belief: Mapping[str, Float32]) -> Float:
    """What labels have in common with what is believed of images, see ``_overlaps``."""
    return _overlaps([(labels[image].ravel(), own) for image, own in belief.items()])


def _overlaps(parts: Sequence[tuple[UInt8, Float32]]) -> Float:
    """(N, 2, C) intersection and union of labels, (S,), and the probabilities of the truth, (S, C), of each image."""
    found = []
    for label, belief in parts:
        classes = belief.shape[1]
        given = np.flatnonzero(label < classes)
        common = np.bincount(label[given], belief[given, label[given]], classes)
        found.append([common, belief.sum(0) + np.bincount(label[given], minlength=classes) - common])
    return np.array(found, np.float64)


def mean_iou(overlaps: Float, times: Float) -> Float:
    """(D,) mean IoUs in percent over the classes that occur, of (D, N) how often each image counts."""
    common, union = np.einsum("dn,nkc->kdc", times, overlaps)
    known = union > 0
    iou = np.where(known, common / np.where(known, union, 1), 0)
    return np.asarray(100 * iou.sum(1) / np.maximum(1, known.sum(1)))
