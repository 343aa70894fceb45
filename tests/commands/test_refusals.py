"""Bad input: one sentence that names the file and what to do, exit 1, and nothing done before is lost."""

from __future__ import annotations

import contextlib
import json
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from endauda_cli.archive import CertaintyWriter
from endauda_cli.models import build_student
from tests.support.command_lines import (
    CITIES,
    SIZE_FLAGS,
    TEACHERS,
    TRAIN,
    VAL,
    contents,
    endauda,
    files_of,
    make_archive,
    make_cityscapes,
    make_workspace,
    opinion,
    put_label,
    put_outputs,
    refused,
    result_of,
    scene,
    seed_of,
    succeed,
)

FUSED = CITIES / "gtFine"
LINDAU = CITIES / "leftImg8bit/val/lindau"
TRUTH = CITIES / "gtFine/val/lindau" / VAL[1].replace("leftImg8bit", "gtFine_labelIds.png")


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of this test's own with images, labels and three archives, the current folder."""
    monkeypatch.chdir(make_workspace(tmp_path))
    return tmp_path


def cut(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


# ---------------------------------------------------------------------------- importing outputs

GOOD, BAD = VAL
Spoil = Callable[[Path], None]


def _npy(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / f"{BAD}.npy"
        np.save(path, change(np.load(path)))

    return spoil


def _above(certainty: np.ndarray) -> np.ndarray:
    certainty[3, 5, 2] = 101
    return certainty


def _shape(folder: Path) -> None:
    path = folder / f"{BAD}.npy"
    data = path.read_bytes()
    assert data.count(b"(32, 64, 19), }         ") == 1
    path.write_bytes(data.replace(b"(32, 64, 19), }         ", b"(99999999999, 64, 19), }"))


def _rgb(folder: Path) -> None:
    with Image.open(folder / f"{BAD}.png") as image:
        image.convert("RGB").save(folder / f"{BAD}.png")


def _value(folder: Path) -> None:
    label = opinion("dacs", scene(seed_of(BAD)), seed_of(BAD))[0].copy()
    label[0, 0] = 33
    put_label(folder / f"{BAD}.png", label)


OUTPUTS: dict[str, tuple[Spoil, str, str]] = {
    "certainty above 100": (_npy(_above), "npy", "certainty 101, expected (H, W, 19) bytes 0 to 100"),
    "logits": (_npy(lambda q: q.astype(np.float32) - 40), "npy", "do not sum to 1 (or 100) over the classes"),
    "not a number": (_npy(lambda q: q * np.float32(np.nan)), "npy", "do not sum to 1 (or 100) over the classes"),
    "whole numbers": (_npy(lambda q: q.astype(np.int64)), "npy", "of type int64, expected (H, W, 19) bytes"),
    "bytes 0 to 1": (_npy(lambda q: (q > 50).astype(np.uint8)), "npy", "was 0 to 1 stored as bytes?"),
    "class axis first": (_npy(lambda q: q.transpose(2, 0, 1)), "npy", "of shape (19, 32, 64)"),
    "other classes": (_npy(lambda q: q[..., :16]), "npy", "of shape (32, 64, 16), expected (H, W, 19) bytes"),
    "other size than the label": (_npy(lambda q: q[::2, ::2]), "npy", "of 32x16 pixels, but the label map beside it"),
    "truncated array": (lambda f: cut(f / f"{BAD}.npy"), "npy", "truncated or not a NumPy file"),
    "next to nothing": (lambda f: cut(f / f"{BAD}.npy", 0.01), "npy", "not a NumPy file"),
    "absurd shape": (_shape, "npy", "pixels, but the label map beside it"),
    "truncated label": (lambda f: cut(f / f"{BAD}.png"), "png", "truncated or not an image"),
    "colour label": (_rgb, "png", "an image of mode RGB, but one channel of label ids"),
    "label outside the table": (_value, "png", "value 33, but train ids are 0 to 18, and 255 for none"),
}  # fmt: skip


@pytest.mark.parametrize("what", OUTPUTS)
def test_wrong_output_of_a_teacher(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image before it is kept, and the run goes on with it once the file is mended."""
    spoil, kind, message = OUTPUTS[what]
    monkeypatch.chdir(make_cityscapes(tmp_path))
    folder = put_outputs(tmp_path / "outputs", "dacs", VAL)
    spoil(folder)
    line = ("export-teacher", "dacs", "--import", "outputs", "--split", "val", "--workers", "1")
    found = refused(*line)
    assert f"outputs/{BAD}.{kind}: " in found and message in found
    assert set(contents(tmp_path / "certainty/gta5/dacs")) == {GOOD}
    put_outputs(tmp_path / "outputs", "dacs", VAL)
    mended = result_of(*line)
    assert (mended["images"], mended["skipped"]) == (2, 1)
    assert contents(tmp_path / "certainty/gta5/dacs") == contents(make_archive(tmp_path, "dacs-2", ())) | {
        id: (label.tobytes(), certainty.transpose(2, 0, 1).tobytes())
        for id in VAL
        for label, certainty in [opinion("dacs", scene(seed_of(id)), seed_of(id))]
    }


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_absent_output_of_a_teacher(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_cityscapes(tmp_path))
    put_outputs(tmp_path / "outputs", "dacs", VAL)
    (tmp_path / f"outputs/{BAD}.{kind}").unlink()
    found = refused("export-teacher", "dacs", "--import", "outputs", "--split", "val")
    assert found == (
        f"outputs: teacher dacs has no output for image {BAD}; expected {BAD}.png with {BAD}.npy or {BAD}.npz"
    )
    assert not (tmp_path / "certainty").exists()


def test_flipped_bytes_in_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the damage is, it is told, or harmless."""
    monkeypatch.chdir(make_cityscapes(tmp_path))
    path = put_outputs(tmp_path / "outputs", "dacs", VAL[:1], "npz") / f"{VAL[0]}.npz"
    put_outputs(tmp_path / "outputs", "dacs", VAL[1:])
    sound = path.read_bytes()
    told = 0
    for at in range(0, len(sound), len(sound) // 40):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0xFF]) + sound[at + 1 :])
        outcome = endauda("export-teacher", f"at-{at}", "--import", "outputs", "--split", "val", "--quiet")
        assert outcome.code == 0 or f"{path.name}: truncated or not a NumPy file" in outcome.err
        told += outcome.code
    assert told > 30


def test_two_certainties_of_one_image(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    put_outputs(put_outputs(tmp_path / "outputs", "dacs", VAL), "dacs", VAL[:1], "npz")
    found = refused(
        "export-teacher", "dacs", "--import", tmp_path / "outputs", "--split", "val", "--workspace", tmp_path
    )
    assert f"{VAL[0]}.npz: " in found and "is a certainty for the same image; remove one of them" in found


def test_two_labels_of_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an image that is asked for; what others have twice is nobody's business."""
    monkeypatch.chdir(make_cityscapes(tmp_path))
    put_outputs(tmp_path / "outputs/a", "dacs", VAL + TRAIN)
    for image in VAL[:1] + TRAIN[:1]:
        put_label(tmp_path / f"outputs/b/{image}.png", scene(0))
    line = ("export-teacher", "dacs", "--import", "outputs", "--split", "val")
    assert refused(*line) == (
        f"outputs/b/{VAL[0]}.png: outputs/a/{VAL[0]}.png is a label map for the same image; remove one of them"
    )
    (tmp_path / f"outputs/b/{VAL[0]}.png").unlink()
    assert result_of(*line)["images"] == 2


@pytest.mark.parametrize(("kind", "partner"), [("png", "npy"), ("npy", "png"), ("npz", "png")])
def test_output_without_its_partner(
    kind: str, partner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no images tell what is wanted, an incomplete output is no reason to leave an image out."""
    monkeypatch.chdir(tmp_path)
    folder = put_outputs(tmp_path / "outputs", "dacs", TRAIN, "npz" if kind == "npz" else "npy")
    put_label(folder / f"{TRAIN[0]}_color.png", scene(0))  # a preview
    put_label(folder / "views/report.png", scene(0))
    line = ("export-teacher", "dacs", "--import", "outputs")
    lone = folder / f"{TRAIN[1]}.{partner}"
    content = lone.read_bytes()
    lone.unlink()
    found = refused(*line)
    assert found.startswith(f"outputs/{TRAIN[1]}.{kind}: no {TRAIN[1]}.{partner} ")
    assert not (tmp_path / "certainty").exists()
    lone.write_bytes(content)
    assert result_of(*line)["images"] == len(TRAIN)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (),
            "say what the teacher is: --weights FILE, --program FILE, or, if its outputs exist, --import FOLDER",
        ),
        (
            ("--weights", "a", "--import", "b"),
            "say what the teacher is: --weights FILE, --program FILE",
        ),
        (("--weights", "a", "--scales", "1;2"), "--scales 1;2: expected numbers, such as 0.75 1 1.25"),
        (("--weights", "a", "--tile", "9x9"), "--tile 9x9: at least 32x32"),
        (("--weights", "a", "--network", "x"), "--network x: known are dacs, crst"),
        (("--weights", "a", "--description", "x"), "x: cannot be read (No such file or directory)"),
        (("--program", "nowhere.onnx"), "nowhere.onnx: a program does not say what it wants"),
        (("--import", "nowhere"), "nowhere: no such folder of teacher outputs"),
        (("--weights", "nowhere.pth"), "nowhere.pth: no such file, but a checkpoint was expected"),
        (("--import", ".", "--shard", "3/2"), "--shard 3/2: the first number runs from 1 to the second"),
        (("--import", ".", "--shard", "2/²"), "--shard 2/²: expected NUMBER/OF"),
        (("--import", ".", "--shard", "2"), "--shard 2: expected NUMBER/OF, such as 2/8"),
        (("--import", ".", "--batch-size", "0"), "--batch-size 0: must be at least 1"),
        (("--import", ".", "--batch-size", "many"), "--batch-size many: expected auto or a number of images"),
        (("--import", ".", "--target-data", "nowhere"), "--target-data nowhere: no such folder"),
        (
            ("--import", ".", "--workspace", "nowhere"),
            "workspace nowhere is not a folder; create it or name another",
        ),
    ],
)
def test_lines_that_export_cannot_follow(city: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refused("export-teacher", "new", *words)
    assert not (city / "certainty/gta5/new").exists()


# ---------------------------------------------------------------------------- checkpoints


def student(path: Path, backbone: str = "tiny", num_classes: int = 19) -> Path:
    torch.save(build_student("deeplabv3plus", backbone, num_classes).state_dict(), path)
    return path


def test_checkpoint_of_another_network(city: Path) -> None:
    path = student(city / "mine.pth")
    found = refused("test", "--weights", path, "--backbone", "mobilenet")
    assert (
        f"{path}: holds deeplabv3plus with backbone tiny, but deeplabv3plus with backbone mobilenet" in found
    )
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    found = refused("test", "--weights", path, "--backbone", "tiny")
    assert f"{path}: has no 'backbone.stem.0.weight', which deeplabv3plus with backbone tiny needs" in found
    assert not list(city.glob("test-*"))


def test_checkpoint_of_another_class_count(city: Path) -> None:
    found = refused(
        "export-teacher", "new", "--weights", student(city / "mine.pth", num_classes=16), "--backbone", "tiny"
    )
    assert str(city / "mine.pth") in found and "16" in found and "19" in found
    assert not (city / "certainty/gta5/new").exists()


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "list"])
def test_no_checkpoint(city: Path, kind: str) -> None:
    path = student(city / "mine.pth")
    if kind == "truncated":
        cut(path)
    elif kind == "list":
        torch.save([1, 2], path)
    else:
        path.write_text("weights" if kind == "text" else "")
    for line in (("test",), ("export-teacher", "new")):
        assert str(path) in refused(*line, "--weights", path, "--backbone", "tiny")


def test_run_of_another_source_or_network(city: Path) -> None:
    succeed("fuse")
    succeed("train", *SIZE_FLAGS, "--steps", "1", "--name", "mine")
    path = Path("runs/gta5/mine/last.pt")
    before = path.read_bytes()
    assert f"{path}: a tiny network, but --backbone drn was given; leave it out" in refused(
        "test", "--weights", path, "--backbone", "drn"
    )
    found = refused("test", "--weights", path, "--source", "synthia")
    assert "trained for 19 classes (road, sidewalk, building, ...), but 16 are expected" in found
    # A folder with another run.
    found = refused("train", *SIZE_FLAGS, "--steps", "1", "--lr", "0.5", "--name", "mine")
    assert "runs/gta5/mine holds a run with --lr 0.0001, not 0.5; name another with --name" in found
    assert "runs/gta5/new/last.pt: no such checkpoint to resume; run without --resume" in refused(
        "train", *SIZE_FLAGS, "--resume", "--name", "new"
    )
    cut(path)
    found = refused("train", *SIZE_FLAGS, "--steps", "1", "--name", "mine")
    assert "runs/gta5/mine/last.pt" in found
    assert path.read_bytes() == before[: int(len(before) * 0.6)]


# ---------------------------------------------------------------------------- archives


def test_archives_of_different_classes(city: Path) -> None:
    with CertaintyWriter(city / "certainty/gta5/mrnet", classes=("road", "sky"), attributes={}) as writer:
        writer.write(TRAIN[0], np.zeros((32, 64), np.uint8), np.full((2, 32, 64), 50, np.uint8))
    found = refused("fuse", "--teachers", "dacs", "mrnet")
    assert found == (
        "mrnet: its archive has 2 classes, and 'sidewalk' is not among them, but gta5 has 19; export it again with "
        "--source gta5, or fuse with the source it was made for"
    )
    assert not (city / FUSED / "plf").exists()
    put_outputs(city / "outputs", "mrnet", TRAIN)
    found = refused("export-teacher", "mrnet", "--import", "outputs")
    assert "certainty/gta5/mrnet: an archive of other classes, it holds 2 classes, not 19" in found


def test_image_that_an_archive_lacks(city: Path) -> None:
    make_archive(city, "mrnet", TRAIN[:3])
    assert refused("fuse", "--teachers", "dacs", "mrnet") == (
        f"mrnet: its archive lacks 2 of 5 images, first {TRAIN[3]}; run 'endauda export-teacher mrnet' again, it "
        "adds what is missing"
    )
    make_archive(city, "half", TRAIN)
    found = refused("fuse", "--teachers", "dacs", "half", "--policy", "val")
    assert (
        f"half: its archive lacks {VAL[0]}" in found
        and "run 'endauda export-teacher half --split val' first" in found
    )


def test_size_that_differs_between_teachers(city: Path) -> None:
    label, certainty = opinion("mrnet", scene(seed_of(TRAIN[0])), 0)
    put_label(city / "outputs" / f"{TRAIN[0]}.png", label[::2, ::2])
    np.save(city / "outputs" / f"{TRAIN[0]}.npy", certainty[::2, ::2])
    put_outputs(city / "outputs", "mrnet", TRAIN[1:])
    outcome = succeed("export-teacher", "mrnet", "--import", "outputs")
    assert f"{TRAIN[0]}.png: 32x16 pixels, but the image has 64x32" in outcome.err
    assert refused("fuse", "--teachers", "dacs", "mrnet") == (
        f"{TRAIN[0]}: 64x32 pixels in the archive of dacs, but 32x16 in that of mrnet; export both at one size"
    )


@pytest.mark.parametrize("kind", ["torn", "flipped", "gone"])
def test_damaged_shard(city: Path, kind: str) -> None:
    """Fused labels of before stay; deleting the shard and exporting again mends the archive."""
    for rule in ("plf", "majority"):
        succeed("fuse", "--rule", rule)
    before = files_of(city / FUSED / "majority")
    shard = next((city / "certainty/gta5/dacs").glob("shard-*.h5"))
    if kind == "gone":
        shard.unlink()
    elif kind == "torn":
        cut(shard)
    else:
        data = bytearray(shard.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
        shard.write_bytes(data)
    found = refused("fuse", "--rule", "certainty", "--name", "new")
    assert str(shard) in found and "export-teacher" in found
    assert files_of(city / FUSED / "majority") == before
    outcome = endauda("inspect", "dacs", "--verify")
    assert outcome.code == 1
    assert "damaged: " in outcome.err and "export again to mend the archive" in outcome.err
    assert (f"delete {shard.name} and" in outcome.err) == (kind != "gone")
    assert f"7 images are in no whole file, first {TRAIN[0]}" in outcome.err
    outcome = endauda("inspect", "dacs", "--verify", "--json")
    assert outcome.result["intact"] is False and outcome.error["kind"] == "ArchiveError"
    shard.unlink(missing_ok=True)
    put_outputs(city / "outputs", "dacs", TRAIN + VAL)
    for split in ("train", "val"):
        # The archive was made with other attributes (this test's own); a new one replaces it.
        succeed("export-teacher", "dacs-again", "--import", "outputs", "--split", split)
    succeed("fuse", "--teachers", "dacs-again", "crst", "cbst", "--rule", "certainty", "--name", "new")


def test_no_archive(city: Path) -> None:
    found = refused("fuse", "--source", "synthia")
    assert "certainty/synthia" in found and "make one with 'endauda export-teacher NAME' first" in found
    assert "(there are some of gta5: name that with --source or --target)" in found
    assert refused("fuse", "--teachers", "dasc", "crst").endswith(
        "there are cbst, crst, dacs; did you mean dacs?"
    )
    assert "such as" in refused("inspect", "dacs", "--image", "ulm") and "ulm" in refused(
        "inspect", "dacs", "--image", "ulm"
    )
    assert refused("inspect", "dasc") == (
        f"no archive of a teacher 'dasc' in {city}/certainty/gta5: there are cbst, crst, dacs; did you mean dacs?"
    )
    assert "certainty/synthia: no archives there" in refused("inspect", "dacs", "--source", "synthia")
    assert refused("inspect", "certainty/dacs").startswith("certainty/dacs: no such folder")
    (city / "empty").mkdir()
    assert str(city / "empty") in refused("inspect", city / "empty")


# ---------------------------------------------------------------------------- options of fuse


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--threshold", "0.9"),
            "--threshold 0.9: certainties are percent, 0 to 100, not 0 to 1; did you mean 90?",
        ),
        (("--threshold", "1"), "did you mean 100?"),
        (("--threshold", "101"), "--threshold 101: certainties are percent, 0 to 100"),
        (("--threshold", "-1"), "--threshold -1: certainties are percent, 0 to 100"),
        (("--window", "4"), "--window 4x4: both sides must be odd and positive"),
        (("--window", "3x6"), "--window 3x6: both sides must be odd and positive"),
        (("--window", "³"), "--window ³: expected one odd number"),
        (("--window", "wide"), "--window wide: expected one odd number, or HEIGHTxWIDTH"),
        (("--teachers", "dacs", "dacs"), "--teachers names dacs twice"),
        (("--target", "cityscape"), "did you mean cityscapes?"),
        (("--source", "gta"), "no data set 'gta': known are cityscapes, gta5, synthia"),
        (
            ("--source", "mine.toml"),
            "mine.toml: no such file; --source and --target take a name or a .toml file",
        ),
        (("--policy", "."), ".: cannot be read: a folder"),
        (("--policy", "/"), "/: cannot be read: a folder"),
        (
            ("--policy", "best"),
            "--policy best: neither one of auto, few-shot, val, certainty, paper nor a file that exists",
        ),
        (("--device", "gpu"), "--device gpu: not available (Expected one of cpu, cuda"),
        (("--device", "meta"), "--device meta: not available (Cannot copy out of meta tensor); try"),
        (
            ("--device", "vulkan"),
            "--device vulkan: not available (Could not run 'aten::empty.memory_format' with arguments from the "
            "'Vulkan' backend); try --device auto",
        ),
    ],
)
def test_lines_that_fuse_cannot_follow(city: Path, words: tuple[str, ...], message: str) -> None:
    found = refused("fuse", *words)
    assert message in found and len(found) < 240 + len(str(city))
    assert not (city / FUSED / "plf").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[["road", "dasc"]]', "teacher 'dasc' is not one of dacs, crst"),
        ('[["street", "dacs"]]', "class 'street' is not one of road,"),
        ('[["road", "dacs"]]', "no owner for class 1; name a teacher for each class"),
        ("[[0, 2]]", "teacher 2 for class 0, but teachers are 0 to 1"),
        ("{}", "expected a list of pairs"),
        ("road dacs", "neither JSON nor a NumPy file"),
    ],
)
def test_wrong_policy_file(city: Path, text: str, message: str) -> None:
    (city / "mine.json").write_text(text)
    found = refused("fuse", "--teachers", "dacs", "crst", "--policy", "mine.json")
    assert found.startswith("mine.json: ") and message in found


# ---------------------------------------------------------------------------- images and labels


def test_damaged_images(city: Path) -> None:
    """Of train in training, of val in testing: named, with what was found."""
    succeed("fuse")
    image = CITIES / "leftImg8bit/train/aachen" / f"{TRAIN[1]}.png"
    good = image.read_bytes()
    cut(image)
    assert f"{image}: truncated or not an image" in refused("train", *SIZE_FLAGS, "--steps", "1")
    image.write_bytes(good)
    with Image.open(image) as rgb:
        rgb.convert("L").save(image)
    assert f"{image}: an image of mode L, but 8-bit RGB is expected" in refused(
        "train", *SIZE_FLAGS, "--steps", "1"
    )
    image.write_bytes(good)
    succeed("train", *SIZE_FLAGS, "--steps", "1")
    cut(LINDAU / f"{VAL[1]}.png")
    assert f"{VAL[1]}.png: truncated or not an image" in refused("test")


def test_labels_for_training(city: Path) -> None:
    train = ("train", *SIZE_FLAGS, "--steps", "1")
    found = refused(*train)
    assert "no fused labels of source gta5" in found and "run 'endauda fuse' first" in found
    assert "--labels nothing: neither a label set (none yet) nor a folder" in refused(
        *train, "--labels", "nothing"
    )
    succeed("fuse", "--rule", "majority")
    label = FUSED / "majority" / f"{TRAIN[2]}.png"
    good = label.read_bytes()
    label.unlink()
    found = refused(*train)
    assert f"{label}: no such label file, needed for image {TRAIN[2]} (1 of 5 are absent)" in found
    label.write_bytes(good[: len(good) // 2])
    assert f"{label}: truncated or not an image" in refused(*train)
    with Image.open(label.with_name(f"{TRAIN[0]}.png")) as grey:
        grey.convert("RGB").save(label)
    assert f"{label}: an image of mode RGB, but one channel of label ids" in refused(*train)
    wrong = scene(seed_of(TRAIN[2]))
    wrong[0, 0] = 19
    put_label(label, wrong)
    assert f"{label}: value 19, but train ids are 0 to 18" in refused(*train)
    label.write_bytes(good)
    succeed(*train)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--crop", "128x64"), "--crop 128x64 is larger than --size 64x32"),
        (("--size", "64"), "--size 64: expected WIDTHxHEIGHT, such as 1024x512"),
        (("--batch-size", "1"), "--batch-size 1: must be at least 2"),
        (("--steps", "0"), "--steps 0: must be at least 1"),
        (("--augment", "colour", "weather"), "--augment weather: choose among"),
        (("--scale-jitter", "2"), "--scale-jitter 2: expected LEAST-MOST, such as 0.5-2"),
        (("--scale-jitter", "2-0.5"), "--scale-jitter 2-0.5: two factors, the smaller first"),
        (
            ("--scale-jitter", "0.01-2"),
            "--scale-jitter 0.01-2: two factors, the smaller first, from 0.125 to 8",
        ),
        (("--scale-jitter", "nan-nan"), "--scale-jitter nan-nan: two factors, the smaller first"),
        (("--hard-percentile", "100"), "--hard-percentile 100: 0 (off) to below 100"),
        (("--size", "64x3²"), "--size 64x3²: expected WIDTHxHEIGHT"),
        (("--hard-percentile", "0.8"), "not 0 to 1; did you mean 80?"),
        (("--hard-percentile", "nan"), "--hard-percentile nan: 0 (off) to below 100"),
        (("--lr", "0"), "--lr 0: must be above 0"),
        (("--lr", "nan"), "--lr nan: must be above 0, and finite"),
        (("--lr", "inf"), "--lr inf: must be above 0, and finite"),
        (("--warm-up", "-3"), "--warm-up -3: must be at least 0"),
        (("--seed", "-1"), "--seed -1: must be from 0 to 9223372036854775807"),
        (("--seed", str(2**63)), f"--seed {2**63}: must be from 0 to"),
        (("--init", "nowhere.pth"), "nowhere.pth: no such file"),
    ],
)
def test_lines_that_train_cannot_follow(city: Path, words: tuple[str, ...], message: str) -> None:
    succeed("fuse", "--rule", "majority")
    assert message in refused("train", *SIZE_FLAGS, "--steps", "1", *words)
    assert not list(city.glob("runs/*/*/*.pt"))


def test_seed_that_the_demo_cannot_use(tmp_path: Path) -> None:
    assert refused("demo", "--seed", "-1", "--out", tmp_path / "demo") == (
        "--seed -1: must be from 0 to 9223372036854775807"
    )
    assert not (tmp_path / "demo").exists()


def test_truth_outside_the_table(city: Path) -> None:
    for image in VAL:
        put_label(city / "mine" / f"{image}.png", scene(seed_of(image)))
    put_label(city / TRUTH, np.full((32, 64), 77, np.uint8))
    found = refused("test", "--predictions", "mine")
    assert f"{TRUTH.name}: label id 77 is not in the table of cityscapes (known: 0-33)" in found
    (city / TRUTH).unlink()
    found = refused("test", "--predictions", "mine")
    assert (
        f"{VAL[1]}.png: no label file belongs to it" in found
        and "gtFine/val/*/*_gtFine_labelIds.png" in found
    )


def test_predictions_that_cannot_be_scored(city: Path) -> None:
    line = ("test", "--predictions", "mine")
    assert refused(*line) == "mine: no such folder of predictions"
    put_label(city / "mine" / f"{VAL[0]}.png", scene(seed_of(VAL[0])))
    assert refused(*line) == f"mine: no prediction for 1 of 2 images, first {VAL[1]}.png"
    bad = city / "mine" / f"{VAL[1]}.png"
    wrong = scene(seed_of(VAL[1]))
    wrong[4, 4] = 200
    put_label(bad, wrong)
    assert f"mine/{bad.name}: value 200, but train ids are 0 to 18, and 255 for none" in refused(*line)
    put_label(bad, scene(0)[::2, ::2])
    found = refused(*line)
    assert "64x32 pixels, but the prediction" in found and "has 32x16" in found
    Image.new("RGB", (64, 32)).save(bad)
    assert "an image of mode RGB" in refused(*line)
    put_label(bad, scene(1))
    put_label(city / "mine/more" / bad.name, scene(1))
    assert refused(*line) == (
        f"mine/more/{bad.name}: mine/{bad.name} is a prediction for the same image; remove one of them"
    )
    (city / "mine/more" / bad.name).rename(city / "mine/more" / f"{TRAIN[0]}.png")
    put_label(city / "mine" / f"{TRAIN[0]}.png", scene(1))  # not asked for
    succeed(*line)
    cut(bad)
    assert "truncated or not an image" in refused(*line)
    assert refused(*line, "--weights", "a.pt") == "a.pt: no such file of weights"


def test_empty_split(city: Path) -> None:
    for split in ("train", "val"):
        for path in (city / CITIES / "leftImg8bit" / split).rglob("*.png"):
            path.unlink()
    found = refused("test")
    assert (
        found.startswith("cityscapes: no image of split 'val' in ")
        and "leftImg8bit/val/*/*_leftImg8bit.png" in found
    )
    (city / "mine.pth").touch()
    path = student(city / "mine.pth")
    assert "no image of split 'train'" in refused(
        "export-teacher", "new", "--weights", path, "--backbone", "tiny"
    )
    assert not (city / "certainty/gta5/new").exists()
    succeed("fuse")  # what the archives hold
    assert "no image of split 'train'" in refused("train", *SIZE_FLAGS)


def test_nothing_trained_yet(city: Path) -> None:
    found = refused("test")
    assert "no trained run of source gta5" in found and "run 'endauda train' first" in found


def test_data_sets_that_disagree(city: Path) -> None:
    (city / "mine.toml").write_text("name = 'mine'\nclasses = ['road', 'water']\n[train]\nimages = '*.png'\n")
    found = refused("fuse", "--source", "mine.toml")
    assert "class 'water' of mine is not in cityscapes" in found
    (city / "mine.toml").write_text("name = 'mine'\nclasses = ['road', 'sky'\n")
    assert refused("fuse", "--source", "mine.toml").startswith("mine.toml: not valid TOML")
    (city / "mine.toml").write_text("name = 'mine'\nclasses = ['road', 'sky']\nimages = '*.png'\n")
    assert "unknown key images" in refused("fuse", "--source", "mine.toml")


# ---------------------------------------------------------------------------- the disk


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow beyond ``limit`` bytes: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (200, ("fuse", "--name", "new")),
        (3000, ("fuse", "--name", "new")),
        (2000, ("export-teacher", "new", "--import", "outputs")),
        (20_000, ("train", *SIZE_FLAGS, "--steps", "1", "--labels", "majority")),
        (2000, ("inspect", "dacs", "--export", "back")),
    ],
    ids=["fuse, first files", "fuse, report", "export", "train", "inspect"],
)
def test_full_disk(city: Path, limit: int, words: tuple[str, ...]) -> None:
    """Told in a sentence; the same line works once there is room."""
    succeed("fuse", "--rule", "majority")
    put_outputs(city / "outputs", "mrnet", TRAIN)
    before = files_of(city / FUSED / "majority")
    with full_disk(limit):
        found = refused(*words)
    assert re.search("free (disk|some) space", found), found
    assert files_of(city / FUSED / "majority") == before
    succeed(*words)
    assert not [path for path in city.rglob("*.tmp")]


def test_teachers_are_all_there(city: Path) -> None:
    """The three archives of this file's workspace are sound, so refusals above are about what was spoilt."""
    assert result_of("fuse")["teachers"] == sorted(TEACHERS)
    assert json.loads((city / FUSED / "consensus/fusion.json").read_text())["images"] == len(TRAIN)
