"""Passes, averaging, upsampling, class maps and quantisation, against plain torch on whole images."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from endauda_cli import segmenter as kernel
from endauda_cli.errors import ConfigError
from endauda_cli.segmenter import (
    ClassMap,
    Procedure,
    Segmenter,
    certainty_maps,
    label_map,
    log_probabilities,
    run_passes,
)
from endauda_cli.transforms import Preprocessing
from tests.support.networks import Net, large

PLAIN = Preprocessing(size=None, bgr=False, divisor=255, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class PixelNet(nn.Module):
    """Says of a pixel what its own colour says: the same in tiles as in one piece."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images, images.flip(1) ** 2], 1) * 4


def pixels(height: int = 40, width: int = 56, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (batch, 3, height // 4, width // 4), generator=generator).float()
    return F.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1).to(torch.uint8)


def off_by_one(found: Tensor, expected: Tensor) -> float:
    """Share of bytes that differ; none may by more than one."""
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1
    return (difference > 0).float().mean().item()


# ---------------------------------------------------------------------------- procedures, naively


def naive(net: nn.Module, procedure: Procedure, image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) probabilities, each step on whole images; scales are made of the input."""
    x = PLAIN.normalise(image)
    logits, probabilities = [], []
    for scale in procedure.scales:
        scaled = x if scale == 1 else large(x, [round(s * scale) for s in x.shape[-2:]])
        for flip in (False, True)[: 1 + procedure.flip]:
            output = net(scaled.flip(-1) if flip else scaled)
            heads = [output] if isinstance(output, Tensor) else output
            y = sum(w * head for w, head in zip(procedure.heads, heads, strict=True))
            assert isinstance(y, Tensor)
            y = y.flip(-1) if flip else y
            logits.append(large(y, size, procedure.align_corners)[0])
            before = large(y.softmax(1), size, procedure.align_corners)[0]
            probabilities.append(before if procedure.softmax == "first" else logits[-1].softmax(0))
    if procedure.softmax == "last":
        return torch.stack(logits).mean(0).softmax(0)
    return torch.stack(probabilities).mean(0)


@pytest.mark.parametrize("softmax", ["first", "upsampled", "last"])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("scales", "flip", "heads"), [((1.0,), False, (1.0,)), ((0.75, 1.0, 1.5), True, (0.5, 1.0))]
)
def test_procedures(
    softmax: Any, align_corners: bool, scales: tuple[float, ...], flip: bool, heads: tuple[float, ...]
) -> None:
    procedure = Procedure(scales, flip, "input", softmax, heads, align_corners)
    net = Net(heads=len(heads)).eval()
    segmenter, image, size = Segmenter(net, PLAIN, procedure), pixels(), (83, 117)
    with torch.inference_mode():
        passes = [output[0] for output in run_passes(segmenter, [image])]
        labels, certainty = certainty_maps(segmenter, passes, size)
        expected = naive(net, procedure, image, size)
        (only_labels,) = label_map(segmenter, passes, size)
    assert len(passes) == len(scales) * (1 + flip) == len(procedure.passes)
    assert off_by_one(certainty, (expected * 100).to(torch.uint8)) < 1e-3
    assert (labels == expected.argmax(0)).float().mean() > 0.999
    assert torch.equal(labels, only_labels)
    assert labels.max() > labels.min()


def test_scales_of_pixels_come_as_inputs_of_their_own() -> None:
    net = Net().eval()
    segmenter = Segmenter(net, PLAIN, Procedure(scales=(1.0, 0.5), softmax="first"))
    with torch.inference_mode():
        first, second = run_passes(segmenter, [pixels(40, 56), pixels(20, 28)])
        for found, image in ((first, pixels(40, 56)), (second, pixels(20, 28))):
            torch.testing.assert_close(found, net(PLAIN.normalise(image)).softmax(1))


def test_given_probabilities_are_taken_as_they_are() -> None:
    probabilities = torch.tensor([0.25, 0.75])[:, None, None].expand(2, 3, 4)
    segmenter = Segmenter(nn.Identity(), PLAIN, Procedure(softmax="none"))
    labels, certainty = certainty_maps(segmenter, [probabilities], (6, 8))
    assert (labels == 1).all()
    assert certainty[:, 0, 0].tolist() == [25, 75]


def test_bands_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = Segmenter(nn.Identity(), PLAIN)
    logits = 6 * torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(3))
    whole = certainty_maps(segmenter, [logits], (61, 43))
    for rows in (1, 7):
        monkeypatch.setitem(kernel._BAND_BYTES, "cpu", rows * 5 * 43 * 4)
        for found, expected in zip(certainty_maps(segmenter, [logits], (61, 43)), whole, strict=True):
            assert torch.equal(found, expected)


def test_nothing_is_resized_that_fits() -> None:
    logits = torch.randn(5, 12, 16)
    _, certainty = certainty_maps(Segmenter(nn.Identity(), PLAIN), [logits], (12, 16))
    assert off_by_one(certainty, (logits.softmax(0) * 100).to(torch.uint8)) < 1e-2


def test_enlarging_as_pillow_does() -> None:
    """The original CBST: each probability plane by Pillow's bicubic filter, padding cut off."""
    import numpy as np
    from PIL import Image

    padded = replace(PLAIN, multiple_of=8)
    segmenter = Segmenter(Net().eval(), padded, Procedure(softmax="first", enlarge="bicubic"))
    image = pixels(36, 52)
    with torch.inference_mode():
        (found,) = run_passes(segmenter, [image])
        low = segmenter.network(F.pad(PLAIN.normalise(image), (0, 4, 0, 4))).softmax(1)[0]
    planes = [
        np.asarray(Image.fromarray(plane.numpy()).resize((56, 40), Image.Resampling.BICUBIC)) for plane in low
    ]
    expected = torch.from_numpy(np.stack(planes))[:, :36, :52]
    assert found.shape == (1, 5, 36, 52)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("tile", [(16, 24), (40, 24), (33, 56), (64, 64)])
def test_tiles_of_a_pixelwise_network_are_the_whole(tile: tuple[int, int]) -> None:
    segmenter = Segmenter(PixelNet(), PLAIN)
    (whole,), (tiled,) = (run_passes(segmenter, [pixels()], t) for t in (None, tile))
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)


def test_tiles_overlap_and_reach_the_border() -> None:
    for length, window in ((100, 30), (31, 30), (30, 30), (1000, 7)):
        starts = kernel._starts(length, window)
        assert starts[0] == 0 and starts[-1] == length - window
        steps = [b - a for a, b in pairwise(starts)]
        assert all(0 < step <= window - window // 4 for step in steps)


def test_tiles_see_less_and_cost_less() -> None:
    """Of a network with context the tiles' answer is close, and no input is larger than a tile."""
    net, seen = Net().eval(), []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    segmenter = Segmenter(net, PLAIN)
    with torch.inference_mode():
        (whole,) = run_passes(segmenter, [pixels(96, 128)])
        (tiled,) = run_passes(segmenter, [pixels(96, 128)], (48, 64))
    assert set(seen[1:]) == {(48, 64)}
    agree = large(whole, (96, 128)).argmax(1) == tiled.argmax(1)
    assert agree.float().mean() > 0.85


# ---------------------------------------------------------------------------- classes


def test_outputs_are_joined_by_name() -> None:
    joined = ClassMap.by_name(
        ("truck", "road", "pedestrian", "rider", "sky"), ("road", "person", "car"),
        {"truck": "car", "pedestrian": "person", "rider": "person"},
    )  # fmt: skip
    assert joined.targets == (2, 0, 1, 1, None)
    assert joined.absent == [] and not joined.is_identity
    assert joined.facts(("road", "person", "car")) == {
        "truck": "car", "road": "road", "pedestrian": "person", "rider": "person", "sky": "",
    }  # fmt: skip
    assert ClassMap.by_name(("a", "b"), ("a", "b")).is_identity
    assert ClassMap.by_name(("a", ""), ("a", "b")).absent == [1]


def test_merged_outputs_add_up_and_other_ones_win_as_255() -> None:
    joined = ClassMap(("a", "b1", "b2", "other"), (0, 1, 1, None), 2)
    probabilities = torch.tensor(
        [[0.4, 0.3, 0.3, 0.0], [0.1, 0.1, 0.1, 0.7], [0.3, 0.2, 0.2, 0.3], [0.5, 0.0, 0.0, 0.5]]
    ).T[:, None]
    segmenter = Segmenter(nn.Identity(), PLAIN, Procedure(softmax="none"), joined)
    labels, certainty = certainty_maps(segmenter, [probabilities], (1, 4))
    assert labels.tolist() == [[1, 255, 1, 0]]
    assert off_by_one(certainty[:, 0], torch.tensor([[40, 10, 30, 50], [60, 20, 40, 0]])) < 1
    (only,) = label_map(segmenter, [probabilities], (1, 4))
    assert torch.equal(only, labels)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), outputs=st.integers(1, 6), classes=st.integers(2, 5))
def test_class_maps_naively(data: st.DataObject, outputs: int, classes: int) -> None:
    targets = tuple(data.draw(st.one_of(st.none(), st.integers(0, classes - 1))) for _ in range(outputs))
    joined = ClassMap(tuple(f"o{k}" for k in range(outputs)), targets, classes)
    probabilities = torch.rand(outputs, 3, 4).softmax(0)
    merged, other = joined.merge(probabilities)
    for c in range(classes):
        parts = [probabilities[k] for k, target in enumerate(targets) if target == c]
        torch.testing.assert_close(merged[c], sum(parts, torch.zeros(3, 4)))
    dropped = [probabilities[k] for k, target in enumerate(targets) if target is None]
    assert (other is None) == (not dropped)
    if other is not None:
        assert torch.equal(other, torch.stack(dropped).amax(0))


# ---------------------------------------------------------------------------- temperature


@pytest.mark.parametrize("softmax", ["first", "last"])
def test_temperature_softens_and_keeps_labels(softmax: Any) -> None:
    procedure = Procedure(softmax=softmax)
    output = 3 * torch.randn(5, 8, 9, generator=torch.Generator().manual_seed(0))
    passed = output.softmax(0) if softmax == "first" else output
    plain, soft = (Segmenter(nn.Identity(), PLAIN, procedure, temperature=t) for t in (1.0, 2.5))
    labels, certainty = certainty_maps(plain, [passed], (8, 9))
    soft_labels, softened = certainty_maps(soft, [passed], (8, 9))
    assert torch.equal(labels, soft_labels)
    assert softened.amax(0).sum() < certainty.amax(0).sum()
    assert off_by_one(softened, ((output / 2.5).softmax(0) * 100).to(torch.uint8)) < 0.02
    torch.testing.assert_close(log_probabilities(plain, passed), output.log_softmax(0))


# ---------------------------------------------------------------------------- refused


def test_scales_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"--scales 0, 1: each from 0\.05 to 20"):
        Procedure(scales=(0.0, 1.0))
    with pytest.raises(ConfigError, match="softmax 'never': one of first, upsampled, last, none"):
        Procedure(softmax="never")  # type: ignore[arg-type]
