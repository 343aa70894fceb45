"""Published runs start from an encoder alone: ImageNet's ResNet-101, or that of COCO's DeepLabv2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from endauda_cli.errors import CheckpointError
from endauda_cli.models.unfilled import Unfilled
from endauda_cli.students import build
from endauda_cli.teachers.starting import named
from endauda_cli.training.starting import initialise
from tests.support.training_runs import CLASSES

if TYPE_CHECKING:
    from torch import Tensor

    from endauda_cli.models import Student
    from endauda_cli.students import Network

State = dict[str, "Tensor"]


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{kind}": (channels,) for kind in ("weight", "bias", "running_mean", "running_var")}


def resnet(*blocks: int) -> State:
    """As torchvision's files have it, but for the classifier: of one value each, which takes no room."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    enters = 64
    for stage, number in enumerate(blocks, 1):
        width = 32 << stage
        for block in range(number):
            name = f"layer{stage}.{block}"
            convs = [(width, enters, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            for place, shape in enumerate(convs, 1):
                shapes |= {
                    f"{name}.conv{place}.weight": shape,
                    **norm(f"{name}.bn{place}", shape[0]),
                }
            if not block:
                shapes |= {
                    f"{name}.downsample.0.weight": (4 * width, enters, 1, 1),
                    **norm(f"{name}.downsample.1", 4 * width),
                }
            enters = 4 * width
    return filled(shapes)


def filled(shapes: dict[str, tuple[int, ...]]) -> State:
    return {
        key: torch.tensor(float(place)).expand(shape) for place, (key, shape) in enumerate(shapes.items(), 1)
    }


def deeplab(classes: int) -> State:
    branches = [f"layer5.conv2d_list.{place}" for place in range(4)]
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (classes, 2048, 3, 3) for name in branches}
    return {**IMAGENET, **filled(shapes | {f"{name}.bias": (classes,) for name in branches})}


IMAGENET = resnet(3, 4, 23, 3)
CLASSIFIER = filled({"fc.weight": (1000, 2048), "fc.bias": (1000,)})


def student_of(name: str, path: Path) -> tuple[Student, Network]:
    """As ``train --network NAME --init FILE`` builds it."""
    start = named(name, path, CLASSES, Path)
    assert start is not None
    with Unfilled():
        return build(start.network, len(CLASSES)), start.network


def begun(name: str, path: Path, state: State, before: str = "") -> tuple[str | None, set[str]]:
    """What is told, and the modules that hold what the file has; ``before`` are letters before its names."""
    torch.save({f"{before}{key}": value for key, value in state.items()}, path)
    student, network = student_of(name, path)
    told = initialise(student, path, network, CLASSES)
    after = student.state_dict()
    assert not any(bool(value) for key, value in after.items() if key.endswith("num_batches_tracked"))
    full = {key.partition(".")[0] for key in after if key in state and torch.equal(after[key], state[key])}
    return told, full


ENCODER = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}


@pytest.mark.parametrize(
    ("name", "state", "before", "told"),
    [
        ("crst", IMAGENET, "", "fills the encoder; it has no classifier, so layer5 of crst begins at random"),
        ("cbst", IMAGENET | CLASSIFIER, "module.", "it has no classifier, so layer5 of cbst begins at random"),
        ("dacs", deeplab(21), "", "its classifier, of 21 classes, is left out, so layer5 of dacs begins at random"),
        (
            "mrnet",
            deeplab(len(CLASSES)),
            "Scale.",
            "without 'Scale.' before every name; fills the encoder; its classifier, of 3 classes, is left out, so "
            "layer5 and layer6 of mrnet begin at random",
        ),
    ],
)  # fmt: skip
def test_an_encoder_is_a_start(name: str, state: State, before: str, told: str, tmp_path: Path) -> None:
    said, full = begun(name, tmp_path / "start.pth", state, before)
    assert said is not None and said.endswith(told)
    assert full == ENCODER


def test_a_whole_file_fills_all(tmp_path: Path) -> None:
    assert begun("dacs", tmp_path / "whole.pth", deeplab(len(CLASSES))) == (None, ENCODER | {"layer5"})


@pytest.fixture(scope="module")
def dacs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Network]:
    path = tmp_path_factory.mktemp("dacs") / "start.pth"
    torch.save(IMAGENET, path)
    return student_of("dacs", path)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            {key: value for key, value in IMAGENET.items() if not key.startswith("layer4.2.conv3")},
            "has no 'layer4.2.conv3.weight', which the encoder of dacs needs; it is incomplete or of another network",
        ),
        (resnet(3, 4, 6, 3), "has no 'layer3.6.conv1.weight', which the encoder of dacs needs (and 254 more)"),
        (resnet(3, 8, 36, 3), "has 'layer2.4.conv1.weight', which the encoder of dacs does not know"),
        (
            IMAGENET | filled({"conv1.weight": (64, 4, 7, 7)}),
            "'conv1.weight' has shape (64, 4, 7, 7), but (64, 3, 7, 7) was expected",
        ),
        (
            {k: v for k, v in deeplab(len(CLASSES)).items() if k != "layer5.conv2d_list.3.bias"},
            "has no 'layer5.conv2d_list.3.bias', which the DeepLabv2 of DACS and CRST needs",
        ),
        (IMAGENET | filled({"layer5.conv2d_list.0.weight": (1, 1), "more": (1,)}), "missing 'layer5."),
        (CLASSIFIER, "has no 'conv1.weight', which"),
        (filled({"a": (1,)}), "has no 'conv1.weight', which"),
    ],
)  # fmt: skip
def test_what_is_no_encoder_is_refused(
    dacs: tuple[Student, Network], state: State, said: str, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "start.pth")
    with pytest.raises(CheckpointError) as caught:
        initialise(dacs[0], tmp_path / "start.pth", dacs[1], CLASSES)
    assert said in str(caught.value)


def test_the_network_of_two_heads_is_the_published_one(tmp_path: Path) -> None:
    torch.save(IMAGENET, tmp_path / "start.pth")
    _, network = student_of("mrnet", tmp_path / "start.pth")
    assert network.settings["name"] == "mrnet"
