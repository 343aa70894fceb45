"""From folders as GTA5 and SYNTHIA have them to a teacher's archive: ``train --method`` and ``export-teacher``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from endauda_cli import checkpoint
from endauda_cli.archive import CertaintyReader
from endauda_cli.commands import train
from endauda_cli.domains import CITYSCAPES_CLASSES, DOMAINS
from endauda_cli.errors import EndaudaError
from tests.support.command_lines import (
    SIZE_FLAGS,
    make_cityscapes,
    put_image,
    put_label,
    refused,
    scene,
    succeed,
)

if TYPE_CHECKING:
    from pathlib import Path

    from endauda_cli.config import TrainConfig

SHORT = (
    "--device",
    "cpu",
    "--steps",
    "2",
    "--rounds",
    "2",
    "--source-portion",
    "1",
    "--source-portion-most",
    "1",
)


def make_source(root: Path, name: str) -> None:
    """Three labelled images in the real layout, with the real ids."""
    domain = DOMAINS[name]
    folder = root / domain.roots[0]
    ids = {class_name: i for i, class_name in domain.label_ids.items()}
    table = np.array([ids.get(class_name, 0) for class_name in CITYSCAPES_CLASSES], np.uint8)
    for i in range(3):
        truth = scene(100 + i)
        put_image(folder / "images" / f"{i:05}.png", truth, 100 + i)
        put_label(folder / "labels" / f"{i:05}.png", table[truth])


@pytest.mark.parametrize(
    ("method", "source"), [("dacs", "gta5"), ("cbst", "synthia"), ("crst", "gta5"), ("dacs", "synthia")]
)
def test_a_method_makes_a_teacher(tmp_path: Path, method: str, source: str) -> None:
    root = make_cityscapes(tmp_path)
    make_source(root, source)
    said = ("--workspace", root, "--source", source)
    succeed("train", "--method", method, *SIZE_FLAGS, "--scale-jitter", "0.8-1.2", "--no-freeze-norms",
            "--source-size", "48x24", *SHORT, "--name", method, *said)  # fmt: skip
    archive = root / f"certainty/{source}/{method}"
    succeed(
        "export-teacher",
        method,
        "--weights",
        root / f"runs/{source}/{method}/last.pt",
        "--device",
        "cpu",
        *said,
    )
    reader = CertaintyReader(archive)
    classes = len(DOMAINS[source].classes)
    assert reader.certainty(reader.ids[0]).shape == (classes, 32, 64)
    assert len(reader.ids) == 5
    meta = checkpoint.read_meta(root / f"runs/{source}/{method}/last.pt")
    assert (meta["config"]["method"], meta["config"]["nesterov"]) == (method, False)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "flip"), [("dacs", False), ("crst", True)])
def test_a_method_trains_its_projects_network(tmp_path: Path, method: str, flip: bool) -> None:
    root = make_cityscapes(tmp_path)
    make_source(root, "gta5")
    sizes = ("--size", "64x32", "--crop", "32x32", "--batch-size", "2", "--source-size", "64x32")
    line = ("train", "--method", method, *sizes, *SHORT, "--name", "it", "--workspace", root)
    succeed(*line)
    network = checkpoint.read_meta(root / "runs/gta5/it/last.pt")["network"]
    assert (network["family"], network["settings"]["name"]) == ("teacher", method)
    assert network["output"].get("flip", False) == flip
    assert network["input"]["bgr"] == (method == "dacs")
    succeed(
        "export-teacher",
        "it",
        "--weights",
        root / "runs/gta5/it/last.pt",
        "--device",
        "cpu",
        "--workspace",
        root,
    )
    assert CertaintyReader(root / "certainty/gta5/it").attributes["flip"] == flip


@pytest.mark.parametrize(
    ("method", "said", "size"),
    [
        ("dacs", (), [1280, 720]),
        ("dacs", ("--size", "512x256", "--crop", "64x32"), [640, 360]),
        ("crst", (), [1914, 1052]),
        ("crst", ("--size", "1024x512"), [1024, 526]),  # a crop of 1024x512 fits
        ("crst", ("--size", "1024x512", "--source-size", "1100x600"), [1100, 600]),
        ("source", ("--size", "64x32", "--crop", "32x16"), None),
    ],
)
def test_the_source_is_as_much_smaller_as_the_target(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    said: tuple[str, ...],
    size: list[int] | None,
) -> None:
    root = make_cityscapes(tmp_path)
    make_source(root, "gta5")
    found = []

    def caught(session: Any, options: Any, config: TrainConfig, *others: Any) -> Any:
        found.append(config.source_size)
        raise EndaudaError("enough")

    monkeypatch.setattr(train, "_done", caught)
    assert refused("train", "--method", method, "--backbone", "tiny", *said, "--workspace", root) == "enough"
    assert found == [size and tuple(size)]


def test_what_a_method_is_told_is_looked_at(tmp_path: Path) -> None:
    root = make_cityscapes(tmp_path)
    make_source(root, "gta5")
    said = refused("train", "--method", "dacs", *SIZE_FLAGS, "--source-size", "64x32", "--strong", "glitter",
                   "--workspace", root)  # fmt: skip
    assert said.startswith("--strong glitter: choose among colour, light")
