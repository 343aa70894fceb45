"""Intervals hold the truth as often as they say; paired comparison against SciPy's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.stats

from endauda_cli import significance
from endauda_cli.significance import groups_of, intervals, iou_of, mean_over, sign_test, summed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64 = NDArray[np.int64]


def world(
    rng: np.random.Generator, images: int, occurring: NDArray[np.float64], better: float = 0.0
) -> Int64:
    """Counts per image of a made-up network: classes differ in how often they occur, how large and how hard they are,
    and every image is easier or harder than the next.

    Args:
        rng: draws the images.
        images: N.
        occurring: (C,) in which share of the images each class is.
        better: how much of its mistakes it does not make.
    """
    classes = len(occurring)
    here = rng.random((images, classes)) < occurring
    area = np.floor(rng.gamma(0.7, 1000, (images, classes)) * here)
    easy = np.linspace(0.95, 0.4, classes)
    right = np.floor(area * rng.beta(8 * easy, 8 - 8 * easy, (images, classes)))
    right += np.floor(better * (area - right))
    wrongly = rng.dirichlet(np.ones(classes), (images, classes))
    prediction = right + np.einsum("nc,ncd->nd", area - right, wrongly).astype(int)
    return np.stack([right, area, prediction, np.zeros_like(area)], 1).astype(np.int64)


WORLDS = {
    "usual": (50, np.linspace(1, 0.9, 8)),
    "rare classes": (50, np.linspace(1, 0.1, 19)),
    "few images": (10, np.linspace(1, 0.6, 8)),
}


@pytest.mark.parametrize("name", WORLDS)
def test_intervals_hold_the_truth_as_often_as_they_say(name: str) -> None:
    """95 % are 92 to 98 % of 400 sets of images of one world."""
    images, occurring = WORLDS[name]
    rng = np.random.default_rng(1)
    truth = iou_of(world(rng, 40_000, occurring).sum(0))
    held = 0
    for number in range(400):
        counts = world(rng, images, occurring)
        known = ~np.isnan(iou_of(counts.sum(0)))
        ((low, high),) = intervals([counts], [range(len(occurring))], draws=300, seed=number)
        held += low <= truth[known].mean() <= high
    assert 0.92 * 400 <= held <= 0.98 * 400


def test_intervals_of_differences_hold_the_truth() -> None:
    """Two networks on the same images, of which one makes a tenth of the other's mistakes less."""
    images, occurring = WORLDS["usual"]

    def both(rng: np.random.Generator, number: int) -> list[Int64]:
        seed = int(rng.integers(1 << 30))
        return [world(np.random.default_rng(seed), number, occurring, better) for better in (0.1, 0.0)]

    rng = np.random.default_rng(2)
    means = [mean_over(iou_of(row.sum(0))) for row in both(rng, 40_000)]
    held = real = 0
    for number in range(400):
        rows = both(rng, images)
        ((low, high),) = intervals(rows, [range(8)], draws=300, seed=number)
        held += bool(low <= means[0] - means[1] <= high)
        real += bool(low > 0)
        if number == 0:
            alone = intervals(rows[:1], [range(8)])
            assert high - low < 0.5 * np.diff(alone[0])  # the images' own difficulty is in both
    assert 0.92 * 400 <= held <= 0.98 * 400
    assert real == 400


def test_a_paired_comparison_is_scipys() -> None:
    images, occurring = 120, np.ones(5)
    rows = [world(np.random.default_rng(3), images, occurring, better) for better in (0.05, 0.0)]
    rows[1] = np.where(np.random.default_rng(4).random((images, 1, 1)) < 0.7, rows[1], rows[0])

    def difference(chosen: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        assert axis == -1
        one, other = (mean_over(iou_of(row[chosen].sum(-3))) for row in rows)
        return np.asarray(one - other)

    theirs = scipy.stats.bootstrap(
        (np.arange(images),), difference, n_resamples=4000, vectorized=True, batch=500, method="BCa",
        rng=np.random.default_rng(5),
    )  # fmt: skip
    ((low, high),) = intervals(rows, [range(5)], draws=4000)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.1 * width)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.1 * width)
    ratios = [significance._Ratios.of(row, False, sign) for row, sign in zip(rows, (1, -1), strict=True)]
    assert significance._left_out(ratios) == pytest.approx(theirs.standard_error, rel=0.1)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (34, 15), (15, 34), (7, 7), (300, 200)])
def test_the_sign_test_is_scipys(wins: int, losses: int) -> None:
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_standard_errors_are_those_of_leaving_out() -> None:
    """By the loop, also where a class is in one image alone."""
    counts = world(np.random.default_rng(6), 9, np.ones(4))
    counts[1:, :, 3] = 0
    whole, moved = iou_of(counts.sum(0)), []
    for left in range(9):
        iou = iou_of(np.delete(counts, left, 0).sum(0))
        known = ~np.isnan(iou)
        moved.append(iou[known].mean() - whole[known].mean())
    expected = np.sqrt(8 / 9 * np.square(moved).sum())
    assert significance._left_out([significance._Ratios.of(counts, False, 1)]) == pytest.approx(expected)


def test_what_says_nothing_has_no_interval() -> None:
    counts = world(np.random.default_rng(7), 30, np.ones(3))
    counts[4:, :, 2] = 0
    found = intervals([counts], [range(3), [0], [2]])
    assert np.isnan(found[2]).all() and not np.isnan(found[:2]).any()
    assert np.isnan(intervals([counts[:4]], [range(3)])).all()
    assert found[0, 0] < mean_over(iou_of(counts.sum(0))) < found[0, 1]
    np.testing.assert_array_equal(intervals([counts, counts], [range(3)]), np.full((1, 2), np.nan))
    np.testing.assert_array_equal(found, intervals([counts], [range(3), [0], [2]]))


def test_draws_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = world(np.random.default_rng(8), 20, np.ones(3))
    once = intervals([counts], [range(3)], draws=100)
    monkeypatch.setattr(significance, "_AT_ONCE", 140)
    np.testing.assert_allclose(intervals([counts], [range(3)], draws=100), once, rtol=1e-12)


def test_groups_by_name() -> None:
    city = ["frankfurt_000000_000294_leftImg8bit", "frankfurt_000000_000576_leftImg8bit"]
    munster = ["munster_000001_000019_leftImg8bit"]
    assert groups_of(city + munster) == {
        "sequences": ["frankfurt_000000"] * 2 + ["munster_000001"],
        "cities": ["frankfurt"] * 2 + ["munster"],
    }
    camvid = ["0016E5_07959", "0016E5_07961", "Seq05VD_f00000"]
    assert groups_of(camvid) == {"sequences": ["0016E5", "0016E5", "Seq05VD"]}
    assert groups_of(city) == groups_of(["a", "b_1"]) == groups_of(["a_1", "b_1"]) == {}
    parts = np.arange(6).reshape(3, 2)
    assert summed(parts, ["b", "a", "b"]).tolist() == [[2, 3], [4, 6]]
