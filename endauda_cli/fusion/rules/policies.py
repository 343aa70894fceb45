"""Kernels: policies, that is, which teacher owns which class, and ways to choose one.

A policy is an ordered list of (class, teacher) pairs, each class exactly once. The order is the published
painting order; it has no influence on the fused labels and is kept for the record.

Legend of shapes: T teacher, C class, S sampled pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Float = NDArray[np.float64]


@dataclass(frozen=True)
class Policy:
    """Who owns which class.

    Attributes:
        pairs: (class index, teacher index), each class once.
        kind: how it was chosen: a ``PolicyKind`` value or the file it was read from.
        scores: (T, C), what the choice went by, higher is better, NaN for "never predicted"; or ``None``.
        used_labels: whether labels of target images took part in the choice.
        labelled: ids of the images whose labels did.
        sureness: (C,) share of resamples of the images in which the owner is the same, 0..1; or ``None``.
    """

    pairs: tuple[tuple[int, int], ...]
    kind: str
    scores: tuple[tuple[float, ...], ...] | None = None
    used_labels: bool = False
    labelled: tuple[str, ...] = ()
    sureness: tuple[float, ...] | None = None

    @property
    def owners(self) -> tuple[int, ...]:
        """The teacher of each class, in class order."""
        return tuple(teacher for _, teacher in sorted(self.pairs))


def make_policy(pairs: Sequence[tuple[int, int]], num_classes: int, num_teachers: int, kind: str) -> Policy:
    """A policy from pairs that somebody wrote.

    Raises:
        PolicyError: if a class is missing, named twice or unknown, or a teacher is unknown.
    """
    seen: set[int] = set()
    for c, t in pairs:
        if not 0 <= c < num_classes:
            raise PolicyError(f"{kind}: class {c}, but classes are 0 to {num_classes - 1}")
        if not 0 <= t < num_teachers:
            raise PolicyError(f"{kind}: teacher {t} for class {c}, but teachers are 0 to {num_teachers - 1}")
        if c in seen:
            raise PolicyError(f"{kind}: class {c} has two owners; name each class once")
        seen.add(c)
    missing = sorted(set(range(num_classes)) - seen)
    if missing:
        raise PolicyError(f"{kind}: no owner for class {missing[0]}; name a teacher for each class")
    return Policy(tuple((int(c), int(t)) for c, t in pairs), kind)


def owners_by_certainty(table: Float) -> list[int]:
    """The follow-up project's choice: per class the teacher that is most certain where it predicts it.

    Ties go to the last teacher, NaN (never predicted) and negative values are never taken; a class without
    a candidate goes to teacher 0. Not comparable between teachers of different calibration.

    Args:
        table: (T, C) mean of the highest probability over the pixels that a teacher gives a class.
    """
    owners = []
    for column in table.T:
        owner, best = 0, 0.0
        for t, value in enumerate(column):
            if value >= best:
                owner, best = t, float(value)
        owners.append(owner)
    return owners


def owners_by_score(table: Float) -> list[int]:
    """Per class the teacher with the highest score; ties go to the first, NaN is never taken.

    A class for which nobody has a score goes to the teacher with the highest mean score.
    """
    overall = int(np.argmax([_mean(row) for row in table]))
    filled = np.where(np.isnan(table), -np.inf, table)
    return [int(np.argmax(column)) if np.isfinite(column).any() else overall for column in filled.T]


@dataclass(frozen=True)
class Annotators:
    """How each teacher errs: the model of Dawid & Skene (1979).

    Attributes:
        log_confusion: (T, 256, C), log probability that a teacher gives a label, by true class; 0 for 255.
        log_prior: (C,).
    """

    log_confusion: Float
    log_prior: Float

    def posterior(self, votes: NDArray[np.uint8], weights: Float | None = None) -> Float:
        """(S, C) probabilities of the true class, given the labels (T, S) and (T,) what each teacher counts."""
        counted = np.ones(len(votes)) if weights is None else weights
        log_posterior = np.tile(self.log_prior, (votes.shape[1], 1))
        for t in np.flatnonzero(counted):
            log_posterior += counted[t] * self.log_confusion[t][votes[t]]
        posterior: Float = np.exp(log_posterior - log_posterior.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        return posterior


def annotators(
    votes: NDArray[np.uint8],
    counts: Float,
    num_classes: int,
    weights: Float | None = None,
    drift: float = np.inf,
    rounds: int = 30,
) -> Annotators:
    """Fit the model of Dawid & Skene by expectation maximisation, started from the vote.

    Every teacher has a confusion matrix; rows are smoothed with the teacher's own marginal, so that a class that
    is hardly ever seen does not earn certainty.

    Args:
        votes: (T, S) uint8, the distinct combinations of labels, 255 = no vote.
        counts: (S,) how many pixels have each combination.
        num_classes: C.
        weights: (T,) what each teacher counts; all the same unless given.
        drift: by what factor a class's share of pixels may leave the range of the teachers' shares.
        rounds: iterations.
    """
    num_teachers = len(votes)
    weights = np.ones(num_teachers) if weights is None else weights
    seen = votes < num_classes
    one_hot = np.zeros((num_teachers, votes.shape[1], num_classes))
    for t in range(num_teachers):
        one_hot[t, seen[t], votes[t, seen[t]]] = 1
    given = np.einsum("tsc,s->tc", one_hot, counts) / max(counts.sum(), 1e-9)
    bounds = given.min(0) / drift, given.max(0) * drift + 1e-9
    posterior: Float = np.tensordot(weights, one_hot, 1) + 1e-6
    posterior /= posterior.sum(1, keepdims=True)
    for _ in range(rounds):
        weighted = posterior * counts[:, None]  # (S, C)
        prior = weighted.sum(0) + 1e-9
        log_confusion = np.zeros((num_teachers, 256, num_classes))
        for t in range(num_teachers):
            confusion = weighted.T @ one_hot[t]  # (true, given)
            marginal = confusion.sum(0) + 1e-9
            confusion += SMOOTHING * counts.sum() / num_classes * (marginal / marginal.sum())
            confusion /= confusion.sum(1, keepdims=True)
            log_confusion[t, :num_classes] = np.log(confusion.T + 1e-12)
        model = Annotators(log_confusion, np.log(prior / prior.sum()))
        posterior = model.posterior(votes, weights)
        shift = _shift(posterior, counts, bounds)
        if shift.any():
            model = Annotators(log_confusion, model.log_prior + shift)
            posterior = model.posterior(votes, weights)
    return model


def _shift(posterior: Float, counts: Float, bounds: tuple[Float, Float], rounds: int = 8) -> Float:
    """(C,) what is added to log probabilities so that no class has a share of pixels out of bounds."""
    factor = np.ones(posterior.shape[1])
    for _ in range(rounds):
        moved = posterior * factor
        share = counts @ (moved / moved.sum(1, keepdims=True)) / counts.sum()
        wanted = np.clip(share, *bounds)
        if (wanted == share).all():
            break
        factor *= (wanted + 1e-12) / (share + 1e-12)
    return np.log(factor)


def dawid_skene(votes: NDArray[np.uint8], counts: Float, num_classes: int, rounds: int = 30) -> Float:
    """(S, C) posterior over the true class from annotators who err each in their own way.

    Args:
        votes, counts, num_classes, rounds: as for ``annotators``.
    """
    return annotators(votes, counts, num_classes, rounds=rounds).posterior(votes)


def combinations(labels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Float, NDArray[np.intp]]:
    """The distinct columns of (T, S) labels, how often each occurs, and which one each column is."""
    which = np.zeros(labels.shape[1], np.intp)
    for row in labels:
        which = np.unique(which * 256 + row, return_inverse=True)[1]
    first, counts = np.unique(which, return_index=True, return_counts=True)[1:]
    return labels[:, first], counts.astype(np.float64), which


SMOOTHING = 1e-3
"""Pseudo counts per class of a confusion matrix, as a share of an even class's pixels."""


def soft_iou(votes: NDArray[np.uint8], counts: Float, posterior: Float) -> Float:
    """(T, C) IoU of each teacher's classes with the posterior in place of the truth; NaN where both are nil.

    Args:
        votes: (T, S) uint8.
        counts: (S,).
        posterior: (S, C).
    """
    mass = posterior.T @ counts  # (C,)
    table = np.full((len(votes), posterior.shape[1]), np.nan)
    for t, given in enumerate(votes):
        for c in range(posterior.shape[1]):
            here = given == c
            claimed = counts[here].sum()
            common = (posterior[here, c] * counts[here]).sum()
            if claimed > 0:
                table[t, c] = common / (mass[c] + claimed - common)
    return table


def scaled_certainty(labels: NDArray[np.uint8], certainties: NDArray[np.uint8], num_classes: int) -> Float:
    """(T, C) mean certainty per given class, 0..1, after all teachers were brought to one mean certainty.

    Certainties of differently trained teachers are not comparable. Each teacher's probabilities are raised
    to a power of its own (a temperature) that gives it the mean certainty of all teachers.

    Args:
        labels: (T, S) uint8.
        certainties: (T, S, C) uint8, percent.
        num_classes: C.
    """
    probabilities = certainties.astype(np.float32) + 0.5  # what truncation took away, on average
    probabilities /= probabilities.sum(2, keepdims=True)
    goal = float(probabilities.max(2).mean())
    table = np.full((len(labels), num_classes), np.nan)
    for t, given in enumerate(labels):
        top = _highest(probabilities[t], power_for(probabilities[t], goal))
        for c in np.unique(given[given < num_classes]):
            table[t, c] = top[given == c].mean()
    return table


def power_for(probabilities: NDArray[np.float32], goal: float) -> float:
    """The power that brings the mean of the highest probability to ``goal`` (bisection; it is monotone)."""
    some = probabilities[:: max(1, len(probabilities) // 20_000)]
    log_ratio = np.log(some / some.max(1, keepdims=True))
    low, high = 0.05, 20.0
    for _ in range(24):
        middle = np.sqrt(low * high)
        if (1 / np.exp(np.float32(middle) * log_ratio).sum(1)).mean() < goal:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))


def _highest(probabilities: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    ratio = probabilities / probabilities.max(1, keepdims=True)
    return np.asarray(1 / (ratio**power).sum(1), np.float32)


def auto_scores(labels: NDArray[np.uint8], certainties: NDArray[np.uint8], num_classes: int) -> Float:
    """(T, C) how good each teacher is believed to be at each class, from the teachers alone.

    The soft IoU with the Dawid-Skene posterior, times the scaled certainty. Neither a calibration nor a
    label is trusted: agreement decides, certainties only compare a teacher with itself.

    Args:
        labels: (T, S) uint8, labels of sampled pixels.
        certainties: (T, S, C) uint8, percent.
        num_classes: C.
    """
    votes, counts, _ = combinations(labels)
    agreement = soft_iou(votes, counts, dawid_skene(votes, counts, num_classes))
    return agreement * scaled_certainty(labels, certainties, num_classes)


@dataclass(frozen=True)
class Overlaps:
    """Per image what an IoU is made of, of each teacher's classes with the truth or with what is believed.

    Attributes:
        common, union: (N, T, C) pixels of image n.
        before: (T, C) IoU known from elsewhere, NaN where nothing is known; or ``None``.
    """

    common: Float
    union: Float
    before: Float | None = None

    def iou(self, weights: Float | None = None) -> Float:
        """(T, C) IoU over all images; NaN where a class neither occurs nor is given.

        Shrunk towards ``before``, which weighs as much as one image that has the class: pixels of an image say
        much the same, so it is images that count. A class that no image has is what it was before.

        Args:
            weights: (N,) how often each image counts, for a bootstrap.
        """
        counts = np.ones(len(self.common)) if weights is None else weights
        common, union = np.tensordot(counts, self.common, 1), np.tensordot(counts, self.union, 1)
        if self.before is not None:
            images = counts @ (self.union.max(1) > 0)  # (C,)
            one = np.where(images > 0, union.max(0) / np.maximum(images, 1), 1)
            known = ~np.isnan(self.before)
            common = common + np.where(known, one * np.nan_to_num(self.before), 0)
            union = union + np.where(known, one, 0)
        with np.errstate(invalid="ignore"):
            return np.asarray(common / union)


RESAMPLES = 200


def sureness(overlaps: Overlaps, owners: Sequence[int], factor: Float | None = None) -> tuple[float, ...]:
    """(C,) share of bootstrap resamples of the images in which a class has the same owner, 0..1.

    Args:
        overlaps: see there.
        owners: (C,) the choice from all images.
        factor: (T, C) what scores are multiplied by.
    """
    images = len(overlaps.common)
    generator = np.random.default_rng(0)
    same = np.zeros(len(owners))
    for weights in generator.multinomial(images, np.full(images, 1 / images), RESAMPLES):
        scores = overlaps.iou(weights.astype(np.float64))
        same += np.array(owners_by_score(scores if factor is None else scores * factor)) == owners
    return tuple(float(share) for share in same / RESAMPLES)


def _mean(values: Float) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else -1.0


PAPER: dict[str, tuple[tuple[str, ...], tuple[tuple[int, int], ...]]] = {
    "gta5": (
        ("mrnet", "dacs", "crst", "cbst"),
        (
            (16, 3), (3, 0), (12, 1), (4, 1), (9, 1), (5, 2), (17, 2), (6, 0), (18, 1), (7, 1), (15, 0),
            (14, 1), (1, 1), (11, 1), (8, 1), (2, 1), (10, 1), (13, 1), (0, 1),
        ),
    ),
    "synthia": (
        ("crst", "cbst", "mrnet"),
        (
            (4, 0), (3, 0), (11, 2), (14, 2), (6, 2), (7, 0), (5, 2), (13, 2), (1, 2), (15, 2), (10, 2),
            (8, 2), (2, 2), (9, 1), (12, 2), (0, 2),
        ),
    ),
}  # fmt: skip
"""The two published lists: source -> (teachers, pairs in painting order). MRKLD is ``crst`` here."""


def paper_policy(source: str, teachers: Sequence[str], lists: Mapping[str, object] = PAPER) -> Policy:
    """The published list for a source.

    Raises:
        PolicyError: if there is none for the source, or the teachers are not the paper's.
    """
    if source not in lists:
        raise PolicyError(f"the paper has no policy for source {source}, only for {' and '.join(lists)}")
    published, pairs = PAPER[source]
    if set(teachers) != set(published):
        raise PolicyError(
            f"the paper's policy for {source} is for the teachers {' '.join(published)}, not for "
            f"{' '.join(teachers)}; use --policy auto, or a file"
        )
    place = {name: index for index, name in enumerate(teachers)}
    return Policy(tuple((c, place[published[t]]) for c, t in pairs), "paper")
