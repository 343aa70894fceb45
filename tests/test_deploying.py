"""Students as files for other programs: what is written, checked, refused, and taken as a teacher again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from endauda_cli import checkpoint
from endauda_cli.deploying import LEAST_EQUAL, formats
from endauda_cli.domains import CITYSCAPES_CLASSES
from endauda_cli.models import build_student
from endauda_cli.segmenter import ClassMap, Procedure, Segmenter
from endauda_cli.teachers import open_teacher
from endauda_cli.teachers.descriptions import description_text, join_classes, read_description, refuse_unsaid
from endauda_cli.transforms import Preprocessing
from endauda_cli.types import Accuracy, Format
from tests.support.command_lines import (
    CITIES,
    TRAIN,
    contents,
    files_of,
    make_cityscapes,
    read_png,
    refused,
    result_of,
    succeed,
)

PAGE = Path(__file__).parents[1] / "docs" / "deploy.md"


def put_checkpoint(path: Path, seed: int = 0, arch: str = "deeplabv3plus", **meta: Any) -> Path:
    torch.manual_seed(seed)
    student = build_student(arch, "tiny", len(meta.get("classes", CITYSCAPES_CLASSES)))
    with torch.no_grad():  # else all pixels are of one class
        for name, value in student.named_parameters():
            if value.ndim == 4:
                value.mul_(1.5)
            if name.endswith("bias"):
                value.add_(torch.randn_like(value))
    told = {"arch": arch, "backbone": "tiny", "classes": list(CITYSCAPES_CLASSES), "size": [64, 32]} | meta
    checkpoint.save(path, {"weights": student.state_dict(), "meta": told})
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target's images, and a run."""
    root = make_cityscapes(tmp_path_factory.mktemp("deploy"))
    put_checkpoint(root / "runs/gta5/first/last.pt")
    (root / "runs/gta5/first/config.json").write_text("{}")
    return root


@pytest.fixture
def city(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


@pytest.mark.parametrize(
    ("format", "precision", "more"),
    [
        ("onnx", "float32", ()),
        ("onnx", "float16", ("--dynamic",)),
        ("onnx", "int8", ()),
        ("pt2", "float32", ("--dynamic",)),
        ("torchscript", "float32", ("--dynamic",)),
        ("torchscript", "float16", ()),
        ("safetensors", "float32", ()),
        ("safetensors", "float16", ("--size", "96x48")),
    ],
)
def test_deployed_and_taken_as_a_teacher(
    format: str, precision: str, more: tuple[str, ...], city: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"student{formats.FORMATS[Format(format)].ending}"
    told = result_of(
        "deploy", "first", "--format", format, "--precision", precision, *more, "--out", out, "--images", "3"
    )
    assert (told["file"], told["format"], told["precision"], told["images"]) == (
        str(out),
        format,
        precision,
        3,
    )
    assert told["bytes"] == out.stat().st_size and told["dynamic"] == ("--dynamic" in more)
    assert told["equal"] >= (LEAST_EQUAL if precision == "float32" else 60 if precision == "int8" else 98)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, "student.toml"])
    smaller = {"float32": 1.8, "float16": 0.8, "int8": 0.6}[
        precision
    ]  # graphs of so small a network weigh, too
    assert told["bytes"] < smaller * told["float32_bytes"]

    size = ("--size", more[1]) if "--size" in more else ()
    name = f"own{''.join(size[1:])}"
    succeed("export-teacher", name, "--weights", "runs/gta5/first/last.pt", *size, "--workspace", city)
    flag = "--weights" if format == "safetensors" else "--program"
    again = f"again-{format}-{precision}"
    succeed("export-teacher", again, flag, out, "--workspace", city)
    own, other = contents(city / f"certainty/gta5/{name}"), contents(city / f"certainty/gta5/{again}")
    same = np.mean(
        [np.mean(np.frombuffer(own[i][0], np.uint8) == np.frombuffer(other[i][0], np.uint8)) for i in own]
    )
    assert 100 * same >= told["equal"] - 5
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_int8_without_images_and_timed(city: Path, tmp_path: Path) -> None:
    told = result_of(
        "deploy",
        "first",
        "--precision",
        "int8",
        "--calibrate",
        "0",
        "--out",
        tmp_path / "q.onnx",
        "--benchmark",
    )
    assert told["calibrated_on"] == 0 and told["equal"] > 90
    assert told["images_per_second"] > 0 and told["checkpoint_images_per_second"] > 0 and told["threads"] >= 1


def test_the_program_on_the_page(city: Path, tmp_path: Path) -> None:
    """In a process of its own that has no endauda; at most 20 lines that count."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    assert "endauda" not in code
    (tmp_path / "label.py").write_text(code)
    succeed("deploy", "runs/gta5/first", "--out", tmp_path / "student.onnx")
    image = city / CITIES / "leftImg8bit/train/aachen" / f"{TRAIN[0]}.png"
    words = [sys.executable, "-I", "label.py", "student.onnx", str(image), "labels.png"]
    subprocess.run(words, cwd=tmp_path, check=True, timeout=100)
    teacher = open_teacher(city / "runs/gta5/first/last.pt", CITYSCAPES_CLASSES)
    from endauda_cli.deploying import _labels

    (expected,) = _labels(teacher.segmenter, [image])
    assert (read_png(tmp_path / "labels.png") == expected).mean() > 0.999
    assert len(np.unique(expected)) > 2  # it is a picture


def test_the_default_place(city: Path) -> None:
    told = result_of("deploy", "--format", "torchscript")
    assert Path(told["file"]) == city / "deployed/gta5/first.ts"
    assert Path(told["checkpoint"]) == city / "runs/gta5/first/last.pt"


# ---------------------------------------------------------------------------- refusals


def test_a_file_that_labels_otherwise_is_not_written(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(wish: formats.Wish) -> None:
        network = build_student("deeplabv3plus", "tiny", 19).eval()
        torch.jit.trace(network, torch.zeros(2, 3, 32, 64)).save(str(wish.path))  # type: ignore[no-untyped-call]

    monkeypatch.setitem(formats.FORMATS, Format.TORCHSCRIPT, formats.Writer(".ts", other))
    message = refused("deploy", "first", "--format", "torchscript", "--out", tmp_path / "x.ts")
    assert "% of the pixels of 5 images as the checkpoint does, but 99.9 % or more were expected" in message
    assert not list(tmp_path.iterdir())
    succeed(
        "deploy", "first", "--format", "torchscript", "--precision", "float16", "--out", tmp_path / "x.ts"
    )


def test_what_lies_there(city: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.ts"
    out.write_text("mine")
    line = ("deploy", "first", "--format", "torchscript", "--out", out)
    assert "is there already and not from 'endauda deploy'" in refused(*line)
    assert out.read_text() == "mine"
    out.unlink()
    succeed(*line)
    before = files_of(tmp_path)
    succeed(*line)
    assert files_of(tmp_path).keys() == before.keys()
    assert "describes x.ts too, which takes other input" in refused(
        "deploy", "first", "--format", "safetensors", "--size", "96x48", "--out", tmp_path / "x.safetensors"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fist",), "a run of the workspace nor a file of weights; runs of gta5 are first; did you mean first?"),
        (("first", "--precision", "int8", "--format", "pt2"), "--precision int8 is written as onnx alone, not as pt2"),
        (("first", "--out", "x.pt"), "--out x.pt: files of --format onnx end in .onnx"),
        (("first", "--images", "0"), "--images 0: must be from 1 to 10,000"),
        (("runs/gta5/first/last.pt", "--source", "synthia"), "trained for 19 classes"),
    ],
)  # fmt: skip
def test_lines_that_deploy_cannot_follow(city: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refused("deploy", *words)


def test_packages_that_are_missing_are_named(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    message = refused("deploy", "first", "--out", tmp_path / "x.onnx")
    assert message == "--format onnx needs onnx and onnxscript and onnxruntime; pip install 'endauda[deploy]'"


def test_weights_beyond_float16(city: Path, tmp_path: Path) -> None:
    path = put_checkpoint(tmp_path / "large.pt")
    content = checkpoint.load(path)
    key = next(key for key in content["weights"] if key.endswith("running_var"))
    content["weights"][key][0] = 1e6
    checkpoint.save(path, {"weights": content["weights"], "meta": content["meta"]})
    message = refused(
        "deploy", path, "--format", "pt2", "--precision", "float16", "--out", tmp_path / "x.pt2"
    )
    assert f"{key!r} has values up to 1e+06, which float16 cannot hold" in message


def test_a_full_disk(city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(wish: formats.Wish) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(formats.FORMATS, Format.PT2, formats.Writer(".pt2", full))
    assert "No space left" in refused("deploy", "first", "--format", "pt2", "--out", tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- descriptions


SAID = [
    Segmenter(torch.nn.Identity(), Preprocessing(size=(64, 32))),
    Segmenter(
        torch.nn.Identity(),
        Preprocessing(
            size=None, longer_side=777, filter="nearest", bgr=False, divisor=255.0, mean=(0.1, 1 / 3, 0.0),
            std=(0.2, 0.25, 1.0), multiple_of=32,
        ),
        Procedure(scales=(0.75, 1.0), flip=True, softmax="first", heads=(0.5, 1.0), align_corners=False),
        ClassMap(("street", 'a "b"\\c', "car", "sky"), (0, None, 1, 0), 3),
    ),
    Segmenter(torch.nn.Identity(), Preprocessing(size=None), Procedure(softmax="none")),
]  # fmt: skip


@pytest.mark.parametrize("segmenter", SAID, ids=["student", "all", "probabilities"])
def test_a_description_says_all_that_is_read(segmenter: Segmenter, tmp_path: Path) -> None:
    classes = ("road", "car", "train")
    path = tmp_path / "x.toml"
    path.write_text(description_text(segmenter, classes, "remark"))
    refuse_unsaid(path, segmenter, tmp_path)
    assert join_classes(path, None, classes, read_description(path)) == segmenter.class_map


@pytest.mark.parametrize(
    ("procedure", "temperature", "unsaid"),
    [
        (Procedure(softmax="upsampled"), 1.0, "softmax"),
        (Procedure(enlarge="bicubic"), 1.0, "enlarge"),
        (Procedure(rescale="input", scales=(0.5, 1.0)), 1.0, "rescale"),
        (Procedure(), 2.0, "temperature"),
    ],
)
def test_what_a_description_cannot_say(
    procedure: Procedure, temperature: float, unsaid: str, tmp_path: Path
) -> None:
    segmenter = Segmenter(torch.nn.Identity(), Preprocessing(), procedure, temperature=temperature)
    path = tmp_path / "x.toml"
    path.write_text(description_text(segmenter, ("a", "b"), "remark"))
    with pytest.raises(Exception, match=f"a description cannot say its {unsaid}, so no other program"):
        refuse_unsaid(path, segmenter, tmp_path)


def test_tables_have_every_name() -> None:
    assert set(formats.FORMATS) == set(Format)
    assert set(Accuracy) == {"float32", "float16", "int8"}
