"""Validation images from the run's cache are what is decoded from their files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from endauda_cli.config import InferenceConfig, TrainConfig
from endauda_cli.datasets import Sample
from endauda_cli.domains import CITYSCAPES
from endauda_cli.evaluation import PROCEDURE, Scoring, evaluate
from endauda_cli.inference import load
from endauda_cli.labels import read_image
from endauda_cli.progress import silent
from endauda_cli.segmenter import Segmenter
from endauda_cli.training import validating
from endauda_cli.training.validating import ValidationImages
from endauda_cli.transforms import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from numpy.typing import NDArray

CONFIG = TrainConfig(size=(32, 16), crop=(32, 16), workers=2)
PREPROCESSING = Preprocessing(size=CONFIG.size)
SEGMENTER = Segmenter(torch.nn.Conv2d(3, 19, 4, 4), PREPROCESSING, PROCEDURE)


def samples(folder: Path) -> list[Sample]:
    """Images of two sizes, with truth."""
    rng, found = np.random.default_rng(0), []
    for i in range(4):
        size = (40 + 8 * (i % 2), 64)
        paths = folder / f"{i}.png", folder / f"{i}_truth.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(paths[0])
        Image.fromarray(rng.integers(0, 34, size).astype(np.uint8)).save(paths[1])
        found.append(Sample(f"{i}", *paths))
    return found


def images_of(found: list[Sample], folder: Path) -> ValidationImages:
    user = (folder / "run", "val")
    return ValidationImages([s.image for s in found], PREPROCESSING, CONFIG, folder / "cache", user, silent)


def test_they_are_decoded_once_and_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, decoded = samples(tmp_path), []

    def read(path: Path) -> NDArray[np.uint8]:
        decoded.append(path)
        return read_image(path)

    monkeypatch.setattr(validating, "read_image", read)
    for _ in range(2):  # the second is another process's
        images = images_of(found, tmp_path)
        for _ in range(2):
            images.fill()
            for sample in found:
                cached, direct = images(sample.image, SEGMENTER), load(sample.image, SEGMENTER)
                assert (cached.path, cached.size) == (direct.path, direct.size)
                np.testing.assert_array_equal(cached.pixels[0], direct.pixels[0])
    assert sorted(decoded) == [sample.image for sample in found]


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    found = samples(tmp_path)
    images_of(found, tmp_path).fill()
    Image.fromarray(np.full((50, 60, 3), 7, np.uint8)).save(found[1].image)
    images = images_of(found, tmp_path)
    images.fill()
    assert images(found[1].image, SEGMENTER).size == (50, 60)
    assert (images(found[1].image, SEGMENTER).pixels[0] == 7).all()


def test_the_score_is_the_same(tmp_path: Path) -> None:
    found, cpu = samples(tmp_path), torch.device("cpu")
    images = images_of(found, tmp_path)
    images.fill()
    scores = [
        evaluate(SEGMENTER, found, Scoring(CITYSCAPES, "x"), InferenceConfig(workers=2), cpu, silent, decode)
        for decode in (None, images)
    ]
    assert scores[0] == scores[1] and scores[0].miou is not None and scores[0].miou > 0
