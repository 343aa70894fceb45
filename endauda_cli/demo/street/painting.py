"""A scene's geometry and a look to an image as the sensor records it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from endauda_cli.demo.street.looks import HAZE_COLOUR, Air, Look, TextureKind
from endauda_cli.demo.street.sprites import FINISHES
from endauda_cli.domains import CITYSCAPES_CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from endauda_cli.demo.street.scene import Scene

    Float = NDArray[np.float32]
    Int32 = NDArray[np.int32]
    UInt8 = NDArray[np.uint8]


def paint(scene: Scene, look: Look, rng: np.random.Generator) -> UInt8:
    """Paint a scene: (H, W, 3) uint8 RGB.

    Args:
        scene: its geometry.
        look: materials and air.
        rng: source of randomness (how objects differ, noise); equal states give equal images.
    """
    colours = _object_colours(scene.classes, look, rng)
    keep = np.array([f.keep for f in FINISHES.values()], np.float32)
    added = np.array([f.added for f in FINISHES.values()], np.float32)
    factor = _texture(scene, look, rng) * keep[scene.finish]
    image: Float = colours[scene.objects] * factor[..., None] + added[scene.finish]
    return _through_air(image, scene.distance, look.air, rng)


def _object_colours(classes: UInt8, look: Look, rng: np.random.Generator) -> Float:
    """(N,) classes to (N, 3) RGB in [0, 1]."""
    materials = [look.materials[int(c)] for c in classes]
    mean = np.array([(m.hue, m.saturation, m.value) for m in materials])
    hsv = mean + np.array([m.spread for m in materials]) * rng.uniform(-1, 1, mean.shape)
    hue, saturation, value = hsv[:, :1] % 1, hsv[:, 1:2].clip(0, 1), hsv[:, 2:].clip(0, 1)
    # Each channel falls from 1 to 0 and back as the hue passes its own third of the circle.
    ramp = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    colours: Float = (value * (1 - saturation + saturation * ramp.clip(0, 1))).astype(np.float32)
    return colours


def _texture(scene: Scene, look: Look, rng: np.random.Generator) -> Float:
    """(H, W) factors of the brightness, on average 1."""
    noise = rng.uniform(-1, 1, (64, 64)).astype(np.float32)
    origin = rng.uniform(0, 64, (2, len(scene.classes))).astype(np.float32)
    factor = np.ones(scene.label.size, np.float32)
    order = np.argsort(scene.label, axis=None, kind="stable")
    bounds = np.searchsorted(scene.label.ravel()[order], np.arange(len(CITYSCAPES_CLASSES) + 1))
    uv, objects, zoom = scene.uv.reshape(2, -1), scene.objects.ravel(), scene.zoom.ravel()
    for train_id, material in look.materials.items():
        pixels = order[bounds[train_id] : bounds[train_id + 1]]
        if material.contrast == 0 or material.texture == "flat" or not len(pixels):
            continue
        u, v = uv[:, pixels] / np.float32(material.scale) + origin[:, objects[pixels]]
        # A pattern finer than a pixel would alias: it fades into its mean.
        seen = (zoom[pixels] * np.float32(material.scale) - 1).clip(0, 1)
        factor[pixels] += material.contrast * seen * TEXTURES[material.texture](u, v, noise)
    return factor.reshape(scene.label.shape)


def _through_air(image: Float, distance: Float, air: Air, rng: np.random.Generator) -> UInt8:
    """(H, W, 3) RGB in [0, 1] and (H, W) metres to uint8 as the sensor records it."""
    height, width = distance.shape
    haze = (air.haze * (1 - np.exp(distance / np.float32(-60))))[..., None]
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    gain = (1 + air.sun / 2 * x) * (1 - air.vignette * (x * x + y * y) / 2)
    warm = np.array([1 + air.warmth / 2, 1, 1 - air.warmth / 2], np.float32)
    seen = (image * (1 - haze) + haze * np.array(HAZE_COLOUR, np.float32)) * gain[..., None] * warm
    # A lens softens the edges; the sensor's noise comes after it.
    lens = Image.fromarray((seen * 255).clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.45))
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(air.noise * 255)
    recorded: UInt8 = (np.asarray(lens) + noise).round().clip(0, 255).astype(np.uint8)
    return recorded


# Textures: positions u, v (P,) in units of the scale and a (64, 64) table of noise, to (P,) in [-1, 1] with
# a mean of about 0.


def _grain(u: Float, v: Float, noise: Float) -> Float:
    grains: Float = noise[v.astype(np.int32) & 63, u.astype(np.int32) & 63]
    return grains


def _blobs(u: Float, v: Float, noise: Float) -> Float:
    """Noise between whose grid points is interpolated."""
    column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    x, y = u - column, v - row
    left, right = column & 63, (column + 1) & 63
    top, bottom = row & 63, (row + 1) & 63
    above = noise[top, left] * (1 - x) + noise[top, right] * x
    below = noise[bottom, left] * (1 - x) + noise[bottom, right] * x
    blobs: Float = (1.6 * (above * (1 - y) + below * y)).clip(-1, 1)
    return blobs


def _stripes(u: Float, v: Float, noise: Float) -> Float:
    return np.where(v % 1 < 0.5, -1, 1).astype(np.float32)


def _bars(u: Float, v: Float, noise: Float) -> Float:
    return np.where(u % 1 < 0.5, -1, 1).astype(np.float32)


def _bricks(u: Float, v: Float, noise: Float) -> Float:
    """Bricks twice as long as high; every second row is moved by half a brick. The joints are dark."""
    row = np.floor(v * 2)
    joint = ((v * 2 % 1) < 0.3) | (((u + row / 2) % 1) < 0.18)
    return np.where(joint, -1, 0.74).astype(np.float32)


def _checks(u: Float, v: Float, noise: Float) -> Float:
    return np.where((np.floor(u) + np.floor(v)) % 2 == 0, -1, 1).astype(np.float32)


def _windows(u: Float, v: Float, noise: Float) -> Float:
    """Dark panes."""
    pane = (np.abs(u % 1 - 0.5) < 0.28) & (np.abs(v % 1 - 0.5) < 0.3)
    return np.where(pane, -1, 0.5).astype(np.float32)


def _waves(u: Float, v: Float, noise: Float) -> Float:
    waves: Float = np.sin(2 * np.pi * (v + 0.3 * np.sin(2 * np.pi * u / 2)))
    return waves


TEXTURES: dict[TextureKind, Callable[[Float, Float, Float], Float]] = {
    "grain": _grain,
    "stripes": _stripes,
    "bars": _bars,
    "bricks": _bricks,
    "checks": _checks,
    "blobs": _blobs,
    "windows": _windows,
    "waves": _waves,
}
