"""Street world: generated street scenes seen from a car, painted in a source look and in a target look.

A scene is drawn once as geometry (:func:`draw_scene`) and painted in any look (:func:`paint`); both are pure
functions of their random generator. A look gives every class a material with three properties: colour (hue
and saturation), light (brightness) and texture. :func:`shifted` moves each class in one of them, towards the
appearance that another class has in the source. Numpy and Pillow only.

Shapes: ``H`` rows, ``W`` columns, ``N`` objects, ``P`` pixels of one class. Lengths of the world are metres:
x to the right and z ahead of the camera, y above the ground.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from endauda_cli.domains import CITYSCAPES_CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Float = NDArray[np.float32]
    Int32 = NDArray[np.int32]
    UInt8 = NDArray[np.uint8]

TextureKind = Literal["flat", "grain", "stripes", "bars", "bricks", "checks", "blobs", "windows", "waves"]
Property = Literal["colour", "texture", "light"]
Point = tuple[float, float]

# ---------------------------------------------------------------- the numbers of the two looks


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


def translated(
    look: Look, right: Collection[str], turn: float, dim: float, strength: float, air: float = 1.0
) -> Look:
    """What an image translation towards the target makes of the look if it gets only some classes right.

    Args:
        look: to translate.
        right: names of the classes that get their target material (as by :func:`shifted`).
        turn: by how much of the colour circle all others are turned instead.
        dim: by how much their brightness changes instead, -1 to 1.
        strength: of the translation, 0 to 1.
        air: the same for the air.
    """
    target = shifted(look, strength).materials
    materials = {
        train_id: target[train_id]
        if CITYSCAPES_CLASSES[train_id] in right
        else replace(
            material,
            hue=(material.hue + turn * strength) % 1,
            value=min(1.0, max(0.05, material.value * (1 + dim * strength))),
        )
        for train_id, material in look.materials.items()
    }
    return Look(MappingProxyType(materials), shifted(look, strength * air).air)


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

# ---------------------------------------------------------------- finishes: parts of objects


class Finish(NamedTuple):
    """Colour of a part of an object: ``keep`` times the object's material plus ``added`` RGB (0 to 1)."""

    keep: float
    added: tuple[float, float, float] = (0, 0, 0)


FINISHES: dict[str, Finish] = {
    "plain": Finish(1.0),
    "lit": Finish(1.15),
    "shaded": Finish(0.78),
    "dark": Finish(0.45),
    "shadow": Finish(0.62),
    "tyre": Finish(0.15, (0.04, 0.04, 0.04)),
    "glass": Finish(0.25, (0.10, 0.13, 0.16)),
    "marking": Finish(0.45, (0.50, 0.50, 0.50)),
    "cloud": Finish(0.80, (0.16, 0.16, 0.16)),
    "trunk": Finish(0.30, (0.14, 0.09, 0.05)),
    "skin": Finish(0.15, (0.60, 0.42, 0.32)),
    "white": Finish(0.20, (0.72, 0.72, 0.72)),
    "lamp": Finish(0.20, (0.75, 0.72, 0.60)),
    "red": Finish(0.10, (0.85, 0.10, 0.08)),
    "amber": Finish(0.10, (0.90, 0.60, 0.05)),
    "green": Finish(0.10, (0.10, 0.80, 0.35)),
}
_FINISH_NUMBER = {name: i for i, name in enumerate(FINISHES)}

# ---------------------------------------------------------------- sprites: shapes in metres

Part = tuple[str, tuple[Point, ...]]
"""A finish and a polygon."""
Sprite = tuple[Part, ...]


def _box(finish: str, left: float, bottom: float, right: float, top: float) -> Part:
    return finish, ((left, bottom), (right, bottom), (right, top), (left, top))


def _disc(finish: str, x: float, y: float, radius: float, corners: int = 14) -> Part:
    angles = [2 * math.pi * (i + 0.5) / corners for i in range(corners)]
    return finish, tuple((x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles)


def _bar(finish: str, a: Point, b: Point, thickness: float) -> Part:
    length = math.dist(a, b)
    x, y = (a[1] - b[1]) / length * thickness / 2, (b[0] - a[0]) / length * thickness / 2
    return finish, ((a[0] + x, a[1] + y), (b[0] + x, b[1] + y), (b[0] - x, b[1] - y), (a[0] - x, a[1] - y))


def _wheel(x: float, radius: float) -> Sprite:
    return _disc("tyre", x, radius, radius), _disc("lit", x, radius, radius * 0.45)


def _row(
    finish: str, first: float, step: float, count: int, bottom: float, width: float, top: float
) -> Sprite:
    """Boxes side by side, such as the windows of a bus."""
    return tuple(_box(finish, first + i * step, bottom, first + i * step + width, top) for i in range(count))


@dataclass(frozen=True)
class Vehicle:
    """A vehicle, as a box with two pictures.

    Attributes:
        length: metres.
        width: metres.
        side: x from the rear (0) to the front.
        end: x from the middle.
        roof: what rises above the side, drawn only where the whole side is seen.
    """

    length: float
    width: float
    side: Sprite
    end: Sprite
    roof: Sprite = ()


VEHICLES: dict[str, Vehicle] = {
    "car": Vehicle(
        4.3, 1.9,
        side=(
            ("plain", ((0, 0.3), (0, 1.0), (0.5, 1.1), (1.0, 1.65), (2.6, 1.65), (3.3, 1.1), (4.2, 0.9), (4.3, 0.3))),
            ("glass", ((0.8, 1.1), (1.15, 1.52), (1.75, 1.52), (1.75, 1.1))),
            ("glass", ((1.9, 1.1), (1.9, 1.52), (2.5, 1.52), (3.0, 1.1))),
            _box("red", 0, 0.75, 0.2, 0.95), _box("lamp", 4.05, 0.65, 4.25, 0.82),
            *_wheel(0.9, 0.36), *_wheel(3.4, 0.36),
        ),
        end=(
            ("plain", ((-0.95, 0.3), (-0.95, 1.05), (-0.75, 1.65), (0.75, 1.65), (0.95, 1.05), (0.95, 0.3))),
            ("glass", ((-0.78, 1.1), (-0.64, 1.52), (0.64, 1.52), (0.78, 1.1))),
            _box("shaded", -0.95, 0.3, 0.95, 0.55), _box("white", -0.25, 0.6, 0.25, 0.75),
            _box("red", -0.92, 0.75, -0.6, 0.97), _box("red", 0.6, 0.75, 0.92, 0.97),
            _box("tyre", -0.9, 0, -0.6, 0.32), _box("tyre", 0.6, 0, 0.9, 0.32),
        ),
    ),
    "bus": Vehicle(
        11.0, 2.5,
        side=(
            _box("plain", 0, 0.4, 11, 3.2), _box("lit", 0, 3.0, 11, 3.2), _box("shaded", 0, 0.4, 11, 0.8),
            *_row("glass", 0.4, 1.55, 7, 1.6, 1.3, 2.7),
            _box("glass", 9.6, 0.6, 10.5, 2.7), _box("glass", 5.05, 0.6, 5.9, 1.7),
            *_wheel(2.4, 0.5), *_wheel(8.6, 0.5),
        ),
        end=(
            _box("plain", -1.25, 0.4, 1.25, 3.2), _box("glass", -1.05, 1.6, 1.05, 2.65),
            _box("dark", -0.8, 2.8, 0.8, 3.1), _box("shaded", -1.25, 0.4, 1.25, 0.75),
            _box("red", -1.2, 0.8, -0.85, 1.15), _box("red", 0.85, 0.8, 1.2, 1.15),
            _box("tyre", -1.15, 0, -0.75, 0.42), _box("tyre", 0.75, 0, 1.15, 0.42),
        ),
    ),
    "truck": Vehicle(
        8.2, 2.5,
        side=(
            _box("dark", 0, 0.55, 8, 0.95), _box("plain", 0, 0.95, 5.8, 3.5),
            ("plain", ((6.1, 0.55), (6.1, 2.9), (7.4, 2.9), (8.1, 1.7), (8.2, 0.55))),
            ("glass", ((6.7, 1.75), (6.7, 2.6), (7.3, 2.6), (7.8, 1.75))),
            _box("lamp", 7.95, 0.75, 8.2, 1.0),
            *_wheel(1.0, 0.5), *_wheel(2.2, 0.5), *_wheel(7.0, 0.5),
        ),
        end=(
            _box("dark", -1.2, 0.5, 1.2, 0.95), _box("plain", -1.25, 0.95, 1.25, 3.5),
            _box("shaded", -0.05, 0.95, 0.05, 3.5), *_row("dark", -0.3, 0.5, 2, 1.4, 0.1, 2.6),
            _box("red", -1.2, 0.6, -0.8, 0.9), _box("red", 0.8, 0.6, 1.2, 0.9),
            _box("tyre", -1.15, 0, -0.65, 0.55), _box("tyre", 0.65, 0, 1.15, 0.55),
        ),
    ),
    "train": Vehicle(
        24.0, 2.6,
        side=(
            ("plain", ((0, 0.4), (0, 2.8), (0.3, 3.5), (23.7, 3.5), (24, 2.8), (24, 0.4))),
            _box("dark", 0, 0.1, 24, 0.5),
            *_row("glass", 1.8, 2.0, 3, 1.7, 1.6, 2.8), *_row("glass", 9.2, 2.0, 3, 1.7, 1.6, 2.8),
            *_row("glass", 16.6, 2.0, 3, 1.7, 1.6, 2.8),
            *_row("dark", 7.8, 7.4, 2, 0.3, 0.5, 3.5), _box("glass", 0.4, 1.8, 1.2, 2.7),
            _box("glass", 22.8, 1.8, 23.6, 2.7),
        ),
        end=(
            _bar("dark", (-0.8, 4.6), (0, 3.5), 0.12), _bar("dark", (0.8, 4.6), (0, 3.5), 0.12),
            _box("dark", -1.0, 4.55, 1.0, 4.7),
            ("plain", ((-1.3, 0.4), (-1.3, 3.2), (-1.15, 3.5), (1.15, 3.5), (1.3, 3.2), (1.3, 0.4))),
            ("glass", ((-1.1, 1.6), (-1.0, 2.8), (1.0, 2.8), (1.1, 1.6))),
            _box("amber", -0.6, 3.0, 0.6, 3.3), _box("dark", -1.3, 0.1, 1.3, 0.5),
            _box("lamp", -1.1, 0.8, -0.75, 1.1), _box("lamp", 0.75, 0.8, 1.1, 1.1),
        ),
        roof=(
            _bar("dark", (5.5, 3.4), (6.5, 4.2), 0.12), _bar("dark", (6.5, 4.2), (5.5, 4.9), 0.12),
            _box("dark", 4.8, 4.85, 6.3, 5.0), _box("dark", 9, 3.5, 12, 3.75),
        ),
    ),
}  # fmt: skip
"""The vehicles by class name."""

PERSON: Sprite = (
    _bar("shaded", (-0.10, 0.95), (-0.24, 0), 0.24), _bar("dark", (0.10, 0.95), (0.26, 0), 0.24),
    ("plain", ((-0.26, 0.85), (-0.34, 1.52), (0.34, 1.52), (0.26, 0.85))),
    _bar("shaded", (-0.36, 1.48), (-0.44, 0.85), 0.16), _bar("shaded", (0.36, 1.48), (0.44, 0.85), 0.16),
    _disc("skin", 0, 1.70, 0.18), _box("tyre", -0.17, 1.76, 0.17, 1.92),
)  # fmt: skip
RIDER: Sprite = (
    _bar("shaded", (-0.30, 1.05), (0.18, 0.85), 0.24), _bar("shaded", (0.18, 0.90), (0.02, 0.32), 0.20),
    ("plain", ((-0.48, 0.92), (-0.12, 1.02), (0.32, 1.58), (-0.12, 1.72))),
    _bar("lit", (0.14, 1.52), (0.55, 1.12), 0.15), _disc("skin", 0.22, 1.84, 0.18),
    ("white", ((0.00, 1.86), (0.06, 2.04), (0.36, 2.04), (0.44, 1.86))),
)  # fmt: skip
BICYCLE: Sprite = (
    _disc("tyre", -0.58, 0.38, 0.40), _disc("tyre", 0.58, 0.38, 0.40),
    _disc("plain", -0.58, 0.38, 0.30), _disc("plain", 0.58, 0.38, 0.30),
    _bar("plain", (-0.58, 0.38), (-0.05, 0.34), 0.12), _bar("plain", (-0.05, 0.34), (0.45, 0.86), 0.12),
    _bar("plain", (-0.28, 0.86), (0.45, 0.86), 0.12), _bar("plain", (-0.05, 0.34), (-0.28, 0.95), 0.12),
    _bar("lit", (0.58, 0.38), (0.42, 1.08), 0.12), _bar("tyre", (-0.48, 0.98), (-0.12, 0.98), 0.12),
    _bar("tyre", (0.34, 1.10), (0.62, 1.04), 0.12),
)  # fmt: skip
MOTORCYCLE: Sprite = (
    *_wheel(-0.72, 0.36), *_wheel(0.78, 0.36), _bar("dark", (0.78, 0.36), (0.50, 1.05), 0.14),
    ("plain", ((-1.0, 0.72), (-0.85, 0.95), (-0.3, 0.82), (0.1, 1.08), (0.5, 1.02), (0.62, 0.6), (0.3, 0.22),
               (-0.35, 0.22), (-0.5, 0.6))),
    _box("dark", -0.3, 0.22, 0.25, 0.45), ("tyre", ((-0.95, 0.92), (-0.9, 1.04), (-0.2, 0.96), (-0.2, 0.84))),
    _disc("lamp", 0.66, 0.95, 0.13), _bar("tyre", (0.36, 1.18), (0.58, 1.10), 0.12),
)  # fmt: skip
TRAFFIC_LIGHT: Sprite = (
    _box("plain", -0.42, -0.95, 0.42, 0.95),
    _disc("red", 0, 0.58, 0.22), _disc("dark", 0, 0, 0.22), _disc("dark", 0, -0.58, 0.22),
)  # fmt: skip
SIGNS: tuple[Sprite, ...] = (
    (_disc("white", 0, 0, 0.62), _disc("plain", 0, 0, 0.54), _box("white", -0.32, -0.10, 0.32, 0.10)),
    (("white", ((-0.70, -0.55), (0.70, -0.55), (0, 0.70))), ("plain", ((-0.54, -0.46), (0.54, -0.46), (0, 0.50)))),
    (_box("white", -0.6, -0.6, 0.6, 0.6), _box("plain", -0.53, -0.53, 0.53, 0.53),
     _bar("white", (-0.2, -0.35), (0.2, 0.35), 0.16)),
    (_box("white", -1.0, -0.42, 1.0, 0.42), _box("plain", -0.93, -0.35, 0.93, 0.35),
     _box("white", -0.7, 0.02, 0.5, 0.16)),
)  # fmt: skip

# ---------------------------------------------------------------- scene, camera, canvas

ROWS = 128  # image height in which texture scales and smallest widths are given
NEAR, FAR = 2.2, 250.0
FRONT, GROUND, FACADE = range(3)
"""How a surface lies: facing the camera, flat on the ground, along the street."""


@dataclass(frozen=True)
class Scene:
    """Geometry of one image, without any colour.

    Attributes:
        label: (H, W) uint8, Cityscapes train ids.
        objects: (H, W) int32 in [0, N), the number of the object that is seen.
        classes: (N,) uint8, train id of every object; ``label`` is ``classes[objects]``.
        finish: (H, W) uint8, position in ``FINISHES``.
        distance: (H, W) float32, metres ahead.
        uv: (2, H, W) float32, where a pixel lies in its surface's texture, in pixels at 128 rows; textures
            narrow towards the vanishing point.
        zoom: (H, W) float32, how large a texture pixel is seen, 1 on what faces the camera.
    """

    label: UInt8
    objects: Int32
    classes: UInt8
    finish: UInt8
    distance: Float
    uv: Float
    zoom: Float


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the street, pixels."""

    width: int
    height: int
    centre: float
    horizon: float
    above_ground: float = 2.0

    @property
    def focal(self) -> float:
        return float(self.height)

    @cached_property
    def scale(self) -> float:
        """Pixels of this image per pixel of an image with 128 rows."""
        return self.height / ROWS

    def project(self, x: float, y: float, z: float) -> Point:
        """(x, y, z) metres to (column, row)."""
        return self.centre + self.focal * x / z, self.horizon + self.focal * (self.above_ground - y) / z

    def first_seen(self, x: float) -> float:
        """The smallest distance at which the lateral position x lies in the image."""
        room = self.centre if x < 0 else self.width - self.centre
        return max(self.focal * abs(x) / room, 5.0)


class _Canvas:
    """Objects and finishes, painted over each other from far to near."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self._objects = Image.new("I", (camera.width, camera.height))
        self._finish = Image.new("L", (camera.width, camera.height))
        self._draw_object = ImageDraw.Draw(self._objects)
        self._draw_finish = ImageDraw.Draw(self._finish)
        self._classes: list[int] = []
        self._surfaces: list[tuple[int, float]] = []

    def begin(self, name: str, at: float, surface: int = FRONT) -> None:
        """Start an object. ``at`` is its distance, or how far aside a facade is; unused on the ground."""
        self._classes.append(CITYSCAPES_CLASSES.index(name))
        self._surfaces.append((surface, at))

    def fill(self, points: Sequence[Point], finish: str = "plain") -> None:
        """Add a polygon (columns, rows) to the object."""
        self._draw_object.polygon(points, fill=len(self._classes) - 1)
        self.mark(points, finish)

    def mark(self, points: Sequence[Point], finish: str) -> None:
        """Change the finish of whatever is there."""
        self._draw_finish.polygon(points, fill=_FINISH_NUMBER[finish])

    def sprite(self, sprite: Iterable[Part], place: Callable[[Point], Point]) -> None:
        """Add a sprite's parts, each corner put at (column, row) by ``place``."""
        for finish, points in sprite:
            self.fill([place(p) for p in points], finish)

    def standing(self, name: str, sprite: Sprite, x: float, z: float, y: float = 0, facing: int = 1) -> None:
        """A whole object that faces the camera; ``facing`` -1 mirrors it."""
        self.begin(name, z)
        self.sprite(sprite, lambda p: self.camera.project(x + facing * p[0], y + p[1], z))

    def scene(self) -> Scene:
        """What was drawn."""
        objects = np.array(self._objects, np.int32)
        classes = np.array(self._classes, np.uint8)
        surfaces = np.array(self._surfaces, np.float32)
        distance, uv, zoom = _measure(self.camera, surfaces[objects, 0], surfaces[objects, 1])
        return Scene(classes[objects], objects, classes, np.array(self._finish), distance, uv, zoom)


def _measure(camera: Camera, surface: Float, at: Float) -> tuple[Float, Float, Float]:
    """Distance (H, W), texture coordinates (2, H, W) and zoom (H, W) of surfaces, each (H, W).

    On the ground and on facades the texture shrinks in proportion to the distance from the vanishing lines
    (in truth its length shrinks with the square): it converges as it should, yet can be seen far away.
    """
    rows, columns = np.mgrid[: camera.height, : camera.width].astype(np.float32)
    rows, columns = (rows - camera.horizon) / camera.scale, (columns - camera.centre) / camera.scale
    below, aside = np.maximum(rows, 0.5), np.maximum(np.abs(columns), 0.5)
    conditions = [surface == GROUND, surface == FACADE]
    focal, unit = camera.focal / camera.scale, np.float32(52)
    z = np.select(conditions, [focal * camera.above_ground / below, focal * at / aside], at)
    u = np.select(conditions, [columns / below * unit, np.log(aside) * unit], columns)
    v = np.select(conditions, [np.log(below) * unit, rows / aside * unit], rows)
    zoom = np.select(conditions, [below / unit, aside / unit], np.float32(1))
    return z.astype(np.float32), np.stack([u, v]).astype(np.float32), zoom.astype(np.float32)


# ---------------------------------------------------------------- drawing

Thing = tuple[float, "Callable[[_Canvas], None]"]
"""Something on the street: its distance, and how it is drawn."""


@dataclass(frozen=True)
class Layout:
    """One side of the street, metres from its middle: where the kerb, the pavement's end, ... are."""

    side: int
    kerb: float
    pavement: float
    boundary: float
    facade: float

    @classmethod
    def drawn(cls, rng: np.random.Generator, side: int) -> Layout:
        kerb = rng.uniform(4.5, 5.2)
        pavement = kerb + rng.uniform(2.2, 3.0)
        boundary = pavement + rng.uniform(1.5, 4.0)
        return cls(side, kerb, pavement, boundary, boundary + rng.uniform(0.5, 3.0))


def draw_scene(rng: np.random.Generator, width: int = 256, height: int = 128) -> Scene:
    """Draw the geometry of a street.

    Args:
        rng: source of randomness; equal states give equal scenes.
        width: of the image, pixels.
        height: of the image, pixels.
    """
    camera = Camera(width, height, width * rng.uniform(0.42, 0.58), height * rng.uniform(0.42, 0.48))
    canvas = _Canvas(camera)
    sides = Layout.drawn(rng, -1), Layout.drawn(rng, 1)
    _draw_sky(canvas, rng)
    _draw_skyline(canvas, rng)
    _draw_ground(canvas, sides, rng)
    for layout in sides:
        _draw_buildings(canvas, layout, rng)
    _draw_boundaries(canvas, sides, rng)
    things = [*_trees(camera, sides, rng), *_vehicles(camera, rng), *_two_wheelers(camera, sides, rng)]
    things += [*_people(camera, sides, rng), *_street_furniture(camera, sides, rng)]
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw(canvas)
    return canvas.scene()


def _draw_sky(canvas: _Canvas, rng: np.random.Generator) -> None:
    camera = canvas.camera
    canvas.begin("sky", FAR)
    w, h = camera.width, camera.height
    canvas.fill([(0, 0), (w, 0), (w, h), (0, h)])
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(0.2, 0.8) * w, rng.uniform(0, 0.25) * h
        for _ in range(4):
            finish, points = _disc("cloud", 0, 0, 1)
            dx, dy, size = (
                rng.uniform(-0.08, 0.08) * w,
                rng.uniform(-0.02, 0.02) * h,
                rng.uniform(0.02, 0.06) * w,
            )
            canvas.mark([(x + dx + size * a, y + dy + 0.4 * size * b) for a, b in points], finish)


def _draw_skyline(canvas: _Canvas, rng: np.random.Generator) -> None:
    """What closes the street far away."""
    x, z = -70.0, 110.0
    while x < 70:
        width, height = rng.uniform(6, 16), rng.uniform(5, 20)
        if rng.random() < 0.4:
            canvas.standing("vegetation", _crown(rng, width / 2, 4), x + width / 2, z, 2)
        else:
            canvas.standing("building", (_box("plain", 0, 0, width, height),), x, z)
        x += width * rng.uniform(0.7, 1.1)


def _draw_ground(canvas: _Canvas, sides: tuple[Layout, Layout], rng: np.random.Generator) -> None:
    """Grass as far as one sees, then the pavements, then the road between them."""
    (left, right), camera = sides, canvas.camera
    for name, x0, x1 in (
        ("terrain", -200.0, 0.0),
        ("terrain", 0.0, 200.0),
        ("sidewalk", -left.pavement, 0.0),
        ("sidewalk", 0.0, right.pavement),
        ("road", -left.kerb, right.kerb),
    ):
        canvas.begin(name, 0, GROUND)
        canvas.fill(_strip(camera, x0, x1))
    for layout in sides:
        kerb = layout.side * layout.kerb
        canvas.mark(_strip(camera, kerb, kerb + layout.side * 0.25), "shaded")
    lane = (right.kerb - left.kerb) / 2 + rng.uniform(-0.4, 0.4)
    for z in np.arange(3 + rng.uniform(0, 3), 60, 6.0):
        canvas.mark(_strip(camera, lane - 0.09, lane + 0.09, z, z + 3), "marking")


def _strip(camera: Camera, x0: float, x1: float, near: float = NEAR, far: float = FAR) -> list[Point]:
    """A piece of the ground."""
    return [camera.project(x, 0, z) for x, z in ((x0, near), (x1, near), (x1, far), (x0, far))]


def _upright(camera: Camera, x: float, near: float, far: float, bottom: float, top: float) -> list[Point]:
    """A piece of a facade: it stands beside the street and recedes."""
    return [camera.project(x, y, z) for y, z in ((bottom, near), (bottom, far), (top, far), (top, near))]


def _draw_buildings(canvas: _Canvas, layout: Layout, rng: np.random.Generator) -> None:
    ends = [100.0]
    while ends[-1] > 9:
        ends.append(ends[-1] * rng.uniform(0.6, 0.82))
    for far, near in pairwise(ends):
        if rng.random() < 0.75:
            _draw_building(canvas, layout, near, far, rng.uniform(5, 13))
        elif rng.random() < 0.6:
            size = rng.uniform(2.0, 3.2)
            x = layout.side * (layout.facade + size)
            canvas.standing("vegetation", _tree(rng, size, 3.0), x, (near + far) / 2)


def _draw_building(canvas: _Canvas, layout: Layout, near: float, far: float, height: float) -> None:
    camera, x = canvas.camera, layout.side * layout.facade
    canvas.begin("building", near)
    outer = x + layout.side * 9
    canvas.fill(
        [camera.project(a, y, near) for a, y in ((x, 0), (outer, 0), (outer, height), (x, height))], "shaded"
    )
    canvas.begin("building", layout.facade, FACADE)
    canvas.fill(_upright(camera, x, near, far, 0, height))
    canvas.fill(_upright(camera, x, near, far, height - 0.35, height), "lit")
    canvas.fill(_upright(camera, x, near, far, 0, 0.5), "dark")


def _draw_boundaries(canvas: _Canvas, sides: tuple[Layout, Layout], rng: np.random.Generator) -> None:
    """Walls on one side, fences on the other, or both on both; in one scene in two a hedge too."""
    kinds = ["wall", "fence"]
    rng.shuffle(kinds)
    for layout, kind in zip(sides, kinds, strict=True):
        near = canvas.camera.first_seen(layout.boundary) * rng.uniform(0.7, 1.0)
        middle = near * rng.uniform(1.6, 2.3)
        other = rng.choice(["wall", "fence", "vegetation"])
        _draw_boundary(canvas, layout, str(other), middle, middle * rng.uniform(1.2, 2.0), rng)
        _draw_boundary(canvas, layout, kind, near, middle, rng)


def _draw_boundary(
    canvas: _Canvas, layout: Layout, name: str, near: float, far: float, rng: np.random.Generator
) -> None:
    camera, x = canvas.camera, layout.side * layout.boundary
    top = {"wall": 2.5, "fence": 2.0, "vegetation": 1.9}[name] * rng.uniform(0.85, 1.15)
    canvas.begin(name, layout.boundary, FACADE)
    canvas.fill(_upright(camera, x, near, far, 0, top))
    if name != "vegetation":
        canvas.fill(_upright(camera, x, near, far, top - 0.16, top), "lit" if name == "wall" else "dark")


def _crown(rng: np.random.Generator, radius: float, height: float) -> Sprite:
    """Leaves: discs round a middle that is ``height`` above the ground."""
    discs = [_disc("plain", 0, height, radius * 0.8)]
    for angle in np.linspace(0, 2 * math.pi, 8):
        x, y = 0.55 * radius * math.cos(angle), height + 0.5 * radius * math.sin(angle)
        finish = "shaded" if y < height else "plain"
        discs.append(_disc(finish, x, y, radius * rng.uniform(0.35, 0.55)))
    discs.append(_disc("lit", -0.2 * radius, height + 0.3 * radius, radius * 0.4))
    return tuple(discs)


def _tree(rng: np.random.Generator, radius: float, trunk: float) -> Sprite:
    return _box("trunk", -0.18, 0, 0.18, trunk), *_crown(rng, radius, trunk + 0.7 * radius)


def _trees(camera: Camera, sides: tuple[Layout, Layout], rng: np.random.Generator) -> list[Thing]:
    things: list[Thing] = []
    for layout in sides:
        for _ in range(rng.integers(0, 3)):
            x = layout.side * rng.uniform(layout.pavement, layout.boundary)
            z = camera.first_seen(x) * rng.uniform(1.0, 2.6)
            sprite = _tree(rng, rng.uniform(1.2, 1.9), rng.uniform(2.0, 2.8))
            things.append((z, partial(_Canvas.standing, name="vegetation", sprite=sprite, x=x, z=z)))
    return things


def _vehicles(camera: Camera, rng: np.random.Generator) -> list[Thing]:
    """Two of the three large kinds, one along the street and one across, and two cars on the other side."""
    large = rng.permutation(["truck", "bus", "train"])
    side = int(rng.choice([-1, 1]))
    places = [(str(large[0]), side * rng.uniform(1.8, 3.2)), ("car", -side * 1.5), ("car", -side * 3.7)]
    things: list[Thing] = []
    for name, x in places:
        z = max(camera.first_seen(x) * 1.2, rng.uniform(6, 11))
        things.append((z, partial(_draw_along, name=name, x=x, z=z)))
    z, x, facing = rng.uniform(14, 20), rng.uniform(-6, 6), int(rng.choice([-1, 1]))
    things.append((z, partial(_draw_across, name=str(large[1]), x=x, z=z, facing=facing)))
    return things


def _draw_along(canvas: _Canvas, name: str, x: float, z: float) -> None:
    """A vehicle that drives along the street: its end, and the side towards the middle of the image."""
    vehicle, camera = VEHICLES[name], canvas.camera
    flank = x - math.copysign(vehicle.width / 2, x)
    _draw_shadow(canvas, x - vehicle.width / 2, x + vehicle.width / 2, z - 0.5, z + vehicle.length)
    canvas.begin(name, z)
    if flank * x > 0:
        canvas.sprite(vehicle.side, lambda p: camera.project(flank, p[1], z + p[0]))
    canvas.sprite(vehicle.end, lambda p: camera.project(x + p[0], p[1], z))


def _draw_across(canvas: _Canvas, name: str, x: float, z: float, facing: int) -> None:
    """A vehicle that crosses the street."""
    vehicle, camera = VEHICLES[name], canvas.camera
    half = vehicle.length / 2
    _draw_shadow(canvas, x - half, x + half, z - 0.8, z + vehicle.width)
    canvas.begin(name, z)
    parts = vehicle.side + vehicle.roof
    canvas.sprite(parts, lambda p: camera.project(x + facing * (p[0] - half), p[1], z))


def _draw_shadow(canvas: _Canvas, x0: float, x1: float, near: float, far: float) -> None:
    canvas.mark(_strip(canvas.camera, x0, x1, near, far), "shadow")


def _two_wheelers(camera: Camera, sides: tuple[Layout, Layout], rng: np.random.Generator) -> list[Thing]:
    """Riders on the road, and what is parked at the kerb."""
    things: list[Thing] = []
    side = int(rng.choice([-1, 1]))
    for name in ("bicycle", "motorcycle"):
        side = -side
        if rng.random() < 0.75:
            x = side * rng.uniform(0.8, 4.0)
            z = max(camera.first_seen(x) * 1.2, rng.uniform(5.5, 9.0))
            things.append((z, partial(_draw_rider, name=name, x=x, z=z, facing=int(rng.choice([-1, 1])))))
        if rng.random() < 0.6:
            layout = sides[int(rng.integers(2))]
            x = layout.side * (layout.kerb + rng.uniform(-0.3, 1.0))
            z = camera.first_seen(x) * rng.uniform(1.1, 1.4)
            sprite = BICYCLE if name == "bicycle" else MOTORCYCLE
            things.append((z, partial(_Canvas.standing, name=name, sprite=sprite, x=x, z=z)))
    return things


def _draw_rider(canvas: _Canvas, name: str, x: float, z: float, facing: int) -> None:
    _draw_shadow(canvas, x - 0.9, x + 0.9, z - 0.3, z + 0.3)
    canvas.standing(name, BICYCLE if name == "bicycle" else MOTORCYCLE, x, z, facing=facing)
    canvas.standing("rider", RIDER, x, z, facing=facing)


def _people(camera: Camera, sides: tuple[Layout, Layout], rng: np.random.Generator) -> list[Thing]:
    """Mostly on the pavements."""
    things: list[Thing] = []
    for _ in range(rng.integers(3, 6)):
        layout = sides[int(rng.integers(2))]
        crossing = rng.random() < 0.15
        x = layout.side * rng.uniform(*((0.5, 4) if crossing else (layout.kerb + 0.4, layout.pavement - 0.3)))
        z = camera.first_seen(x) * rng.uniform(1.1, 1.8)
        facing = int(rng.choice([-1, 1]))
        things.append((z, partial(_Canvas.standing, name="person", sprite=PERSON, x=x, z=z, facing=facing)))
    return things


def _street_furniture(camera: Camera, sides: tuple[Layout, Layout], rng: np.random.Generator) -> list[Thing]:
    """Poles with traffic lights and signs at the kerb."""
    things: list[Thing] = []
    for layout in sides:
        x = layout.side * (layout.kerb + 0.35)
        z = camera.first_seen(x) * rng.uniform(1.25, 1.6)
        for carries in rng.permutation(["traffic light", "traffic sign"])[: rng.integers(1, 3)]:
            sprite = TRAFFIC_LIGHT if carries == "traffic light" else SIGNS[int(rng.integers(len(SIGNS)))]
            y = rng.uniform(3.0, 3.9)
            things.append((z, partial(_draw_pole, x=x, z=z, name=str(carries), sprite=sprite, y=y)))
            z *= rng.uniform(1.2, 1.5)
    return things


def _draw_pole(canvas: _Canvas, x: float, z: float, name: str, sprite: Sprite, y: float) -> None:
    # Never thinner than 3 pixels of an image with 128 rows.
    thickness = max(0.26, 3.2 * z / ROWS)
    canvas.standing("pole", (_box("plain", -thickness / 2, 0, thickness / 2, y + 1.2),), x, z)
    canvas.standing(name, sprite, x, z, y)


# ---------------------------------------------------------------- painting


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
