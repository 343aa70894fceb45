"""Kernel: photometric changes of whole batches, on the device that they are on.

Whatever needs a generator, a power or an exponential is computed on the CPU, per sample, as a short row of numbers that
depends on (seed, position) alone; the device looks up, multiplies and adds. It is never asked for a value, so nothing
waits for it, and no sum depends on its order: a sample comes out the same, bit for bit on the CPU, alone and in any
batch, on any rank, with any number of threads.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from endauda_cli.types import Augmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

LEVELS = 256
"""Of a channel."""
REACH = 3
"""Of the blur to either side, in pixels."""
QUANTILES = 4096
"""Of the normal distribution, of which grain is made."""
SEEDS = 24
"""Bits of a grain's seed: as many as float32 holds exactly."""


def drawn(names: Sequence[str], seed: int, position: int | str) -> list[float]:
    """What the changes do to the sample at a position of a run's sequence: the numbers of each, one after another."""
    numbers: list[float] = []
    for name in names:
        numbers += AUGMENTATIONS[name].draw(random.Random(f"{seed} {position} {name}"))
    return numbers


def augment(images: Tensor, names: Sequence[str], numbers: Tensor) -> Tensor:
    """Do one change after another to images.

    Args:
        images: (B, 3, h, w) float32 RGB, 0 to 255, contiguous; stays as it is. Sides are longer than ``REACH``.
        names: keys of ``AUGMENTATIONS``.
        numbers: (B, n) float32, a row of :func:`drawn` per image, on the images' device.
    """
    for name in names:
        change = AUGMENTATIONS[name]
        images = change.apply(images, numbers[:, : change.numbers])
        numbers = numbers[:, change.numbers :]
    return images


# ---------------------------------------------------------------------------- colour


def _draw_colour(rng: random.Random) -> list[float]:
    """Any hue, from grey to vivid: what is left to learn from is texture, shape and place."""
    return [rng.uniform(-0.5, 0.5), rng.uniform(0.0, 1.8)]


def _colour(images: Tensor, numbers: Tensor) -> Tensor:
    turn, saturation = _columns(numbers)
    return saturate(turn_hue(images, turn), saturation)


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Hues turned by (B, 1, 1, 1) of the circle; the highest and the lowest of a pixel's channels keep their values."""
    highest = images.amax(1, keepdim=True)
    chroma = highest - images.amin(1, keepdim=True)
    red, green, blue = _channels(images)
    divisor = chroma.clamp(min=1e-6)  # grey has no hue, and any will do
    hue = torch.where(
        highest == red,
        (green - blue) / divisor,
        torch.where(highest == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    # On a circle of length 6, where red, green and blue lie at 0, 2 and 4: the nearest channel to the hue is the
    # highest, one at a distance of 2 the lowest.
    hue = hue + 6 * turn
    hue = hue - 6 * (hue / 6).floor()
    places = 2 * torch.arange(3, device=images.device)[:, None, None]
    distance = 3 - (hue - places).abs_().sub_(3).abs_()
    return highest - distance.sub_(1).clamp_(0, 1).mul_(chroma)


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Images as far from their grey as (B, 1, 1, 1) says: 0 is grey, 1 what they are."""
    return (images * factor).add_(grey(images) * (1 - factor)).clamp_(0, 255)


def grey(images: Tensor) -> Tensor:
    """(B, 1, h, w) luma of (B, 3, h, w)."""
    red, green, blue = _channels(images)
    luma: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return luma


# ---------------------------------------------------------------------------- light


def _draw_light(rng: random.Random) -> list[float]:
    """Day to dusk: gamma and brightness as a table of levels, then contrast."""
    gamma, brightness, contrast = rng.uniform(0.5, 2.0), rng.uniform(0.5, 1.4), rng.uniform(0.5, 1.5)
    return [*levels(gamma, brightness), contrast]


def _light(images: Tensor, numbers: Tensor) -> Tensor:
    return stretch(look_up(images, numbers[:, :LEVELS]), numbers[:, LEVELS, None, None, None])


def levels(gamma: float, brightness: float) -> list[float]:
    """What becomes of each level of a channel."""
    table = brightness * 255 * (np.arange(LEVELS) / 255) ** gamma
    return [float(level) for level in table.clip(0, 255)]


def look_up(images: Tensor, table: Tensor) -> Tensor:
    """Images, rounded, by (B, 256) tables of levels."""
    return table.gather(1, images.flatten(1).round().long()).view_as(images)


def stretch(images: Tensor, contrast: Tensor) -> Tensor:
    """Images as far from their mean grey as (B, 1, 1, 1) says."""
    # In whole 256ths: their sum is exact, whatever its order.
    total = (grey(images) * 256).round().to(torch.int32).sum((2, 3), keepdim=True)
    mean = total.float() / (256 * images[0, 0].numel())
    return (images * contrast).add_(mean * (1 - contrast)).clamp_(0, 255)


# ---------------------------------------------------------------------------- texture


def _draw_texture(rng: random.Random) -> list[float]:
    """Blur and grain, each in four of five images: what is left to learn from is colour, shape and place."""
    sigma = rng.uniform(0.5, 2.5) if rng.random() < 0.8 else 0.0
    strength = rng.uniform(0, 30) if rng.random() < 0.8 else 0.0
    return [*weights(sigma), strength, float(rng.getrandbits(SEEDS))]


def _texture(images: Tensor, numbers: Tensor) -> Tensor:
    *taps, strength, seed = _columns(numbers)
    return blur(images, taps).add_(grain(seed, images).mul_(strength)).clamp_(0, 255)


def weights(sigma: float) -> list[float]:
    """Of a Gaussian blur: of the pixel itself, and of those at distance 1 to ``REACH`` on either side; 0 is no blur."""
    if sigma == 0:
        return [1.0] + [0.0] * REACH
    bell = np.exp(-0.5 * (np.arange(REACH + 1) / sigma) ** 2)
    return [float(weight) for weight in bell / (2 * bell.sum() - 1)]


def blur(images: Tensor, taps: Sequence[Tensor]) -> Tensor:
    """Images blurred by ``REACH + 1`` weights, (B, 1, 1, 1) each, down and across; mirrored beyond their border.

    Sums of shifted images, for a convolution adds in an order of its library's choice, by the size of the batch.
    """
    images = F.pad(images, [REACH] * 4, mode="reflect")
    for side in (2, 3):
        length = images.shape[side] - 2 * REACH
        blurred = images.narrow(side, REACH, length) * taps[0]
        for distance in range(1, REACH + 1):
            one, other = (images.narrow(side, REACH + step, length) for step in (-distance, distance))
            blurred += (one + other) * taps[distance]
        images = blurred
    return images


def grain(seed: Tensor, like: Tensor) -> Tensor:
    """Normal noise of mean 0 and deviation 1 in the form of (B, c, h, w): a hash of seed (B, 1, 1, 1) and place."""
    each = like[0].numel()
    # A hash of 32 bits makes two quantiles.
    places = torch.arange(-(-each // 2), dtype=torch.int32, device=like.device)
    bits = _hashed(_hashed(places) ^ _hashed(seed.to(torch.int32).view(-1, 1)))
    ranks = torch.cat((bits, bits >> 16), 1)[:, :each] & (QUANTILES - 1)
    quantiles = torch.special.ndtri((torch.arange(QUANTILES, device=like.device) + 0.5) / QUANTILES)
    noise: Tensor = quantiles.index_select(0, ranks.reshape(-1)).view_as(like)
    return noise


def _hashed(x: Tensor) -> Tensor:
    """Each int32 as another that has nothing to do with it: shifts (of unsigned numbers) and products, modulo 2^32."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    return x ^ ((x >> 16) & 0xFFFF)


# ---------------------------------------------------------------------------- DACS


def _draw_jitter(rng: random.Random) -> list[float]:
    """DACS' colour jitter, in four of five images: brightness, contrast, saturation and hue by a quarter each."""
    if rng.random() >= 0.8:
        return [1.0, 1.0, 1.0, 0.0]
    return [
        rng.uniform(0.75, 1.25),
        rng.uniform(0.75, 1.25),
        rng.uniform(0.75, 1.25),
        rng.uniform(-0.25, 0.25),
    ]


def _jitter(images: Tensor, numbers: Tensor) -> Tensor:
    brightness, contrast, saturation, turn = _columns(numbers)
    bright = (images * brightness).clamp_(0, 255)
    return turn_hue(saturate(stretch(bright, contrast), saturation), turn)


def _draw_blur(rng: random.Random) -> list[float]:
    """DACS' blur, in every other image."""
    return weights(rng.uniform(0.15, 1.15) if rng.random() < 0.5 else 0.0)


def _blur(images: Tensor, numbers: Tensor) -> Tensor:
    return blur(images, _columns(numbers))


def _channels(images: Tensor) -> list[Tensor]:
    """The channels of (B, 3, h, w), each as (B, 1, h, w)."""
    return [images[:, channel : channel + 1] for channel in range(3)]


def _columns(numbers: Tensor) -> list[Tensor]:
    """The columns of (B, n), each as (B, 1, 1, 1)."""
    return list(numbers[:, :, None, None, None].unbind(1))


# ---------------------------------------------------------------------------- the table


class Change(NamedTuple):
    """What may be done to images.

    Attributes:
        draw: a sample's numbers, of a generator.
        numbers: how many these are.
        apply: (B, 3, h, w) float32 RGB, 0 to 255, and (B, numbers) float32 to the changed images.
    """

    draw: Callable[[random.Random], list[float]]
    numbers: int
    apply: Callable[[Tensor, Tensor], Tensor]


AUGMENTATIONS: dict[str, Change] = {
    Augmentation.COLOUR: Change(_draw_colour, 2, _colour),
    Augmentation.LIGHT: Change(_draw_light, LEVELS + 1, _light),
    Augmentation.TEXTURE: Change(_draw_texture, REACH + 3, _texture),
    Augmentation.JITTER: Change(_draw_jitter, 4, _jitter),
    Augmentation.BLUR: Change(_draw_blur, REACH + 1, _blur),
}
"""What ``train --augment`` names."""
