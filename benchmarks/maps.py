"""Generated teacher outputs: seeded, smooth softmax maps that compress about as those of real teachers do.

A scene is a field of logits per class at a quarter of the size, the sum of smooth noise at several scales:
large regions, objects, fine structure. Teachers of one scene share it and add errors and a calibration of
their own. As a network's head does, the logits are enlarged bilinearly, which makes the soft borders; the
softmax is truncated to percent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STRIDE = 4
"""Pixels per logit, each way."""
_SCENE = ((96, 4.0), (24, 1.6), (6, 1.0))
_ERRORS = ((48, 0.8), (8, 0.8), (2, 0.5), (1, 0.3))
"""(side of a blob in logits, strength)"""
_ROWS = 128


def generate(
    height: int, width: int, classes: int, *, image: int, teacher: int, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Label map (H, W) and certainties (C, H, W), percent 0..100, of one teacher for one image."""
    small = (-(-height // _STRIDE), -(-width // _STRIDE))
    # Some classes are common and some are rare, the same ones in every image.
    prior = 2.5 * np.random.default_rng([seed, 0]).standard_normal(classes)
    scene = np.random.default_rng([seed, 1, image])
    own = np.random.default_rng([seed, 2, image, teacher])
    sharpness = np.random.default_rng([seed, 3, teacher]).uniform(0.8, 2.4)
    logits = np.empty((classes, height, width), np.float32)
    for c in range(classes):
        field = prior[c] + _noise(scene, small, _SCENE) + _noise(own, small, _ERRORS)
        logits[c] = _enlarge(np.float32(sharpness) * field.astype(np.float32), (height, width))
    label = np.empty((height, width), np.uint8)
    certainty = np.empty((classes, height, width), np.uint8)
    for top in range(0, height, _ROWS):  # in strips, for the temporaries' sake
        rows = slice(top, top + _ROWS)
        strip = logits[:, rows]
        label[rows] = strip.argmax(0)
        weights = np.exp(strip - strip.max(0))
        certainty[:, rows] = 100 * weights / weights.sum(0)
    return label, certainty


def _noise(
    rng: np.random.Generator, size: tuple[int, int], scales: tuple[tuple[int, float], ...]
) -> NDArray[np.float32]:
    total = np.zeros(size, np.float32)
    for side, strength in scales:
        grid = rng.standard_normal([-(-length // side) + 1 for length in size], np.float32)
        total += strength * _enlarge(grid, size, Image.Resampling.BICUBIC)
    return total


def _enlarge(
    field: NDArray[np.float32], size: tuple[int, int], how: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(field).resize((size[1], size[0]), how))
