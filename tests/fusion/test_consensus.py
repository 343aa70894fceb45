"""The rule that weighs what all teachers say: what it learns without labels, from a few, and per pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endauda_cli.fusion.rules.beliefs import believed
from endauda_cli.fusion.rules.consensus import (
    BINS,
    COLUMNS,
    ROWS,
    WITNESSES,
    Consensus,
    Labelled,
    Places,
    believe,
    expected_iou,
    fit,
    overlaps,
    places_of,
)
from endauda_cli.fusion.rules.policies import Overlaps, owners_by_score, sureness
from endauda_cli.fusion.rules.standing import TRUST, trust

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float = NDArray[np.float64]
    UInt8 = NDArray[np.uint8]

NUM_CLASSES = 4
SHARES = (0.5, 0.3, 0.15, 0.05)


def truth_of(pixels: int, seed: int = 0) -> UInt8:
    generator = np.random.default_rng(seed)
    return generator.choice(NUM_CLASSES, pixels, p=SHARES).astype(np.uint8)


def teacher(
    truth: UInt8, accuracy: float, margin: float, seed: int, right_margin: float = 0.0
) -> tuple[UInt8, UInt8]:
    """(S,) labels that are right so often, and (S, C) certainties; ``margin`` is how sure, right or wrong."""
    generator = np.random.default_rng(seed)
    wrong = generator.random(len(truth)) >= accuracy
    shift = generator.integers(1, NUM_CLASSES, len(truth))
    label = np.where(wrong, (truth + shift) % NUM_CLASSES, truth)
    logits = generator.normal(0, 0.3, (len(truth), NUM_CLASSES))
    logits[np.arange(len(truth)), label] += margin + right_margin * ~wrong
    shares = np.exp(logits - logits.max(1, keepdims=True))
    certainty = (100 * shares / shares.sum(1, keepdims=True)).astype(np.uint8)
    return logits.argmax(1).astype(np.uint8), certainty


def ensemble(*teachers: tuple[UInt8, UInt8]) -> tuple[UInt8, UInt8]:
    return np.stack([t[0] for t in teachers]), np.stack([t[1] for t in teachers])


def fused(labels: UInt8, certainties: UInt8, model: Consensus) -> UInt8:
    """(S,) labels of sampled pixels, as an image of one row."""
    planes = np.ascontiguousarray(certainties.transpose(0, 2, 1))[:, :, None]
    return np.asarray(believed(np.ascontiguousarray(labels[:, None]), planes, model).candidate[0], np.uint8)


def vote(labels: UInt8) -> UInt8:
    return np.asarray(np.argmax([(labels == c).sum(0) for c in range(NUM_CLASSES)], 0), np.uint8)


def test_few_good_teachers_outweigh_many_poor_and_loud_ones() -> None:
    truth = truth_of(20_000)
    labels, certainties = ensemble(
        *(teacher(truth, 0.9, 2.0, seed) for seed in (1, 2)),
        *(teacher(truth, 0.4, 6.0, seed) for seed in (3, 4, 5)),
    )
    label = fused(labels, certainties, fit(labels, certainties, NUM_CLASSES))
    loud = certainties.mean(0).argmax(1)
    assert np.mean(loud == truth) < 0.8
    assert np.mean(vote(labels) == truth) < 0.9
    assert np.mean(label == truth) > np.mean(vote(labels) == truth) + 0.01
    assert np.mean(label == truth) > np.mean(labels[0] == truth) + 0.01


def test_how_sure_a_teacher_is_counts_as_far_as_it_tells() -> None:
    """Two teachers are as often right; one is less sure where it errs, and is heard where it is sure."""
    truth = truth_of(20_000)
    labels, certainties = ensemble(
        teacher(truth, 0.7, 1.5, 1, right_margin=1.5), *(teacher(truth, 0.7, 2.5, seed) for seed in (2, 3))
    )
    model = fit(labels, certainties, NUM_CLASSES)
    words = model.evidence[:, :-1].reshape(3, NUM_CLASSES, NUM_CLASSES, BINS, NUM_CLASSES)
    # Evidence for class 0 against the mean of the others when a teacher says 0: unsure, and sure.
    gain = [
        (words[t, 0, 1:, b, 0] - words[t, 0, 1:, b, 1:].mean(-1)).mean()
        for t in (0, 1)
        for b in (0, BINS - 1)
    ]
    assert gain[1] - gain[0] > 1
    assert abs(gain[3] - gain[2]) < 0.5
    told_apart = np.mean(fused(labels, certainties, model) == truth)
    for c in range(NUM_CLASSES):  # as sure as before, but not where it is right
        own = np.flatnonzero(labels[0] == c)
        certainties[0, own] = certainties[0, np.random.default_rng(c).permutation(own)]
    assert (
        told_apart
        > np.mean(fused(labels, certainties, fit(labels, certainties, NUM_CLASSES)) == truth) + 0.02
    )


def test_calibration_of_a_teacher_does_not_matter() -> None:
    """The same teacher, only surer of everything: its power undoes it."""
    truth = truth_of(20_000)
    others = [teacher(truth, 0.7, 2.0, seed) for seed in (2, 3)]
    labels = []
    for margin in (1.0, 4.0):
        generator = np.random.default_rng(1)
        wrong = generator.random(len(truth)) >= 0.85
        label = np.where(wrong, (truth + 1) % NUM_CLASSES, truth).astype(np.uint8)
        strength = margin * generator.uniform(0.5, 1.5, len(truth))
        logits = strength[:, None] * np.eye(NUM_CLASSES)[label]
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        given_labels, certainties = ensemble((label, (100 * shares).astype(np.uint8)), *others)
        labels.append(fused(given_labels, certainties, fit(given_labels, certainties, NUM_CLASSES)))
    assert np.mean(labels[0] == labels[1]) > 0.98


def heated(certainties: UInt8, power: float) -> tuple[UInt8, UInt8]:
    """The same teacher with another temperature."""
    shares = (certainties + 0.5) ** power
    surer = np.asarray(100 * shares / shares.sum(1, keepdims=True), np.uint8)
    return surer.argmax(1).astype(np.uint8), surer


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_near_copies_count_once(power: float) -> None:
    """A poor teacher and copies of it with other temperatures do not outvote two who are better."""
    truth = truth_of(20_000)
    own = [teacher(truth, accuracy, 2.0, seed) for seed, accuracy in ((1, 0.8), (2, 0.8), (3, 0.5))]
    single, many = ensemble(*own), ensemble(*own, heated(own[2][1], power), heated(own[2][1], power**0.5))
    models = [fit(*told, NUM_CLASSES) for told in (single, many)]
    poor = models[0].weights[2]
    assert poor < 0.6
    np.testing.assert_allclose(models[0].weights[:2], 1, atol=0.05)
    np.testing.assert_allclose(models[1].weights, [1, 1, poor / 3, poor / 3, poor / 3], atol=0.06)
    right = [
        np.mean(fused(*told, model) == truth) for told, model in zip((single, many), models, strict=True)
    ]
    assert np.mean(vote(many[0]) == truth) < right[0] - 0.1
    assert right[1] > right[0] - 0.01


@pytest.mark.parametrize("teachers", [1, 2, 3, 6])
def test_all_teachers_together_are_no_more_than_some_witnesses(teachers: int) -> None:
    truth = truth_of(2000)
    own = (teacher(truth, 0.6 + 0.05 * seed, 2.0, seed) for seed in range(1, teachers + 1))
    model = fit(*ensemble(*own), NUM_CLASSES)
    evidence = model.evidence - model.evidence.max(2, keepdims=True)
    heard = 2 * np.log(model.tables.factors)
    exponents = []
    for t in range(teachers):
        some = evidence[t] < -1
        exponents.append((heard[t][some] / evidence[t][some]).mean())
        np.testing.assert_allclose(heard[t][some], exponents[t] * evidence[t][some], rtol=1e-3)
    assert sum(exponents) == pytest.approx(min(model.weights.sum(), WITNESSES), rel=1e-3)
    np.testing.assert_allclose(exponents / max(exponents), model.weights, rtol=1e-3)
    assert max(exponents) <= 1.001
    assert model.tables.share.sum() == pytest.approx(1)


def test_better_teachers_count_more() -> None:
    truth = truth_of(20_000)
    accuracies = (0.9, 0.8, 0.7, 0.6)
    model = fit(*ensemble(*(teacher(truth, a, 2.0, n) for n, a in enumerate(accuracies, 1))), NUM_CLASSES)
    assert model.weights[0] == 1
    assert (np.diff(model.weights) < -0.05).all()


def test_what_says_nothing_about_teachers_leaves_them_equal() -> None:
    rare = np.array([0.5, 0.5, 1e-6])
    even = np.array([[0.8, 0.7, 0.1], [0.7, 0.8, 0.9], [0.75, 0.75, np.nan]])
    np.testing.assert_allclose(trust(even, rare, 1e-4), 1)
    np.testing.assert_allclose(trust(np.full((2, 3), np.nan), rare, 1e-4), 1)
    np.testing.assert_allclose(trust(np.array([[0.99], [1.0]]), np.ones(1), 1e-4), 1)  # all agree
    assert trust(np.array([[0.8], [0.5]]), np.ones(1), 1e-4) == pytest.approx([1, (1 / 4) ** TRUST])
    assert (trust(np.array([[0.0], [1.0]]), np.ones(1), 1e-4) > 0).all()


# ---------------------------------------------------------------------------- places


def test_places_cover_an_image() -> None:
    for height, width in ((1, 1), (5, 3), (32, 18), (37, 101)):
        places = places_of(height, width)
        assert places.shape == (height, width)
        assert 0 <= places.min() and places.max() < ROWS * COLUMNS
        assert (np.diff(places, axis=0) >= 0).all() and (np.diff(places, axis=1) >= 0).all()
    np.testing.assert_array_equal(np.unique(places_of(32, 18)), np.arange(ROWS * COLUMNS))
    assert places_of(32, 18)[31, 0] == (ROWS - 1) * COLUMNS


def test_a_class_is_likelier_where_it_is_in_other_images() -> None:
    """Class 0 is above and class 1 below; what teachers are in doubt about follows the place, a little."""
    images, height, width = 20, 32, 18
    truth = np.tile((np.arange(height) >= height // 2)[None, :, None], (images, 1, width)).astype(np.uint8)
    labels, certainties = ensemble(*(teacher(truth.ravel(), 0.7, 1.0, seed) for seed in (1, 2, 3)))
    places = Places(np.tile(places_of(height, width).ravel(), images), images)
    alike = fit(labels, certainties, NUM_CLASSES)
    placed = fit(labels, certainties, NUM_CLASSES, places=places)
    assert (placed.prior[: COLUMNS * ROWS // 2, 0] > alike.prior[0, 0]).all()
    assert (placed.prior[COLUMNS * ROWS // 2 :, 0] < alike.prior[0, 0]).all()
    assert np.ptp(alike.prior, 0).max() == 0

    def right(model: Consensus) -> float:
        planes = certainties.reshape(3, images, height, width, -1).transpose(1, 0, 4, 2, 3)
        given_labels = labels.reshape(3, images, height, width)
        found = [
            believed(np.ascontiguousarray(given_labels[:, n]), np.ascontiguousarray(own), model).candidate
            for n, own in enumerate(planes)
        ]
        return float(np.mean(np.stack(found) == truth))

    assert right(placed) > right(alike) + 0.02


def test_one_teacher_is_believed() -> None:
    truth = truth_of(5000)
    labels, certainties = ensemble(teacher(truth, 0.9, 3.0, 1))
    assert np.mean(fused(labels, certainties, fit(labels, certainties, NUM_CLASSES)) == labels[0]) > 0.97


def test_teachers_that_agree_are_believed() -> None:
    truth = truth_of(5000)
    labels, certainties = ensemble(*[teacher(truth, 1.0, 3.0, 1)] * 3)
    np.testing.assert_array_equal(
        fused(labels, certainties, fit(labels, certainties, NUM_CLASSES)), labels[0]
    )


def test_who_gives_no_label_is_left_out() -> None:
    truth = truth_of(5000)
    labels, certainties = ensemble(*(teacher(truth, 0.9, 2.0, seed) for seed in (1, 2, 3)))
    labels[0, ::3] = 255
    labels[:, 7] = 255
    model = fit(labels, certainties, NUM_CLASSES)
    label = fused(labels, certainties, model)
    assert label.max() < NUM_CLASSES
    assert np.mean(label == truth) > 0.93
    planes = np.ascontiguousarray(certainties.transpose(0, 2, 1))[:, :, None]
    claims = believed(np.ascontiguousarray(labels[:, None]), planes, model).claims[0]
    expected = [len(set(column) - {255}) for column in labels.T.tolist()]
    np.testing.assert_array_equal(claims, expected)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    teachers=st.sampled_from([1, 2, 3, 5, 20]),
    num_classes=st.integers(2, 7),
    ignored=st.booleans(),
)
def test_every_pixel_is_decided_as_the_formulas_say(
    seed: int, teachers: int, num_classes: int, ignored: bool
) -> None:
    generator = np.random.default_rng(seed)
    height, width = 6, 10
    labels = generator.integers(0, num_classes, (teachers, height * width)).astype(np.uint8)
    if ignored:
        labels[generator.random(labels.shape) < 0.2] = 255
    certainties = generator.integers(0, 101, (teachers, 60, num_classes)).astype(np.uint8)
    place = places_of(height, width).ravel()
    model = fit(labels, certainties, num_classes, places=Places(place, 1))
    belief = believe(labels, certainties, model, place).astype(np.float64)
    gain = (belief * (1 + model.iou) - model.iou) / np.maximum(model.union, 1e-4)
    gain[belief < 0.5 * belief.max(1, keepdims=True)] = -np.inf
    planes = certainties.transpose(0, 2, 1).reshape(teachers, num_classes, height, width)
    found = believed(labels.reshape(teachers, height, width), np.ascontiguousarray(planes), model)
    candidate = found.candidate.reshape(-1, 1).astype(np.int64)
    chosen = np.take_along_axis(gain, candidate, 1)[:, 0]
    np.testing.assert_allclose(chosen, gain.max(1), rtol=1e-3, atol=1e-3)
    own = np.take_along_axis(belief, candidate, 1)[:, 0]
    np.testing.assert_allclose(found.certainty.ravel(), 100 * own, rtol=1e-3, atol=1e-3)


def test_expected_iou_favours_small_classes_where_in_doubt() -> None:
    """Where pixels are 45 % a small class and 55 % a large one, labelling the small one pays."""
    belief = np.zeros((1000, 2), np.float32)
    belief[:900] = (1, 0)
    belief[900:] = (0.55, 0.45)
    iou, union = expected_iou(belief)
    assert iou == pytest.approx([900 / 955, 45 / 100], abs=1e-2)
    assert union == pytest.approx([0.955, 0.1], abs=1e-2)
    # Labelled large throughout, as the most likely class would be, the mean would be (955/1000 + 0) / 2.
    assert iou.mean() > 0.955 / 2


def test_a_class_that_is_merely_hard_to_rule_out_is_not_chosen() -> None:
    """Class 2 never occurs; a doubt of one in fifty, everywhere, must not make labels of it."""
    truth = truth_of(5000) % 2
    labels = np.stack([truth] * 3).astype(np.uint8)
    certainties = np.zeros((3, 5000, 3), np.uint8)
    np.put_along_axis(certainties, np.tile(truth[None, :, None].astype(np.int64), (3, 1, 1)), 97, 2)
    certainties[..., 2] = 2
    label = fused(labels, certainties, fit(labels, certainties, 3))
    np.testing.assert_array_equal(label, truth)


def test_a_few_labels_mend_what_all_teachers_get_wrong() -> None:
    """All call half of class 3 class 1, which no agreement can tell. Labels of a few images can."""
    truth = truth_of(20_000)
    generator = np.random.default_rng(9)
    seen_as = np.where((truth == 3) & (generator.random(len(truth)) < 0.6), 1, truth).astype(np.uint8)
    labels, certainties = ensemble(*(teacher(seen_as, 0.9, 2.0, seed) for seed in (1, 2, 3)))
    # When it is not sure of 1, it is 3: a habit that shows in the runner-up.
    misled = (truth == 3) & (seen_as == 1)
    for t in range(3):
        here = misled & (labels[t] == 1)
        certainties[t, here, 1], certainties[t, here, 3] = 55, 40
    shown = slice(0, 2000)
    known = Labelled(labels[:, shown], certainties[:, shown], truth[shown], np.repeat(np.arange(4), 500))
    without = fused(labels, certainties, fit(labels, certainties, NUM_CLASSES))
    having = fused(labels, certainties, fit(labels, certainties, NUM_CLASSES, known))
    rest = truth[2000:] == 3
    assert np.mean(without[2000:][rest] == 3) < 0.6
    assert np.mean(having[2000:][rest] == 3) > 0.9
    assert np.mean(having[2000:] == truth[2000:]) > np.mean(without[2000:] == truth[2000:]) + 0.01


def test_classes_without_a_labelled_pixel_are_judged_by_agreement_alone() -> None:
    truth = truth_of(8000)
    labels, certainties = ensemble(*(teacher(truth, 0.8, 2.0, seed) for seed in (1, 2, 3)))
    shown = np.flatnonzero(truth != 3)[:1000]
    known = Labelled(labels[:, shown], certainties[:, shown], truth[shown], np.zeros(1000, np.intp))
    free, few = fit(labels, certainties, NUM_CLASSES), fit(labels, certainties, NUM_CLASSES, known)
    np.testing.assert_allclose(few.evidence[..., 3], free.evidence[..., 3], rtol=1e-5)
    assert np.abs(few.evidence[:, :-1, 0] - free.evidence[:, :-1, 0]).max() > 0.1
    nothing = replace(known, truth=np.full(1000, 255, np.uint8))
    np.testing.assert_allclose(
        fit(labels, certainties, NUM_CLASSES, nothing).evidence, free.evidence, rtol=1e-5
    )


def test_overlaps_of_a_certain_belief_are_the_true_ones() -> None:
    generator = np.random.default_rng(3)
    truth = generator.integers(0, 3, 300)
    labels = generator.integers(0, 3, (2, 300)).astype(np.uint8)
    labels[0, :20] = 255
    image = np.repeat(np.arange(3), 100)
    found = overlaps(labels, np.eye(3, dtype=np.float32)[truth], image)
    for n in range(3):
        for t in range(2):
            for c in range(3):
                true, own = truth[image == n] == c, labels[t, image == n] == c
                assert found.common[n, t, c] == (true & own).sum()
                assert found.union[n, t, c] == (true | own).sum()


# ---------------------------------------------------------------------------- few labels, and how sure a choice is


def test_iou_is_shrunk_by_one_image_of_the_class() -> None:
    common = np.array([[[8.0, 0.0, 0.0]], [[4.0, 2.0, 0.0]]])  # (2 images, 1 teacher, 3 classes)
    union = np.array([[[10.0, 0.0, 0.0]], [[10.0, 4.0, 0.0]]])
    before = np.array([[0.3, 0.8, 0.7]])
    found = Overlaps(common, union, before).iou()
    assert found[0] == pytest.approx([(12 + 10 * 0.3) / 30, (2 + 4 * 0.8) / 8, 0.7])
    unknown = Overlaps(common, union, np.full((1, 3), np.nan)).iou()
    assert unknown[0, :2] == pytest.approx([0.6, 0.5]) and np.isnan(unknown[0, 2])


def test_sureness_tells_a_clear_choice_from_an_even_one() -> None:
    generator = np.random.default_rng(0)
    images = 40
    common = np.stack(
        [
            np.stack([np.full(images, 90.0), generator.normal(50, 10, images)], 1),
            np.stack([np.full(images, 50.0), generator.normal(50, 10, images)], 1),
        ],
        1,
    )  # (N, 2 teachers, 2 classes)
    judged = Overlaps(common, np.full_like(common, 100.0))
    owners = owners_by_score(judged.iou())
    sure = sureness(judged, owners)
    assert owners[0] == 0
    assert sure[0] == 1
    assert 0.3 < sure[1] < 1
    assert sureness(judged, owners) == sure  # the same draws every time


def test_a_class_that_nobody_names_is_given_to_no_pixel() -> None:
    """Neither as a label nor by any certainty; even where all that is known speaks for it."""
    truth = truth_of(4000)
    truth[truth == 3] = 0
    labels, certainties = ensemble(*(teacher(truth, 0.7, 1, seed) for seed in range(3)))
    labels[labels == 3] = 0
    certainties[..., 3] = 0
    model = fit(labels, certainties, NUM_CLASSES)
    assert 3 not in fused(labels, certainties, model)
    convinced = replace(model, evidence=model.evidence + np.array([0, 0, 0, 20], np.float32))
    now = fused(labels, certainties, convinced)
    assert 3 not in now and len(np.unique(now)) > 1
    some = certainties.copy()
    some[0, :10, 3] = 1
    assert (fused(labels, some, convinced)[:10] == 3).all(), "who says 1 % has named it"
    nothing = np.zeros_like(certainties)
    assert fused(np.full_like(labels, 255), nothing, model).max() < NUM_CLASSES, (
        "of nothing anything can follow"
    )


def test_evidence_of_many_teachers_who_contradict_each_other_is_not_lost_in_rounding() -> None:
    """Forty times evidence of e^-12 is no float. In turn they speak for 0 and for 1; a little more for 1."""
    teachers = 40
    model = fit(*ensemble(*(teacher(truth_of(500), 0.9, 2, seed) for seed in range(teachers))), NUM_CLASSES)
    evidence = np.full_like(model.evidence, -14)
    evidence[::2, :, 0] = evidence[1::2, :, 1] = -1
    evidence[::2, :, 1], evidence[1::2, :, 0] = -12.9, -13.1
    even = np.zeros(NUM_CLASSES)
    model = replace(
        model, evidence=evidence, prior=np.zeros_like(model.prior), iou=even, union=np.ones(NUM_CLASSES)
    )
    labels = np.zeros((teachers, 1), np.uint8)
    labels[1::2] = 1
    certainties = np.full((teachers, 1, NUM_CLASSES), 25, np.uint8)
    planes = np.ascontiguousarray(certainties.transpose(0, 2, 1))[:, :, None]
    found = believed(np.ascontiguousarray(labels[:, None]), planes, model)
    assert found.candidate[0, 0] == 1
    belief = believe(labels, certainties, model)
    assert found.certainty[0, 0] == pytest.approx(100 * belief[0, 1], rel=1e-3)


def test_a_pixel_that_nobody_is_certain_of_is_decided_all_the_same() -> None:
    """To a high power, what half a percent stands for is nothing, and there is no share of it."""
    truth = truth_of(500)
    labels, certainties = ensemble(*(teacher(truth, 0.9, 2, seed) for seed in (1, 2)))
    model = replace(fit(labels, certainties, NUM_CLASSES), powers=np.full(2, 20.0))
    planes = np.zeros((2, NUM_CLASSES, 1, 500), np.uint8)
    found = believed(np.ascontiguousarray(labels[:, None]), planes, model)
    assert np.isfinite(found.certainty).all()
    assert all(own in given for own, given in zip(found.candidate[0], labels.T.tolist(), strict=True))
