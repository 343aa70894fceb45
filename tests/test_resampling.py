"""Resizing on a device gives Pillow's bytes, or says that it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from endauda_cli.resampling import _order_tried, as_pillow, resize_there
from endauda_cli.transforms import resize

SIZES = st.tuples(st.integers(1, 80), st.integers(1, 80))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1024, 512), (1280, 640), (640, 320)])
def test_a_smaller_copy_of_a_photograph_has_the_same_bytes(
    size: tuple[int, int], filter: str, device: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 1024, 2048, 3), np.uint8)
    images[1, :, ::7] = 255  # overshoots
    images[1, :, 1::7] = 0
    found = resize_there(torch.from_numpy(images).to(device), size, filter).cpu().numpy()
    assert as_pillow((1024, 2048), size, filter)
    for one, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(one, resize(image, size, filter))


@given(before=SIZES, size=SIZES, filter=st.sampled_from(["bilinear", "bicubic"]), seed=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_any_size_has_the_same_bytes_wherever_it_is_said(
    before: tuple[int, int], size: tuple[int, int], filter: str, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*before, 3), np.uint8)
    if as_pillow(before, size, filter):
        there = resize_there(torch.from_numpy(image)[None], size, filter)[0].numpy()
        np.testing.assert_array_equal(there, resize(image, size, filter))


@given(before=SIZES, size=SIZES, filter=st.sampled_from(["bilinear", "bicubic"]))
@settings(max_examples=50, deadline=None)
def test_what_shrinks_both_ways_is_always_said(
    before: tuple[int, int], size: tuple[int, int], filter: str
) -> None:
    smaller = (min(before[1], size[0]), min(before[0], size[1]))
    assert as_pillow(before, smaller, filter)


def test_another_pillow_is_not_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(array: np.ndarray, size: tuple[int, int], filter: str) -> np.ndarray:
        return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.LANCZOS))

    _order_tried.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("endauda_cli.resampling.resize", other)
        assert not as_pillow((40, 60), (30, 20), "bilinear")
        with pytest.raises(ValueError, match="otherwise"):
            resize_there(torch.zeros(1, 40, 60, 3, dtype=torch.uint8), (30, 20), "bilinear")
    _order_tried.cache_clear()
    assert as_pillow((40, 60), (30, 20), "bilinear")
    assert not as_pillow((40, 60), (30, 20), "nearest")


def test_either_direction_may_come_first() -> None:
    """Pillow 13 turns to the cheaper one first."""
    for before, size in (((4, 5), (4, 1)), ((2, 2), (7, 1)), ((7, 2), (1, 2)), ((80, 3), (49, 40))):
        assert as_pillow(before, size, "bilinear"), (before, size)
