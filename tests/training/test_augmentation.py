"""Changes of pixels against torchvision's, sample by sample; batches against their samples; scales against windows."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms.v2 import functional

from endauda_cli import augmentation, checkpoint
from endauda_cli.augmentation import AUGMENTATIONS, augment, drawn
from endauda_cli.domains import IGNORE
from endauda_cli.errors import ConfigError
from endauda_cli.training import data
from endauda_cli.training.data import BEYOND, Rows, batches, crop_at, scale_at
from endauda_cli.training.feeding import Crops
from endauda_cli.transforms import Crop, cut, scaled
from endauda_cli.types import Augmentation
from tests.support.training_runs import CONFIG, TinySet, after, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from endauda_cli.config import TrainConfig

NAMES = tuple(AUGMENTATIONS)
SOMETIMES = {Augmentation.JITTER, Augmentation.BLUR}
"""These leave some images as they are, others not."""


def pictures(count: int = 6, height: int = 37, width: int = 53) -> torch.Tensor:
    """Whole levels; some pixels are grey, black or white."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator).float()
    images[:, :, :4] = images[:, :1, :4]
    images[:, :, 4], images[:, :, 5] = 0, 255
    return images


def numbers(positions: Sequence[int], names: Sequence[str] = NAMES, seed: int = 0) -> torch.Tensor:
    return torch.tensor([drawn(names, seed, position) for position in positions])


def each(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None]


def test_augmentations_are_the_choices_of_the_command_line() -> None:
    assert set(AUGMENTATIONS) == set(Augmentation)
    for name, change in AUGMENTATIONS.items():
        assert {len(drawn([name], 0, position)) for position in range(20)} == {change.numbers}


# ---------------------------------------------------------------------------- purity


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("names", [*([name] for name in NAMES), NAMES, NAMES[::-1]])
def test_sample_comes_out_the_same_alone_and_in_any_batch(
    names: Sequence[str], threads: Callable[[int], None]
) -> None:
    images, rows = pictures(width=701), numbers(range(6), names)
    before = images.clone()
    threads(1)
    whole = augment(images, names, rows)
    assert torch.equal(images, before)
    assert whole.shape == images.shape
    assert 0 <= float(whole.min()) < float(whole.max()) <= 255
    for image, changed in zip(images, whole, strict=True):
        assert set(names) <= SOMETIMES or not torch.equal(image, changed)
    torch.manual_seed(99)  # no global generator counts
    for number in (1, 3):
        threads(number)
        assert torch.equal(augment(images.flip(0), names, rows.flip(0)).flip(0), whole)
        for size in (1, 2, 5):
            parts = zip(images.split(size), rows.split(size), strict=True)  # type: ignore[no-untyped-call]
            assert torch.equal(torch.cat([augment(image, names, row) for image, row in parts]), whole)


def test_what_is_drawn_is_a_pure_function_of_seed_and_position() -> None:
    assert drawn(NAMES, 3, 7) == drawn(NAMES, 3, 7)
    different = {tuple(drawn(NAMES, seed, position)) for seed in range(3) for position in range(9)}
    assert len(different) == 27
    # One change does not depend on what else is done.
    assert drawn(NAMES[:1], 0, 5) + drawn(NAMES[1:], 0, 5) == drawn(NAMES, 0, 5)
    assert drawn([], 0, 5) == []


def test_changes_without_strength_change_nothing() -> None:
    images = pictures()
    zero, one = each([0.0] * 6), each([1.0] * 6)
    assert torch.allclose(augmentation.turn_hue(images, zero), images, atol=1e-4)
    assert torch.equal(augmentation.saturate(images, one), images)
    table = torch.tensor([augmentation.levels(1.0, 1.0)] * 6)
    assert torch.allclose(augmentation.look_up(images, table), images, atol=1e-4)
    assert torch.equal(augmentation.stretch(images, one), images)
    taps = [each([weight] * 6) for weight in augmentation.weights(0.0)]
    assert torch.equal(augmentation.blur(images, taps), images)


def test_nothing_depends_on_values() -> None:
    """So nothing waits for a device: a tensor without values cannot be asked for them."""
    images, rows = pictures(), numbers(range(6))
    with FakeTensorMode() as mode:
        changed = augment(mode.from_tensor(images), NAMES, mode.from_tensor(rows))
    assert (changed.shape, changed.dtype) == (images.shape, torch.float32)


# ---------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("turn", [-0.5, -0.31, 0.07, 0.49])
def test_hue_is_torchvisions(turn: float) -> None:
    images = pictures()
    expected = functional.adjust_hue(images / 255, turn) * 255
    assert torch.allclose(augmentation.turn_hue(images, each([turn] * 6)), expected, atol=0.02)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.8])
def test_saturation_and_contrast_are_torchvisions(factor: float) -> None:
    images, factors = pictures(), each([factor] * 6)
    saturated = functional.adjust_saturation(images / 255, factor) * 255
    assert torch.allclose(augmentation.saturate(images, factors), saturated, atol=1e-3)
    stretched = functional.adjust_contrast(images / 255, factor) * 255
    assert torch.allclose(augmentation.stretch(images, factors), stretched, atol=1e-2)


@pytest.mark.parametrize(("gamma", "brightness"), [(0.5, 1.0), (2.0, 1.0), (1.0, 1.4), (1.3, 0.5)])
def test_gamma_and_brightness_are_torchvisions(gamma: float, brightness: float) -> None:
    images, table = pictures(), torch.tensor([augmentation.levels(gamma, brightness)] * 6)
    expected = functional.adjust_brightness(functional.adjust_gamma(images / 255, gamma), brightness) * 255
    assert torch.allclose(augmentation.look_up(images, table), expected, atol=1e-3)
    assert torch.equal(augmentation.look_up(images + 0.4, table), augmentation.look_up(images, table))


def test_each_sample_is_blurred_as_torchvision_does() -> None:
    images, sigmas = pictures(), (0.0, 0.5, 0.9, 1.4, 2.0, 2.5)
    rows = [augmentation.weights(sigma) for sigma in sigmas]
    blurred = augmentation.blur(images, [each(column) for column in zip(*rows, strict=True)])
    assert torch.equal(blurred[0], images[0])
    for i, sigma in enumerate(sigmas[1:], 1):
        expected = functional.gaussian_blur(images[i], [7, 7], [sigma])
        assert torch.allclose(blurred[i], expected, atol=1e-3)


def test_grain_is_normal_noise() -> None:
    like = torch.zeros(4, 3, 201, 301)  # an odd number of values
    noise = augmentation.grain(each([0.0, 1.0, 2.0, 2.0**24 - 1]), like)
    count = noise[0].numel()
    assert noise.shape == like.shape
    for sample in noise:
        assert abs(float(sample.mean())) < 4 / math.sqrt(count)
        assert abs(float(sample.std()) - 1) < 0.01
        assert abs(float((sample**3).mean())) < 0.03
        assert abs(float((sample**4).mean()) - 3) < 0.08
        for shift in (
            (0, 1),
            (1, 0),
            (1, 1),
            (0, 2),
        ):  # no pattern: neighbours and channels have nothing in common
            assert abs(float((sample * sample.roll(shift, (1, 2))).mean())) < 5 / math.sqrt(count)
        assert abs(float((sample[0] * sample[1]).mean())) < 5 / math.sqrt(count / 3)
        one, other = sample.flatten()[: count // 2], sample.flatten()[(count + 1) // 2 :]  # share a hash
        assert abs(float((one * other).mean())) < 5 / math.sqrt(count / 2)
    correlations = torch.corrcoef(noise.flatten(1)) - torch.eye(4)
    assert float(correlations.abs().max()) < 5 / math.sqrt(count)


def test_texture_leaves_some_images_sharp_and_some_without_grain() -> None:
    rows = numbers(range(400), [Augmentation.TEXTURE])
    sharp, clean = rows[:, 0] == 1, rows[:, augmentation.REACH + 1] == 0
    assert 0.12 < float(sharp.float().mean()) < 0.28
    assert 0.12 < float(clean.float().mean()) < 0.28
    assert bool((rows[:, : augmentation.REACH + 1] >= 0).all())


# ---------------------------------------------------------------------------- batches


def rows_of(count: int = 5) -> Rows:
    """Blocks of 4x4 pixels of two classes, each in its colour."""
    generator = np.random.default_rng(0)
    labels = 3 * generator.integers(0, 2, (count, 8, 16)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    images = (labels[..., None] * 60 + np.array([0, 20, 40])).astype(np.uint8)
    return Rows(images, labels)


def test_ranks_draw_what_one_process_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(CONFIG, batch_size=4, steps=3, scale_jitter=(0.5, 2.0))

    def shown(world: int) -> list[Crops]:
        parts: list[list[Crops]] = []
        monkeypatch.setattr(data, "world_size", lambda: world)
        for rank in range(world):
            monkeypatch.setattr(data, "rank", lambda rank=rank: rank)
            with ThreadPoolExecutor(2) as pool:
                parts.append([batch["main"] for _, batch, _ in batches(config, {"main": rows_of()}, 0, pool)])
        return [
            Crops(*(torch.cat([crops[place] for crops in step]) for place in range(3)))
            for step in zip(*parts, strict=True)
        ]

    alone = shown(1)
    assert alone[0].changes.shape == (4, sum(AUGMENTATIONS[name].numbers for name in CONFIG.augment))
    for world in (2, 4):
        for one, other in zip(shown(world), alone, strict=True):
            assert all(map(torch.equal, one[:3], other[:3]))


# ---------------------------------------------------------------------------- scales


def test_scales_are_drawn_evenly_between_their_bounds() -> None:
    config = dataclasses.replace(CONFIG, scale_jitter=(0.5, 2.0))
    scales = [scale_at(config, position) for position in range(600)]
    assert 0.5 <= min(scales) < 0.52
    assert 1.95 < max(scales) <= 2
    assert 0.45 < np.mean(np.array(scales) < 1) < 0.55
    assert scales == [scale_at(config, position) for position in range(600)]
    assert scale_at(CONFIG, 0) == 1


def test_scale_of_one_is_no_scale() -> None:
    config = dataclasses.replace(CONFIG, scale_jitter=(1.0, 1.0))
    for position in range(10):
        plain = crop_at(CONFIG, rows_of(), position)
        assert all(map(torch.equal, crop_at(config, rows_of(), position)[:3], plain[:3]))


def test_pixels_and_labels_of_other_scales_lie_on_each_other() -> None:
    """Each pixel is nearer to its own class's colour than to the other's, to half a pixel; classes are not mixed."""
    config = dataclasses.replace(CONFIG, scale_jitter=(0.25, 4.0))
    seen_beyond = seen_large = 0
    for position in range(40):
        pixels, labels, *_ = crop_at(config, rows_of(), position)
        assert pixels.shape == (16, 32, 3)
        assert pixels.dtype == labels.dtype == torch.uint8
        assert set(labels.flatten().tolist()) <= {0, 3, IGNORE}
        beyond = labels == IGNORE
        expected = labels[..., None] * 60 + torch.tensor([0, 20, 40])
        expected[beyond] = torch.tensor(BEYOND)
        near = (pixels.int() - expected.int()).abs().amax(2) < 90
        if scale_at(config, position) > 1:
            assert not beyond.any()
            assert near.float().mean() > 0.95
            seen_large += 1
        elif scale_at(config, position) < 0.4:
            assert beyond.any()  # the window is larger than the image
            seen_beyond += 1
    assert min(seen_large, seen_beyond) > 3


def test_windows_reach_beyond_images() -> None:
    array = np.arange(1, 7, dtype=np.uint8).reshape(2, 3)
    window = cut(array, Crop(-1, -2, False), (4, 5), [9])
    assert window.tolist() == [[9] * 5, [9, 9, 1, 2, 3], [9, 9, 4, 5, 6], [9] * 5]
    assert cut(array, Crop(0, -1, True), (1, 4), [9]).tolist() == [[3, 2, 1, 9]]
    coloured = cut(array[..., None].repeat(3, 2), Crop(0, 0, False), (3, 3), [7, 8, 9])
    assert coloured[2].tolist() == [[7, 8, 9]] * 3


def test_shrunk_pictures_are_means_and_labels_are_not() -> None:
    stripes = np.tile(np.array([0, 200], np.uint8), (32, 32))
    smooth = scaled(stripes[..., None].repeat(3, 2), (8, 16), smooth=True)
    assert smooth.shape == (8, 16, 3)
    assert 95 <= int(smooth[:, 2:-2].min()) <= int(smooth[:, 2:-2].max()) <= 105
    assert set(scaled(stripes, (8, 16), smooth=False).flatten().tolist()) <= {0, 200}
    same = scaled(stripes, (32, 64), smooth=True)
    stripes[0, 0] = 1
    assert int(same[0, 0]) == 0, "a copy: rows are shared"


# ---------------------------------------------------------------------------- runs


def test_run_with_all_changes_goes_on_as_if_it_had_not_stopped(tiny_set: TinySet, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"augment": NAMES, "scale_jitter": (0.5, 2.0)}

    def stop() -> None:
        raise KeyboardInterrupt

    run(tiny_set, tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_set, tmp_path / "stopped", after(11, stop), workers=3, **changes)
    assert run(tiny_set, tmp_path / "stopped", resume=True, workers=2, **changes).resumed_from == 8
    one, other = (checkpoint.load(tmp_path / name / "last.pt") for name in ("stopped", "whole"))
    assert one["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in one["weights"])


# ---------------------------------------------------------------------------- as R-MRNet's project draws


def test_still_images_are_cut_and_nothing_else() -> None:
    plain = dataclasses.replace(CONFIG, mirror=False, augment=())
    wild = dataclasses.replace(plain, mirror=True, scale_jitter=(0.8, 1.2), crop_tries=10)
    for position in range(20):
        shown = [crop_at(config, rows_of()._replace(still=True), position)[:2] for config in (plain, wild)]
        assert all(map(torch.equal, shown[0], shown[1]))
    assert any(
        not torch.equal(crop_at(wild, rows_of(), position)[0], crop_at(plain, rows_of(), position)[0])
        for position in range(20)
    )


def test_a_crop_of_many_classes_is_looked_for() -> None:
    """Eleven kinds of label, none among them, lie at a corner; the first crop that has them is taken."""
    labels = np.zeros((1, 32, 64), np.uint8)
    labels[0, :2, :11] = [*range(10), IGNORE]
    rows = Rows(np.zeros((1, 32, 64, 3), np.uint8), labels)
    size = dataclasses.replace(CONFIG, crop=(62, 30), mirror=False, augment=())

    def kinds(config: TrainConfig, labels: Any = labels) -> list[int]:
        given = rows._replace(labels=labels)
        return [len(crop_at(config, given, position).labels.unique()) for position in range(60)]  # type: ignore[no-untyped-call]

    once, often = kinds(size), kinds(dataclasses.replace(size, crop_tries=10))
    assert 15 < once.count(11) < 40 < 58 <= often.count(11)
    assert all(found == 11 for found, first in zip(often, once, strict=True) if first == 11)
    few = np.where(labels == IGNORE, 0, labels).astype(np.uint8)  # ten kinds are never enough
    assert set(kinds(dataclasses.replace(size, crop_tries=10), few)) <= set(range(1, 11))
    for tries in (0, 1001):
        with pytest.raises(ConfigError, match=f"--crop-tries {tries}: must be from 1 to 1000"):
            dataclasses.replace(size, crop_tries=tries)
