"""What happens to pixels: preprocessing and crops against golden files."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from endauda_cli.domains import DOMAINS
from endauda_cli.labels import read_truth
from endauda_cli.transforms import STUDENT, Crop, Preprocessing, cut, random_crop, resize
from tests import support

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.generic]

GOLDEN = dict(np.load(support.DATA / "preprocess" / "preprocess.npz"))
SIZE = (int(GOLDEN["resize_wh"][0]), int(GOLDEN["resize_wh"][1]))
CROP = (int(GOLDEN["crop_hw"][0]), int(GOLDEN["crop_hw"][1]))
# The golden files were made with Pillow 13; other versions may round a bicubic pixel the other way.
GREY_LEVELS = 0 if PIL.__version__.startswith("13.") else 1


def as_input(pixels: Array) -> Array:
    """(h, w, 3) uint8 RGB to the network's input (3, h, w)."""
    return np.asarray(STUDENT.normalise(torch.from_numpy(np.array(pixels)[None]))[0])


def test_whole_image_is_the_references() -> None:
    image = resize(GOLDEN["image_rgb"], SIZE, STUDENT.filter)
    difference = np.abs(as_input(image) - GOLDEN["out_full_image"]).max()
    assert difference <= GREY_LEVELS


@pytest.mark.parametrize(("source", "classes"), [("gta5", 19), ("synthia", 16)])
def test_train_ids_are_the_references(source: str, classes: int, tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    Image.fromarray(GOLDEN["label_ids"]).save(path)
    target = DOMAINS["cityscapes"].with_classes(DOMAINS[source])
    found = resize(read_truth(path, target), SIZE, "nearest")
    np.testing.assert_array_equal(found, GOLDEN[f"out_full_train_ids_{classes}"])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mirror", [0, 1])
def test_crops_are_the_references(seed: int, mirror: int) -> None:
    name = f"seed{seed}_mirror{mirror}"
    image = resize(GOLDEN["image_rgb"], SIZE, STUDENT.filter)
    label = resize(GOLDEN["pseudo_label"], SIZE, "nearest")
    crop = random_crop((SIZE[1], SIZE[0]), CROP, random.Random(seed), bool(mirror))
    assert list(map(int, crop)) == GOLDEN[f"offsets_{name}"].tolist()
    pixels = as_input(cut(image, crop, CROP))
    assert np.abs(pixels - GOLDEN[f"out_crop_{name}_image"]).max() <= GREY_LEVELS
    np.testing.assert_array_equal(cut(label, crop, CROP), GOLDEN[f"out_crop_{name}_label"])


def test_golden_crops_are_mirrored_at_least_once() -> None:
    assert any(GOLDEN[f"offsets_seed{seed}_mirror1"][2] for seed in range(3))


def test_size_that_fits_is_left_alone() -> None:
    image = GOLDEN["image_rgb"]
    assert resize(image, (image.shape[1], image.shape[0]), "bicubic") is image


def test_preprocessing_of_other_projects() -> None:
    """RGB, divided by a standard deviation."""
    other = Preprocessing(size=(4, 2), bgr=False, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0))
    pixels = torch.tensor([12, 24, 35], dtype=torch.uint8).expand(1, 2, 4, 3)
    assert other.normalise(pixels)[0, :, 0, 0].tolist() == [1.0, 1.0, 1.0]
    assert other.resize(GOLDEN["image_rgb"]).shape == (2, 4, 3)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 12), data=st.data(), seed=st.integers(0, 999))
def test_crop_is_a_window_and_image_and_label_agree(
    height: int, width: int, data: st.DataObject, seed: int
) -> None:
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    crop = random_crop((height, width), size, random.Random(seed), mirror=True)
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    image = np.repeat(label[..., None], 3, 2)
    cut_label = cut(label, crop, size)
    assert cut_label.shape == size
    np.testing.assert_array_equal(cut(image, crop, size)[..., 1], cut_label)
    inner = cut_label[:, ::-1] if crop.mirrored else cut_label
    np.testing.assert_array_equal(
        inner, label[crop.row : crop.row + size[0], crop.column : crop.column + size[1]]
    )


def test_crop_reaches_every_place_and_is_only_mirrored_when_asked() -> None:
    rng = random.Random(0)
    crops = [random_crop((5, 4), (3, 3), rng, mirror=True) for _ in range(200)]
    assert set(crops) == {Crop(r, c, m) for r in range(3) for c in range(2) for m in (False, True)}
    assert not any(random_crop((5, 4), (3, 3), rng).mirrored for _ in range(50))


@pytest.mark.parametrize("crop", [(6, 4), (5, 5)])
def test_crop_larger_than_the_image_is_refused(crop: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"a crop of {crop[1]}x{crop[0]} does not fit an image of 4x5"):
        random_crop((5, 4), crop, random.Random(0))
