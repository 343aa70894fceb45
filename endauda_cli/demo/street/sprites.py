"""Objects of the street as flat shapes, in metres, each part with a finish."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Float = NDArray[np.float32]
    Int32 = NDArray[np.int32]
    UInt8 = NDArray[np.uint8]

Point = tuple[float, float]


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
FINISH_NUMBER = {name: i for i, name in enumerate(FINISHES)}

# ---------------------------------------------------------------- sprites: shapes in metres

Part = tuple[str, tuple[Point, ...]]
"""A finish and a polygon."""
Sprite = tuple[Part, ...]


def box(finish: str, left: float, bottom: float, right: float, top: float) -> Part:
    return finish, ((left, bottom), (right, bottom), (right, top), (left, top))


def disc(finish: str, x: float, y: float, radius: float, corners: int = 14) -> Part:
    angles = [2 * math.pi * (i + 0.5) / corners for i in range(corners)]
    return finish, tuple((x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles)


def _bar(finish: str, a: Point, b: Point, thickness: float) -> Part:
    length = math.dist(a, b)
    x, y = (a[1] - b[1]) / length * thickness / 2, (b[0] - a[0]) / length * thickness / 2
    return finish, ((a[0] + x, a[1] + y), (b[0] + x, b[1] + y), (b[0] - x, b[1] - y), (a[0] - x, a[1] - y))


def _wheel(x: float, radius: float) -> Sprite:
    return disc("tyre", x, radius, radius), disc("lit", x, radius, radius * 0.45)


def _row(
    finish: str, first: float, step: float, count: int, bottom: float, width: float, top: float
) -> Sprite:
    """Boxes side by side, such as the windows of a bus."""
    return tuple(box(finish, first + i * step, bottom, first + i * step + width, top) for i in range(count))


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
            box("red", 0, 0.75, 0.2, 0.95), box("lamp", 4.05, 0.65, 4.25, 0.82),
            *_wheel(0.9, 0.36), *_wheel(3.4, 0.36),
        ),
        end=(
            ("plain", ((-0.95, 0.3), (-0.95, 1.05), (-0.75, 1.65), (0.75, 1.65), (0.95, 1.05), (0.95, 0.3))),
            ("glass", ((-0.78, 1.1), (-0.64, 1.52), (0.64, 1.52), (0.78, 1.1))),
            box("shaded", -0.95, 0.3, 0.95, 0.55), box("white", -0.25, 0.6, 0.25, 0.75),
            box("red", -0.92, 0.75, -0.6, 0.97), box("red", 0.6, 0.75, 0.92, 0.97),
            box("tyre", -0.9, 0, -0.6, 0.32), box("tyre", 0.6, 0, 0.9, 0.32),
        ),
    ),
    "bus": Vehicle(
        11.0, 2.5,
        side=(
            box("plain", 0, 0.4, 11, 3.2), box("lit", 0, 3.0, 11, 3.2), box("shaded", 0, 0.4, 11, 0.8),
            *_row("glass", 0.4, 1.55, 7, 1.6, 1.3, 2.7),
            box("glass", 9.6, 0.6, 10.5, 2.7), box("glass", 5.05, 0.6, 5.9, 1.7),
            *_wheel(2.4, 0.5), *_wheel(8.6, 0.5),
        ),
        end=(
            box("plain", -1.25, 0.4, 1.25, 3.2), box("glass", -1.05, 1.6, 1.05, 2.65),
            box("dark", -0.8, 2.8, 0.8, 3.1), box("shaded", -1.25, 0.4, 1.25, 0.75),
            box("red", -1.2, 0.8, -0.85, 1.15), box("red", 0.85, 0.8, 1.2, 1.15),
            box("tyre", -1.15, 0, -0.75, 0.42), box("tyre", 0.75, 0, 1.15, 0.42),
        ),
    ),
    "truck": Vehicle(
        8.2, 2.5,
        side=(
            box("dark", 0, 0.55, 8, 0.95), box("plain", 0, 0.95, 5.8, 3.5),
            ("plain", ((6.1, 0.55), (6.1, 2.9), (7.4, 2.9), (8.1, 1.7), (8.2, 0.55))),
            ("glass", ((6.7, 1.75), (6.7, 2.6), (7.3, 2.6), (7.8, 1.75))),
            box("lamp", 7.95, 0.75, 8.2, 1.0),
            *_wheel(1.0, 0.5), *_wheel(2.2, 0.5), *_wheel(7.0, 0.5),
        ),
        end=(
            box("dark", -1.2, 0.5, 1.2, 0.95), box("plain", -1.25, 0.95, 1.25, 3.5),
            box("shaded", -0.05, 0.95, 0.05, 3.5), *_row("dark", -0.3, 0.5, 2, 1.4, 0.1, 2.6),
            box("red", -1.2, 0.6, -0.8, 0.9), box("red", 0.8, 0.6, 1.2, 0.9),
            box("tyre", -1.15, 0, -0.65, 0.55), box("tyre", 0.65, 0, 1.15, 0.55),
        ),
    ),
    "train": Vehicle(
        24.0, 2.6,
        side=(
            ("plain", ((0, 0.4), (0, 2.8), (0.3, 3.5), (23.7, 3.5), (24, 2.8), (24, 0.4))),
            box("dark", 0, 0.1, 24, 0.5),
            *_row("glass", 1.8, 2.0, 3, 1.7, 1.6, 2.8), *_row("glass", 9.2, 2.0, 3, 1.7, 1.6, 2.8),
            *_row("glass", 16.6, 2.0, 3, 1.7, 1.6, 2.8),
            *_row("dark", 7.8, 7.4, 2, 0.3, 0.5, 3.5), box("glass", 0.4, 1.8, 1.2, 2.7),
            box("glass", 22.8, 1.8, 23.6, 2.7),
        ),
        end=(
            _bar("dark", (-0.8, 4.6), (0, 3.5), 0.12), _bar("dark", (0.8, 4.6), (0, 3.5), 0.12),
            box("dark", -1.0, 4.55, 1.0, 4.7),
            ("plain", ((-1.3, 0.4), (-1.3, 3.2), (-1.15, 3.5), (1.15, 3.5), (1.3, 3.2), (1.3, 0.4))),
            ("glass", ((-1.1, 1.6), (-1.0, 2.8), (1.0, 2.8), (1.1, 1.6))),
            box("amber", -0.6, 3.0, 0.6, 3.3), box("dark", -1.3, 0.1, 1.3, 0.5),
            box("lamp", -1.1, 0.8, -0.75, 1.1), box("lamp", 0.75, 0.8, 1.1, 1.1),
        ),
        roof=(
            _bar("dark", (5.5, 3.4), (6.5, 4.2), 0.12), _bar("dark", (6.5, 4.2), (5.5, 4.9), 0.12),
            box("dark", 4.8, 4.85, 6.3, 5.0), box("dark", 9, 3.5, 12, 3.75),
        ),
    ),
}  # fmt: skip
"""The vehicles by class name."""

PERSON: Sprite = (
    _bar("shaded", (-0.10, 0.95), (-0.24, 0), 0.24), _bar("dark", (0.10, 0.95), (0.26, 0), 0.24),
    ("plain", ((-0.26, 0.85), (-0.34, 1.52), (0.34, 1.52), (0.26, 0.85))),
    _bar("shaded", (-0.36, 1.48), (-0.44, 0.85), 0.16), _bar("shaded", (0.36, 1.48), (0.44, 0.85), 0.16),
    disc("skin", 0, 1.70, 0.18), box("tyre", -0.17, 1.76, 0.17, 1.92),
)  # fmt: skip
RIDER: Sprite = (
    _bar("shaded", (-0.30, 1.05), (0.18, 0.85), 0.24), _bar("shaded", (0.18, 0.90), (0.02, 0.32), 0.20),
    ("plain", ((-0.48, 0.92), (-0.12, 1.02), (0.32, 1.58), (-0.12, 1.72))),
    _bar("lit", (0.14, 1.52), (0.55, 1.12), 0.15), disc("skin", 0.22, 1.84, 0.18),
    ("white", ((0.00, 1.86), (0.06, 2.04), (0.36, 2.04), (0.44, 1.86))),
)  # fmt: skip
BICYCLE: Sprite = (
    disc("tyre", -0.58, 0.38, 0.40), disc("tyre", 0.58, 0.38, 0.40),
    disc("plain", -0.58, 0.38, 0.30), disc("plain", 0.58, 0.38, 0.30),
    _bar("plain", (-0.58, 0.38), (-0.05, 0.34), 0.12), _bar("plain", (-0.05, 0.34), (0.45, 0.86), 0.12),
    _bar("plain", (-0.28, 0.86), (0.45, 0.86), 0.12), _bar("plain", (-0.05, 0.34), (-0.28, 0.95), 0.12),
    _bar("lit", (0.58, 0.38), (0.42, 1.08), 0.12), _bar("tyre", (-0.48, 0.98), (-0.12, 0.98), 0.12),
    _bar("tyre", (0.34, 1.10), (0.62, 1.04), 0.12),
)  # fmt: skip
MOTORCYCLE: Sprite = (
    *_wheel(-0.72, 0.36), *_wheel(0.78, 0.36), _bar("dark", (0.78, 0.36), (0.50, 1.05), 0.14),
    ("plain", ((-1.0, 0.72), (-0.85, 0.95), (-0.3, 0.82), (0.1, 1.08), (0.5, 1.02), (0.62, 0.6), (0.3, 0.22),
               (-0.35, 0.22), (-0.5, 0.6))),
    box("dark", -0.3, 0.22, 0.25, 0.45), ("tyre", ((-0.95, 0.92), (-0.9, 1.04), (-0.2, 0.96), (-0.2, 0.84))),
    disc("lamp", 0.66, 0.95, 0.13), _bar("tyre", (0.36, 1.18), (0.58, 1.10), 0.12),
)  # fmt: skip
TRAFFIC_LIGHT: Sprite = (
    box("plain", -0.42, -0.95, 0.42, 0.95),
    disc("red", 0, 0.58, 0.22), disc("dark", 0, 0, 0.22), disc("dark", 0, -0.58, 0.22),
)  # fmt: skip
SIGNS: tuple[Sprite, ...] = (
    (disc("white", 0, 0, 0.62), disc("plain", 0, 0, 0.54), box("white", -0.32, -0.10, 0.32, 0.10)),
    (("white", ((-0.70, -0.55), (0.70, -0.55), (0, 0.70))), ("plain", ((-0.54, -0.46), (0.54, -0.46), (0, 0.50)))),
    (box("white", -0.6, -0.6, 0.6, 0.6), box("plain", -0.53, -0.53, 0.53, 0.53),
     _bar("white", (-0.2, -0.35), (0.2, 0.35), 0.16)),
    (box("white", -1.0, -0.42, 1.0, 0.42), box("plain", -0.93, -0.35, 0.93, 0.35),
     box("white", -0.7, 0.02, 0.5, 0.16)),
)  # fmt: skip
