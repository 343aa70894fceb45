"""Geometry of a street scene: camera, canvas, and everything that is drawn on it from far to near."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from endauda_cli.demo.street.sprites import (
    BICYCLE,
    FINISH_NUMBER,
    MOTORCYCLE,
    PERSON,
    RIDER,
    SIGNS,
    TRAFFIC_LIGHT,
    VEHICLES,
    Part,
    Point,
    Sprite,
    box,
    disc,
)
from endauda_cli.domains import CITYSCAPES_CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Float = NDArray[np.float32]
    Int32 = NDArray[np.int32]
    UInt8 = NDArray[np.uint8]


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


class Canvas:
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
        self._draw_finish.polygon(points, fill=FINISH_NUMBER[finish])

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

Thing = tuple[float, "Callable[[Canvas], None]"]
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
    canvas = Canvas(camera)
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


def _draw_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    camera = canvas.camera
    canvas.begin("sky", FAR)
    w, h = camera.width, camera.height
    canvas.fill([(0, 0), (w, 0), (w, h), (0, h)])
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(0.2, 0.8) * w, rng.uniform(0, 0.25) * h
        for _ in range(4):
            finish, points = disc("cloud", 0, 0, 1)
            dx, dy, size = (
                rng.uniform(-0.08, 0.08) * w,
                rng.uniform(-0.02, 0.02) * h,
                rng.uniform(0.02, 0.06) * w,
            )
            canvas.mark([(x + dx + size * a, y + dy + 0.4 * size * b) for a, b in points], finish)


def _draw_skyline(canvas: Canvas, rng: np.random.Generator) -> None:
    """What closes the street far away."""
    x, z = -70.0, 110.0
    while x < 70:
        width, height = rng.uniform(6, 16), rng.uniform(5, 20)
        if rng.random() < 0.4:
            canvas.standing("vegetation", _crown(rng, width / 2, 4), x + width / 2, z, 2)
        else:
            canvas.standing("building", (box("plain", 0, 0, width, height),), x, z)
        x += width * rng.uniform(0.7, 1.1)


def _draw_ground(canvas: Canvas, sides: tuple[Layout, Layout], rng: np.random.Generator) -> None:
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


def _draw_buildings(canvas: Canvas, layout: Layout, rng: np.random.Generator) -> None:
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


def _draw_building(canvas: Canvas, layout: Layout, near: float, far: float, height: float) -> None:
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


def _draw_boundaries(canvas: Canvas, sides: tuple[Layout, Layout], rng: np.random.Generator) -> None:
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
    canvas: Canvas, layout: Layout, name: str, near: float, far: float, rng: np.random.Generator
) -> None:
    camera, x = canvas.camera, layout.side * layout.boundary
    top = {"wall": 2.5, "fence": 2.0, "vegetation": 1.9}[name] * rng.uniform(0.85, 1.15)
    canvas.begin(name, layout.boundary, FACADE)
    canvas.fill(_upright(camera, x, near, far, 0, top))
    if name != "vegetation":
        canvas.fill(_upright(camera, x, near, far, top - 0.16, top), "lit" if name == "wall" else "dark")


def _crown(rng: np.random.Generator, radius: float, height: float) -> Sprite:
    """Leaves: discs round a middle that is ``height`` above the ground."""
    discs = [disc("plain", 0, height, radius * 0.8)]
    for angle in np.linspace(0, 2 * math.pi, 8):
        x, y = 0.55 * radius * math.cos(angle), height + 0.5 * radius * math.sin(angle)
        finish = "shaded" if y < height else "plain"
        discs.append(disc(finish, x, y, radius * rng.uniform(0.35, 0.55)))
    discs.append(disc("lit", -0.2 * radius, height + 0.3 * radius, radius * 0.4))
    return tuple(discs)


def _tree(rng: np.random.Generator, radius: float, trunk: float) -> Sprite:
    return box("trunk", -0.18, 0, 0.18, trunk), *_crown(rng, radius, trunk + 0.7 * radius)


def _trees(camera: Camera, sides: tuple[Layout, Layout], rng: np.random.Generator) -> list[Thing]:
    things: list[Thing] = []
    for layout in sides:
        for _ in range(rng.integers(0, 3)):
            x = layout.side * rng.uniform(layout.pavement, layout.boundary)
            z = camera.first_seen(x) * rng.uniform(1.0, 2.6)
            sprite = _tree(rng, rng.uniform(1.2, 1.9), rng.uniform(2.0, 2.8))
            things.append((z, partial(Canvas.standing, name="vegetation", sprite=sprite, x=x, z=z)))
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


def _draw_along(canvas: Canvas, name: str, x: float, z: float) -> None:
    """A vehicle that drives along the street: its end, and the side towards the middle of the image."""
    vehicle, camera = VEHICLES[name], canvas.camera
    flank = x - math.copysign(vehicle.width / 2, x)
    _draw_shadow(canvas, x - vehicle.width / 2, x + vehicle.width / 2, z - 0.5, z + vehicle.length)
    canvas.begin(name, z)
    if flank * x > 0:
        canvas.sprite(vehicle.side, lambda p: camera.project(flank, p[1], z + p[0]))
    canvas.sprite(vehicle.end, lambda p: camera.project(x + p[0], p[1], z))


def _draw_across(canvas: Canvas, name: str, x: float, z: float, facing: int) -> None:
    """A vehicle that crosses the street."""
    vehicle, camera = VEHICLES[name], canvas.camera
    half = vehicle.length / 2
    _draw_shadow(canvas, x - half, x + half, z - 0.8, z + vehicle.width)
    canvas.begin(name, z)
    parts = vehicle.side + vehicle.roof
    canvas.sprite(parts, lambda p: camera.project(x + facing * (p[0] - half), p[1], z))


def _draw_shadow(canvas: Canvas, x0: float, x1: float, near: float, far: float) -> None:
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
            things.append((z, partial(Canvas.standing, name=name, sprite=sprite, x=x, z=z)))
    return things


def _draw_rider(canvas: Canvas, name: str, x: float, z: float, facing: int) -> None:
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
        things.append((z, partial(Canvas.standing, name="person", sprite=PERSON, x=x, z=z, facing=facing)))
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


def _draw_pole(canvas: Canvas, x: float, z: float, name: str, sprite: Sprite, y: float) -> None:
    # Never thinner than 3 pixels of an image with 128 rows.
    thickness = max(0.26, 3.2 * z / ROWS)
    canvas.standing("pole", (box("plain", -thickness / 2, 0, thickness / 2, y + 1.2),), x, z)
    canvas.standing(name, sprite, x, z, y)
