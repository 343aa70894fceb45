"""The original CBST: MXNet's files read without MXNet, and its ResNet-38."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from endauda_cli.errors import CheckpointError
from endauda_cli.models import build_teacher, load_checkpoint
from endauda_cli.models.mxnet import read_params
from endauda_cli.models.wide_resnet import UNITS, Conv, Unit, WideResNet38
from endauda_cli.teachers import TEACHERS, open_teacher

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

VERSIONS = {0: None, 1: 0xF993FAC8, 2: 0xF993FAC9, 3: 0xF993FACA}
TYPES = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}


def mxnet_file(arrays: dict[str, NDArray[Any]], version: int = 2) -> bytes:
    """What MXNet's ``nd.save`` writes, by its documented layout."""
    content = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        magic = VERSIONS[version]
        if magic is not None:
            content += struct.pack("<I", magic)
        if version >= 2:
            content += struct.pack("<i", 0)
        content += struct.pack("<I", array.ndim)
        content += struct.pack(f"<{array.ndim}{'q' if version else 'I'}", *array.shape)
        content += struct.pack("<iii", 1, 0, TYPES[array.dtype.name]) + array.tobytes()
    content += struct.pack("<Q", len(arrays))
    for name in arrays:
        content += struct.pack("<Q", len(name)) + name.encode()
    return content


def mxnet_name(key: str, num_classes: int) -> str:
    """Of a key of ours, the name that the published files have."""
    layer, _, kind = key.rpartition(".")
    if layer == "linear":
        layer = f"linear{num_classes}"
    if layer.startswith("bn"):
        kind = {
            "weight": "gamma",
            "bias": "beta",
            "running_mean": "moving_mean",
            "running_var": "moving_var",
        }[kind]
    return f"{'aux' if kind.startswith('moving') else 'arg'}:{layer}_{kind}"


SMALL = (
    Unit("2a", (Conv(12, stride=2), Conv(12)), True),
    Unit("2b1", (Conv(12), Conv(12)), False),
    Unit("5a", (Conv(12, stride=2), Conv(16, dilation=2)), True),
    Unit("6a", (Conv(8, 1), Conv(16, dilation=4), Conv(20, 1)), True),
)


def small_params(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    state = WideResNet38(5, SMALL).state_dict()
    return {
        mxnet_name(key, 5): (rng.random(value.shape) * 0.2 + (0.5 if "var" in key else -0.1)).astype(
            np.float32
        )
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_arrays_of_every_version_and_type(version: int, dtype: str) -> None:
    arrays = {"arg:a_weight": np.arange(24).reshape(2, 3, 4).astype(dtype), "b": np.array([7], dtype)}
    found = read_params(mxnet_file(arrays, version))
    assert list(found) == ["a.weight", "b"]
    for value, array in zip(found.values(), arrays.values(), strict=True):
        assert value.dtype == torch.from_numpy(array).dtype
        assert np.array_equal(value.numpy(), array)


def naive(params: dict[str, NDArray[np.float32]], images: Tensor) -> Tensor:
    """``SMALL`` written out, straight from the names in the file."""
    p = {name: torch.from_numpy(array) for name, array in params.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        statistics = p[f"aux:{name}_moving_mean"], p[f"aux:{name}_moving_var"]
        return F.batch_norm(x, *statistics, p[f"arg:{name}_gamma"], p[f"arg:{name}_beta"], eps=1e-5).relu()

    def conv(x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, p[f"arg:{name}_weight"], p.get(f"arg:{name}_bias"), **how)

    x = conv(images, "conv1a", padding=1)
    y = norm(x, "bn2a_branch2a")
    shortcut = conv(y, "res2a_branch1", stride=2)
    y = norm(conv(y, "res2a_branch2a", stride=2, padding=1), "bn2a_branch2b1")
    x = shortcut + conv(y, "res2a_branch2b1", padding=1)
    y = norm(conv(norm(x, "bn2b1_branch2a"), "res2b1_branch2a", padding=1), "bn2b1_branch2b1")
    x = x + conv(y, "res2b1_branch2b1", padding=1)
    y = norm(x, "bn5a_branch2a")
    shortcut = conv(y, "res5a_branch1", stride=2)
    y = norm(conv(y, "res5a_branch2a", stride=2, padding=1), "bn5a_branch2b1")
    x = shortcut + conv(y, "res5a_branch2b1", padding=2, dilation=2)
    y = norm(x, "bn6a_branch2a")
    shortcut = conv(y, "res6a_branch1")
    y = norm(conv(y, "res6a_branch2a"), "bn6a_branch2b1")
    y = norm(conv(y, "res6a_branch2b1", padding=4, dilation=4), "bn6a_branch2b2")
    x = norm(shortcut + conv(y, "res6a_branch2b2"), "bn7")
    return conv(conv(x, "conv6a", padding=12, dilation=12).relu(), "linear5", padding=12, dilation=12)


def test_small_network_from_a_file_naively(tmp_path: Path) -> None:
    params = small_params()
    (tmp_path / "x.params").write_bytes(mxnet_file(params))
    network = WideResNet38(5, SMALL).eval()
    load_checkpoint(network, tmp_path / "x.params")
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = network(images), naive(params, images)
    assert found.shape == (2, 5, 8, 12)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_resnet_38_is_the_published_one() -> None:
    """Model A1 of the paper's table: widths, depths, where the stride lies and what is dilated."""
    assert [unit.name for unit in UNITS] == [
        "2a", "2b1", "2b2", "3a", "3b1", "3b2", "4a", "4b1", "4b2", "4b3", "4b4", "4b5", "5a", "5b1", "5b2", "6a", "7a",
    ]  # fmt: skip
    convolutions = 1 + sum(len(unit.convs) for unit in UNITS) + 1  # with the classifier: the 38 of its name
    assert convolutions == 38
    with torch.device("meta"):
        network = build_teacher("cbst-mxnet", 19)
        assert network(torch.empty(1, 3, 128, 256)).shape == (1, 19, 16, 32)
    strides = {
        n: m.stride[0]
        for n, m in network.named_modules()
        if isinstance(m, torch.nn.Conv2d) and m.stride[0] > 1
    }
    assert strides == {f"res{s}a_{branch}": 2 for s in (2, 3, 4) for branch in ("branch1", "branch2a")}
    dilated = {
        name: module.dilation[0]
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.dilation[0] > 1
    }
    assert dilated == {
        "res5a_branch2b1": 2, "res5b1_branch2a": 2, "res5b1_branch2b1": 2, "res5b2_branch2a": 2, "res5b2_branch2b1": 2,
        "res6a_branch2b1": 4, "res7a_branch2b1": 4, "conv6a": 12, "linear": 12,
    }  # fmt: skip
    names = {mxnet_name(key, 19) for key in network.state_dict() if not key.endswith("num_batches_tracked")}
    assert {
        "arg:conv1a_weight",
        "arg:res7a_branch2b2_weight",
        "aux:bn7_moving_var",
        "arg:linear19_bias",
    } <= names
    assert all(
        re.fullmatch(r"(arg|aux):[a-z0-9]+(_branch\w+)?_(weight|bias|gamma|beta|moving_\w+)", n)
        for n in names
    )


def test_opened_with_the_projects_own_procedure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from endauda_cli import models

    monkeypatch.setitem(
        models.TEACHER_NETWORKS, "cbst-mxnet", lambda num_classes: WideResNet38(num_classes, SMALL)
    )
    (tmp_path / "cbst.params").write_bytes(mxnet_file(small_params()))
    teacher = open_teacher(tmp_path / "cbst.params", tuple("abcde"), "cbst-mxnet")
    assert teacher.segmenter.procedure == TEACHERS["cbst-mxnet"].procedure
    with pytest.raises(CheckpointError, match=r"cbst\.params: has 5 classes, but 4 were expected"):
        open_teacher(tmp_path / "cbst.params", tuple("abcd"), "cbst-mxnet")


def test_an_mxnet_file_is_not_taken_for_another_teacher(tmp_path: Path) -> None:
    params = small_params() | {"arg:res7a_branch2b1_weight": np.zeros((1, 1, 3, 3), np.float32)}
    (tmp_path / "x.params").write_bytes(mxnet_file(params))
    with pytest.raises(
        CheckpointError, match="holds the ResNet-38 of the original CBST, but the DeepLabv2 of DACS"
    ):
        open_teacher(tmp_path / "x.params", tuple("abcde"), "crst")


@pytest.mark.parametrize("kept", [17, 24, 60, 0.5, 0.99])
def test_files_cut_short(kept: float, tmp_path: Path) -> None:
    content = mxnet_file(small_params())
    (tmp_path / "x.params").write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(CheckpointError, match="MXNet parameters that cannot be read"):
        load_checkpoint(WideResNet38(5, SMALL), tmp_path / "x.params")


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (16, b"\xff" * 8),
        (28, b"\x01\x00\x00\x00"),
        (32, b"\xff\xff\xff\x7f"),
        (36, b"\xff" * 8),
        (76, b"\x09\0\0\0"),
    ],
)
def test_files_that_lie_about_themselves(at: int, value: bytes, tmp_path: Path) -> None:
    """Counts, storage types, dimensions, sizes and types out of range; nothing is allocated for them."""
    content = bytearray(mxnet_file(small_params()))
    content[at : at + len(value)] = value
    (tmp_path / "x.params").write_bytes(content)
    with pytest.raises(CheckpointError, match="MXNet parameters that cannot be read"):
        load_checkpoint(WideResNet38(5, SMALL), tmp_path / "x.params")
