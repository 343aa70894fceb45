"""``endauda inspect``: figures and pictures of an archive are those of what went in."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from endauda_cli.archive import CertaintyReader, CertaintyWriter
from endauda_cli.domains import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from endauda_cli.errors import ArchiveError
from endauda_cli.inspecting import SAMPLED_IMAGES, heat, inspect_archive
from endauda_cli.progress import Note, Tick, silent
from endauda_cli.types import Codec
from tests.support.archive_samples import noise, samples, smooth, write
from tests.support.command_lines import (
    HEIGHT,
    TRAIN,
    VAL,
    WIDTH,
    endauda,
    files_of,
    make_archive,
    opinion,
    put_outputs,
    read_png,
    refused,
    result_of,
    scene,
    seed_of,
    succeed,
)
from tests.support.forged import rename_image


def digests(archive: Path) -> dict[str, str]:
    with CertaintyReader(archive) as reader:
        return {image: reader.digest(image) for image in reader.ids}


def damage_one_of(archive: Path, image: str) -> None:
    """Puts the image into a shard of its own and cuts that short."""
    label, certainty = opinion("dacs", scene(seed_of(image)), seed_of(image))
    shutil.rmtree(archive)
    make_archive(archive.parents[2], "dacs", tuple(other for other in TRAIN + VAL if other != image))
    with CertaintyWriter(
        archive, classes=CITYSCAPES_CLASSES, attributes={"teacher": "dacs"}, tag="x"
    ) as writer:
        writer.write(image, label, np.ascontiguousarray(certainty.transpose(2, 0, 1)))
    (shard,) = archive.glob("shard-x-*.h5")
    shard.write_bytes(shard.read_bytes()[:-1])


def free_is(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Makes every disk look as if it had so many bytes left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(total=10**12, free=free))


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
        "softmax",
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


def test_the_sample_is_told(tmp_path: Path) -> None:
    images = {f"{i:03}": (np.zeros((4, 4), np.uint8), np.full((2, 4, 4), 50, np.uint8)) for i in range(60)}
    write(tmp_path / "many", images, classes=("a", "b"), attributes={"images": "an attribute"})
    facts = inspect_archive(tmp_path / "many", None, tmp_path, False, silent).facts
    assert facts["images"] == "60", "no attribute hides a count"
    assert facts["sample"] == "shares and means below are of 30 images, evenly spread"


def test_damage_that_is_met(archive: Path, tmp_path: Path) -> None:
    """Without --verify too: told in a sentence, with exit 1, and the whole images are still counted."""
    damage_one_of(archive, VAL[0])
    outcome = endauda("inspect", archive, "--json")
    assert outcome.code == 1 and outcome.error["message"] == outcome.err.strip().removeprefix("endauda: ")
    assert outcome.result["intact"] is False
    assert outcome.result["verified"].startswith("damaged: 1 images cannot be read, first ")
    assert VAL[0] in outcome.result["verified"] and "export-teacher" in outcome.result["verified"]
    assert sum(entry["share"] for entry in outcome.result["classes"]) == pytest.approx(1)
    assert "cannot be read" in refused("inspect", archive, "--image", VAL[0], "--out", tmp_path)


def test_pictures_of_ids_with_slashes(tmp_path: Path) -> None:
    path = write(tmp_path / "a", samples(2))
    result = inspect_archive(path, "ulm/0001", tmp_path / "out", False, silent)
    assert result.pictures[0] == tmp_path / "out/ulm/0001_label.png"
    assert all(picture.is_file() for picture in result.pictures)


class TestExport:
    """``--export``: the reference's files back, bit for bit."""

    @pytest.mark.parametrize("codec", Codec)
    def test_there_and_back(self, tmp_path: Path, codec: Codec) -> None:
        outputs = put_outputs(tmp_path / "outputs", "dacs", TRAIN + VAL)
        line = ("--workspace", tmp_path, "--codec", codec)
        succeed("export-teacher", "dacs", "--import", outputs, *line)
        back = tmp_path / "deep/back"
        result = result_of("inspect", "dacs", "--export", back, "--workspace", tmp_path)
        assert files_of(back).keys() == files_of(outputs).keys()
        for name, data in files_of(outputs).items():
            if name.endswith(".npy"):
                assert (back / name).read_bytes() == data, "to the byte as numpy.save wrote it"
            else:
                assert np.array_equal(read_png(back / name), read_png(outputs / name))
        assert result["exported"] == {
            "folder": str(back),
            "images": 7,
            "bytes": sum(len(data) for data in files_of(back).values()),
            "unreadable": 0,
        }
        succeed("export-teacher", "again", "--import", back, *line)
        assert digests(tmp_path / "certainty/gta5/again") == digests(tmp_path / "certainty/gta5/dacs")

    def test_what_it_says(self, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        outcome = succeed("inspect", archive, "--export", "back")
        size = sum(len(data) for data in files_of(tmp_path / "back").values())
        assert f"7 images written back as PNG and NPY, {size / 1e6:.1f} MB -> back" in outcome.out

    def test_again_over_other_files(self, archive: Path, tmp_path: Path) -> None:
        inspect_archive(archive, None, tmp_path, False, silent, tmp_path / "back")
        first = files_of(tmp_path / "back")
        (tmp_path / "back" / f"{VAL[0]}.npy").write_bytes(b"torn")
        (tmp_path / "back" / f"{VAL[1]}.png").unlink()
        (tmp_path / "back/notes.txt").write_text("mine")
        ticks: list[Tick | Note] = []
        inspect_archive(archive, None, tmp_path, False, ticks.append, tmp_path / "back")
        assert files_of(tmp_path / "back") == first | {"notes.txt": b"mine"}
        counted = [tick.done for tick in ticks if isinstance(tick, Tick) and tick.task == "writing back"]
        assert counted == list(range(8))

    @pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (100, 7)])
    def test_odd_sizes(self, tmp_path: Path, size: tuple[int, int]) -> None:
        label, certainty = noise(0, 3, *size)
        path = write(tmp_path / "a", {"x": (label, certainty)})
        inspect_archive(path, None, tmp_path, False, silent, tmp_path / "back")
        assert np.array_equal(np.load(tmp_path / "back/x.npy"), certainty.transpose(1, 2, 0))
        assert np.array_equal(read_png(tmp_path / "back/x.png"), label)

    @pytest.mark.parametrize("checked", [False, True])
    def test_damaged_images_are_left_out(self, archive: Path, tmp_path: Path, checked: bool) -> None:
        damage_one_of(archive, VAL[0])
        words = ["--verify"] if checked else []
        outcome = endauda("inspect", archive, "--export", tmp_path / "back", *words, "--json")
        assert outcome.code == 1 and outcome.result["intact"] is False
        exported = outcome.result["exported"]
        assert (exported["images"], exported["unreadable"]) == (6, 1)
        assert {Path(name).stem for name in files_of(tmp_path / "back")} == {*TRAIN, *VAL} - {VAL[0]}
        outcome = endauda("inspect", archive, "--export", tmp_path / "back")
        assert "6 images written back as PNG and NPY, 1 damaged ones left out" in outcome.out

    def test_a_folder_that_cannot_be_made(self, archive: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for folder in (tmp_path / "file", tmp_path / "file/below"):
            found = refused("inspect", archive, "--export", folder)
            assert found.startswith(f"{folder}: cannot make this folder (") and "name another" in found

    def test_a_file_that_cannot_be_written(self, archive: Path, tmp_path: Path) -> None:
        """A folder stands for whatever is in the way: the reason is told, and nothing half is left."""
        (tmp_path / "back" / f"{TRAIN[0]}.npy").mkdir(parents=True)
        found = refused("inspect", archive, "--export", tmp_path / "back")
        assert f"{TRAIN[0]}.npy: cannot be written (" in found
        assert files_of(tmp_path / "back") == {}

    def test_a_full_disk(self, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        needed = 7 * HEIGHT * WIDTH * 19
        free_is(monkeypatch, needed - 1)
        found = refused("inspect", archive, "--export", tmp_path / "back")
        assert found == (
            f"{tmp_path}/back: 7 images take 0.3 MB as .npy, but 0.3 MB are free; free some space, or name a folder "
            "on another disk"
        )
        assert not (tmp_path / "back").exists()
        free_is(monkeypatch, needed)
        succeed("inspect", archive, "--export", tmp_path / "back")
        free_is(monkeypatch, 0)  # the same files again take no more
        succeed("inspect", archive, "--export", tmp_path / "back")

    @pytest.mark.parametrize("image", ["../x", "/tmp/x", "a/../../x", "a//x", "a/./x"])
    def test_ids_that_lead_elsewhere(self, tmp_path: Path, image: str) -> None:
        path = write(tmp_path / "a", {"x": smooth(0, 3, 4, 5), "good": smooth(1, 3, 4, 5)})
        rename_image(path, "x", image)
        for drawn, export in ((None, tmp_path / "back"), (image, None)):
            with pytest.raises(ArchiveError, match="is no image id"):
                inspect_archive(path, drawn, tmp_path / "back", False, silent, export)
        assert not (tmp_path / "back").exists()

    def test_ids_with_slashes(self, tmp_path: Path) -> None:
        images = samples(3)
        path = write(tmp_path / "a", images)
        inspect_archive(path, None, tmp_path, False, silent, tmp_path / "back")
        for id, (label, certainty) in images.items():
            assert np.array_equal(np.load(tmp_path / f"back/{id}.npy"), certainty.transpose(1, 2, 0))
            assert np.array_equal(read_png(tmp_path / f"back/{id}.png"), label)


def test_archive_without_images(tmp_path: Path) -> None:
    with CertaintyWriter(tmp_path / "none", classes=("a", "b"), attributes={}):
        pass
    result = result_of("inspect", tmp_path / "none", "--verify")
    assert result["facts"]["images"] == "0" and result["intact"] is True
