"""``endauda inspect``: figures and pictures of an archive are those of what went in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from endauda_cli.archive import CertaintyWriter
from endauda_cli.domains import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from endauda_cli.inspecting import SAMPLED_IMAGES, heat, inspect_archive
from tests.command_lines import (
    TRAIN,
    VAL,
    files_of,
    make_archive,
    opinion,
    read_png,
    result_of,
    scene,
    seed_of,
    succeed,
)

if TYPE_CHECKING:
    from endauda_cli.events import Note, Tick


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_archive(tmp_path, "dacs", TRAIN + VAL)


def test_figures_are_those_of_the_archive(archive: Path) -> None:
    result = result_of("inspect", archive)
    pairs = [opinion("dacs", scene(seed_of(image)), seed_of(image)) for image in TRAIN + VAL]
    labels = np.stack([label for label, _ in pairs])
    certainty = np.stack([certainty for _, certainty in pairs])
    for c, (name, entry) in enumerate(zip(CITYSCAPES_CLASSES, result["classes"], strict=True)):
        here = labels == c
        assert entry["name"] == name and entry["share"] == pytest.approx(here.mean())
        mean = certainty[..., c][here].mean() if here.any() else None
        assert entry["certainty"] == (None if mean is None else pytest.approx(mean))
    facts = result["facts"]
    assert (facts["images"], facts["size"], facts["teacher"], facts["codec"]) == (
        "7",
        "64x32",
        "dacs",
        "jpegls",
    )
    assert facts["classes"].startswith("19: road, sidewalk, building")
    raw = 7 * 32 * 64 * 20
    stored = sum(len(data) for data in files_of(archive).values())
    assert facts["on disk"] == f"{stored / 1e6:.1f} MB, {raw / stored:.1f} times smaller than raw bytes"
    assert result["verified"] is None and result["pictures"] == []


def test_by_name_and_by_folder(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = result_of("inspect", "dacs", "--workspace", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert by_name["classes"] == result_of("inspect", "certainty/gta5/dacs")["classes"]


def test_verify(archive: Path) -> None:
    before = files_of(archive)
    outcome = succeed("inspect", archive, "--verify")
    assert outcome.out.rstrip().endswith("verified: all 7 images are intact")
    assert files_of(archive) == before


def test_pictures(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, out = VAL[0], tmp_path / "pictures"
    result = result_of("inspect", archive, "--image", image, "--out", out)
    assert result["pictures"] == [
        str(out / f"{image}_{kind}.png") for kind in ("label", "certainty", "classes")
    ]
    label, certainty = opinion("dacs", scene(seed_of(image)), seed_of(image))
    shown = [read_png(Path(path)) for path in result["pictures"]]
    assert np.array_equal(shown[0], np.array(CITYSCAPES_PALETTE, np.uint8)[label])
    assert np.array_equal(shown[1], heat(certainty.max(2)))
    height, width = shown[2].shape[0] // 4, shown[2].shape[1] // 5  # 19 classes, five in a row
    for c in range(19):
        tile = shown[2][c // 5 * height :, c % 5 * width :][:height, :width]
        inner = tile[20 : 20 + 32, 4 : 4 + 64]
        assert np.array_equal(inner, heat(certainty[..., c]))
    monkeypatch.chdir(tmp_path)
    result_of("inspect", archive, "--image", image)
    assert (tmp_path / f"{image}_label.png").is_file(), "without --out they go where one stands"


def test_heat_is_dark_to_bright() -> None:
    light = heat(np.arange(101, dtype=np.uint8)[None]).astype(int).sum(2)[0]
    assert (np.diff(light) >= 0).all() and light[100] > light[0] + 300


def test_large_archive_is_sampled(tmp_path: Path) -> None:
    count = 2 * SAMPLED_IMAGES + 1
    ticks: list[Tick | Note] = []
    with CertaintyWriter(tmp_path / "many", classes=("a", "b"), attributes={}) as writer:
        for i in range(count):
            writer.write(
                f"{i:04}", np.zeros((4, 4 + i % 4), np.uint8), np.full((2, 4, 4 + i % 4), 50, np.uint8)
            )
    result = inspect_archive(tmp_path / "many", None, tmp_path, False, ticks.append)
    assert len(ticks) <= SAMPLED_IMAGES
    assert [(c.share, c.certainty) for c in result.classes] == [(1.0, 50.0), (0.0, None)]
    assert result.facts["size"] == "4x4, 5x4, 6x4, ..."


def test_archive_without_images(tmp_path: Path) -> None:
    with CertaintyWriter(tmp_path / "none", classes=("a", "b"), attributes={}):
        pass
    result = result_of("inspect", tmp_path / "none", "--verify")
    assert result["facts"]["images"] == "0" and result["intact"] is True
