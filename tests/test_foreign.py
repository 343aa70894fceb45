"""Predictions that other programs made: what their values mean, and what a score leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from endauda_cli.datasets import Sample, load_domain
from endauda_cli.domains import CITYSCAPES, palette_of
from endauda_cli.errors import DataError
from endauda_cli.foreign import read_foreign
from endauda_cli.labels import write_colour, write_label
from endauda_cli.progress import Note, Tick, silent
from endauda_cli.scoring import refuse_unlabelled, score_predictions
from endauda_cli.types import PredictionIds

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.domains import Colour, Domain
    from endauda_cli.score_results import EvalResult

TRAIN = np.arange(19, dtype=np.uint8).repeat(4).reshape(4, 19)
LABEL_IDS = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8)


def grey(path: Path, array: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def palette_png(path: Path, indices: NDArray[np.uint8], palette: list[Colour]) -> Path:
    image = Image.fromarray(indices)
    image.putpalette([value for colour in palette for value in colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def scored(
    folder: Path, domain: Domain, truth: NDArray[np.uint8], ids: PredictionIds = PredictionIds.AUTO
) -> tuple[EvalResult, list[str]]:
    """The score of the predictions in ``folder/mine``, and what was told."""
    told: list[str] = []

    def report(event: Tick | Note) -> None:
        if isinstance(event, Note):
            told.append(event.text)

    label = grey(folder / "truth" / "a.png", truth)
    samples = [Sample("a", folder / "a.png", label)]
    return score_predictions(folder / "mine", samples, domain, report, ids=ids), told


# ---------------------------------------------------------------------------- colours


def test_a_palette_in_another_order_is_read_by_colour(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(19)
    palette: list[Colour] = [(0, 0, 0)] * 19
    for train_id, index in enumerate(order):
        palette[index] = CITYSCAPES.palette[train_id]
    palette_png(tmp_path / "mine/a.png", order.astype(np.uint8)[TRAIN], palette)
    result, told = scored(tmp_path, CITYSCAPES, LABEL_IDS[TRAIN])
    assert result.miou == 100 and "read by colour" in told[0]
    assert np.array_equal(read_foreign(tmp_path / "mine/a.png", CITYSCAPES), TRAIN)


def test_black_before_the_classes_is_none(tmp_path: Path) -> None:
    """Index 0 for none and the classes from 1 on, in Cityscapes' colours."""
    palette_png(tmp_path / "mine/a.png", TRAIN + 1, [(0, 0, 0), *CITYSCAPES.palette])
    result, _ = scored(tmp_path, CITYSCAPES, LABEL_IDS[TRAIN])
    assert result.miou == 100


def test_colours_that_contradict_are_refused(tmp_path: Path) -> None:
    palette = [(1, 2, 3), *CITYSCAPES.palette]
    indices = TRAIN + 1
    indices[0, 0] = 0
    path = palette_png(tmp_path / "a.png", indices, palette)
    with pytest.raises(DataError, match=r"a\.png: its palette gives the classes' colours to other values"):
        read_foreign(path, CITYSCAPES)


@pytest.mark.parametrize(
    "colours", ["its own", "grey", "of VOC", "of VOC with a domain without colours", "random"]
)
def test_other_palettes_are_pictures_and_the_indices_count(tmp_path: Path, colours: str) -> None:
    voc = [(0, 0, 0), *palette_of(tuple("abcdefghijklmnopqrstuvwxyz"))]
    palette = {
        "its own": list(CITYSCAPES.palette), "grey": [(i, i, i) for i in range(256)],
        "random": [(37 * i % 256, 91 * i % 256, 11 * i % 256) for i in range(256)],
    }.get(colours, voc)  # fmt: skip
    domain = CITYSCAPES
    if "without" in colours:
        (tmp_path / "mine.toml").write_text(
            f'classes = {list("abcdefghijklmnopqrs")}\n[val]\nimages = "*.png"\n'
        )
        domain = load_domain(str(tmp_path / "mine.toml"))
    path = palette_png(tmp_path / "a.png", TRAIN, palette)
    assert np.array_equal(read_foreign(path, domain), TRAIN)


def test_our_own_pictures_are_read(tmp_path: Path) -> None:
    label = TRAIN.copy()
    label[0, :5] = 255
    write_colour(tmp_path / "a.png", label, CITYSCAPES.palette)
    assert np.array_equal(read_foreign(tmp_path / "a.png", CITYSCAPES), label)


# ---------------------------------------------------------------------------- label ids


def test_label_ids_that_cannot_be_train_ids_are_read_by_the_table(tmp_path: Path) -> None:
    grey(tmp_path / "mine/a.png", LABEL_IDS[TRAIN])
    result, told = scored(tmp_path, CITYSCAPES, LABEL_IDS[TRAIN])
    assert result.miou == 100 and "hold label ids of cityscapes" in told[0]


def test_train_ids_with_a_stray_are_not_taken_for_label_ids(tmp_path: Path) -> None:
    prediction = TRAIN.copy()
    prediction[0, 0] = 19
    grey(tmp_path / "mine/a.png", prediction)
    with pytest.raises(DataError, match=r"a\.png: value 19, but train ids are 0 to 18"):
        scored(tmp_path, CITYSCAPES, LABEL_IDS[TRAIN])


def permuted(tmp_path: Path) -> Domain:
    (tmp_path / "mine.toml").write_text(
        'classes = ["road", "sky", "car"]\nlabel_ids = { "0" = "sky", "1" = "car", "2" = "road" }\n'
        '[val]\nimages = "*.png"\n'
    )
    return load_domain(str(tmp_path / "mine.toml"))


def test_what_could_be_both_is_refused_until_it_is_said(tmp_path: Path) -> None:
    domain = permuted(tmp_path)
    ids = np.array([[0, 1, 2, 2], [1, 1, 0, 0]], np.uint8)
    grey(tmp_path / "mine/a.png", ids)
    with pytest.raises(DataError, match=r"right on 0\.0 % of the pixels, as label ids of mine on 100\.0 %"):
        scored(tmp_path, domain, ids)
    assert scored(tmp_path, domain, ids, PredictionIds.LABEL)[0].miou == 100
    assert scored(tmp_path, domain, ids, PredictionIds.TRAIN)[0].miou == 0
    # train ids of the same data set are no doubt
    grey(tmp_path / "mine/a.png", (ids + 1) % 3)
    assert scored(tmp_path, domain, ids)[0].miou == 100


def test_label_ids_that_are_none(tmp_path: Path) -> None:
    grey(tmp_path / "mine/a.png", np.full((2, 2), 34, np.uint8))
    with pytest.raises(DataError, match=r"a\.png: value 34 is no label id of cityscapes"):
        scored(tmp_path, CITYSCAPES, np.full((2, 2), 7, np.uint8), PredictionIds.LABEL)


# ---------------------------------------------------------------------------- what is left out


def test_both_figures_of_predictions_with_holes(tmp_path: Path) -> None:
    """By hand: a class of four pixels, one of them without prediction, is 3/3 and 3/4."""
    prediction = TRAIN.copy()
    prediction[0] = 255
    write_label(tmp_path / "a.png", prediction)
    grey(tmp_path / "mine/a.png", prediction)
    truth = LABEL_IDS[TRAIN]
    truth[1] = 0
    result, _ = scored(tmp_path, CITYSCAPES, truth)
    missing = (TRAIN[0][:, None] == np.arange(19)).sum(0)
    left = np.array([(TRAIN[2:] == c).sum() for c in range(19)])
    expected = [100 * x / (x + m) for x, m in zip(left, missing, strict=True) if x + m]
    found = [value for value in result.strict_iou.values() if value is not None]
    assert found == pytest.approx(expected)
    assert result.strict_miou == pytest.approx(np.mean(expected))
    assert result.miou == 100 and result.coverage == 75 and result.truth == 75


def test_a_stretched_mask_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('classes = ["a", "b", "c", "d"]\n[val]\nimages = "*.png"\n')
    domain = load_domain(str(tmp_path / "mine.toml"))
    ids = np.arange(4, dtype=np.uint8).repeat(4).reshape(4, 4)
    grey(tmp_path / "mine/a.png", ids)
    result, told = scored(tmp_path, domain, 85 * ids)
    assert result.truth == 25
    assert "75 % of the labels' pixels have values without a name" in told[0]
    assert all(f"{value} (25 %)" in told[0] for value in (85, 170, 255))


def test_truth_without_a_class_is_refused(tmp_path: Path) -> None:
    label = grey(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    samples = [Sample("a", tmp_path / "x.png", label)]
    with pytest.raises(DataError, match="cityscapes test: the truth of all 1 images holds no class at all"):
        refuse_unlabelled(samples, CITYSCAPES, "test")
    other = grey(tmp_path / "b.png", np.array([[0, 7]], np.uint8))
    refuse_unlabelled([*samples, Sample("b", tmp_path / "y.png", other)], CITYSCAPES, "test")


def test_predictions_in_linked_folders_and_other_unicode_forms(tmp_path: Path) -> None:
    """``Zürich`` composed in the image's name, decomposed in the prediction's, behind a link."""
    grey(tmp_path / "elsewhere" / "Zu\u0308rich.png", TRAIN)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "linked").symlink_to(tmp_path / "elsewhere")
    samples = [Sample("Z\u00fcrich", tmp_path / "a.png", grey(tmp_path / "truth.png", LABEL_IDS[TRAIN]))]
    assert score_predictions(tmp_path / "mine", samples, CITYSCAPES, silent).miou == 100
