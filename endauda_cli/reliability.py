"""Engine: is a teacher right as often as it says? Reliability of certainties, before and after a temperature.

Archives keep percents cut to whole ones. What that took from a pixel is known, 100 less their sum: the label gets back
half a percent, which a cut takes on average, the other classes share the rest, at most half a percent each; what is
then left is no class's (classes that were left out, pixels that no mask claims). Only sums of bins outlive an image,
and the few pixels that a temperature is fitted to.

Legend of shapes: C class, H, W, B bin.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from endauda_cli.domains import IGNORE
from endauda_cli.errors import DataError
from endauda_cli.jit import jit
from endauda_cli.progress import Reporter, counted
from endauda_cli.score_results import Calibration, Reliability, ReliabilityBin
from endauda_cli.scoring import refuse_sizes, truth_of
from endauda_cli.significance import groups_of
from endauda_cli.threads import ordered_map

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from endauda_cli.archive import TeacherOutputs
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Domain

    UInt8 = NDArray[np.uint8]
    Float = NDArray[np.float64]

BINS = 15
FIT_IMAGES, FIT_PIXELS = 100, 1024
"""A temperature is fitted to so many pixels of each of so many images at most."""
RANGE = (0.05, 20.0)
"""Of temperatures that are tried."""
CUT = 0.5
"""What cutting a percent to a whole one takes, on average."""
LEAST = 0.01
"""Percent that any class keeps, so that a surprise costs much, but not everything."""


def calibration_of(
    teacher: TeacherOutputs,
    samples: Sequence[Sample],
    domain: Domain,
    temperature: float | None,
    report: Reporter,
    workers: int = 2,
    name: str = "",
) -> Calibration:
    """How a teacher's certainties compare with how often it is right, over pixels that have a label and a true class.

    Args:
        teacher: whose; of the domain's classes.
        samples: images with ground truth.
        domain: class table of the truth.
        temperature: to be judged; ``None`` fits one to half of the images and judges it on the other half, both ways.
        report: told of progress.
        workers: threads.
        name: of the teacher, beside the bar.

    Raises:
        DataError: if truth cannot be read or is of another size, or no pixel counts.
        ArchiveError: if certainties are damaged.
    """
    half, split = halves([sample.id for sample in samples])
    if temperature is None:
        drawn = _drawn(teacher, samples, half, domain, report, workers)
        judged = [fitted([drawn[1]]), fitted([drawn[0]])]
        told = fitted(drawn)
    else:
        judged, told, split = [temperature] * 2, temperature, "given"
    classes = len(domain.classes)
    tables = {t: tables_of(t, classes) for t in {1.0, *judged}}

    def measure(number: int) -> tuple[Sums, Sums]:
        seen = _seen(teacher, samples[number], domain)
        return sums_of(seen, tables[1.0]), sums_of(seen, tables[judged[half[number]]])

    before, after = Sums.empty(classes), Sums.empty(classes)
    with ThreadPoolExecutor(workers) as pool:
        found = ordered_map(pool, measure, range(len(samples)), workers + 2)
        for own, tempered in counted(found, len(samples), f"calibration {name}".strip(), report):
            before, after = before + own, after + tempered
    if not before.pixels:
        raise DataError(
            f"{domain.name}: no pixel has both a label and a true class, so there is no calibration"
        )
    first = reliability_of(before, domain.classes)
    return Calibration(
        **vars(first), temperature=told, fitted_on=split, after=reliability_of(after, domain.classes)
    )


def halves(images: Sequence[str]) -> tuple[list[int], str]:
    """For each image 0 or 1: whole sequences are kept together where names tell of several, the largest dealt first;
    else every second image. And what was dealt: ``sequences`` or ``images``."""
    groups = groups_of(images).get("sequences")
    if groups is None:
        return [number % 2 for number in range(len(images))], "images"
    sizes = [0, 0]
    side: dict[str, int] = {}
    for group in sorted(set(groups), key=lambda name: (-groups.count(name), name)):
        side[group] = int(sizes[0] > sizes[1])
        sizes[side[group]] += groups.count(group)
    return [side[group] for group in groups], "sequences"


# ---------------------------------------------------------------------------- pixels


class Seen(NamedTuple):
    """What a teacher says of some pixels, and the truth."""

    labels: UInt8
    """(H, W) train ids, 255 = none."""
    planes: UInt8
    """(C, H, W) percent."""
    truth: UInt8
    """(H, W) train ids; C and above is no class."""


def _seen(teacher: TeacherOutputs, sample: Sample, domain: Domain) -> Seen:
    truth = truth_of(sample, domain)
    labels = teacher.labels(sample.id)
    refuse_sizes(truth, labels, sample)
    return Seen(labels, teacher.certainty(sample.id), truth)


def _drawn(
    teacher: TeacherOutputs,
    samples: Sequence[Sample],
    half: Sequence[int],
    domain: Domain,
    report: Reporter,
    workers: int,
) -> list[Seen]:
    """Pixels of evenly spread images of each half, as one image of one row."""

    def draw(number: int) -> Seen:
        seen = _seen(teacher, samples[number], domain)
        counts = np.flatnonzero((seen.truth < len(domain.classes)) & (seen.labels != IGNORE))
        places = np.random.default_rng(number).permutation(counts)[:FIT_PIXELS]
        return Seen(*(values.reshape(*values.shape[:-2], 1, -1)[..., places] for values in seen))

    found = []
    with ThreadPoolExecutor(workers) as pool:
        for side in (0, 1):
            own = [number for number, of in enumerate(half) if of == side]
            own = own[:: max(1, -(-2 * len(own) // FIT_IMAGES))]
            drawn = ordered_map(pool, draw, own, workers + 2)
            parts = list(counted(drawn, len(own), "fitting a temperature", report))
            if not sum(part.labels.size for part in parts):
                raise DataError(
                    f"{domain.name}: a temperature is fitted to half of the images and judged on the other half, and "
                    f"one ({len(own)} of {len(samples)} images) has no pixel with a label and a true class; give a "
                    "number with --temperature"
                )
            found.append(Seen(*(np.concatenate(part, -1) for part in zip(*parts, strict=True))))
    return found


def fitted(drawn: Sequence[Seen]) -> float:
    """The temperature of least mean logarithmic loss, to three digits."""
    classes = len(drawn[0].planes)

    def loss(log_temperature: float) -> float:
        tables = tables_of(math.exp(log_temperature), classes)
        return float(sum(sums_of(seen, tables).losses[0] for seen in drawn))

    return float(f"{math.exp(least(loss, *map(math.log, RANGE))):.3g}")


def least(value: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that has one valley is lowest, by golden section."""
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if value(left) <= value(right):
            high = right
        else:
            low = left
    return (low + high) / 2


# ---------------------------------------------------------------------------- probabilities of bytes


class Tables(NamedTuple):
    """What bytes stand for, by how many percent are missing from a pixel's 100, raised to 1 / temperature."""

    own: Float
    """(101,) of the pixel's label."""
    other: Float
    """(101, 101) by missing percent and byte."""
    nobody: Float
    """(101,) by missing percent."""


def tables_of(temperature: float, classes: int) -> Tables:
    """At a temperature, for C classes."""
    value, missing = np.arange(101.0), np.arange(101.0)
    share = np.clip((missing - CUT) / max(1, classes - 1), LEAST, CUT)
    nobody = np.clip(missing - CUT - share * (classes - 1), 0, None)
    percents = np.minimum(value + CUT, 100), np.minimum(value + share[:, None], 100), nobody
    return Tables(*((percent / 100) ** (1 / temperature) for percent in percents))


# ---------------------------------------------------------------------------- sums


class Sums(NamedTuple):
    """What is added up over pixels. A bin holds the sum of its certainties, how often they were right, and how many
    they are."""

    top: Float
    """(B, 3) of the labels' certainties."""
    planes: Float
    """(C, B, 3) of each class's certainty at every pixel, right where the truth is that class."""
    losses: Float
    """(2,) logarithmic loss and Brier score."""

    @classmethod
    def empty(cls, classes: int) -> Sums:
        return cls(np.zeros((BINS, 3)), np.zeros((classes, BINS, 3)), np.zeros(2))

    def __add__(self, other: Sums) -> Sums:  # type: ignore[override]
        return Sums(*(one + two for one, two in zip(self, other, strict=True)))

    @property
    def pixels(self) -> int:
        return int(self.top[:, 2].sum())


def sums_of(seen: Seen, tables: Tables) -> Sums:
    """Of some pixels, at the tables' temperature."""
    sums = Sums.empty(len(seen.planes))
    _add(*seen, *tables, *sums)
    return sums


def reliability_of(sums: Sums, classes: Sequence[str]) -> Reliability:
    """What the sums come to."""
    errors = _errors(sums.top)
    of_planes = {name: float(_errors(own).sum()) for name, own in zip(classes, sums.planes, strict=True)}
    counts = sums.top[:, 2]
    gaps = errors[counts > 0] / (counts[counts > 0] / counts.sum())
    return Reliability(
        bins=tuple(_bins(sums.top)),
        ece=float(errors.sum()),
        mce=float(gaps.max()),
        classwise=of_planes,
        classwise_mean=float(np.mean(list(of_planes.values()))),
        log_loss=float(sums.losses[0] / sums.pixels),
        brier=float(sums.losses[1] / sums.pixels),
        pixels=sums.pixels,
    )


def _errors(bins: Float) -> Float:
    """(B,) how far certainty and accuracy are apart in each bin, weighed by its share of the pixels."""
    return np.asarray(np.abs(bins[:, 0] - bins[:, 1]) / max(1.0, bins[:, 2].sum()))


def _bins(bins: Float) -> Sequence[ReliabilityBin]:
    return [
        ReliabilityBin(sure / n, right / n, int(n)) if n else ReliabilityBin(None, None, 0)
        for sure, right, n in bins.tolist()
    ]


@jit
def _add(labels, planes, truth, own, other, nobody, top, of_planes, losses):  # type: ignore[no-untyped-def]
    """A row at a time: certainties of all its pixels, then their bins."""
    classes, height, width = planes.shape
    total, missing = np.empty(width), np.empty(width, np.int64)
    probability = np.empty((classes, width))
    for y in range(height):
        label, true = labels[y], truth[y]
        missing[:] = 100
        for c in range(classes):
            plane = planes[c, y]
            for x in range(width):
                missing[x] -= plane[x]
        for x in range(width):
            missing[x] = max(missing[x], 0)
            total[x] = nobody[min(missing[x], 100)]
        for c in range(classes):
            plane, mine = planes[c, y], probability[c]
            for x in range(width):
                byte = min(plane[x], 100)
                mine[x] = own[byte] if label[x] == c else other[missing[x], byte]
                total[x] += mine[x]
        for x in range(width):
            if label[x] >= classes or true[x] >= classes:
                continue
            squares = 0.0
            for c in range(classes):
                p = probability[c, x] / total[x]
                squares += p * p
                place = of_planes[c, min(int(p * BINS), BINS - 1)]
                place[0] += p
                place[1] += true[x] == c
                place[2] += 1
            p = probability[label[x], x] / total[x]
            place = top[min(int(p * BINS), BINS - 1)]
            place[0] += p
            place[1] += true[x] == label[x]
            place[2] += 1
            p = probability[true[x], x] / total[x]
            losses[0] -= np.log(p)
            losses[1] += squares - 2 * p + 1
