"""Kernels: what happens to pixels between file and network, and to image and label together in training.

The constants are those of the student (``reference``: Pillow bicubic to 1024x512, BGR, mean of the Caffe
models, no division). Pillow does the resizing because its filters are part of "the published result".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    UInt8 = NDArray[np.uint8]

_PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
FILTERS = (*_PILLOW, "opencv")
"""Pillow's, which average all pixels that a new one covers; ``opencv`` is bilinear between its four neighbours."""


DEFAULT_SIZE = (1024, 512)
"""(width, height) of the student's input."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input.

    Attributes:
        size: (width, height) that the image is resized to; ``None`` leaves it as it is.
        longer_side: instead of ``size``, what the image's longer side is resized to.
        within: instead of ``size``, (longer, shorter) sides that the image is enlarged or shrunk to fit within.
        shorter_side: instead of ``size``, what the shorter side is resized to; the longer one is then at most
            ``longer_side``.
        round_up: resized sides that are no multiple are made the next one, by resizing.
        filter: one of ``FILTERS``.
        bgr: channel order of the network's input.
        divisor: of pixel values 0..255, before anything is subtracted.
        mean: subtracted per channel, in the order of the input, after the division.
        std: divided by per channel.
        multiple_of: sides that are no multiple are padded with 0 at the right and at the bottom, normalised.
    """

    size: tuple[int, int] | None = DEFAULT_SIZE
    filter: str = "bicubic"
    bgr: bool = True
    mean: tuple[float, float, float] = (104.00698793, 116.66876762, 122.67891434)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    divisor: float = 1.0
    longer_side: int | None = None
    multiple_of: int = 1
    within: tuple[int, int] | None = None
    shorter_side: int | None = None
    round_up: int = 1

    def input_size(self, width: int, height: int, scale: float = 1.0) -> tuple[int, int]:
        """(width, height) that an image of that size is resized to."""
        if self.size is not None:
            width, height = self.size
        elif self.shorter_side is not None:
            width, height = _with_shorter_side(width, height, self.shorter_side, self.longer_side)
        elif self.longer_side is not None:
            factor = self.longer_side / max(width, height)
            width, height = round(width * factor), round(height * factor)
        elif self.within is not None:  # rounded once, as mmcv does
            factor = scale * min(max(self.within) / max(width, height), min(self.within) / min(width, height))
            return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        return -(-width // self.round_up) * self.round_up, -(-height // self.round_up) * self.round_up

    def resize(self, image: UInt8, scale: float = 1.0) -> UInt8:
        """(H, W, 3) uint8 RGB to (height, width, 3) uint8 RGB."""
        return resize(image, self.input_size(image.shape[1], image.shape[0], scale), self.filter)

    def normalise(self, images: Tensor) -> Tensor:
        """(B, h, w, 3) RGB, uint8 or float32 of 0 to 255, to (B, 3, h, w) float32 network input on that device."""
        x = images.permute(0, 3, 1, 2).float()  # (B, 3, h, w)
        if self.bgr:
            x = x.flip(1)
        if self.divisor != 1:
            x = x / self.divisor
        x = x - on_device(self.mean, x.device)[:, None, None]
        if self.std != (1.0, 1.0, 1.0):
            x = x / on_device(self.std, x.device)[:, None, None]
        return x

    def pixels(self, x: Tensor) -> Tensor:
        """What :meth:`normalise` made (B, 3, h, w) of, as (B, 3, h, w) float32 RGB of 0 to 255, contiguous."""
        if self.std != (1.0, 1.0, 1.0):
            x = x * on_device(self.std, x.device)[:, None, None]
        x = (x + on_device(self.mean, x.device)[:, None, None]) * self.divisor
        return (x.flip(1) if self.bgr else x).clamp(0, 255).contiguous()

    def pad(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) padded at the right and at the bottom, as ``multiple_of`` asks."""
        right, bottom = (-side % self.multiple_of for side in (x.shape[3], x.shape[2]))
        return F.pad(x, (0, right, 0, bottom)) if right or bottom else x

    def facts(self) -> dict[str, Any]:
        """What an archive says about it."""
        return {
            "network_size": self._size_fact(),
            "resize_filter": self.filter,
            "channels": "bgr" if self.bgr else "rgb",
            "divisor": self.divisor,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def _size_fact(self) -> list[int] | str | None:
        if self.size is not None:
            return list(self.size)
        longer = self.longer_side and f"longer side {self.longer_side}"
        if self.shorter_side is not None:
            return f"shorter side {self.shorter_side}" + (f", {longer} at most" if longer else "")
        if longer:
            return longer
        return None if self.within is None else f"within {max(self.within)}x{min(self.within)}"

    def resized_to(self, size: tuple[int, int]) -> Preprocessing:
        """The same with that (width, height) instead of whatever it said."""
        return replace(self, size=size, longer_side=None, shorter_side=None, within=None)


def _with_shorter_side(width: int, height: int, shorter: int, most: int | None) -> tuple[int, int]:
    """(width, height) of that shorter side, the longer one ``most`` at most; fractions are cut, as by transformers."""
    short, long = min(width, height), max(width, height)
    exact = float(shorter)
    if most is not None and long / short * shorter > most:
        exact = most * short / long
    side = round(exact)
    other = max(1, int(exact * long / short)) if short != side else long
    return (side, other) if width < height else (other, side)


STUDENT = Preprocessing()


def on_device(numbers: Sequence[float] | Sequence[int], device: torch.device) -> Tensor:
    """A few numbers as a tensor (int64 or float32) there, without waiting for what the device is doing."""
    dtype = torch.float32 if any(isinstance(number, float) for number in numbers) else torch.int64
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


def resize(array: UInt8, size: tuple[int, int], filter: str) -> UInt8:
    """(H, W[, 3]) uint8 to (height, width[, 3]) by one of ``FILTERS``; ``size`` is (width, height)."""
    if (array.shape[1], array.shape[0]) == size:
        return array
    if filter == "opencv":
        return _between_neighbours(array, size)
    return np.asarray(Image.fromarray(array).resize(size, _PILLOW[filter]))


def _between_neighbours(array: UInt8, size: tuple[int, int]) -> UInt8:
    """As OpenCV's bilinear, bit for bit: whole numbers, shares of 1/2048, and what it drops on the way.

    ``size`` is (width, height). Where both sides are halved it takes the mean of four pixels instead.
    """
    pixels = array.reshape(*array.shape[:2], -1).astype(np.int32)
    if (2 * size[0], 2 * size[1]) == (pixels.shape[1], pixels.shape[0]):
        made = (pixels[::2, ::2] + pixels[1::2, ::2] + pixels[::2, 1::2] + pixels[1::2, 1::2] + 2) >> 2
    else:
        left, right, before, after = _neighbours(pixels.shape[1], size[0], border=True)
        rows = pixels[:, left] * before[:, None] + pixels[:, right] * after[:, None]  # (H, width, channels)
        rows >>= 4
        above, below, before, after = _neighbours(pixels.shape[0], size[1], border=False)
        made = (before[:, None, None] * rows[above]) >> 16
        made += (after[:, None, None] * rows[below]) >> 16
        made = (made + 2) >> 2
    return made.astype(np.uint8).reshape(size[1], size[0], *array.shape[2:])


def _neighbours(length: int, made: int, border: bool) -> tuple[NDArray[np.int32], ...]:
    """Of each of ``made`` pixels: the two of ``length`` that it lies between, and their shares in 1/2048.

    Beyond the first and the last both are that pixel, which with ``border`` has all of the share: it is rounded once.
    """
    at = ((np.arange(made) + 0.5) * (length / made) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int32)
    share = at - first
    if border:
        share[(first < 0) | (first >= length - 1)] = 0
    shares = (np.rint((1 - share) * 2048).astype(np.int32), np.rint(share * 2048).astype(np.int32))
    return (first.clip(0, length - 1), (first + 1).clip(0, length - 1), *shares)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover ``length``, ``stride`` apart; the last one ends with it."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, length - window), 0) for i in range(count)]


class Crop(NamedTuple):
    """A window of an image: first row, first column (below 0 where it reaches beyond), mirrored or not."""

    row: int
    column: int
    mirrored: bool


def random_crop(
    size: tuple[int, int],
    crop: tuple[int, int],
    rng: random.Random,
    mirror: bool = False,
    beyond: bool = False,
) -> Crop:
    """Draw a crop as the reference does: row first, then column, then (only if asked) the mirror.

    Args:
        size: (H, W) of the image.
        crop: (H, W) of the window.
        rng: source of randomness.
        mirror: flip half of the crops.
        beyond: a side of the window may be longer than the image's; the image lies anywhere within it then.

    Raises:
        ValueError: if the window is larger than the image, and may not be.
    """
    if not beyond and (crop[0] > size[0] or crop[1] > size[1]):
        raise ValueError(f"a crop of {crop[1]}x{crop[0]} does not fit an image of {size[1]}x{size[0]}")
    row = rng.randint(*sorted((0, size[0] - crop[0])))
    column = rng.randint(*sorted((0, size[1] - crop[1])))
    return Crop(row, column, mirror and rng.random() < 0.5)


def cut(array: UInt8, crop: Crop, size: tuple[int, int], beyond: Sequence[int] = (0,)) -> UInt8:
    """The window of (H, W[, 3]) at ``crop`` of ``size`` (H, W); what is ``beyond`` the image has that value."""
    top, left = max(0, crop.row), max(0, crop.column)
    window = array[top : crop.row + size[0], left : crop.column + size[1]]
    if window.shape[:2] != size:
        inside, window = window, np.full((*size, *array.shape[2:]), beyond, np.uint8)
        top, left = top - crop.row, left - crop.column
        window[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return window[:, ::-1] if crop.mirrored else window


def scaled(window: UInt8, size: tuple[int, int], smooth: bool) -> Tensor:
    """A copy of (H, W[, 3]) uint8 at ``size`` (h, w).

    Args:
        window: of a picture or of labels.
        size: the copy's.
        smooth: bilinear, over all pixels that a new one covers; else each is one of the old ones, as labels need.
    """
    copy = torch.from_numpy(np.array(window))
    if copy.shape[:2] == size:
        return copy
    planes = copy.view(*window.shape[:2], -1).permute(2, 0, 1)[None]
    mode = "bilinear" if smooth else "nearest-exact"
    planes = F.interpolate(planes, size, mode=mode, antialias=smooth)
    return planes[0].permute(1, 2, 0).reshape(*size, *window.shape[2:])
