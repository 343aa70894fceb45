"""DAFormer, HRDA, MIC and SegFormer against golden files of the projects' own networks."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from endauda_cli.models import build_teacher
from endauda_cli.models.hrda import HRDA
from endauda_cli.models.mit import MIT_SIZES, Attention, DropPath, MiT, MiTSize
from endauda_cli.segmenter import Procedure, Segmenter, Windows, bands, label_map, run_passes
from endauda_cli.teachers import TEACHERS
from endauda_cli.transforms import Preprocessing, window_starts
from tests import support
from tests.support.recipes import describe, recipe_input, recipe_weights

DATA = support.DATA / "models"
CROP = {"hrda": 64, "mic": 64}
"""An eighth of the published geometry, as the golden files have it."""
SMALL = MiTSize((8, 16, 24, 32), (1, 1, 2, 1))
HALF = (slice(0, None, 2), slice(0, None, 2))
AN_EIGHTH = (slice(1, None, 8), slice(2, None, 8))
AS_IT_IS = Preprocessing(size=None, bgr=False, mean=(0, 0, 0))

every_leader = pytest.mark.parametrize("name", ["daformer", "hrda", "mic", "segformer"])


def on_meta(name: str, num_classes: int = 19, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build_teacher(name, num_classes, **options)


def small(name: str, num_classes: int = 19, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_teacher(name, num_classes, size=SMALL, width=16, **options)


def golden(name: str, part: str) -> Any:
    """What the encoder's file and the head's say together; of ``parameters`` the head's alone, which counts all."""
    head = json.loads((DATA / f"leader_{'hrda' if name == 'mic' else name}.json").read_text())[part]
    if part == "parameters":
        return head
    return json.loads((DATA / "leader_mit_b5.json").read_text())[part] + head


def described(name: str, module: nn.Module) -> list[object] | None:
    """A layer as in these golden files."""
    if isinstance(module, nn.LayerNorm):
        return [name, "LayerNorm", {"shape": list(module.normalized_shape), "eps": module.eps, "train": True}]
    if isinstance(module, nn.Linear):
        sides = {"cin": module.in_features, "cout": module.out_features}
        return [name, "Linear", {**sides, "bias": module.bias is not None, "train": True}]
    if isinstance(module, nn.GELU):
        return [name, "GELU", {"approximate": module.approximate}]
    if isinstance(module, DropPath):
        return [name, "DropPath", {"p": round(module.p, 6)}] if module.p else None
    return None if isinstance(module, nn.ReLU) else describe(name, module)


# ---------------------------------------------------------------------------- structure, as published


@every_leader
def test_state_dict(name: str) -> None:
    state = on_meta(name).state_dict()
    found = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()
    ]
    assert found == golden(name, "keys")


@every_leader
def test_layers(name: str) -> None:
    model = on_meta(name)
    found = [layer for path, module in model.named_modules() if (layer := described(path, module))]
    # Heads were made in another order, which nothing depends on.
    assert sorted(map(str, found)) == sorted(map(str, golden(name, "layers")))
    assert sum(p.numel() for p in model.parameters()) == golden(name, "parameters")


def test_sizes_of_the_encoder() -> None:
    """Blocks as published; B5's parameters are counted above, B0's are those of the paper (3.3 to 3.7 million)."""
    counted = {}
    for name, size in MIT_SIZES.items():
        with torch.device("meta"):
            encoder = MiT(size)
        counted[name] = sum(p.numel() for p in encoder.parameters()) / 1e6
        heads = {m.q.in_features: m.heads for m in encoder.modules() if isinstance(m, Attention)}
        assert heads == dict(zip(size.channels, (1, 2, 5, 8), strict=True))
    assert list(counted.values()) == sorted(counted.values())
    assert 3.2 < counted["b0"] < 3.8 and 81.4 < counted["b5"] < 81.5


@every_leader
def test_classes_change_only_the_classifiers(name: str) -> None:
    shapes = [{k: v.shape for k, v in on_meta(name, n).state_dict().items()} for n in (19, 7)]
    changed = {key for key in shapes[0] if shapes[0][key] != shapes[1][key]}
    assert changed == {key for key in shapes[0] if "conv_seg" in key or "linear_pred" in key}
    assert all(shapes[1][key] == (7, *shapes[0][key][1:]) for key in changed)


# ---------------------------------------------------------------------------- forward, as published


def fill(model: nn.Module, recipe: str) -> None:
    recipe_weights(model, scale=0.5 if recipe == "B" else 1.0)
    if recipe == "C":  # small variances: an eps shows
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                if key.startswith("backbone.") and tensor.ndim == 1:
                    tensor *= 0.01
                elif key.endswith("running_var"):
                    tensor *= 0.0001


@lru_cache(maxsize=1)
def filled(name: str, recipe: str) -> nn.Module:
    model = build_teacher(name, 19, **({"crop": CROP[name]} if name in CROP else {})).eval()
    fill(model, recipe)
    return model


def arrays(name: str, recipe: str) -> dict[str, np.ndarray[Any, Any]]:
    found = np.load(DATA / f"leader_{name}.npz")
    return {key.removeprefix(f"{recipe}_"): found[key] for key in found.files if key.startswith(f"{recipe}_")}


def image_of(key: str) -> Tensor:
    """The input that a golden output is of: its name has the first size in it."""
    height, width = next(word for word in key.split("_") if word[0].isdigit() and "x" in word).split("x")
    return recipe_input((1, 3, int(height), int(width)))


def close(
    found: Tensor, expected: np.ndarray[Any, Any], tolerance: float, kept: tuple[slice, slice] = HALF
) -> None:
    values = found.numpy()[..., *kept]
    assert values.shape == expected.shape
    assert np.abs(values - expected).max() <= tolerance * np.abs(expected).max()


def segmented(
    model: nn.Module, name: str, image: Tensor, size: tuple[int, int], **changes: Any
) -> dict[str, Tensor]:
    """What comes of a network-sized image by the teacher's own procedure, its windows an eighth as large."""
    run = replace(TEACHERS[name].procedure, **changes)
    if run.windows is not None:
        run = replace(run, windows=Windows(run.windows.side // 8, run.windows.stride // 8, 8))
    segmenter = Segmenter(model, AS_IT_IS, run)
    with torch.inference_mode():
        outputs = run_passes(segmenter, [image.permute(0, 2, 3, 1)])
        passes = [output[0] for output in outputs]
        prob = torch.cat([band.values for band in bands(segmenter, passes, size)], 1)
        (labels,) = label_map(segmenter, passes, size)
    return {"logits": outputs[0], "prob": prob[None], "label": labels[None]}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["A", "B", "C"])
@pytest.mark.parametrize("name", ["daformer", "segformer"])
def test_golden_whole(name: str, recipe: str) -> None:
    model, tolerance = filled(name, recipe), 1e-5 if recipe == "C" else 2e-5
    expected = arrays(name, recipe)
    with torch.inference_mode():
        for key in expected:
            if key.startswith("logits_"):
                close(model(image_of(key)), expected[key], tolerance)
            elif key.startswith("feat"):
                close(model.backbone(image_of(key))[int(key[4]) - 1], expected[key], tolerance)  # type: ignore[operator]
    if recipe != "C":
        made = segmented(model, name, recipe_input((1, 3, 64, 128)), (128, 256))
        close(made["prob"], expected["prob_64x128_to_128x256_s4"], tolerance, kept=AN_EIGHTH)
        assert (made["label"].numpy() != expected["label_64x128_to_128x256"]).sum() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["A", "B"])
def test_golden_two_scales(recipe: str) -> None:
    """The window's parts, and the procedure: windows of whole and of ragged images, and both ways round."""
    model, expected = filled("hrda", recipe), arrays("hrda", recipe)
    assert isinstance(model, HRDA)
    window = recipe_input((1, 3, 128, 128))
    with torch.inference_mode():
        fused = model(window)
        close(fused, expected["fused_128x128"], 2e-5)
        large = nn.functional.interpolate(fused, (128, 128), mode="bilinear")
        close(large, expected["logits_128x128_s4"], 2e-5, kept=AN_EIGHTH)
        if recipe == "A":
            low, attention = model.context(window)
            close(low, expected["lr_seg_128x128"], 2e-5)
            close(attention, expected["att_128x128"], 2e-5)
            close(
                torch.cat([logits for _, logits in model.crops(window)])[::2],
                expected["hr_crops_128x128"],
                2e-5,
            )
            close(model.detail(window), expected["hr_seg_128x128"], 2e-5)
            close(model(recipe_input((1, 3, 128, 192))), expected["fused_whole_128x192"], 2e-5)
    for size in ((128, 256), (135, 240)):
        made, words = segmented(model, "hrda", recipe_input((1, 3, *size)), size), f"{size[0]}x{size[1]}"
        close(made["logits"], expected[f"slide_logits_{words}_s4"], 2e-5, kept=AN_EIGHTH)
        assert (made["label"].numpy() != expected[f"slide_label_{words}"]).sum() <= 2
        if recipe == "A" and size == (128, 256):
            close(made["prob"], expected["slide_prob_128x256_s4"], 2e-5, kept=AN_EIGHTH)
            made = segmented(model, "hrda", recipe_input((1, 3, *size)), size, flip=True)
            close(made["prob"], expected["flip_prob_128x256_s4"], 2e-5, kept=AN_EIGHTH)
            assert (made["label"].numpy() != expected["flip_label_128x256"]).sum() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["A", "B"])
def test_golden_mic(recipe: str) -> None:
    """Its golden outputs are HRDA's, bit for bit; so are its test-time procedure and input."""
    assert TEACHERS["mic"].procedure == TEACHERS["hrda"].procedure
    assert TEACHERS["mic"].preprocessing == TEACHERS["hrda"].preprocessing
    with torch.inference_mode():
        fused = filled("mic", recipe)(recipe_input((1, 3, 128, 128)))
    close(fused, arrays("hrda", recipe)["fused_128x128"], 2e-5)


# ---------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("case", json.loads((DATA / "leader_geometry.json").read_text()))
def test_windows_and_crops_lie_where_they_should(case: str) -> None:
    told = json.loads((DATA / "leader_geometry.json").read_text())[case]

    def ends(length: int, side: int, stride: int) -> list[list[int]]:
        return [[first, min(first + side, length)] for first in window_starts(length, side, stride)]

    height, width = told["image_hw"]
    assert ends(height, told["window"], told["window_stride"]) == told["window_rows"]
    assert ends(width, told["window"], told["window_stride"]) == told["window_cols"]
    high, wide = told["window_hw"]
    assert ends(high, told["detail_crop"], told["detail_stride"]) == told["detail_rows_in_window"]
    assert ends(wide, told["detail_crop"], told["detail_stride"]) == told["detail_cols_in_window"]
    assert told["detail_stride"] == told["detail_crop"] // 2
    if "full" in case:
        assert TEACHERS["hrda"].procedure.windows == Windows(told["window"], told["window_stride"], 8)


def test_images_become_inputs_as_in_the_projects() -> None:
    cases = np.load(DATA / "leader_preprocess.npz")
    for name in (key.removeprefix("in_rgb_") for key in cases.files if key.startswith("in_rgb_")):
        long, short = (int(side) for side in cases[f"scale_wh_{name}"])
        made = replace(TEACHERS["hrda"].preprocessing, within=(long, short))
        resized, expected = made.resize(cases[f"in_rgb_{name}"]), cases[f"out_resized_rgb_{name}"]
        assert np.array_equal(resized, expected), name
        network = made.normalise(torch.from_numpy(expected)[None])[0]
        np.testing.assert_allclose(network.numpy(), cases[f"out_net_{name}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "scale", "expected"),
    [
        ((2048, 1024), 1.0, (2048, 1024)),
        ((1920, 1080), 1.0, (1820, 1024)),
        ((1080, 1920), 1.0, (1024, 1820)),
        ((640, 480), 1.0, (1365, 1024)),
        ((4000, 100), 1.0, (2048, 51)),
        ((2048, 1024), 0.75, (1536, 768)),
    ],
)
def test_images_are_fitted_within_two_sides(
    image: tuple[int, int], scale: float, expected: tuple[int, int]
) -> None:
    assert TEACHERS["hrda"].preprocessing.input_size(*image, scale) == expected


# ---------------------------------------------------------------------------- what they are besides


@every_leader
def test_a_batch_is_its_images(name: str) -> None:
    model = small(name, **({"crop": 32} if name in CROP else {})).eval()
    images = recipe_input((2, 3, 64, 96)) / 50
    with torch.inference_mode():
        both = model(images)
        apart = torch.cat([model(image[None]) for image in images])
    assert both.shape == (2, 19, 16, 24)
    torch.testing.assert_close(both, apart, rtol=1e-4, atol=1e-5)


@every_leader
def test_one_step_of_training(name: str) -> None:
    model = small(name, 5, **({"crop": 32} if name in CROP else {}))
    torch.autograd.backward(model(recipe_input((2, 3, 64, 64)) / 50).square().mean())
    without = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    unused = {f"decode_head.conv_seg.{kind}" for kind in ("weight", "bias")}
    assert without == (unused if name == "segformer" else set())


def test_drop_path_leaves_images_out_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    made = drop(torch.ones(4000, 2, 3))
    assert made.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (made.amax((1, 2)) == made.amin((1, 2))).all()
    assert made.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(made), made)


@pytest.mark.parametrize("size", [(64, 100), (70, 64)])
def test_a_window_of_two_scales_has_sides_of_eight(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="its sides must be multiples of 8"):
        small("hrda")(torch.zeros(1, 3, *size))


def test_windows_are_a_naive_mean() -> None:
    """Sides that are no multiples included: they are padded, and cut again."""

    class Says(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2] % 8 == x.shape[3] % 8 == 0
            return nn.functional.avg_pool2d(x, 4)

    run = Procedure(softmax="upsampled", align_corners=False, enlarge="twice", windows=Windows(32, 16, 8))
    for size in ((64, 64), (29, 75), (33, 32), (13, 20)):
        x = recipe_input((2, 3, *size))
        (found,) = run_passes(Segmenter(Says(), AS_IT_IS, run), [x.permute(0, 2, 3, 1)])
        total, count = torch.zeros_like(x), torch.zeros(size)
        for top in window_starts(size[0], 32, 16):
            for left in window_starts(size[1], 32, 16):
                part = x[:, :, top : top + 32, left : left + 32]
                h, w = part.shape[2:]
                part = nn.functional.pad(part, (0, -w % 8, 0, -h % 8))
                said = nn.functional.interpolate(Says()(part), part.shape[2:], mode="bilinear")
                total[:, :, top : top + 32, left : left + 32] += said[:, :, :h, :w]
                count[top : top + 32, left : left + 32] += 1
        torch.testing.assert_close(found, total / count)
