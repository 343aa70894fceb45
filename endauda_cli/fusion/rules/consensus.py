"""Kernels: the rule ``consensus``, a weighing of what all teachers say, fitted without a label.

Nobody owns a class here. Every teacher is an annotator whose word, a label and how sure it was, has a weight of
its own for every class, learnt from how it agrees with the others:

1. *Who errs how?* Dawid & Skene (1979) on the labels alone: one confusion matrix per teacher, by expectation
   maximisation from the vote. No class may drift away: its share of pixels stays within half of what the teacher
   gives it that gives it least and twice what the one gives it that gives it most.
2. *How sure is sure?* Teachers are calibrated differently, so their probabilities are brought to one mean
   certainty, each by a power of its own (a temperature), and only then averaged.
3. *What does each word mean?* A teacher's word is its label, its runner-up, and the quarter of that label's
   certainties that the pixel falls into. ``evidence`` is the log probability of each word given the true class,
   where the truth is taken from the geometric mean of 1 and 2 over the *other* teachers: one that is sure of its
   errors finds no support for them, and nobody confirms himself.
4. A pixel's belief in a class is the geometric mean of two opinions: the product of all evidence and the mean of
   the scaled probabilities. Teachers err at the same pixels, so all together they count as hardly more than one
   independent witness, however many they are: else rare classes, for which a few words speak loudly against
   what is known before any, spread the more the more teachers there are. Two things follow from a first such belief,
   in which all teachers count the same, and make the final one. The better teachers count more: by the odds of
   their expected IoU (``standing.trust``). And a class is more likely where it was believed to be in other images:
   sky is above and road below (``Places``).
5. The label is not the most likely class but the one whose choice adds most to the expected mean IoU: a pixel of
   a small class is worth more than one of a large class. Adding a pixel of probability p to a class of expected
   IoU J and union U changes that IoU by (p (1 + J) - J) / U. Only classes are looked at that are believed at least
   half as much as the most likely one, so that no class floods an image which is merely hard to rule out; and none
   that no teacher gives the pixel or is more than 0 % certain of there.

Near-copies share one teacher's weight (``standing.alikeness``), and do not confirm each other in 3.

With some labelled images (``Labelled``), what a word means is counted there and shrunk towards 3, which weighs as
much as one image.

Fitting is here; ``beliefs`` is the rule at every pixel on the CPU, ``cuda`` on a card.

Legend of shapes: T teacher, C class, H, W, S sampled pixel, K word ((label * C + runner-up) * BINS + quarter).
Labels are uint8 train ids, 255 = none; certainties are percent, uint8 0..100.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from endauda_cli.fusion.rules.policies import Overlaps, annotators, combinations, power_for
from endauda_cli.fusion.rules.standing import alikeness, company_of, counted, trust

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int = NDArray[np.int32]
    Float = NDArray[np.float64]
    Float32 = NDArray[np.float32]
    UInt8 = NDArray[np.uint8]

BINS = 4
"""Degrees of certainty that a word distinguishes. Quarters; two to eight give the same within 0.3 mIoU."""
SMOOTHING = 1e-3
"""Pseudo counts per class, as a share of an even class's pixels: a word hardly ever heard convinces nobody."""
WITNESSES = 1.4
"""As how many independent witnesses the evidence of all teachers counts; each as one at most."""
CAUTION = 1.15
"""Power of the classes' shares of pixels: what is rare is believed a little less than the evidence says."""
ROWS, COLUMNS = 16, 9
"""An image's places, in which classes have shares of their own."""
PLACE = 0.5
"""Power of how much likelier a class is at a place than anywhere: pixels of a place say much the same."""
PLACE_IMAGES = 3
"""As how many images the share of a class anywhere weighs against its share at a place."""
DRIFT = 2.0
"""How far a class may become more, or less, than any teacher gives it, before a posterior is not of that class."""
FLOOR = 1e-6
TINY = 1e-30
"""What may be 0, where something is divided by it: to a high power, half a percent is nothing."""
SMALLEST = 1e-4
"""Share of pixels below which a class is worth no more per pixel."""
RIVAL = 0.5
"""Share of the highest belief that a class must have to be chosen instead. It costs nothing where all classes occur
and spares classes that do not."""
DECISION_ROUNDS = 20


@dataclass(frozen=True, eq=False)  # compared and kept by identity: arrays have no one answer
class Consensus:
    """A fitted rule.

    Attributes:
        edges: (T, C, BINS - 1) uint8, the quartiles of a teacher's certainty where it gives a class.
        evidence: (T, K + 1, C) float32, log probability of a word given the true class; the last row, of a
            pixel without a label, is 0.
        prior: (ROWS * COLUMNS, C) float32, log share of each class at each place, row by row.
        powers: (T,) what brings each teacher's probabilities to one mean certainty.
        weights: (T,) what each teacher counts, above 0 to 1: the best one, others less, copies a part of it.
        iou: (C,) expected IoU of each class's labels.
        union: (C,) expected share of pixels that are of the class or labelled so.
    """

    edges: UInt8
    evidence: Float32
    prior: Float32
    powers: Float
    weights: Float
    iou: Float
    union: Float

    @cached_property
    def tables(self) -> Tables:
        """What the kernels look up at each pixel."""
        factors = self.evidence - self.evidence.max(2, keepdims=True)
        factors *= (_exponents(self.weights) / 2).astype(np.float32)[:, None, None]
        return Tables(
            np.exp(factors, out=factors),
            np.exp((self.prior - self.prior.max(1, keepdims=True)) / 2),
            np.stack([_byte_powers(power) for power in self.powers]),
            (self.weights / self.weights.sum()).astype(np.float32),
            self.iou.astype(np.float32),
            _weights(self.union),
        )


class Tables(NamedTuple):
    """A fitted rule as its kernels need it, all float32.

    A belief is the root of a product of evidence times a mean of probabilities, and constant factors of all classes
    of a pixel do not matter: so evidence is kept as the root of what it multiplies by, its highest value 1, and
    neither logarithm nor exponential is left at a pixel.
    """

    factors: Float32
    """(T, K + 1, C) what a word multiplies each class's belief by; at most 1."""
    prior: Float32
    """(ROWS * COLUMNS, C) the beliefs before any word, at each place; at most 1."""
    powers: Float32
    """(T, 256) what a byte of each teacher stands for; above 0."""
    share: Float32
    """(T,) of each teacher in the mean of probabilities; their sum is 1."""
    iou: Float32
    """(C,) expected IoU."""
    weight: Float32
    """(C,) what a pixel of the class is worth."""


@dataclass(frozen=True)
class Labelled:
    """Sampled pixels of labelled target images.

    Attributes:
        labels: (T, S) uint8.
        certainties: (T, S, C) uint8, percent.
        truth: (S,) uint8 train ids, 255 = none.
        image: (S,) int, which image a pixel is of.
    """

    labels: UInt8
    certainties: UInt8
    truth: UInt8
    image: NDArray[np.intp]


class Places(NamedTuple):
    """Where sampled pixels lie in their images."""

    place: NDArray[np.intp]
    """(S,) see ``places_of``."""
    images: int
    """How many images they are of."""


def places_of(height: int, width: int) -> NDArray[np.intp]:
    """(H, W) the place of every pixel of an image, 0 to ROWS * COLUMNS - 1."""
    return (np.arange(height) * ROWS // height)[:, None] * COLUMNS + np.arange(width) * COLUMNS // width


def fit(
    labels: UInt8,
    certainties: UInt8,
    num_classes: int,
    labelled: Labelled | None = None,
    places: Places | None = None,
) -> Consensus:
    """Fit the rule to sampled pixels of the teachers' outputs.

    Args:
        labels: (T, S) uint8.
        certainties: (T, S, C) uint8, percent.
        num_classes: C.
        labelled: pixels whose class is known, if there are any.
        places: where the pixels lie; unless given, all places are alike.
    """
    return weigh(hear(labels, certainties, num_classes, labelled), labelled, places)


@dataclass(frozen=True, eq=False)
class Heard:
    """What there is to weigh: steps 1 to 3.

    Attributes:
        labels: (T, S) uint8.
        words: (T, S) the word of every pixel.
        scaled: (T, S, C) probabilities of one mean certainty.
        edges, evidence, powers: as in ``Consensus``.
        share: (C,) of all pixels.
        weights: (T,) what each teacher counts as a copy of others.
    """

    labels: UInt8
    words: Int
    scaled: Float32
    edges: UInt8
    evidence: Float32
    powers: Float
    share: Float
    weights: Float


def hear(labels: UInt8, certainties: UInt8, num_classes: int, labelled: Labelled | None = None) -> Heard:
    """What every word of every teacher means; arguments as of ``fit``."""
    teachers = range(len(labels))
    edges = _edges(labels, certainties, num_classes)
    words = _words(labels, certainties, edges)
    powers = _powers(certainties)
    scaled = np.stack([_scaled(certainties[t], powers[t]) for t in teachers])
    alike = alikeness(labels, certainties, scaled)
    weights = 1 / alike.sum(1)
    company = company_of(alike, weights)
    agreed = _agreements(labels, num_classes, weights, company)  # per teacher (S, C), without him
    evidence, share, num_words = [], np.zeros(num_classes), num_classes * num_classes * BINS + 1
    for t in teachers:
        reference = _normalised(np.sqrt(agreed[t] * _mean(scaled, company[t])) + FLOOR)
        evidence.append(_meaning(counted(words[t], reference, num_words)))
        share += weights[t] / weights.sum() * reference.mean(0)
    if labelled is not None:
        evidence, share = _shrunk(evidence, share, labelled, edges)
    log_evidence = np.log(np.stack(evidence)).astype(np.float32)
    return Heard(labels, words, scaled, edges, log_evidence, powers, share, weights)


def weigh(heard: Heard, labelled: Labelled | None = None, places: Places | None = None) -> Consensus:
    """Steps 4 and 5: who and what counts how much; arguments as of ``fit``."""
    prior = np.tile(CAUTION * np.log(heard.share + FLOOR), (ROWS * COLUMNS, 1)).astype(np.float32)
    place = places.place if places is not None else np.zeros(heard.labels.shape[1], np.intp)
    told = heard.words, heard.scaled, heard.evidence
    first = _belief(*told, prior[place], heard.weights)
    weights = heard.weights * _trust(heard.labels, first, labelled)
    weights /= weights.max()
    belief = _belief(*told, prior[place], weights)
    if places is not None:
        prior += PLACE * _likelier(belief, places)
        belief = _belief(*told, prior[place], weights)
    iou, union = expected_iou(belief)
    return Consensus(heard.edges, heard.evidence, prior, heard.powers, weights, iou, union)


def _trust(labels: UInt8, belief: Float32, labelled: Labelled | None) -> Float:
    """(T,) what each teacher counts, by its IoU with the belief, or with the truth of images as far as there are."""
    expected = overlaps(labels, belief, np.zeros(labels.shape[1], np.intp)).iou()
    share = belief.mean(0, dtype=np.float64)
    if labelled is not None:
        known = labelled.truth < belief.shape[1]
        if known.any():
            truth = np.eye(belief.shape[1], dtype=np.float32)[labelled.truth[known]]
            found = overlaps(labelled.labels[:, known], truth, labelled.image[known])
            expected = replace(found, before=expected).iou()
    return trust(expected, share, SMALLEST)


def _likelier(belief: Float32, places: Places) -> Float32:
    """(ROWS * COLUMNS, C) log of how much likelier a class is at a place than anywhere."""
    share = belief.mean(0, dtype=np.float64) + FLOOR
    here = counted(places.place, belief, ROWS * COLUMNS)
    here += PLACE_IMAGES / places.images * len(belief) / (ROWS * COLUMNS) * share
    return np.asarray(np.log(here / here.sum(1, keepdims=True) / (share / share.sum())), np.float32)


def _exponents(weights: Float) -> Float:
    """(T,) of each teacher's evidence."""
    return weights * min(1.0, WITNESSES / float(weights.sum()))


def _mean(scaled: Float32, weights: Float) -> Float32:
    """(S, C) weighted mean over teachers."""
    return np.tensordot((weights / weights.sum()).astype(np.float32), scaled, 1)


def expected_iou(belief: Float32) -> tuple[Float, Float]:
    """(C,) IoU and (C,) union, as a share of all pixels, that the best labels of (S, C) beliefs can expect."""
    num_classes, pixels = belief.shape[1], len(belief)
    mass = belief.mean(0, dtype=np.float64)
    rival = belief >= RIVAL * belief.max(1, keepdims=True)
    label = belief.argmax(1)
    common, union = mass, mass
    for number in range(DECISION_ROUNDS):
        given = np.bincount(label, minlength=num_classes) / pixels
        now = np.bincount(label, belief[np.arange(pixels), label], num_classes) / pixels
        step = 1 if number == 0 else 0.3  # damped, else a small class swings between everything and nothing
        common = common + step * (now - common)
        union = union + step * (mass + given - now - union)
        iou = common / np.maximum(union, FLOOR)
        gain = (belief * (1 + iou) - iou) * _weights(union)
        label = np.argmax(np.where(rival, gain, -np.inf), 1)
    return iou, union


def _weights(union: Float) -> Float32:
    """What a pixel is worth; that of a class which hardly occurs is bounded."""
    return (1 / np.maximum(union, SMALLEST)).astype(np.float32)


def believe(
    labels: UInt8, certainties: UInt8, model: Consensus, place: NDArray[np.intp] | None = None
) -> Float32:
    """(S, C) belief in each class at sampled pixels, see ``fit``; of (S,) places, if they are not all alike."""
    scaled = np.stack([_scaled(c, power) for c, power in zip(certainties, model.powers, strict=True)])
    words = _words(labels, certainties, model.edges)
    at = np.zeros(labels.shape[1], np.intp) if place is None else place
    return _belief(words, scaled, model.evidence, model.prior[at], model.weights)


def overlaps(labels: UInt8, belief: Float32, image: NDArray[np.intp]) -> Overlaps:
    """What each teacher's labels have in common with the belief, per image.

    Args:
        labels: (T, S) uint8.
        belief: (S, C).
        image: (S,) which image a pixel is of, from 0 without gaps.
    """
    num_classes = belief.shape[1]
    shape = (int(image.max()) + 1, num_classes)
    size = shape[0] * num_classes
    cell = image[:, None] * num_classes + np.arange(num_classes)
    mass = np.bincount(cell.ravel(), belief.ravel(), size).reshape(shape)
    common, union = [], []
    for given in labels:
        known = np.flatnonzero(given < num_classes)
        place = image[known] * num_classes + given[known]
        common.append(np.bincount(place, belief[known, given[known]], size).reshape(shape))
        union.append(mass + np.bincount(place, minlength=size).reshape(shape) - common[-1])
    return Overlaps(np.stack(common, 1), np.stack(union, 1))


def _edges(labels: UInt8, certainties: UInt8, num_classes: int) -> UInt8:
    """(T, C, BINS - 1) quartiles of each teacher's certainty where it gives a class."""
    edges = np.zeros((len(labels), num_classes, BINS - 1), np.uint8)
    for t, given in enumerate(labels):
        for c in np.unique(given[given < num_classes]):
            own = certainties[t, given == c, c]
            edges[t, c] = np.quantile(own, np.linspace(0, 1, BINS + 1)[1:-1], method="lower")
    return edges


def _words(labels: UInt8, certainties: UInt8, edges: UInt8) -> Int:
    """(T, S) the word of every pixel; the last one stands for no label."""
    num_classes = certainties.shape[2]
    words = np.full(labels.shape, num_classes * num_classes * BINS, np.int32)
    for t, given in enumerate(labels):
        heard = np.flatnonzero(given < num_classes)
        label = given[heard].astype(np.int32)
        values = certainties[t, heard].astype(np.int16)
        own = values[np.arange(len(heard)), label]
        values[np.arange(len(heard)), label] = -1
        quarter = (own[:, None] > edges[t, label]).sum(1)
        words[t, heard] = (label * num_classes + values.argmax(1)) * BINS + quarter
    return words


def _meaning(counts: Float) -> Float:
    """(K + 1, C) probability of each word given the class; smoothed with how often it is said at all."""
    num_classes = counts.shape[1]
    heard = counts[:-1].sum(1, keepdims=True) + FLOOR
    meaning = counts[:-1] + SMOOTHING * counts.sum() / num_classes * heard / heard.sum()
    meaning /= meaning.sum(0)
    return np.concatenate([meaning, np.ones((1, num_classes))])  # no label, no evidence


def _shrunk(
    evidence: list[Float], share: Float, labelled: Labelled, edges: UInt8
) -> tuple[list[Float], Float]:
    """Evidence and shares from labelled pixels, shrunk towards those without labels.

    Pixels of an image say much the same, so it is images that count: what is known without labels weighs as
    much as one image that has the class.
    """
    num_classes = len(share)
    known = labelled.truth < num_classes
    if not known.any():
        return evidence, share
    one_hot = np.eye(num_classes, dtype=np.float32)[labelled.truth[known]]
    per_image = np.zeros((labelled.image.max() + 1, num_classes))
    np.add.at(per_image, (labelled.image[known], labelled.truth[known]), 1)
    pixels = per_image.sum(0)
    one_image = pixels / np.maximum((per_image > 0).sum(0), 1)
    one_image[pixels == 0] = 1
    words = _words(labelled.labels, labelled.certainties, edges)
    meanings = []
    for t, before in enumerate(evidence):
        counts = counted(words[t, known], one_hot, len(before))[:-1] + one_image * before[:-1]
        meanings.append(np.concatenate([counts / counts.sum(0), before[-1:]]))
    mean_size = known.sum() / len(per_image)
    return meanings, (pixels + mean_size * share) / (known.sum() + mean_size)


def _belief(words: Int, scaled: Float32, evidence: Float32, prior: Float32, weights: Float) -> Float32:
    """(S, C) the geometric mean of the product of all evidence, (S, C) ``prior`` included, and mean probability."""
    total = prior.copy()
    for word, meaning, exponent in zip(words, evidence, _exponents(weights), strict=True):
        total += np.float32(exponent) * meaning[word]
    product = _normalised(np.exp(total - total.max(1, keepdims=True)))
    return _normalised(np.sqrt(product * _mean(scaled, weights)) + FLOOR)


def _agreements(labels: UInt8, num_classes: int, weights: Float, company: Float) -> list[Float32]:
    """Per teacher the (S, C) posterior of Dawid & Skene from the labels of all others."""
    votes, counts, which = combinations(labels)
    model = annotators(votes, counts, num_classes, weights, drift=DRIFT)
    return [model.posterior(votes, others).astype(np.float32)[which] for others in company]


def _scaled(certainties: UInt8, power: float) -> Float32:
    """(S, C) probabilities of (S, C) bytes, raised to a power."""
    return _normalised(_byte_powers(power)[certainties])


def _byte_powers(power: float) -> Float32:
    """(256,) what a byte of certainty stands for, raised to a power; 0.5 is what truncation took on average."""
    return (((np.arange(256) + 0.5) / 100) ** power).astype(np.float32)


def _powers(certainties: UInt8) -> Float:
    """(T,) the power that brings each teacher's mean certainty to that of all."""
    probabilities = _normalised(certainties[:, :: max(1, certainties.shape[1] // 50_000)] + np.float32(0.5))
    goal = float(probabilities.max(2).mean())
    return np.array([power_for(p, goal) for p in probabilities])


def _normalised(values: Float32) -> Float32:
    return np.asarray(values / values.sum(-1, keepdims=True), np.float32)
