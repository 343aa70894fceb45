"""The students against golden files of the reference implementation, and the loading of checkpoints."""

from __future__ import annotations

import json
import math
import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.models import (
    ARCHS,
    BACKBONES,
    Student,
    build_student,
    load_checkpoint,
    parameter_groups,
    read_state_dict,
)
from endauda_cli.types import Arch, Backbone
from tests import support
from tests.support.recipes import describe, recipe_input, recipe_weights

if TYPE_CHECKING:
    from pathlib import Path

DATA = support.DATA / "models"
PUBLISHED = [(arch, backbone) for arch in ARCHS for backbone in ("drn", "resnet", "mobilenet")]

published = pytest.mark.parametrize(("arch", "backbone"), PUBLISHED)
every_arch = pytest.mark.parametrize("arch", list(ARCHS))


def golden(arch: str, backbone: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / f"ref_{arch}_{backbone}.json").read_text())
    return content


def build_on_meta(arch: str, backbone: str, num_classes: int = 19) -> Student:
    """Shapes without numbers: enough for most questions, and instant."""
    with torch.device("meta"):
        return build_student(arch, backbone, num_classes)


def random_images(batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------------- choices


def test_tables_have_the_choices_of_the_command_line() -> None:
    assert set(ARCHS) == set(Arch)
    assert set(BACKBONES) == set(Backbone)


def test_unknown_names_are_answered_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"architecture 'unet' is unknown.*deeplabv3plus, deeplabv2"):
        build_student("unet", "drn", 19)
    with pytest.raises(ConfigError, match=r"backbone 'vgg' is unknown.*drn, resnet, mobilenet, tiny"):
        build_student("deeplabv2", "vgg", 19)


# ---------------------------------------------------------------------------- structure, as published


@published
def test_state_dict(arch: str, backbone: str) -> None:
    state = build_on_meta(arch, backbone).state_dict()
    found = [
        [key, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for key, tensor in state.items()
    ]
    assert found == golden(arch, backbone)["keys"]


@published
def test_layers(arch: str, backbone: str) -> None:
    model = build_on_meta(arch, backbone)
    found = [described for name, module in model.named_modules() if (described := describe(name, module))]
    assert found == golden(arch, backbone)["layers"]


@published
def test_parameter_groups(arch: str, backbone: str) -> None:
    model = build_on_meta(arch, backbone)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    base, tenfold = ([names[id(parameter)] for parameter in group] for group in parameter_groups(model))
    expected = golden(arch, backbone)
    assert base == expected["groups"]["lr_x1"]
    assert tenfold == expected["groups"]["lr_x10"]
    neither = set(names.values()) - set(base) - set(tenfold)
    assert neither == set(expected["groups"]["not_in_any_group"])
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["parameters"]


@published
def test_number_of_classes_changes_only_the_classifiers(arch: str, backbone: str) -> None:
    shapes_19 = {key: tensor.shape for key, tensor in build_on_meta(arch, backbone, 19).state_dict().items()}
    shapes_16 = {key: tensor.shape for key, tensor in build_on_meta(arch, backbone, 16).state_dict().items()}
    changed = {key for key in shapes_19 if shapes_19[key] != shapes_16[key]}
    assert changed == {key for key in shapes_19 if key.startswith(("decoder.last_conv.8.", "head."))}
    assert all(shapes_16[key] == (16, *shapes_19[key][1:]) for key in changed)


# ---------------------------------------------------------------------------- forward, as published


@pytest.mark.parametrize(
    ("key", "first_values"),
    [
        ("backbone.layer0.0.weight", [0.2597893, -0.0636787, 0.0312222]),
        ("decoder.last_conv.8.bias", [-0.1681997, 0.1016918, 0.2624696]),
    ],
)
def test_recipe_weights_are_those_of_the_golden_files(key: str, first_values: list[float]) -> None:
    class Like(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shape = (16, 3, 7, 7) if key.endswith("weight") else (19,)
            parent: nn.Module = self
            *path, last = key.split(".")
            for name in path:
                parent.add_module(name, nn.Module())
                parent = parent.get_submodule(name)
            parent.register_parameter(last, nn.Parameter(torch.zeros(shape)))

    torch.testing.assert_close(recipe_weights(Like())[key].flatten()[:3], torch.tensor(first_values))


def test_recipe_input_is_that_of_the_golden_files() -> None:
    expected = torch.tensor([-16.768759, 32.854668, -19.065851])
    torch.testing.assert_close(recipe_input((1, 3, 65, 129)).flatten()[:3], expected)


@pytest.mark.slow
@published
def test_golden_forward(arch: str, backbone: str) -> None:
    model = build_student(arch, backbone, 19).eval()
    # ReLU6 either saturates or not, so in mobilenet the rounding of single elements shows more.
    tolerance = 5e-4 if backbone == "mobilenet" else 2e-5
    kept = 2 if arch == "deeplabv3plus" else 1  # the golden file has every second row and column
    filled_with = None
    for name, expected in np.load(DATA / f"ref_{arch}_{backbone}.npz").items():
        recipe, _, size = name.partition("_")
        height, width = map(int, size.split("x"))
        if recipe != filled_with:
            recipe_weights(model, scale={"A": 1.0, "B": 0.5}[recipe])
            filled_with = recipe
        with torch.inference_mode():
            logits = model(recipe_input((1, 3, height, width)))
        if arch == "deeplabv3plus":
            assert logits.shape == (1, 19, height, width)
        found = logits[:, :, ::kept, ::kept].numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max(), name


# ---------------------------------------------------------------------------- initialisation


@pytest.mark.parametrize("backbone", ["drn", "mobilenet", "tiny"])
@every_arch
def test_initialisation(arch: str, backbone: str) -> None:
    torch.manual_seed(0)
    model = build_student(arch, backbone, 19)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan = math.prod(module.weight.shape[1:])
            if name.startswith("backbone.") and backbone == "drn":
                fan = module.out_channels * math.prod(module.kernel_size)
            std = 0.01 if name.startswith("head.") else math.sqrt(2 / fan)
            # Four standard errors of the estimate.
            assert module.weight.std().item() == pytest.approx(
                std, rel=4 / math.sqrt(2 * module.weight.numel())
            )
            if module.bias is not None:
                bound = 1 / math.sqrt(math.prod(module.weight.shape[1:]))
                assert 0 < module.bias.abs().max() <= bound
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


def test_resnet_is_initialised_by_fan_out() -> None:
    torch.manual_seed(0)
    backbone = BACKBONES["resnet"].build(nn.BatchNorm2d)
    weight = backbone.get_parameter("layer3.0.conv3.weight")  # (1024, 256, 1, 1): fan-in and fan-out differ
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.01)


# ---------------------------------------------------------------------------- in training


@pytest.mark.parametrize("backbone", ["mobilenet", "tiny"])
@every_arch
def test_one_step_of_training(arch: str, backbone: str) -> None:
    torch.manual_seed(0)
    model = build_student(arch, backbone, 19)
    logits = model(random_images())
    torch.autograd.backward(logits.square().mean())
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    if arch == "deeplabv2":  # its last two branches are never used
        assert without == {f"head.conv2d_list.{i}.{kind}" for i in (2, 3) for kind in ("weight", "bias")}
    else:
        assert without == set()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_arch
def test_batches_are_counted_by_deeplabv2_only(arch: str) -> None:
    model = build_student(arch, "tiny", 5)
    model(random_images())
    state = model.state_dict()
    counters = {tensor.item() for key, tensor in state.items() if key.endswith("num_batches_tracked")}
    assert counters == ({0} if arch == "deeplabv3plus" else {1})
    assert all(tensor.any() for key, tensor in state.items() if key.endswith("running_mean"))


def test_uncounted_norm_is_batch_norm_otherwise() -> None:
    backbones = [BACKBONES["tiny"].build(norm) for norm in (nn.BatchNorm2d, norm_of("deeplabv3plus"))]
    recipe_weights(backbones[0])
    recipe_weights(backbones[1])
    for training in (True, False):
        plain, uncounted = (backbone.train(training)(random_images()) for backbone in backbones)
        torch.testing.assert_close(plain.deep, uncounted.deep, rtol=0, atol=0)
    states = [backbone.state_dict() for backbone in backbones]
    for key, tensor in states[0].items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, states[1][key], rtol=0, atol=0)


def norm_of(arch: str) -> type[nn.BatchNorm2d]:
    norm = build_on_meta(arch, "tiny").backbone.get_submodule("stem.1")
    assert isinstance(norm, nn.BatchNorm2d)
    return type(norm)


def test_deeplabv3plus_needs_two_images_to_train() -> None:
    model = build_student("deeplabv3plus", "tiny", 5)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(random_images(batch=1))
    assert model.eval()(random_images(batch=1)).shape == (1, 5, 64, 96)


def test_deeplabv2_uses_two_branches_of_its_head() -> None:
    model = build_student("deeplabv2", "tiny", 5).eval()
    before = model(random_images())
    with torch.no_grad():
        for branch in (2, 3):
            model.get_parameter(f"head.conv2d_list.{branch}.weight").fill_(9)
    assert torch.equal(model(random_images()), before)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_output_sizes(backbone: str) -> None:
    spec = BACKBONES[backbone]
    images = torch.empty(2, 3, 96, 160, device="meta")
    features = build_on_meta("deeplabv3plus", backbone).backbone(images)
    stride = spec.output_stride
    assert features.deep.shape == (2, spec.deep_channels, 96 // stride, 160 // stride)
    assert features.low_level.shape == (2, spec.low_level_channels, 24, 40)
    assert build_on_meta("deeplabv3plus", backbone, 7)(images).shape == (2, 7, 96, 160)
    assert build_on_meta("deeplabv2", backbone, 7)(images).shape == (2, 7, 96 // stride, 160 // stride)


def test_memory_format_and_autocast() -> None:
    model = build_student("deeplabv3plus", "tiny", 5).eval()
    images = random_images()
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        model(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).isfinite().all()


def test_tiny_is_small() -> None:
    assert (
        sum(parameter.numel() for parameter in build_on_meta("deeplabv3plus", "tiny").parameters()) < 450_000
    )


def test_mobilenet_registers_its_blocks_twice() -> None:
    state = build_student("deeplabv2", "mobilenet", 19).state_dict()
    stem = "backbone.{}.0.0.weight"
    last = "backbone.{}.17.conv.6.weight"
    assert state[stem.format("features")].data_ptr() == state[stem.format("low_level_features")].data_ptr()
    assert state[last.format("features")].data_ptr() == state[last.format("high_level_features")].data_ptr()


# ---------------------------------------------------------------------------- checkpoints that fit


@pytest.fixture
def student() -> Student:
    torch.manual_seed(1)
    return build_student("deeplabv3plus", "tiny", 19)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


def assert_loads(state: dict[str, Tensor], file: Path) -> None:
    torch.manual_seed(2)
    fresh = build_student("deeplabv3plus", "tiny", 19)
    load_checkpoint(fresh, file)
    for key, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "weights", "ema_model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_load_unwraps(student: Student, file: Path, wrapper: str | None, prefix: str) -> None:
    state = student.state_dict()
    content: dict[str, object] = {prefix + key: tensor for key, tensor in state.items()}
    if wrapper:
        content = {"epoch": 3, wrapper: content, "optimizer": {"state": {}}}
    torch.save(content, file)
    assert_loads(state, file)


def test_load_prefers_the_model_to_its_mean(student: Student, file: Path) -> None:
    mean = {key: torch.zeros_like(tensor) for key, tensor in student.state_dict().items()}
    torch.save({"ema_model": mean, "model": student.state_dict()}, file)
    assert_loads(student.state_dict(), file)


@pytest.mark.parametrize("zipped", [True, False])
def test_load_accepts_numpy_scalars_beside_the_weights(student: Student, file: Path, zipped: bool) -> None:
    # The community DeepLabv3+ keeps its best mIoU so.
    content = {"state_dict": student.state_dict(), "best_pred": np.float64(0.5), "epoch": np.int64(3)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert_loads(student.state_dict(), file)


def test_load_imagenet_weights_into_a_backbone(student: Student, file: Path) -> None:
    state = {k: v for k, v in student.backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({**state, "fc.weight": torch.zeros(1000, 96), "fc.bias": torch.zeros(1000)}, file)
    backbone = build_student("deeplabv3plus", "tiny", 19).backbone
    load_checkpoint(backbone, file)
    assert all(
        torch.equal(tensor, state[key]) for key, tensor in backbone.state_dict().items() if key in state
    )


def test_later_of_two_keys_for_one_tensor_wins(file: Path) -> None:
    model = build_student("deeplabv2", "mobilenet", 19)
    state = {key: torch.zeros_like(tensor) for key, tensor in model.state_dict().items()}
    state["backbone.low_level_features.0.0.weight"] += 1
    torch.save(state, file)
    load_checkpoint(model, file)
    assert (model.get_parameter("backbone.features.0.0.weight") == 1).all()


# ---------------------------------------------------------------------------- checkpoints that do not fit


def refusal(module: nn.Module, file: Path) -> str:
    """The message, without the file's path, that loading ends in; the module must keep its weights."""
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(module, file)
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    path, separator, message = str(caught.value).partition(f"{file}: ")
    assert (path, separator) == ("", f"{file}: ") and "\n" not in message
    return message


def test_other_number_of_classes(student: Student, file: Path) -> None:
    torch.save(build_student("deeplabv3plus", "tiny", 16).state_dict(), file)
    message = refusal(student, file)
    assert message.startswith("has 16 classes, but 19 were expected; ")
    assert message.endswith("; first: misshaped 'decoder.last_conv.8.weight'")


def test_other_network(student: Student, file: Path) -> None:
    torch.save(build_student("deeplabv3plus", "mobilenet", 19).state_dict(), file)
    expected = (
        "holds deeplabv3plus with backbone mobilenet, but deeplabv3plus with backbone tiny was expected"
    )
    message = refusal(student, file)
    assert message.startswith(expected) and message.endswith("; first: missing 'backbone.stem.0.weight'")
    torch.save(build_student("deeplabv2", "tiny", 19).state_dict(), file)
    expected = "holds deeplabv2 with backbone tiny, but deeplabv3plus with backbone tiny was expected"
    message = refusal(student, file)
    assert message.startswith(expected) and message.endswith(
        "; first: missing 'aspp.aspp1.atrous_conv.weight'"
    )


@published
def test_published_networks_are_told_apart(arch: str, backbone: str, student: Student, file: Path) -> None:
    state = build_on_meta(arch, backbone).state_dict()
    torch.save({key: torch.zeros(1) for key in state}, file)
    assert refusal(student, file).startswith(f"holds {arch} with backbone {backbone}, but ")


def test_backbone_without_student_around_it(student: Student, file: Path) -> None:
    torch.save(student.backbone.state_dict(), file)
    assert refusal(student, file).startswith(
        "holds a tiny without 'backbone.' in its keys, but deeplabv3plus"
    )


def test_missing_key(student: Student, file: Path) -> None:
    state = student.state_dict()
    del state["aspp.conv1.weight"], state["aspp.bn1.bias"]
    torch.save(state, file)
    expected = "has no 'aspp.conv1.weight', which deeplabv3plus with backbone tiny needs (and 1 more); "
    assert refusal(student, file).startswith(expected)


def test_missing_alias(file: Path) -> None:
    model = build_student("deeplabv2", "mobilenet", 19)
    torch.save({k: v for k, v in model.state_dict().items() if "low_level_features" not in k}, file)
    assert refusal(model, file).startswith("has no 'backbone.low_level_features.0.0.weight'")


def test_unexpected_key(student: Student, file: Path) -> None:
    torch.save({**student.state_dict(), "decoder.extra": torch.zeros(1)}, file)
    assert refusal(student, file).startswith(
        "has 'decoder.extra', which deeplabv3plus with backbone tiny does not"
    )


def test_other_shape(student: Student, file: Path) -> None:
    torch.save({**student.state_dict(), "aspp.conv1.weight": torch.zeros(48, 9, 1, 1)}, file)
    expected = "'aspp.conv1.weight' has shape (48, 9, 1, 1), but (48, 240, 1, 1) was expected; "
    assert refusal(student, file).startswith(expected)
    torch.save({**student.state_dict(), "aspp.bn1.bias": torch.tensor(1.0)}, file)
    assert refusal(student, file).startswith("'aspp.bn1.bias' has shape (), but (48,) was expected; ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds an object of type list, but a state dict"),
        ({}, "holds an empty dict, but a state dict"),
        ({"epoch": 1, "a": 2, "b": 3}, "holds a dict of 'epoch', 'a', 'b', but a state dict"),
        (dict.fromkeys("abcde", 1), "holds a dict of 'a', 'b', 'c', 'd' and more, but a state dict"),
        ({"a": torch.zeros(1), "epoch": 1}, "entry 'epoch' is of type int, but a state dict"),
        ({1: torch.zeros(1)}, "entry 1 is of type Tensor, but a state dict"),
    ],
)
def test_no_state_dict(student: Student, file: Path, content: object, message: str) -> None:
    torch.save(content, file)
    assert refusal(student, file).startswith(message)


def test_no_file(student: Student, file: Path) -> None:
    assert refusal(student, file).startswith("no such file")
    file.mkdir()
    assert refusal(student, file).startswith("cannot be read (")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"hello world", "is damaged"),
        (bytes(range(256)) * 20, "is damaged"),
        (b"\x80\x02", "is damaged"),
    ],
)
def test_no_checkpoint(student: Student, file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    assert refusal(student, file).startswith(message)


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated(student: Student, file: Path, kept: float, zipped: bool) -> None:
    torch.save(student.state_dict(), file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    assert refusal(student, file).startswith("is damaged, cut short or no PyTorch checkpoint (")


class Hostile:
    """Unpickled by an ordinary unpickler, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_code_in_a_checkpoint_never_runs(student: Student, file: Path, tmp_path: Path) -> None:
    hostile = Hostile(tmp_path / "trace")
    for zipped in (True, False):
        torch.save(
            {"state_dict": student.state_dict(), "x": hostile}, file, _use_new_zipfile_serialization=zipped
        )
        assert "mkdir beside tensors and was not opened, because such a file can run code" in refusal(
            student, file
        )
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        file.write_bytes(pickle.dumps(hostile, protocol))
        refusal(student, file)
    assert not hostile.trace.exists()


def test_whole_model_in_a_checkpoint_is_refused(student: Student, file: Path) -> None:
    torch.save(student, file)
    assert refusal(student, file).startswith("holds endauda_cli.models.deeplab.DeepLabV3Plus beside tensors")


def test_read_state_dict(student: Student, file: Path) -> None:
    state = student.state_dict()
    torch.save({"weights": {f"module.{key}": tensor for key, tensor in state.items()}}, file)
    found = read_state_dict(file)
    assert list(found) == list(state)
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
