"""Per-image counts, and the figures that are made of them: boundaries, means, accuracy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from endauda_cli.boundaries import COUNTS, TOLERANCES, boundary_scores, count_boundaries, tolerances
from endauda_cli.datasets import Sample
from endauda_cli.domains import CITYSCAPES, DOMAINS, make_task, means_of
from endauda_cli.image_counts import ImageCounts, dealt
from endauda_cli.metrics import ConfusionMatrix, pairs
from endauda_cli.progress import silent
from endauda_cli.scoring import (
    count_maps,
    folder_of_maps,
    relabelled,
    result_of,
    score_predictions,
    write_counts,
)
from endauda_cli.types import PredictionIds
from tests.support.command_lines import VAL, make_workspace, put_label, put_outputs, succeed
from tests.support.command_lines import result_of as result_of_line

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]

CLASSES = 4


def world(seed: int, shape: tuple[int, int] = (23, 31), block: int = 5) -> UInt8:
    """Blocks of classes, with some pixels of none."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, CLASSES, (-(-shape[0] // block), -(-shape[1] // block)))
    labels = blocks.repeat(block, 0).repeat(block, 1)[: shape[0], : shape[1]].astype(np.uint8)
    labels[rng.random(shape) < 0.05] = 255
    return labels


# ---------------------------------------------------------------------------- boundaries


def by_loops(truth: UInt8, prediction: UInt8) -> NDArray[np.int64]:
    """The definition, pixel by pixel."""
    height, width = truth.shape
    out = (truth >= CLASSES) | (prediction >= CLASSES)

    def outline(labels: UInt8) -> dict[int, set[tuple[int, int]]]:
        found: dict[int, set[tuple[int, int]]] = {c: set() for c in range(CLASSES)}
        for y in range(height):
            for x in range(width):
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    inside = 0 <= v < height and 0 <= u < width
                    if inside and not out[y, x] and not out[v, u] and labels[v, u] != labels[y, x]:
                        found[int(labels[y, x])].add((y, x))
        return found

    sides = outline(truth), outline(prediction)
    counts = np.zeros((CLASSES, COUNTS), np.int64)
    for c in range(CLASSES):
        for side in (0, 1):
            mine, theirs = sides[side][c], sides[1 - side][c]
            counts[c, side] = len(mine)
            for t, tolerance in enumerate(tolerances(height, width)):
                near = (any((y - v) ** 2 + (x - u) ** 2 <= tolerance**2 for v, u in theirs) for y, x in mine)
                counts[c, 2 + 2 * t + side] = sum(near)
    return counts


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("diagonal", [38, 700])
def test_boundaries_are_the_definition(seed: int, diagonal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a tolerance of several pixels, which an image of this size does not have."""
    reach = (2.0, 0.0075 * diagonal)
    monkeypatch.setattr("endauda_cli.boundaries.tolerances", lambda height, width: reach)
    monkeypatch.setitem(globals(), "tolerances", lambda height, width: reach)
    truth, prediction = world(seed), world(seed + 100 if seed % 2 else seed)
    prediction = np.roll(prediction, seed % 3, 1)
    expected = by_loops(truth, prediction)
    np.testing.assert_array_equal(count_boundaries(truth, prediction, CLASSES), expected)
    assert expected.all(0).any() and expected[:, 0].min() > 0


def test_boundary_scores() -> None:
    truth = np.zeros((10, 40), np.uint8)
    truth[:, 20:] = 1
    moved = np.zeros((10, 40), np.uint8)
    moved[:, 23:] = 1
    same = boundary_scores(count_boundaries(truth, truth, 3))
    np.testing.assert_array_equal(same, [[1, 1, math.nan], [1, 1, math.nan]])
    assert boundary_scores(count_boundaries(truth, moved, 3))[0, :2].tolist() == [0, 0]
    assert tolerances(1024, 2048) == pytest.approx((2.0, 17.17), abs=0.01)
    wide = np.repeat(np.repeat(truth, 20, 0), 20, 1), np.repeat(np.repeat(moved, 20, 0), 20, 1)
    assert boundary_scores(count_boundaries(*wide, 3))[:, 0].tolist() == [0, 0]  # 60 pixels off
    near = np.roll(wide[0], 5, 1)
    near[:, :5] = 0
    assert boundary_scores(count_boundaries(wide[0], near, 3))[:, 0].tolist() == [0, 1]  # 5 off, of 6.7
    one_sided = boundary_scores(count_boundaries(truth, np.zeros_like(truth), 3))
    assert one_sided[0].tolist()[:2] == [0, 0]


# ---------------------------------------------------------------------------- per image


def counts_of(images: list[tuple[UInt8, UInt8]]) -> ImageCounts:
    counts = ImageCounts(CLASSES)
    for number, (truth, prediction) in enumerate(images):
        of_truth, of_prediction, pixels = pairs(truth, prediction)
        boundary = count_boundaries(truth, prediction, CLASSES)
        counts.add(str(number), of_truth.astype(np.uint8), of_prediction.astype(np.uint8), pixels, boundary)
    return counts


def test_counts_hold_each_images_confusion() -> None:
    images = [(world(i), world(i + 7)) for i in range(5)]
    counts, whole = counts_of(images), ConfusionMatrix(CLASSES)
    parts = counts.parts()
    for number, (truth, prediction) in enumerate(images):
        one = ConfusionMatrix(CLASSES)
        one.update(truth, prediction)
        whole.update(truth, prediction)
        tp = np.diag(one.matrix)
        np.testing.assert_array_equal(parts[number], [tp, one.matrix.sum(1), one.matrix.sum(0), one.missed])
    np.testing.assert_array_equal(counts.confusion.matrix, whole.matrix)
    assert (counts.confusion.pixels, counts.confusion.labelled) == (whole.pixels, whole.labelled)
    assert counts.images == ["0", "1", "2", "3", "4"]


def test_processes_that_took_turns_are_one() -> None:
    images = [(world(i), world(i + 7)) for i in range(5)]
    whole, parts = counts_of(images), [counts_of(images[rank::2]) for rank in range(2)]
    together = dealt(parts)
    assert [one.truth.tolist() for one in together.counted] == [one.truth.tolist() for one in whole.counted]
    np.testing.assert_array_equal(together.confusion.matrix, whole.confusion.matrix)
    assert together.boundary is not None and whole.boundary is not None
    np.testing.assert_array_equal(together.boundary, whole.boundary)


def test_counts_as_a_file(tmp_path: Path) -> None:
    """The recipe of docs/scoring.md: everything from the file, by NumPy alone."""
    images = [(world(i), world(i + 7)) for i in range(3)]
    counts = counts_of(images)
    write_counts(tmp_path / "counts.npz", counts, CITYSCAPES)
    with np.load(tmp_path / "counts.npz") as file:
        assert file["images"].tolist() == ["0", "1", "2"] and file["classes"].tolist()[0] == "road"
        assert int(file["format"]) == 1 and tuple(file["tolerances"]) == TOLERANCES
        matrix = np.zeros((3, 256, 256), np.int64)
        image = np.repeat(np.arange(3), np.diff(file["offsets"]))
        np.add.at(matrix, (image, file["truth"], file["prediction"]), file["pixels"])
        boundary = file["boundary"]
    np.testing.assert_array_equal(matrix.sum(0)[:CLASSES, :CLASSES], counts.confusion.matrix)
    assert matrix.sum() == 3 * 23 * 31
    np.testing.assert_array_equal(boundary, counts.boundary)
    before = (tmp_path / "counts.npz").read_bytes()
    write_counts(tmp_path / "counts.npz", counts, CITYSCAPES)
    assert (tmp_path / "counts.npz").read_bytes() == before


def test_accuracy_and_frequency_weighted_iou() -> None:
    confusion = ConfusionMatrix(3)
    assert math.isnan(confusion.accuracy) and math.isnan(confusion.frequency_weighted_iou)
    confusion.update(np.array([[0, 0, 0, 1, 255]], np.uint8), np.array([[0, 0, 1, 1, 0]], np.uint8))
    assert confusion.accuracy == 3 / 4
    assert confusion.frequency_weighted_iou == pytest.approx(3 / 4 * 2 / 3 + 1 / 4 * 1 / 2)


def test_means_over_19_16_and_13_classes() -> None:
    assert {title: len(names) for title, names in means_of(CITYSCAPES).items()} == {
        "mIoU-19": 19, "mIoU-16": 16, "mIoU-13": 13,
    }  # fmt: skip
    sixteen = make_task(DOMAINS["synthia"], CITYSCAPES).target
    assert list(means_of(sixteen)) == ["mIoU-16", "mIoU-13"]
    assert means_of(sixteen)["mIoU-13"] == sixteen.subsets["mIoU-13"]
    counts = ImageCounts(19)
    everything = np.arange(19, dtype=np.uint8)
    wrong = np.where(everything == CITYSCAPES.classes.index("train"), 0, everything).astype(np.uint8)
    counts.add("a", everything, wrong, np.full(19, 6, np.int64))
    result = result_of(counts, CITYSCAPES, "it", "val")
    nineteen, sixteen_of_them, _ = result.means
    assert nineteen.miou == result.miou == pytest.approx(100 * (17 + 1 / 2) / 19)
    assert sixteen_of_them.miou == pytest.approx(100 * (15 + 1 / 2) / 16)
    assert "train" not in sixteen_of_them.classes and sixteen_of_them.occurring == 16
    assert (result.pixels, result.boundary) == (19 * 6, ())


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_relabelled(kind: type[np.integer[int]]) -> None:  # type: ignore[type-var]
    values = np.array([[7, 9], [9, 200]], kind)
    found = np.array([9, 7, 200, 7], np.int32)
    meaning = np.array([3, 1, 255, 1], np.uint8)
    assert relabelled(values, found, meaning).tolist() == [[1, 3], [3, 255]]


# ---------------------------------------------------------------------------- the command


def test_an_image_that_looks_otherwise_is_counted_again(tmp_path: Path) -> None:
    """All hold label ids, but one is so wrong that, alone, it looks like train ids."""
    ids_of = {CITYSCAPES.train_id(i): i for i in CITYSCAPES.label_ids if CITYSCAPES.train_id(i) != 255}
    samples = []
    for number, classes in enumerate([(10, 13), (8, 11), (7, 8)]):
        truth = np.repeat(np.array([[ids_of[c] for c in classes]], np.uint8), 16, 1).repeat(32, 0)
        said = truth if number < 2 else np.repeat(np.array([classes], np.uint8), 16, 1).repeat(32, 0)
        put_label(tmp_path / f"{number}_truth.png", truth)
        put_label(tmp_path / "mine" / f"{number}.png", said)
        samples.append(Sample(str(number), tmp_path / f"{number}.png", tmp_path / f"{number}_truth.png"))
    found = []
    for ids in (PredictionIds.AUTO, PredictionIds.LABEL):
        maps = folder_of_maps(tmp_path / "mine", samples, ids)
        (counts,) = count_maps([maps], samples, CITYSCAPES, silent, boundaries=True)
        assert counts.boundary is not None
        found.append(counts.boundary)
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0][2, 7, 2] == 0 and found[0][0, 10, 2] == 32
    assert score_predictions(tmp_path / "mine", samples, CITYSCAPES, silent).pixel_accuracy == pytest.approx(
        200 / 3
    )


def test_test_keeps_the_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_workspace(tmp_path))
    put_outputs(tmp_path / "outputs", "dacs", VAL)
    line = ("test", "--predictions", "outputs", "--boundaries")
    result = result_of_line(*line)
    assert [mean["title"] for mean in result["means"]] == ["mIoU-19", "mIoU-16", "mIoU-13"]
    assert result["means"][0]["miou"] == result["miou"] and result["means"][0]["occurring"] >= 5
    assert result["pixels"] == len(VAL) * 32 * 64
    assert [score["tolerance"] for score in result["boundary"]] == list(TOLERANCES)
    assert 0 < result["boundary"][0]["mean"] < 100
    assert f"pixel accuracy {result['pixel_accuracy']:.2f}" in succeed(*line).out
