"""Room on disk is looked at before an export begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from endauda_cli import distributed, exporting
from endauda_cli.files import free_bytes, size_text
from tests.support.command_lines import (
    HEIGHT,
    SIZE_FLAGS,
    TRAIN,
    VAL,
    WIDTH,
    contents,
    make_cityscapes,
    put_outputs,
    refused,
    result_of,
    succeed,
)

NEEDED = len(TRAIN) * HEIGHT * WIDTH * 19 / 10
IMPORT = ("export-teacher", "dacs", "--import", "outputs")


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images, and a teacher's outputs for them; the current folder."""
    monkeypatch.chdir(make_cityscapes(tmp_path))
    put_outputs(tmp_path / "outputs", "dacs", TRAIN)
    return tmp_path


def free_is(monkeypatch: pytest.MonkeyPatch, free: float, total: int = 10**12) -> list[Path]:
    """Makes every disk look as if it had so many bytes left; the list collects what was asked for."""
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(Path(path))
        return SimpleNamespace(total=total, free=int(free))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return asked


def test_enough_is_not_mentioned(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = free_is(monkeypatch, NEEDED)
    assert "free" not in succeed(*IMPORT).err
    assert asked[0] == city, "the nearest folder that is there"


def test_little_is_a_warning(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_is(monkeypatch, NEEDED - 1)
    outcome = succeed(*IMPORT, "--quiet")
    assert outcome.err.splitlines() == [
        f"warning: {city}/certainty/gta5/dacs: 5 images of 64x32 pixels and 19 classes take about 0.0 MB as softmax "
        "(expected to be 10 times smaller than raw), but 0.0 MB are free; if the disk fills up, free some space and "
        "run the same command again"
    ]
    assert len(contents(city / "certainty/gta5/dacs")) == 5


def test_less_than_half_is_refused(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_is(monkeypatch, NEEDED / 2 - 1)
    found = refused(*IMPORT)
    assert found.startswith(f"{city}/certainty/gta5/dacs: 5 images") and "are free" in found
    assert found.endswith("free some space, or name a workspace on another disk with --workspace")
    assert not (city / "certainty").exists()
    free_is(monkeypatch, NEEDED / 2)
    succeed(*IMPORT)


def test_of_a_network(city: Path, tiny_network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("export-teacher", "mine", "--weights", tiny_network)
    free_is(monkeypatch, NEEDED / 8 - 1)
    assert "as grid (expected to be 40 times smaller than raw)" in refused(*line)
    free_is(monkeypatch, NEEDED / 2 - 1)
    assert "5 images of 64x32 pixels and 19 classes" in refused(*line, "--codec", "softmax")
    assert not (city / "certainty").exists()
    free_is(monkeypatch, NEEDED / 4)
    succeed(*line)


@pytest.fixture
def tiny_network(city: Path) -> Path:
    """A network with random weights, as a run leaves it."""
    folder = city / "Warehouse/Cityscapes/data/gtFine/any"
    folder.mkdir(parents=True)
    for image in TRAIN:
        shutil.copy(city / "outputs" / f"{image}.png", folder)
    succeed("train", "--labels", "any", "--name", "tiny", "--steps", "1", "--device", "cpu", *SIZE_FLAGS)
    return city / "runs/gta5/tiny/last.pt"


def test_other_codecs_are_expected_to_need_more(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_is(monkeypatch, NEEDED)
    assert "expected to be 5 times smaller than raw" in succeed(*IMPORT, "--codec", "gzip", "--quiet").err


def test_what_is_stored_already_needs_nothing(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    succeed(*IMPORT)
    free_is(monkeypatch, 0)
    assert result_of(*IMPORT)["skipped"] == 5
    put_outputs(city / "outputs", "dacs", VAL)
    assert ": 2 images of 64x32" in refused(*IMPORT, "--split", "val")


def test_a_shard_counts_its_own_images(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_is(monkeypatch, 0)
    assert ": 3 images of 64x32" in refused(*IMPORT, "--shard", "1/2")


def test_ranks_count_all_images(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They all write to one disk."""
    free_is(monkeypatch, 0)
    for module in (exporting, distributed):
        monkeypatch.setattr(module, "world_size", lambda: 2)
    assert ": 5 images of 64x32" in refused(*IMPORT)


def test_a_disk_that_does_not_tell(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_is(monkeypatch, 0, total=0)
    succeed(*IMPORT)

    def usage(_path: Path) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert free_bytes(city) is None


def test_free_bytes_of_a_folder_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_bytes(tmp_path / "a/b/c")
    assert free is not None and free > 0
    monkeypatch.chdir(tmp_path)
    asked = free_is(monkeypatch, 7)
    assert free_bytes(Path("a/b")) == 7 and asked == [tmp_path]


@pytest.mark.parametrize(("size", "text"), [(0, "0.0 MB"), (999e6, "999.0 MB"), (474e9, "474.0 GB")])
def test_sizes(size: float, text: str) -> None:
    assert size_text(size) == text
