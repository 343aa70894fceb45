"""What classes look like: materials and air of the source, and how the target differs from it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from endauda_cli.domains import CITYSCAPES_CLASSES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np
    from numpy.typing import NDArray

    Float = NDArray[np.float32]
    Int32 = NDArray[np.int32]
    UInt8 = NDArray[np.uint8]

TextureKind = Literal["flat", "grain", "stripes", "bars", "bricks", "checks", "blobs", "windows", "waves"]
Property = Literal["colour", "texture", "light"]


@dataclass(frozen=True)
class Material:
    """What the objects of one class look like.

    Attributes:
        hue: 0 to 1, round the colour circle (0 red, 1/3 green, 2/3 blue).
        saturation: 0 (grey) to 1 (vivid).
        value: brightness of the brightest channel, 0 to 1.
        spread: how far objects of the class differ from each other in these three, at most.
        texture: pattern that multiplies the brightness.
        scale: of the pattern, in pixels of an image with 128 rows.
        contrast: of the pattern: brightness times 1 - contrast to 1 + contrast, on average times 1.
    """

    hue: float
    saturation: float
    value: float
    spread: tuple[float, float, float]
    texture: TextureKind
    scale: float
    contrast: float


class Move(NamedTuple):
    """In the target, a class takes ``amount`` (0 to 1) of the way in one property towards another class."""

    property: Property
    towards: str
    amount: float


@dataclass(frozen=True)
class Air:
    """What lies between the street and the image: light, weather and sensor.

    Attributes:
        haze: share of the haze in what is infinitely far, 0 to 1.
        warmth: gain of red minus gain of blue.
        sun: brightness of the image's right edge minus that of its left edge.
        vignette: darkening of the corners, 0 to 1.
        noise: standard deviation of the sensor noise, of a full scale of 1.
    """

    haze: float
    warmth: float
    sun: float
    vignette: float
    noise: float


# fmt: off
SOURCE_MATERIALS: dict[str, Material] = {
    #                          hue  satur. value  spread of the three texture   scale contrast
    "road":          Material(0.62, 0.08, 0.40, (0.02, 0.02, 0.02), "grain",    2.0, 0.10),
    "sidewalk":      Material(0.05, 0.16, 0.66, (0.02, 0.03, 0.03), "checks",   7.0, 0.13),
    "building":      Material(0.60, 0.24, 0.58, (0.04, 0.06, 0.08), "windows", 10.0, 0.34),
    "wall":          Material(0.03, 0.48, 0.50, (0.02, 0.06, 0.04), "bricks",   6.0, 0.30),
    "fence":         Material(0.10, 0.55, 0.42, (0.02, 0.06, 0.04), "bars",     4.0, 0.55),
    "pole":          Material(0.58, 0.08, 0.24, (0.04, 0.04, 0.04), "flat",     4.0, 0.00),
    "traffic light": Material(0.15, 0.75, 0.30, (0.02, 0.06, 0.04), "flat",     4.0, 0.00),
    "traffic sign":  Material(0.62, 0.80, 0.80, (0.02, 0.06, 0.06), "flat",     4.0, 0.00),
    "vegetation":    Material(0.31, 0.62, 0.40, (0.03, 0.08, 0.06), "blobs",    4.0, 0.50),
    "terrain":       Material(0.21, 0.52, 0.60, (0.02, 0.06, 0.04), "grain",    3.0, 0.22),
    "sky":           Material(0.58, 0.34, 0.92, (0.02, 0.06, 0.03), "flat",     4.0, 0.00),
    "person":        Material(0.76, 0.42, 0.32, (0.07, 0.15, 0.06), "flat",     4.0, 0.00),
    "rider":         Material(0.07, 0.80, 0.72, (0.02, 0.10, 0.06), "stripes",  4.0, 0.25),
    "car":           Material(0.50, 0.55, 0.55, (0.05, 0.12, 0.08), "flat",     4.0, 0.00),
    "truck":         Material(0.12, 0.10, 0.84, (0.08, 0.05, 0.06), "flat",     4.0, 0.00),
    "bus":           Material(0.13, 0.78, 0.78, (0.02, 0.08, 0.06), "flat",     4.0, 0.00),
    "train":         Material(0.98, 0.72, 0.60, (0.02, 0.08, 0.06), "stripes",  5.0, 0.28),
    "motorcycle":    Material(0.86, 0.60, 0.42, (0.03, 0.08, 0.06), "flat",     4.0, 0.00),
    "bicycle":       Material(0.42, 0.60, 0.34, (0.03, 0.08, 0.05), "flat",     4.0, 0.00),
}
"""The source: a clean simulator at noon."""

MOVES: dict[str, Move] = {
    "building":      Move("colour", "fence", 0.95),
    "vegetation":    Move("colour", "wall", 0.90),
    "car":           Move("colour", "bus", 0.97),
    "bus":           Move("colour", "train", 0.97),
    "traffic sign":  Move("colour", "traffic light", 0.97),
    "motorcycle":    Move("colour", "bicycle", 0.97),
    "road":          Move("texture", "sidewalk", 1.00),
    "sidewalk":      Move("texture", "road", 1.00),
    "wall":          Move("texture", "fence", 1.00),
    "fence":         Move("texture", "wall", 1.00),
    "truck":         Move("texture", "train", 1.00),
    "train":         Move("texture", "bus", 1.00),
    "sky":           Move("light", "building", 0.95),
    "terrain":       Move("light", "vegetation", 0.95),
    "pole":          Move("light", "sidewalk", 1.00),
    "traffic light": Move("light", "traffic sign", 0.90),
    "person":        Move("light", "rider", 0.90),
    "rider":         Move("light", "person", 0.90),
    "bicycle":       Move("light", "truck", 0.80),
}
"""How each class looks different in the target."""

SOURCE_AIR = Air(haze=0.10, warmth=0.00, sun=0.10, vignette=0.05, noise=0.008)
TARGET_AIR = Air(haze=0.30, warmth=0.14, sun=-0.20, vignette=0.25, noise=0.022)
HAZE_COLOUR = (0.86, 0.86, 0.86)
# fmt: on

SHIFT: dict[str, Property] = {name: move.property for name, move in MOVES.items()}
"""Class -> the property in which the target differs from the source."""


@dataclass(frozen=True)
class Look:
    """How a scene is painted: a material for every class (by train id), and the air."""

    materials: Mapping[int, Material]
    air: Air


def shifted(look: Look, strength: float = 1.0) -> Look:
    """The look after ``strength`` of all moves: 0 is the look itself, 1 the target.

    A texture fades out up to one half, then the new one fades in.
    """
    materials = {
        train_id: _moved(material, MOVES[name], look.materials, strength)
        for train_id, material in look.materials.items()
        for name in (CITYSCAPES_CLASSES[train_id],)
        if name in MOVES
    }
    air = Air(
        **{
            f.name: _mix(getattr(look.air, f.name), getattr(TARGET_AIR, f.name), strength)
            for f in fields(Air)
        }
    )
    return Look(MappingProxyType({**look.materials, **materials}), air)


def translated(look: Look, right: Collection[str], strength: float) -> Look:
    """What an image translation towards the target makes of the look if it gets only some classes right.

    Args:
        look: to translate.
        right: names of the classes that get their target material (as by :func:`shifted`); others keep theirs.
        strength: of the translation, 0 to 1.
    """
    target = shifted(look, strength)
    materials = {
        train_id: target.materials[train_id] if CITYSCAPES_CLASSES[train_id] in right else material
        for train_id, material in look.materials.items()
    }
    return Look(MappingProxyType(materials), target.air)


def _moved(material: Material, move: Move, materials: Mapping[int, Material], strength: float) -> Material:
    other = materials[CITYSCAPES_CLASSES.index(move.towards)]
    part = strength * move.amount
    if move.property == "colour":
        turn = (other.hue - material.hue + 0.5) % 1 - 0.5  # the shorter way round the colour circle
        saturation = _mix(material.saturation, other.saturation, part)
        return replace(material, hue=(material.hue + part * turn) % 1, saturation=saturation)
    if move.property == "light":
        return replace(material, value=_mix(material.value, other.value, part))
    if strength < 0.5:
        return replace(material, contrast=material.contrast * (1 - 2 * strength))
    contrast = other.contrast * move.amount * (2 * strength - 1)
    return replace(material, texture=other.texture, scale=other.scale, contrast=contrast)


def _mix(a: float, b: float, part: float) -> float:
    return a * (1 - part) + b * part  # exact at both ends


SOURCE_LOOK = Look(
    MappingProxyType({CITYSCAPES_CLASSES.index(name): m for name, m in SOURCE_MATERIALS.items()}), SOURCE_AIR
)
TARGET_LOOK = shifted(SOURCE_LOOK)
