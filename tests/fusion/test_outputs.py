"""What a teacher says, asked of everything that says it: an archive, one joined to other classes, a network."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from endauda_cli.archive import CertaintyReader, CertaintyWriter, TeacherOutputs, join_classes
from endauda_cli.archive.joined import JoinedReader
from endauda_cli.config import FuseConfig
from endauda_cli.domains import CITYSCAPES, make_task
from endauda_cli.errors import EndaudaError
from endauda_cli.fusion.image import Fusion, run_rule
from endauda_cli.fusion.live import Network, NetworkReader
from endauda_cli.fusion.rules import Recipe
from endauda_cli.fusion.rules.consensus import fit
from endauda_cli.types import FusionRule
from tests.support.command_lines import put_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

UInt8 = NDArray[np.uint8]

CLASSES = ("road", "car", "sky")
OTHERS = ("sky", "tram", "car", "road")
IDS = ("a", "b")
SIZE = (6, 8)


def said(image: str) -> tuple[UInt8, UInt8]:
    """(H, W) labels, one of them none, and (C, H, W) certainties of ``CLASSES``."""
    rng = np.random.default_rng(ord(image))
    certainty = rng.integers(0, 34, (len(CLASSES), *SIZE)).astype(np.uint8)
    label = certainty.argmax(0).astype(np.uint8)
    label[0, 0] = 255
    return label, certainty


def said_of_more(image: str) -> tuple[UInt8, UInt8]:
    """The same in another order, with a class in between that nobody gives."""
    label, certainty = said(image)
    more = np.zeros((len(OTHERS), *SIZE), np.uint8)
    number = np.full(256, 255, np.uint8)
    for c, name in enumerate(CLASSES):
        more[OTHERS.index(name)], number[c] = certainty[c], OTHERS.index(name)
    return number[label], more


def archive(folder: Path, classes: Sequence[str], outputs: dict[str, tuple[UInt8, UInt8]]) -> CertaintyReader:
    with CertaintyWriter(folder, classes=classes) as writer:
        for image, (label, certainty) in outputs.items():
            writer.write(image, label, certainty)
    return CertaintyReader(folder)


def network(folder: Path) -> NetworkReader:
    images = {image: folder / f"{image}.png" for image in IDS}
    for path in images.values():
        put_image(path, np.zeros(SIZE, np.uint8), 0)
    run = Network(
        {"teacher": "x"}, lambda paths: (tuple(map(torch.from_numpy, said(path.stem))) for path in paths)
    )
    return NetworkReader(run, CLASSES, images)


@pytest.fixture(params=["archive", "joined", "network", "joined network"])
def outputs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TeacherOutputs]:
    if request.param == "archive":
        yield archive(tmp_path / "a", CLASSES, {image: said(image) for image in IDS})
    elif request.param == "joined":
        whole = archive(tmp_path / "a", OTHERS, {image: said_of_more(image) for image in IDS})
        yield join_classes(whole, CLASSES)
    elif request.param == "network":
        yield network(tmp_path)
    else:
        turned = JoinedReader(network(tmp_path), CLASSES[::-1])
        yield JoinedReader(turned, CLASSES)


def test_they_are_what_the_engine_asks_for(outputs: TeacherOutputs) -> None:
    assert isinstance(outputs, TeacherOutputs)
    assert (outputs.ids, outputs.classes) == (IDS, CLASSES)
    assert "a" in outputs and "c" not in outputs


def test_labels_and_certainties(outputs: TeacherOutputs) -> None:
    for image in IDS:
        label, certainty = said(image)
        assert outputs.size(image) == SIZE
        for found, expected in (
            (outputs.labels(image), label),
            (outputs.certainty(image), certainty),
            (outputs.planes(image, [2, 0]), certainty[[2, 0]]),
            (outputs.plane(image, 1), certainty[1]),
        ):
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, expected)


def test_digests_tell_images_apart_and_last(outputs: TeacherOutputs) -> None:
    assert outputs.digest("a") == outputs.digest("a") != outputs.digest("b")


def test_what_is_not_there_is_told(outputs: TeacherOutputs) -> None:
    for ask in (outputs.labels, outputs.certainty, outputs.size, outputs.digest):
        with pytest.raises(EndaudaError, match="there is no image 'c'"):
            ask("c")


def test_a_class_that_nobody_has_is_refused(outputs: TeacherOutputs) -> None:
    with pytest.raises(EndaudaError, match="'tram'"):
        JoinedReader(outputs, ("road", "tram"))


@pytest.mark.parametrize("rule", FusionRule)
def test_a_rule_on_the_device_takes_what_a_network_left_there(
    rule: FusionRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch, here on the CPU: the labels of the compiled kernels, and no certainty on its way between the two."""
    one, other = network(tmp_path / "one"), JoinedReader(network(tmp_path / "other"), CLASSES[::-1])
    readers: dict[str, TeacherOutputs] = {"one": one, "other": JoinedReader(other, CLASSES)}
    labels = np.stack([reader.labels("a") for reader in readers.values()])
    certainties = np.stack([reader.certainty("a") for reader in readers.values()])
    pixels = labels.reshape(2, -1), certainties.reshape(2, len(CLASSES), -1).transpose(0, 2, 1)
    delta = tuple(float(10 * c) for c in range(len(CLASSES)))
    recipe = Recipe(len(CLASSES), (0, 1, 0), threshold=20, delta=delta, model=fit(*pixels, len(CLASSES)))
    domain = replace(CITYSCAPES, classes=CLASSES, palette=CITYSCAPES.palette[: len(CLASSES)])
    fusion = Fusion(
        FuseConfig(teachers=("one", "other")), make_task(domain, domain), readers, recipe, {}, "cpu"
    )
    expected = run_rule(fusion, rule, "a", labels)

    def refuse(self: NetworkReader, *asked: object) -> None:
        raise AssertionError("certainties were copied")

    for name in ("plane", "planes", "certainty"):
        monkeypatch.setattr(NetworkReader, name, refuse)
    found = run_rule(replace(fusion, device="cpu:0"), rule, "a", labels)
    assert all(map(np.array_equal, expected, found))
