"""Maps of classes that ship: what is in them, whom they fit, and the command that takes them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from endauda_cli.archive import CertaintyReader
from endauda_cli.domains import CITYSCAPES_CLASSES, DOMAINS
from endauda_cli.errors import ConfigError
from endauda_cli.teachers.class_maps import _word, content_of
from endauda_cli.teachers.descriptions import fitted, join_classes, read_classes, read_description
from endauda_cli.types import ClassMapName

if TYPE_CHECKING:
    from endauda_cli.teachers.descriptions import Description

NETWORK = Path("network")
TRAIN_IDS = ("kitti-360", "bdd100k", "acdc", "dark-zurich")


def shipped(name: str) -> Description:
    return read_classes(str(name))


def joined(name: str, classes: tuple[str, ...] = CITYSCAPES_CLASSES) -> dict[str, str]:
    """Output -> class of the task."""
    made = join_classes(NETWORK, None, classes, fitted(shipped(name), None, classes, NETWORK))
    return dict(zip(classes, classes, strict=True)) if made is None else made.facts(classes)


# ---------------------------------------------------------------------------- what is in them


def test_a_file_for_each_name() -> None:
    there = {path.name for path in files("endauda_cli").joinpath("data/classes").iterdir()}
    assert there == {f"{name}.toml" for name in ClassMapName}


@pytest.mark.parametrize("name", ClassMapName)
def test_a_map_says_its_source_and_leaves_empty_what_it_lacks(name: ClassMapName) -> None:
    content = content_of(name)
    assert content["title"] and all(url.startswith("https://") for url in content["source"])
    listed = [*content["classes"], *content.get("further", [])]
    assert len({_word(output) for output in listed}) == len(listed)
    assert set(content.get("map", {}).values()) <= set(CITYSCAPES_CLASSES)
    reached = set(joined(name).values()) - {""}
    assert reached | set(content.get("absent", [])) == set(CITYSCAPES_CLASSES)
    assert not reached & set(content.get("absent", []))
    words = f"{len(content['classes'])} classes" if name not in TRAIN_IDS else "19 train ids"
    assert words in name.about or name == "mapillary-v1.2"
    for absent in content.get("absent", []):
        assert absent in name.about


@pytest.mark.parametrize(
    ("name", "count", "places"),
    [  # as the sources number them
        ("ade20k", 150, {0: "wall", 6: "road", 12: "person", 80: "bus", 136: "traffic light", 149: "flag"}),
        ("coco-stuff", 171, {0: "person", 11: "stop sign", 80: "banner", 137: "road", 170: "wood"}),
        ("mapillary-v1.2", 65, {0: "Bird", 13: "Road", 48: "Traffic Light", 55: "Car", 64: "Ego Vehicle"}),
        ("mapillary-v2.0", 124, {21: "Road", 61: "Sky", 85: "Pole", 108: "Car", 111: "On Rails", 123: "Unlabeled"}),
        ("idd", 26, {0: "road", 9: "car", 12: "caravan / trailer / train / vehicle fallback", 22: "building"}),
        *((name, 19, dict(enumerate(CITYSCAPES_CLASSES))) for name in TRAIN_IDS),
    ],
)  # fmt: skip
def test_outputs_are_where_the_data_set_has_them(name: str, count: int, places: dict[int, str]) -> None:
    classes = shipped(name).classes or ()
    assert len(classes) == count and {place: classes[place] for place in places} == places


@pytest.mark.parametrize(
    ("name", "output", "target"),
    [
        ("ade20k", "van", "car"),
        ("ade20k", "signboard", ""),
        ("ade20k", "water", ""),
        ("coco-stuff", "stop sign", "traffic sign"),
        ("coco-stuff", "railing", ""),
        ("mapillary-v1.2", "Traffic Sign (Back)", ""),
        ("mapillary-v1.2", "Lane Marking - General", "road"),
        ("mapillary-v2.0", "Lane Marking (only) - Test", "road"),
        ("mapillary-v2.0", "Vehicle Group", ""),
        ("idd", "autorickshaw", ""),
        ("idd", "rail track / non-drivable fallback", "terrain"),
    ],
)
def test_what_stands_for_what(name: str, output: str, target: str) -> None:
    assert joined(name)[output] == target


# ---------------------------------------------------------------------------- whom they fit


def test_other_spellings_are_joined_by_position() -> None:
    said = shipped("ade20k")
    names = [*(said.classes or ())]
    names[1], names[7], names[89] = "building, edifice", "bed ", "television receiver"
    assert fitted(said, names, CITYSCAPES_CLASSES, NETWORK).classes == said.classes


def test_another_order_is_joined_by_name() -> None:
    said = shipped("bdd100k")
    names = tuple(reversed(CITYSCAPES_CLASSES))
    made = fitted(said, [name.title().replace(" ", "_") for name in names], CITYSCAPES_CLASSES, NETWORK)
    assert made.classes == names


def test_outputs_behind_the_others() -> None:
    said = shipped("mapillary-v1.2")
    for more in ([], ["Unlabeled"], ["void"]):
        made = fitted(said, [*(said.classes or ()), *more], CITYSCAPES_CLASSES, NETWORK)
        assert len(made.classes or ()) == 65 + len(more)
        found = join_classes(NETWORK, None, CITYSCAPES_CLASSES, made)
        assert found is not None and found.facts(CITYSCAPES_CLASSES).get("Unlabeled", "") == ""


@pytest.mark.parametrize("outputs", [CITYSCAPES_CLASSES, tuple(f"thing {k}" for k in range(150)),
                                     ("sky", "building", "wall", *(f"thing {k}" for k in range(147)))])  # fmt: skip
def test_networks_of_another_data_set_are_refused(outputs: tuple[str, ...]) -> None:
    said = shipped("coco-stuff" if len(outputs) == 19 else "ade20k")
    with pytest.raises(ConfigError, match=r"^network: its \d+ outputs \(.*\) are not those of "):
        fitted(said, outputs, CITYSCAPES_CLASSES, NETWORK)


def test_a_task_of_fewer_classes() -> None:
    classes = DOMAINS["synthia"].classes
    assert "truck" not in classes
    facts = joined("coco-stuff", classes)
    assert facts["truck"] == "" and facts["grass"] == "" and facts["tree"] == "vegetation"
    assert set(joined("acdc", classes).values()) == {*classes, ""}


def test_a_class_that_no_map_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^network: idd joins .* and has none for tram; write a TOML"):
        joined("idd", ("road", "tram"))


def test_a_name_in_a_description(tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text('classes = "ade20k"\nabsent = ["bus"]\n[map]\nsignboard = "traffic sign"\nbus = ""\n')
    said = read_description(path)
    assert said.absent == ("rider", "train", "bus") and said.shipped == "ade20k"
    found = join_classes(NETWORK, None, CITYSCAPES_CLASSES, fitted(said, None, CITYSCAPES_CLASSES, NETWORK))
    assert found is not None
    facts = found.facts(CITYSCAPES_CLASSES)
    assert facts["signboard"] == "traffic sign" and facts["bus"] == "" and facts["van"] == "car"
    path.write_text('classes = "ade20k"\n[map]\nsign = "traffic sign"\n')
    with pytest.raises(ConfigError, match=r"\[map\] names an output 'sign'"):
        read_description(path)
    path.write_text('classes = "ade2k"\n')
    with pytest.raises(ConfigError, match=r"known are ade20k, .*did you mean ade20k\?"):
        read_description(path)


# ---------------------------------------------------------------------------- the command


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    city = tmp_path / "Warehouse/Cityscapes/data/leftImg8bit/train/town"
    city.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(city / "town_0_leftImg8bit.png")
    (tmp_path / "endauda.toml").write_text("")
    return tmp_path


def segformer(folder: Path, names: tuple[str, ...]) -> Path:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=16, id2label=dict(enumerate(names)),
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    transformers.SegformerImageProcessor(size={"height": 48, "width": 64}).save_pretrained(folder)
    return folder


def export(workspace: Path, *more: str) -> int:
    from endauda_cli.cli import main

    return main(["export-teacher", "t", "--workspace", str(workspace), "--device", "cpu", *more])


def test_export_by_name(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = segformer(workspace / "net", shipped("ade20k").classes or ())
    assert export(workspace, "--weights", str(folder), "--classes", "ade20k") == 0
    assert "ade20k: no output stands for traffic sign, rider, train" in " ".join(
        capsys.readouterr().err.split()
    )
    with CertaintyReader(workspace / "certainty/gta5/t") as archive:
        joined_by: Any = archive.attributes["class_map"]
        assert joined_by["house"] == "building" and joined_by["signboard"] == ""
        (image,) = archive.ids
        for name in ("traffic sign", "rider", "train"):
            assert archive.plane(image, CITYSCAPES_CLASSES.index(name)).max() == 0
        assert archive.certainty(image).max() > 0


def test_without_the_map_it_is_refused(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = segformer(workspace / "net", shipped("ade20k").classes or ())
    assert export(workspace, "--weights", str(folder)) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "join them by name in a description's [map], or by --classes where" in told and len(told) < 900


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('classes = ["a", "b"]\n[map]\na = "road"\n', "no output stands for sidewalk"),
        (
            'classes = ["a"]\n[input]\nlonger_side = 5\n',
            "a map of classes has classes, absent and [map] alone",
        ),
        (None, "known are ade20k, coco-stuff,"),
    ],
)
def test_files_and_what_is_none(
    content: str | None, words: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = segformer(workspace / "net", ("a", "b"))
    if content is not None:
        (workspace / "map.toml").write_text(content)
    assert export(workspace, "--weights", str(folder), "--classes", "map.toml") == 1
    assert words in " ".join(capsys.readouterr().err.split())


def test_two_words_on_classes(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = segformer(workspace / "net", ("a", "b"))
    (workspace / "d.toml").write_text('classes = ["a", "b"]\n')
    more = ("--weights", str(folder), "--classes", "ade20k")
    assert export(workspace, *more, "--description", "d.toml") == 1
    assert "d.toml: says classes itself" in " ".join(capsys.readouterr().err.split())
    assert export(workspace, "--import", str(workspace), "--classes", "ade20k") == 1
    assert "what --import reads is in the target's classes already" in " ".join(
        capsys.readouterr().err.split()
    )
