"""The street world: what a scene holds, and what the two looks share and do not."""

from __future__ import annotations

import colorsys
from dataclasses import astuple
from functools import cache

import numpy as np
import pytest

from endauda_cli.demo.street import SOURCE_LOOK, TARGET_LOOK, Look, Scene, draw_scene, paint, shifted
from endauda_cli.demo.street.looks import MOVES, SHIFT, SOURCE_MATERIALS, TARGET_AIR, TextureKind
from endauda_cli.demo.street.painting import TEXTURES
from endauda_cli.demo.street.sprites import FINISHES
from endauda_cli.domains import CITYSCAPES_CLASSES

SCENES = 24
SIZES = [(64, 32), (256, 128), (384, 192), (200, 150)]


def rng_of(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@cache
def scene_of(seed: int) -> Scene:
    return draw_scene(rng_of(1, seed))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_shapes_types_and_ranges(width: int, height: int) -> None:
    scene = draw_scene(rng_of(3), width, height)
    image = paint(scene, SOURCE_LOOK, rng_of(4))
    assert image.shape == (height, width, 3) and image.dtype == np.uint8
    assert scene.label.shape == scene.objects.shape == scene.finish.shape == (height, width)
    assert scene.label.dtype == np.uint8 and scene.objects.dtype == np.int32
    assert scene.label.max() < len(CITYSCAPES_CLASSES) and scene.finish.max() < len(FINISHES)
    assert np.array_equal(scene.classes[scene.objects], scene.label)
    assert scene.uv.shape == (2, height, width) and np.isfinite(scene.uv).all()
    assert scene.distance.shape == scene.zoom.shape == (height, width)
    assert scene.distance.min() > 0 and scene.zoom.min() > 0


@pytest.mark.parametrize("look", [SOURCE_LOOK, TARGET_LOOK], ids=["source", "target"])
def test_equal_seeds_give_equal_images(look: Look) -> None:
    images = [paint(draw_scene(rng_of(seed)), look, rng_of(6)) for seed in (5, 5, 7)]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_every_class_is_frequent_and_large_enough() -> None:
    counts = np.array([np.bincount(scene_of(i).label.ravel(), minlength=19) for i in range(SCENES)])
    shares = dict(zip(CITYSCAPES_CLASSES, counts.mean(0) / scene_of(0).label.size, strict=True))
    presence = dict(zip(CITYSCAPES_CLASSES, (counts >= 40).mean(0), strict=True))
    assert {name for name, share in shares.items() if share < 0.005} == set()
    assert {name for name, part in presence.items() if part < 0.4} == set()
    assert 0.15 < shares["road"] < 0.45 and 0.10 < shares["building"] < 0.35


def test_a_sky_is_above_and_a_road_below() -> None:
    sky, road = (CITYSCAPES_CLASSES.index(name) for name in ("sky", "road"))
    for i in range(SCENES):
        label = scene_of(i).label
        assert not (label[-8:] == sky).any() and not (label[:40] == road).any()


def test_painting_leaves_the_geometry_alone() -> None:
    scene = draw_scene(rng_of(8))
    before = [array.copy() for array in astuple(scene)]
    paint(scene, SOURCE_LOOK, rng_of(9))
    paint(scene, TARGET_LOOK, rng_of(9))
    assert all(np.array_equal(a, b) for a, b in zip(before, astuple(scene), strict=True))


def test_looks_differ_at_a_glance() -> None:
    for i in range(4):
        source, target = (paint(scene_of(i), look, rng_of(i)) for look in (SOURCE_LOOK, TARGET_LOOK))
        assert np.abs(source.astype(int) - target).mean() > 20


def test_every_class_has_a_material_and_a_move() -> None:
    assert set(SOURCE_MATERIALS) == set(MOVES) == set(SHIFT) == set(CITYSCAPES_CLASSES)
    assert set(SOURCE_LOOK.materials) == set(TARGET_LOOK.materials) == set(range(len(CITYSCAPES_CLASSES)))
    assert {move.towards for move in MOVES.values()} <= set(CITYSCAPES_CLASSES)
    kinds = list(SHIFT.values())
    assert all(6 <= kinds.count(kind) <= 7 for kind in ("colour", "texture", "light"))


@pytest.mark.parametrize("name", CITYSCAPES_CLASSES)
def test_a_class_moves_in_its_own_property_only(name: str) -> None:
    train_id = CITYSCAPES_CLASSES.index(name)
    source, target = (look.materials[train_id] for look in (SOURCE_LOOK, TARGET_LOOK))
    moved = {
        "colour": (source.hue, source.saturation) != (target.hue, target.saturation),
        "light": source.value != target.value,
        "texture": (source.texture, source.contrast) != (target.texture, target.contrast),
    }
    assert [kind for kind, differs in moved.items() if differs] == [SHIFT[name]]


def test_no_strength_is_the_source_and_full_strength_the_target() -> None:
    assert shifted(SOURCE_LOOK, 0) == SOURCE_LOOK
    assert shifted(SOURCE_LOOK, 1) == TARGET_LOOK
    assert TARGET_LOOK.air == TARGET_AIR


def test_strength_is_gradual() -> None:
    looks = [shifted(SOURCE_LOOK, strength) for strength in (0, 0.25, 0.5, 0.75, 1)]
    images = [paint(scene_of(0), look, rng_of(2)).astype(int) for look in looks]
    differences = [np.abs(image - images[0]).mean() for image in images]
    assert differences == sorted(differences)


def test_colours_are_those_of_the_standard_library() -> None:
    """A class without spread, texture and air is its material's HSV colour."""
    scene = scene_of(0)
    for hue in (0.0, 0.1, 0.35, 0.6, 0.95):
        material = SOURCE_MATERIALS["sky"]
        material = type(material)(hue, 0.6, 0.7, (0, 0, 0), "flat", 4, 0)
        air = type(TARGET_AIR)(haze=0, warmth=0, sun=0, vignette=0, noise=0)
        image = paint(scene, Look(dict.fromkeys(range(19), material), air), rng_of(0))
        expected = np.array(colorsys.hsv_to_rgb(hue, 0.6, 0.7)) * 255
        assert np.abs(np.median(image[:8].reshape(-1, 3), axis=0) - expected).max() <= 1


@pytest.mark.parametrize("kind", TEXTURES)
def test_textures_keep_the_mean_brightness(kind: TextureKind) -> None:
    u, v = rng_of(0).uniform(0, 64, (2, 20000)).astype(np.float32)
    noise = rng_of(1).uniform(-1, 1, (64, 64)).astype(np.float32)
    texture = TEXTURES[kind](u, v, noise)
    assert texture.min() >= -1 and texture.max() <= 1
    assert abs(texture.mean()) < 0.05 and texture.std() > 0.3
