"""Kernel: Pillow's resizing on a device, bit for bit, so that a card's host only decodes.

Pillow resizes bytes with whole numbers: weights of 22 bits after the point, one direction after the other, each
rounded to bytes (its ``Resample.c``). The same sums are exact in 32 bits anywhere. Which direction comes first differs
with its version and with the sizes: the one at hand is tried.

Legend of shapes: B images; C channels; H, W before, h, w after.
"""

from __future__ import annotations

import math
import threading
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
    """(B, H, W, C) uint8 to (B, h, w, C) uint8 on their device, as the Pillow at hand does it.

    Args:
        images: of one size, for which ``as_pillow`` holds.
        size: (w, h).
        filter: ``bilinear`` or ``bicubic``.
    Raises:
        ValueError: where ``as_pillow`` does not hold.
    """
    order = _order((images.shape[1], images.shape[2]), size, filter)
    if order is None:
        raise ValueError(f"this Pillow resizes {tuple(images.shape)} to {size} otherwise than is known here")
    return _passes(images, size, filter, order)


def as_pillow(before: tuple[int, int], size: tuple[int, int], filter: str) -> bool:
    """Whether ``resize_there`` gives what the Pillow at hand gives, for images of (H, W) ``before``."""
    return _order(before, size, filter) is not None


_ROWS, _COLUMNS = 1, 2
"""Dimensions of (B, H, W, C)."""
_NOISE = 1 << 14
"""So many pixels tell one order from the other, also where an image has few."""
_trying = threading.Lock()


def _order(before: tuple[int, int], size: tuple[int, int], filter: str) -> tuple[int, int] | None:
    """Which direction the Pillow at hand resizes first: tried on noise. ``None`` if it does something else."""
    with _trying:  # all threads that decode ask at once
        return _order_tried(before, size, filter)


@lru_cache(64)
def _order_tried(before: tuple[int, int], size: tuple[int, int], filter: str) -> tuple[int, int] | None:
    if filter not in _FILTERS:
        return None
    count = -(-_NOISE // (before[0] * before[1]))
    noise = np.random.default_rng(0).integers(0, 256, (count, *before), np.uint8)
    wanted = np.stack([resize(image, size, filter) for image in noise])
    for order in ((_COLUMNS, _ROWS), (_ROWS, _COLUMNS)):
        mine = _passes(torch.from_numpy(noise)[..., None], size, filter, order)[..., 0]
        if np.array_equal(mine.numpy(), wanted):
            return order
    return None


def _passes(images: Tensor, size: tuple[int, int], filter: str, order: tuple[int, int]) -> Tensor:
    for dimension in order:
        wanted = size[_COLUMNS - dimension]
        if images.shape[dimension] != wanted:
            images = _along(images, dimension, wanted, filter)
    return images


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
    used = weights.any(axis=1)  # one launch each, on a device that waits for its host
    return places[used], weights[used]
