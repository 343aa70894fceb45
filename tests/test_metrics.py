"""Confusion, IoU and means against golden files of the reference and of cityscapesScripts."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from endauda_cli.config import InferenceConfig
from endauda_cli.datasets import Sample
from endauda_cli.domains import CITYSCAPES, DOMAINS, make_task
from endauda_cli.errors import DataError
from endauda_cli.evaluation import PROCEDURE, Scoring, evaluate
from endauda_cli.inference import run_network
from endauda_cli.labels import read_truth, write_label
from endauda_cli.metrics import ConfusionMatrix, pairs
from endauda_cli.progress import silent
from endauda_cli.scoring import score_predictions
from endauda_cli.segmenter import Segmenter, certainty_maps, label_map
from endauda_cli.transforms import Preprocessing
from tests import support

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.generic]
    UInt8 = NDArray[np.uint8]

DATA = support.DATA / "evaluation"
DOMAIN_OF = {19: CITYSCAPES, 16: make_task(DOMAINS["synthia"], CITYSCAPES).target}
NAN = float("nan")

golden_cases = pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.npz")))


def golden(name: str) -> dict[str, Array]:
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def write_png(path: Path, array: Array) -> Path:
    Image.fromarray(array).save(path)
    return path


# ---------------------------------------------------------------------------- golden files


@golden_cases
def test_confusion_and_iou_are_the_published_ones(name: str, tmp_path: Path) -> None:
    content = golden(name)
    num_classes = len(content["out_iou"])
    domain = DOMAIN_OF[num_classes]
    confusion = ConfusionMatrix(num_classes)
    for ids, prediction in zip(content["gt_label_ids"], content["pred_train_ids"], strict=True):
        truth = read_truth(write_png(tmp_path / "truth.png", ids), domain)
        confusion.update(truth, prediction)
    np.testing.assert_array_equal(confusion.matrix, content["out_confusion"])
    np.testing.assert_array_equal(confusion.iou(), content["out_iou"])  # NaN where the reference has NaN
    if num_classes == 19:
        np.testing.assert_array_equal(confusion.iou(), content["out_cityscapesscripts_iou"])
    assert confusion.mean_iou() == pytest.approx(float(content["out_miou_nanmean"]), rel=1e-12)


@golden_cases
def test_scores_of_files_are_the_published_ones(name: str, tmp_path: Path) -> None:
    content = golden(name)
    num_classes = len(content["out_iou"])
    domain = DOMAIN_OF[num_classes]
    samples = []
    for i, ids in enumerate(content["gt_label_ids"]):
        write_png(tmp_path / f"{i}.png", content["pred_train_ids"][i])
        truth = write_png(tmp_path / f"truth_{i}.png", ids)
        samples.append(Sample(str(i), tmp_path / f"image_{i}.png", truth))
    result = score_predictions(tmp_path, samples, domain, silent)
    assert result.miou is not None
    assert round(result.miou, 2) == float(content["out_miou_printed_percent"])
    assert tuple(result.iou) == domain.classes
    found = [NAN if value is None else value for value in result.iou.values()]
    np.testing.assert_allclose(found, 100 * content["out_iou"].astype(float), rtol=1e-12)
    assert (result.coverage, result.images, result.split) == (100.0, 3, "val")
    if num_classes == 16:
        thirteen = result.subset_miou["mIoU-13"]
        assert thirteen == pytest.approx(
            100 * float(content["out_miou_13_without_wall_fence_pole"]), rel=1e-12
        )
    else:
        assert result.subset_miou == {}


# ---------------------------------------------------------------------------- confusion


def naive_confusion(truth: UInt8, prediction: UInt8, num_classes: int) -> Array:
    matrix = np.zeros((num_classes, num_classes), int)
    for t, p in zip(truth.flat, prediction.flat, strict=True):
        if t < num_classes and p != 255:
            matrix[t, p] += 1
    return matrix


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_classes=st.integers(2, 20), images=st.integers(1, 3))
def test_confusion_is_the_loop_over_pixels(seed: int, num_classes: int, images: int) -> None:
    generator = np.random.default_rng(seed)
    confusion = ConfusionMatrix(num_classes)
    expected = np.zeros((num_classes, num_classes), int)
    covered = pixels = 0
    for _ in range(images):
        shape = tuple(generator.integers(1, 9, 2))
        truth = generator.choice([*range(num_classes), 254, 255], shape).astype(np.uint8)
        prediction = generator.choice([*range(num_classes), 255], shape).astype(np.uint8)
        confusion.update(truth, prediction)
        expected += naive_confusion(truth, prediction, num_classes)
        covered += int((prediction != 255).sum())
        pixels += prediction.size
    np.testing.assert_array_equal(confusion.matrix, expected)
    assert confusion.coverage == covered / pixels
    iou = confusion.iou()
    for c in range(num_classes):
        union = expected[c].sum() + expected[:, c].sum() - expected[c, c]
        assert math.isnan(iou[c]) if union == 0 else iou[c] == expected[c, c] / union


def test_unlabelled_predictions_only_lower_the_coverage() -> None:
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    confusion = ConfusionMatrix(2)
    confusion.update(truth, np.array([[0, 255, 1, 255]], np.uint8))
    assert confusion.mean_iou() == 1.0
    assert confusion.coverage == 0.5


@pytest.mark.parametrize("stray", [3, 19, 254])
def test_stray_predictions_are_refused(stray: int) -> None:
    """The reference counts them in a wrong cell."""
    confusion = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=f"prediction {stray}, but there are 3 classes"):
        confusion.update(np.zeros((1, 3), np.uint8), np.array([[0, stray, 255]], np.uint8))
    assert confusion.matrix.sum() == 0
    with pytest.raises(ValueError, match="truth is"):
        confusion.update(np.zeros((1, 3), np.uint8), np.zeros((3, 1), np.uint8))


def test_nothing_seen_is_not_zero() -> None:
    confusion = ConfusionMatrix(3)
    assert math.isnan(confusion.mean_iou())
    assert math.isnan(confusion.coverage)
    confusion.update(np.array([[1]], np.uint8), np.array([[1]], np.uint8))
    assert confusion.mean_iou() == 1.0
    assert math.isnan(confusion.mean_iou([0, 2]))
    assert confusion.mean_iou([0, 1]) == 1.0


# ---------------------------------------------------------------------------- files of predictions


def truth_and_prediction(folder: Path, prediction: UInt8, truth: UInt8 | None = None) -> list[Sample]:
    ids = np.full((4, 6), 7, np.uint8) if truth is None else truth
    write_png(folder / "truth.png", ids)
    (folder / "predictions").mkdir()
    write_png(folder / "predictions" / "a.png", prediction)
    return [Sample("a", folder / "a.png", folder / "truth.png")]


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.full((4, 6), 19, np.uint8), r"a\.png: value 19, but train ids are 0 to 18"),
        (np.zeros((3, 6), np.uint8), r"truth\.png: 6x4 pixels, but the prediction for a has 6x3"),
        (np.zeros((4, 6, 3), np.uint8), r"a\.png: an image of mode RGB"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(tmp_path: Path, prediction: UInt8, message: str) -> None:
    samples = truth_and_prediction(tmp_path, prediction)
    with pytest.raises(DataError, match=message):
        score_predictions(tmp_path / "predictions", samples, CITYSCAPES, silent)


def test_absent_predictions_are_refused(tmp_path: Path) -> None:
    samples = truth_and_prediction(tmp_path, np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match=r"no prediction for 1 of 2 images, first b\.png"):
        score_predictions(
            tmp_path / "predictions", [*samples, Sample("b", tmp_path, None)], CITYSCAPES, silent
        )
    with pytest.raises(DataError, match="no such folder of predictions"):
        score_predictions(tmp_path / "nowhere", samples, CITYSCAPES, silent)
    with pytest.raises(DataError, match="has no ground truth"):
        score_predictions(tmp_path / "predictions", [Sample("a", tmp_path, None)], CITYSCAPES, silent)


def test_predictions_without_any_class_have_no_miou(tmp_path: Path) -> None:
    samples = truth_and_prediction(tmp_path, np.full((4, 6), 255, np.uint8), np.zeros((4, 6), np.uint8))
    result = score_predictions(tmp_path / "predictions", samples, CITYSCAPES, silent)
    assert (result.miou, result.coverage) == (None, 0.0)
    assert set(result.iou.values()) == {None}


# ---------------------------------------------------------------------------- networks


class Recogniser(nn.Module):
    """Logits at half size: the brighter the red, the higher the class. Enough to follow a pixel through."""

    def forward(self, x: Tensor) -> Tensor:
        red = x[:, 2:3, ::2, ::2] / 10
        return -((red - torch.arange(19, device=x.device)[:, None, None]) ** 2)


PLAIN = Preprocessing(size=(24, 16), filter="nearest", mean=(0.0, 0.0, 0.0))
RECOGNISER = Segmenter(Recogniser(), PLAIN, PROCEDURE)
SCORING = Scoring(CITYSCAPES, "it")


def street(folder: Path, count: int) -> list[Sample]:
    """Images 48x32 with two classes side by side and a truth that says so."""
    label_ids = {train_id: i for i in CITYSCAPES.label_ids if (train_id := CITYSCAPES.train_id(i)) != 255}
    samples = []
    for i in range(count):
        classes = np.zeros((32, 48), np.uint8) + i
        classes[:, 24:] = 10
        image = np.zeros((32, 48, 3), np.uint8)
        image[..., 0] = 10 * classes
        ids = np.vectorize(label_ids.get)(classes).astype(np.uint8)
        paths = write_png(folder / f"{i}_image.png", image), write_png(folder / f"{i}_truth.png", ids)
        samples.append(Sample(f"{i}_image", *paths))
    return samples


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_network_over_images(tmp_path: Path, batch_size: int) -> None:
    samples = street(tmp_path, 5)
    saved = tmp_path / "saved"
    config = InferenceConfig(batch_size=batch_size)
    device = torch.device("cpu")
    result = evaluate(RECOGNISER, samples, Scoring(CITYSCAPES, "it", save=saved), config, device, silent)
    assert result.miou is not None
    assert result.miou > 85  # half a column is wrong where the two meet
    assert [name for name, iou in result.iou.items() if iou is not None] == [
        *CITYSCAPES.classes[:5],
        CITYSCAPES.classes[10],
    ]
    again = score_predictions(saved, samples, CITYSCAPES, silent)
    assert again.iou == result.iou
    with Image.open(saved / "0_image_color.png") as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == CITYSCAPES.palette[0]


def test_truth_of_another_size_is_refused(tmp_path: Path) -> None:
    samples = street(tmp_path, 1)
    write_label(tmp_path / "0_truth.png", np.full((16, 24), 7, np.uint8))
    with pytest.raises(
        DataError, match=r"0_truth\.png: 24x16 pixels, but the prediction for 0_image has 48x32"
    ):
        evaluate(RECOGNISER, samples, SCORING, InferenceConfig(), torch.device("cpu"), silent)


def test_unreadable_image_is_named_and_later_ones_are_not_needed(tmp_path: Path) -> None:
    samples = street(tmp_path, 4)
    samples[2].image.write_bytes(b"no image")
    results = run_network(
        Segmenter(Recogniser(), PLAIN),
        [s.image for s in samples],
        label_map,
        InferenceConfig(),
        torch.device("cpu"),
    )
    with pytest.raises(DataError, match=r"2_image\.png: truncated or not an image"):
        list(results)


def test_export_softens_after_and_evaluation_before_the_resize() -> None:
    """Both orders are published ones, and they differ where classes meet."""
    logits = 8 * torch.randn(1, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    size = (13, 21)

    def large(x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, size, mode="bilinear", align_corners=True)[0]

    segmenter = Segmenter(nn.Identity())
    label, certainties = certainty_maps(segmenter, [logits[0]], size)
    probability = large(logits).softmax(0)
    assert torch.equal(label, probability.argmax(0).to(torch.uint8))
    assert torch.equal(certainties, (probability * 100).floor().to(torch.uint8))
    (evaluated,) = label_map(Segmenter(nn.Identity(), procedure=PROCEDURE), [logits[0].softmax(0)], size)
    assert torch.equal(evaluated, large(logits.softmax(1)).argmax(0).to(torch.uint8))
    assert not torch.equal(evaluated, label)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_pairs_count_as_their_pixels_do(kind: type[np.integer[Any]]) -> None:
    rng = np.random.default_rng(0)
    truth, prediction = (rng.integers(0, 5, (40, 50)).astype(kind) for _ in range(2))
    prediction[rng.random(prediction.shape) < 0.2] = 255
    truth[rng.random(truth.shape) < 0.1] = 200
    plain, by_pairs = ConfusionMatrix(5), ConfusionMatrix(5)
    plain.update(truth.astype(np.uint8), prediction.astype(np.uint8))
    of_truth, of_prediction, counts = pairs(truth, prediction)
    assert len(of_truth) == 36
    by_pairs.update(of_truth.astype(np.uint8), of_prediction.astype(np.uint8), counts)
    assert np.array_equal(plain.matrix, by_pairs.matrix) and np.array_equal(plain.missed, by_pairs.missed)
    assert (plain.pixels, plain.labelled) == (by_pairs.pixels, by_pairs.labelled)


def test_pairs_of_any_integers() -> None:
    truth, prediction = (np.array(values, np.int32) for values in ([[-3, 70000, -3]], [[-1, 2**31 - 1, -1]]))
    assert [part.tolist() for part in pairs(truth, prediction)] == [[-3, 70000], [-1, 2**31 - 1], [2, 1]]


@pytest.mark.parametrize("run", [1, 3, 4, 5, 400])
@pytest.mark.parametrize("pixels", [1, 2, 399, 2000])
def test_pairs_of_maps_in_runs(pixels: int, run: int) -> None:
    rng = np.random.default_rng(run)
    truth, prediction = (
        np.repeat(rng.integers(0, 256, -(-pixels // run), np.uint8), run)[None, :pixels] for _ in range(2)
    )
    found = {(t, p): n for t, p, n in zip(*(part.tolist() for part in pairs(truth, prediction)), strict=True)}
    assert found == Counter(zip(truth[0].tolist(), prediction[0].tolist(), strict=True))
