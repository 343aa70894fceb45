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
   the scaled probabilities. Teachers err at the same pixels, so all together they count as no more than two
   independent witnesses, however many they are: else rare classes, for which a few words speak loudly against
   what is known before any, spread the more the more teachers there are.
5. The label is not the most likely class but the one whose choice adds most to the expected mean IoU: a pixel of
   a small class is worth more than one of a large class. Adding a pixel of probability p to a class of expected
   IoU J and union U changes that IoU by (p (1 + J) - J) / U. Only classes are looked at that are believed at least
   half as much as the most likely one, so that no class floods an image which is merely hard to rule out; and none
   that no teacher gives the pixel or is more than 0 % certain of there.

Near-copies share one teacher's weight (``alikeness``), and do not confirm each other in 3.

With some labelled images (``Labelled``), what a word means is counted there and shrunk towards 3, which weighs as
much as one image.

Fitting is here; ``beliefs`` is the rule at every pixel on the CPU, ``cuda`` on a card.

Legend of shapes: T teacher, C class, H, W, S sampled pixel, K word ((label * C + runner-up) * BINS + quarter).
Labels are uint8 train ids, 255 = none; certainties are percent, uint8 0..100.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from endauda_cli.fusion.rules.policies import Overlaps, annotators, combinations, power_for

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
WITNESSES = 2.0
"""As how many independent witnesses the evidence of all teachers counts; each as one at most."""
ALIKE = 0.5
"""How far two teachers' words agree beyond what the truth explains before they are taken for near-copies: unlike
networks of policies.md's real data reach 0.5, the same network with another temperature 0.98 or more."""
ALIKE_PIXELS = 25_000
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
        prior: (C,) float32, log share of each class.
        powers: (T,) what brings each teacher's probabilities to one mean certainty.
        weights: (T,) what each teacher counts, 0 to 1: one, or a part of it where others say the same.
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
            np.exp((self.prior - self.prior.max()) / 2),
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
    """(C,) the beliefs before any word; at most 1."""
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


def fit(labels: UInt8, certainties: UInt8, num_classes: int, labelled: Labelled | None = None) -> Consensus:
    """Fit the rule to sampled pixels of the teachers' outputs.

    Args:
        labels: (T, S) uint8.
        certainties: (T, S, C) uint8, percent.
        num_classes: C.
        labelled: pixels whose class is known, if there are any.
    """
    num_teachers = len(labels)
    edges = _edges(labels, certainties, num_classes)
    words = _words(labels, certainties, edges)
    powers = _powers(certainties)
    scaled = np.stack([_scaled(certainties[t], powers[t]) for t in range(num_teachers)])  # (T, S, C)
    alike = alikeness(labels, certainties, scaled)
    weights = 1 / alike.sum(1)
    company = _company(alike, weights)
    agreed = _agreements(labels, num_classes, weights, company)  # per teacher (S, C), without him
    evidence, share, num_words = [], np.zeros(num_classes), num_classes * num_classes * BINS + 1
    for t in range(num_teachers):
        reference = _normalised(np.sqrt(agreed[t] * _mean(scaled, company[t])) + FLOOR)
        evidence.append(_meaning(_count(words[t], reference, num_words)))
        share += weights[t] / weights.sum() * reference.mean(0)
    if labelled is not None:
        evidence, share = _shrunk(evidence, share, labelled, edges)
    log_evidence = np.log(np.stack(evidence)).astype(np.float32)
    prior = np.log(share + FLOOR).astype(np.float32)
    product = _product(words, log_evidence, prior, weights)
    iou, union = expected_iou(_normalised(np.sqrt(product * _mean(scaled, weights)) + FLOOR))
    return Consensus(edges, log_evidence, prior, powers, weights, iou, union)


def alikeness(labels: UInt8, certainties: UInt8, scaled: Float32) -> Float:
    """(T, T) how far two teachers are one: 0 for teachers of their own mind, 1 for copies, whatever the temperature.

    Goes by what two say first and second at a pixel, and by how often they would say the same if they knew nothing
    of each other but the truth, for which the mean of all others is taken.

    Args:
        labels: (T, S) uint8.
        certainties: (T, S, C) uint8, percent.
        scaled: (T, S, C) probabilities of one mean certainty.
    """
    num_teachers, pixels, num_classes = certainties.shape
    some = slice(None, None, max(1, pixels // ALIKE_PIXELS))
    first_two = [_first_two(labels[t, some], certainties[t, some]) for t in range(num_teachers)]
    alike = np.eye(num_teachers)
    for t in range(num_teachers):
        for other in range(t):
            both = np.flatnonzero((first_two[t] >= 0) & (first_two[other] >= 0))
            if not len(both):
                continue
            rest = [o for o in range(num_teachers) if o not in (t, other)] or [t, other]
            truth = scaled[rest][:, some][:, both].mean(0)
            one, two = first_two[t][both], first_two[other][both]
            said = [_count(words, truth, num_classes * num_classes) for words in (one, two)]
            share = said[0].sum(0)  # (C,) pixels of each class
            chance = float((said[0] * said[1] / np.maximum(share, FLOOR)).sum() / len(both))
            beyond = (float(np.mean(one == two)) - chance) / max(1 - chance, FLOOR)
            alike[t, other] = alike[other, t] = np.clip((beyond - ALIKE) / (1 - ALIKE), 0, 1)
    return alike


def _first_two(labels: UInt8, certainties: UInt8) -> Int:
    """(S,) label * C + runner-up; -1 where there is no label, or nothing but the label is above 0 %."""
    num_classes = certainties.shape[1]
    values = certainties.astype(np.int16)
    known = labels < num_classes
    label = np.where(known, labels, 0).astype(np.int32)
    values[np.arange(len(label)), label] = -1
    second = values.argmax(1)
    known &= values[np.arange(len(label)), second] > 0
    return np.where(known, label * num_classes + second, -1).astype(np.int32)


def _company(alike: Float, weights: Float) -> Float:
    """(T, T) what the others count for each teacher: nothing as far as they are he himself."""
    company = weights * (1 - alike)
    alone = company.sum(1) < FLOOR
    company[alone] = weights  # then a teacher is its own company
    return company


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


def believe(labels: UInt8, certainties: UInt8, model: Consensus) -> Float32:
    """(S, C) belief in each class at sampled pixels, see ``fit``."""
    scaled = np.stack([_scaled(c, power) for c, power in zip(certainties, model.powers, strict=True)])
    words = _words(labels, certainties, model.edges)
    product = _product(words, model.evidence, model.prior, model.weights)
    return _normalised(np.sqrt(product * _mean(scaled, model.weights)) + FLOOR)


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


def _count(words: Int, truth: Float32, num_words: int) -> Float:
    """(words, C) how often each word was said of each class, where the truth is (S, C) probabilities."""
    return np.stack([np.bincount(words, column, num_words) for column in truth.T], 1)


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
    counted = []
    for t, before in enumerate(evidence):
        counts = _count(words[t, known], one_hot, len(before))[:-1] + one_image * before[:-1]
        counted.append(np.concatenate([counts / counts.sum(0), before[-1:]]))
    mean_size = known.sum() / len(per_image)
    return counted, (pixels + mean_size * share) / (known.sum() + mean_size)


def _product(words: Int, evidence: Float32, prior: Float32, weights: Float) -> Float32:
    """(S, C) probabilities from all evidence."""
    total = np.tile(prior, (words.shape[1], 1))
    for word, meaning, exponent in zip(words, evidence, _exponents(weights), strict=True):
        total += np.float32(exponent) * meaning[word]
    return _normalised(np.exp(total - total.max(1, keepdims=True)))


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
