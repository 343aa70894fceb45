"""Kernel: Pillow's resizing on a device, bit for bit, so that a card's host only decodes.

Pillow resizes bytes with whole numbers: weights of 22 bits after the point, one direction after the other, each
rounded to bytes (its ``Resample.c``). The same sums are exact in 32 bits anywhere. Which direction comes first has
changed with its versions: ``as_pillow`` asks the one at hand.

Legend of shapes: B images; C channels; H, W before, h, w after.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from endauda_cli.transforms import resize

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

_POINT = 22
"""Bits of a weight after the point."""


def _bilinear(x: float) -> float:
    return max(0.0, 1 - abs(x))


def _bicubic(x: float) -> float:
    """Keys' cubic convolution, a = -0.5."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


_FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
}
"""Each filter's value by distance, and the distance from which on it is 0."""


def resize_there(images: Tensor, size: tuple[int, int], filter: str) -> Tensor:
    """(B, H, W, C) uint8 to (B, h, w, C) uint8 on their device, as Pillow does it: columns first, then rows.

    Args:
        images: of one size.
        size: (w, h).
        filter: ``bilinear`` or ``bicubic``.
    """
    for dimension, wanted in ((2, size[0]), (1, size[1])):
        if images.shape[dimension] != wanted:
            images = _along(images, dimension, wanted, filter)
    return images


@lru_cache(64)
def as_pillow(before: tuple[int, int], size: tuple[int, int], filter: str) -> bool:
    """Whether ``resize_there`` gives what the Pillow at hand gives, for images of (H, W) ``before``: tried on noise."""
    if filter not in _FILTERS:
        return False
    noise = np.random.default_rng(0).integers(0, 256, before, np.uint8)
    mine = resize_there(torch.from_numpy(noise)[None, ..., None], size, filter)[0, ..., 0]
    return np.array_equal(mine.numpy(), resize(noise, size, filter))


def _along(images: Tensor, dimension: int, wanted: int, filter: str) -> Tensor:
    places, weights = _taps_there(images.shape[dimension], wanted, filter, images.device)
    images = images.to(torch.int32)
    shape = [wanted if d == dimension else 1 for d in range(images.dim())]
    total = None
    for place, weight in zip(places, weights, strict=True):
        taken = images.index_select(dimension, place)
        if total is None:
            total = taken.mul_(weight.view(shape))
        else:
            total.addcmul_(taken, weight.view(shape))
    assert total is not None
    return total.add_(1 << (_POINT - 1)).bitwise_right_shift_(_POINT).clamp_(0, 255).to(torch.uint8)


@lru_cache(64)
def _taps_there(length: int, wanted: int, filter: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """``_taps`` on a device, copied once: each copy waits for what the device is doing."""
    places, weights = _taps(length, wanted, filter)
    return torch.from_numpy(places).to(device), torch.from_numpy(weights).to(device)


def _taps(length: int, wanted: int, filter: str) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(taps, wanted): the places that a new pixel is made of, and their weights; unused ones weigh 0."""
    value, reach = _FILTERS[filter]
    step = length / wanted
    width = max(step, 1.0)  # an image that becomes smaller is blurred as much
    taps = 2 * math.ceil(reach * width) + 1
    places = np.zeros((taps, wanted), np.int64)
    weights = np.zeros((taps, wanted), np.int32)
    for new in range(wanted):
        centre = (new + 0.5) * step
        first = max(0, int(centre - reach * width + 0.5))
        last = min(length, int(centre + reach * width + 0.5))
        shares = [value((old - centre + 0.5) / width) for old in range(first, last)]
        whole = sum(shares)
        for i, share in enumerate(shares):
            exact = share / whole * (1 << _POINT) if whole else 0.0
            places[i, new] = first + i
            weights[i, new] = int(exact + math.copysign(0.5, exact))
    return places, weights
