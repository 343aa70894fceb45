"""Label maps out and back again in every format; each also read by code that shares nothing with ours."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from endauda_cli.annotating.formats import FORMATS
from endauda_cli.annotating.handing_out import export_labels, maps_in_folder
from endauda_cli.annotating.kinds import Handout
from endauda_cli.annotating.runs import of_row_runs, pack_brush, row_runs, unpack_brush
from endauda_cli.annotating.taking_back import import_labels
from endauda_cli.datasets import Sample
from endauda_cli.domains import CITYSCAPES, IGNORE, Domain, palette_of
from endauda_cli.errors import ConfigError, DataError
from endauda_cli.labels import write_label, write_png
from endauda_cli.progress import silent
from endauda_cli.types import LabelFormatName

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]

SIZE = (23, 41)
IDS = ("aachen_000000_000019_leftImg8bit", "aachen_000001_000019_leftImg8bit", "a & b <c>")
URL = "/data/local-files/?d=images/"


def domain_of(classes: int) -> Domain:
    if classes == 19:
        return CITYSCAPES
    names = tuple(f'class {i} "&<é>"' for i in range(classes))
    return Domain("own", names, palette_of(names), dict(enumerate(names)), (), (), "labels/own")


def label_of(classes: int, seed: int) -> UInt8:
    """Areas and single pixels, some without a class; the first and last class occur."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (6, 11)).astype(np.uint8).repeat(4, 0).repeat(4, 1)[: SIZE[0], : SIZE[1]]
    label[rng.random(SIZE) < 0.1] = IGNORE
    label[0, 0], label[-1, -1] = classes - 1, 0
    return label


class World:
    """Images with labels on disk."""

    def __init__(self, root: Path, classes: int = 19, ids: tuple[str, ...] = IDS) -> None:
        self.root, self.domain = root, domain_of(classes)
        self.labels = {image: label_of(classes, seed) for seed, image in enumerate(ids)}
        self.samples = []
        for image, label in self.labels.items():
            write_label(root / "labels" / f"{image}.png", label)
            write_png(root / "pictures" / f"{image}.png", np.zeros((*SIZE, 3), np.uint8))
            self.samples.append(Sample(image, root / "pictures" / f"{image}.png", None))

    def out(self, name: str, **more: Any) -> Path:
        disputed = {image: 0.25 * (i + 1) for i, image in enumerate(self.labels)}
        maps = maps_in_folder(self.root / "labels", self.samples, self.domain, disputed)
        handout = Handout(self.domain, "train", "labels", URL)
        out = self.root / "out"
        self.result = export_labels(maps, self.samples, handout, name, out, silent, **more)
        return out

    def back(self, name: str, source: Path) -> Path:
        back = self.root / "back"
        import_labels(source, name, self.domain, self.samples, back, silent)
        return back

    def assert_same(self, back: Path) -> None:
        assert {path.name: path.read_bytes() for path in back.iterdir()} == {
            path.name: path.read_bytes() for path in (self.root / "labels").iterdir()
        }


@pytest.fixture(params=[19, 11, 150])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    (tmp_path / "labels").mkdir()
    (tmp_path / "pictures").mkdir()
    return World(tmp_path, request.param)


@pytest.fixture
def small(tmp_path: Path) -> World:
    for folder in ("labels", "pictures", "alone"):
        (tmp_path / folder).mkdir()
    return World(tmp_path)


def submitted(out: Path) -> Path:
    """The tasks as Label Studio exports them once somebody has submitted its predictions."""
    tasks = json.loads((out / "tasks.json").read_text())
    for number, task in enumerate(tasks):
        said = task.pop("predictions")[0]["result"]
        task |= {"id": number, "predictions": [], "annotations": [{"result": said, "was_cancelled": False}]}
    (out / "export.json").write_text(json.dumps(tasks))
    return out / "export.json"


def zipped(out: Path) -> Path:
    """As CVAT exports a task."""
    with zipfile.ZipFile(out / "task.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(out / "annotations.xml", "annotations.xml")
        archive.write(next((out / "images").iterdir()), "images/default/0.png")
    return out / "task.zip"


EXPORTED: dict[str, Callable[[Path], Path]] = {
    "cityscapes": lambda out: out / "results",
    "cvat": zipped,
    "label-studio": submitted,
    "coco-panoptic": lambda out: out / "panoptic.json",
    "ultralytics": lambda out: out,
}
"""What a tool gives back, if nobody changes anything."""


def test_every_format_has_a_row() -> None:
    assert list(FORMATS) == list(LabelFormatName) == list(EXPORTED)


@pytest.mark.parametrize("name", EXPORTED)
def test_labels_come_back_byte_for_byte(name: str, world: World) -> None:
    if name == "cityscapes" and world.domain is not CITYSCAPES:
        with pytest.raises(DataError, match=r"class .* of own is not one of Cityscapes'"):
            world.out(name)
        return
    world.assert_same(world.back(name, EXPORTED[name](world.out(name))))


@pytest.mark.parametrize("name", EXPORTED)
def test_a_second_run_does_only_what_changed(name: str, small: World) -> None:
    out = small.out(name)
    assert small.result.skipped == 0
    files = [
        path for path in out.rglob("*") if path.is_file() and path.suffix != ".xml" and path.parent != out
    ]
    before = {path: path.stat().st_mtime_ns for path in files}
    small.out(name)
    assert small.result.skipped == 3
    assert {path: path.stat().st_mtime_ns for path in files} == before
    changed = small.labels[IDS[1]]
    changed[5:9, 5:9] = 7
    write_label(small.root / "labels" / f"{IDS[1]}.png", changed)
    out = small.out(name)
    assert small.result.skipped == 2
    small.assert_same(small.back(name, EXPORTED[name](out)))


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("torn", [1, 40])
def test_a_killed_run_goes_on(name: str, torn: int, small: World) -> None:
    """The journal ends in half a line, the index was not written, a mask is gone."""
    out = small.out(name)
    journal = out / "export-train.jsonl"
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path != journal}
    journal.write_bytes(journal.read_bytes()[:-torn])
    for path in out.iterdir():
        if path.is_file() and path != journal:
            path.unlink()
    small.out(name)
    assert small.result.skipped == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path != journal} == whole


def test_an_image_that_is_no_longer_wanted_leaves(small: World) -> None:
    out = small.out("ultralytics")
    small.samples = small.samples[:1]
    small.out("ultralytics")
    assert [path.name for path in (out / "masks/train").iterdir()] == [f"{IDS[0]}.png"]
    assert [path.name for path in (out / "images/train").iterdir()] == [f"{IDS[0]}.png"]


def test_a_folder_with_anything_else_is_left_alone(small: World) -> None:
    (small.root / "out").mkdir()
    (small.root / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        small.out("cvat")
    (small.root / "out" / "mine.txt").unlink()
    small.out("cvat")
    with pytest.raises(ConfigError, match="an export with another format lies there"):
        small.out("coco-panoptic")


def test_a_journal_of_a_stranger_removes_nothing(small: World) -> None:
    out = small.out("ultralytics")
    (small.root / "victim.png").write_text("mine")
    (out / "images/away").symlink_to(small.root)
    journal = out / "export-train.jsonl"
    for name in ("../victim.png", "images/../../victim.png", "images/away/victim.png", "/etc/passwd"):
        line = {"id": "gone", "inputs": "", "files": {name: 4}, "entry": {}}
        journal.write_bytes(journal.read_bytes() + (json.dumps(line) + "\n").encode())
        small.out("ultralytics")
    assert (small.root / "victim.png").read_text() == "mine"


def test_an_index_of_a_stranger_is_told(small: World) -> None:
    out = small.out("cvat")
    journal = out / "export-train.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[1]["entry"] = {"file": "x"}
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"export-train.jsonl: damaged .* delete it"):
        small.out("cvat")


def test_images_can_be_linked(small: World) -> None:
    out = small.out("cvat", link=True)
    assert all(path.is_symlink() and path.read_bytes() for path in (out / "images").iterdir())
    small.out("cvat")
    assert small.result.skipped == 0 and not any(path.is_symlink() for path in (out / "images").iterdir())


# ---------------------------------------------------------------------------- what others read


def test_cityscapes_results_are_read_by_its_own_scripts(small: World) -> None:
    official: Any = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    id2label: Any = pytest.importorskip("cityscapesscripts.helpers.labels").id2label
    small.samples = small.samples[:2]
    out = small.out("cityscapes")
    official.args.predictionPath, official.args.predictionWalk = str(out / "results"), None
    for sample in small.samples:
        truth = (
            str(sample.image).replace("leftImg8bit", "gtFine_labelIds").replace("pictures", "truth/aachen")
        )
        found = official.getPrediction(official.args, truth)
        assert found == str(out / "results" / f"{sample.id}.png")
        with Image.open(found) as image:
            assert (image.mode, image.size) == ("L", SIZE[::-1])
            ids = np.asarray(image)
        label = small.labels[sample.id]
        for number in np.unique(ids).tolist():
            train_id = id2label[number].trainId
            assert set(label[ids == number].tolist()) == {255 if number == 0 else train_id}


def test_cvat_masks_are_what_its_document_says(world: World) -> None:
    """Counts of unset and set pixels in turn, row by row within the box."""
    out = world.out("cvat")
    root = ElementTree.parse(out / "annotations.xml").getroot()
    assert [name.text for name in root.iter("name")][1:] == list(world.domain.classes)
    assert json.loads((out / "labels.json").read_text())[1]["name"] == world.domain.classes[1]
    for element, (image, label) in zip(root.iter("image"), world.labels.items(), strict=True):
        assert element.get("name") == f"{image}.png"
        assert (out / "images" / f"{image}.png").is_file()
        painted = np.full(SIZE, IGNORE, np.uint8)
        for mask in element.iter("mask"):
            left, top, width = (int(mask.get(key, "")) for key in ("left", "top", "width"))
            at = 0
            for i, count in enumerate(int(text) for text in mask.get("rle", "").split(",")):
                for pixel in range(at, at + count if i % 2 else at):
                    y, x = divmod(pixel, width)
                    painted[top + y, left + x] = world.domain.classes.index(mask.get("label", ""))
                at += count
            assert at == width * int(mask.get("height", ""))
        assert np.array_equal(painted, label)


def brush(rle: list[int], height: int, width: int) -> UInt8:
    """Label Studio's brush as its own documents describe it, bit by bit."""
    bits, at = "".join(f"{byte:08b}" for byte in rle), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word, sizes = take(32), take(5) + 1, []
    for _ in range(4):
        sizes.append(take(4) + 1)
    values: list[int] = []
    while len(values) < total:
        run = take(1)
        count = take(sizes[take(2)]) + 1
        values += [take(word)] * count if run else [take(word) for _ in range(count)]
    return np.array(values, np.uint8).reshape(height, width, 4)[..., 3]


def test_label_studio_brushes_are_what_it_reads(world: World) -> None:
    out = world.out("label-studio")
    config = ElementTree.parse(out / "label_config.xml").getroot()
    assert [label.get("value") for label in config.iter("Label")] == list(world.domain.classes)
    tags = {tag.tag: tag for tag in config}
    tasks = json.loads((out / "tasks.json").read_text())
    for number, (task, (image, label)) in enumerate(zip(tasks, world.labels.items(), strict=True)):
        assert task["data"]["image_id"] == image
        assert task["data"]["image"].startswith(URL) and " " not in task["data"]["image"]
        (said,) = task["predictions"]
        assert said["score"] == pytest.approx(1 - 0.25 * (number + 1))
        painted = np.full(SIZE, IGNORE, np.uint8)
        for region in said["result"]:
            assert (region["from_name"], region["to_name"]) == (tags["BrushLabels"].get("name"), "image")
            assert (region["original_height"], region["original_width"]) == SIZE
            alpha = brush(region["value"]["rle"], *SIZE)
            assert set(np.unique(alpha).tolist()) <= {0, 255}
            painted[alpha == 255] = world.domain.classes.index(region["value"]["brushlabels"][0])
        assert np.array_equal(painted, label)


def test_coco_segments_are_what_its_document_says(world: World) -> None:
    out = world.out("coco-panoptic")
    told = json.loads((out / "panoptic.json").read_text())
    names = {category["id"]: category["name"] for category in told["categories"]}
    images = {image["id"]: image["file_name"] for image in told["images"]}
    for annotation, (image, label) in zip(told["annotations"], world.labels.items(), strict=True):
        assert images[annotation["image_id"]] == f"{image}.png"
        colours = np.asarray(Image.open(out / "panoptic" / annotation["file_name"])).astype(int)
        ids = colours[..., 0] + 256 * colours[..., 1] + 256 * 256 * colours[..., 2]
        assert {segment["id"] for segment in annotation["segments_info"]} == set(np.unique(ids).tolist()) - {
            0
        }
        for segment in annotation["segments_info"]:
            rows, columns = np.nonzero(ids == segment["id"])
            assert segment["area"] == len(rows) and segment["iscrowd"] == 0
            x, y, width, height = segment["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            c = world.domain.classes.index(names[segment["category_id"]])
            assert np.array_equal(ids == segment["id"], label == c)
        assert np.array_equal(ids == 0, label == IGNORE)


def test_ultralytics_masks_lie_beside_their_images(world: World) -> None:
    out = world.out("ultralytics")
    lines = (out / "data.yaml").read_text().splitlines()
    assert {"path: .", "train: images/train", "val: images/train", "masks_dir: masks"} <= set(lines)
    names = [json.loads(line.partition(": ")[2]) for line in lines[lines.index("names:") + 1 :]]
    assert names == list(world.domain.classes)
    for picture in (out / "images/train").iterdir():
        mask = np.asarray(Image.open(str(picture).replace("images", "masks")))
        assert np.array_equal(mask, world.labels[picture.stem])


# ---------------------------------------------------------------------------- runs


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
    st.sampled_from((0, 0.02, 0.5, 1)),
)
def test_any_mask_comes_back(height: int, width: int, random: Any, share: float) -> None:
    mask = np.array([[random.random() < share for _ in range(width)] for _ in range(height)])
    assert np.array_equal(of_row_runs(row_runs(mask), height, width), mask)
    packed = pack_brush(mask)
    assert np.array_equal(unpack_brush(packed, height, width), mask)
    assert np.array_equal(brush(list(packed), height, width) == 255, mask)


def test_long_runs_and_single_values_are_read() -> None:
    mask = np.zeros((300, 400), bool)
    mask[100:] = True
    assert np.array_equal(unpack_brush(pack_brush(mask), 300, 400), mask)
    bits = f"{8:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16)) + "0" + "00" + "111"
    bits += "".join(f"{value:08b}" for value in (0, 0, 0, 127, 1, 2, 3, 128))
    packed = bytes(int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8))
    assert unpack_brush(packed, 1, 2).tolist() == [[False, True]]


# ---------------------------------------------------------------------------- what is refused


def broken(**changes: Any) -> dict[str, Any]:
    packed = list(pack_brush(np.ones(SIZE, bool)))
    region = {
        "type": "brushlabels",
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "image_rotation": 0,
    }
    return region | {"value": {"format": "rle", "rle": packed, "brushlabels": ["road"]}} | changes


def value(**changes: Any) -> dict[str, Any]:
    return {"value": {**broken()["value"], **changes}}


@pytest.mark.parametrize(
    ("region", "told"),
    [
        (broken(type="rectanglelabels"), "a region of type 'rectanglelabels', but brushes"),
        (broken(original_width=10**9), "a brush of 1000000000x23 pixels"),
        (broken(image_rotation=90), "rotated by 90"),
        (broken(**value(brushlabels=["tank"])), "label 'tank' is no class of cityscapes"),
        (broken(**value(brushlabels=["road", "car"])), r"label \['road', 'car'\] is no class"),
        (broken(**value(rle=[255, 255, 255, 255, 57, 27, 255])), "it has 4,294,967,295 values"),
        (broken(**value(rle=list(pack_brush(np.ones(SIZE, bool)))[:-3])), "it ends too early"),
        (broken(**value(rle=[256])), "a brush cannot be read"),
        (broken(**value(rle="AAAA")), "no list of bytes"),
        (broken(**value(rle=[])), "ends too early"),
    ],
)
def test_a_brush_that_is_none_is_refused(region: dict[str, Any], told: str, small: World) -> None:
    path = small.root / "export.json"
    path.write_text(json.dumps([{"data": {"image_id": IDS[0]}, "annotations": [{"result": [region]}]}]))
    with pytest.raises(DataError, match=told):
        small.back("label-studio", path)


def test_which_image_a_task_is_of(small: World) -> None:
    """By its id; else by the file's name, with what Label Studio puts before it."""
    path = small.root / "export.json"
    addresses = [f"/data/local-files/?d=images/{IDS[0]}.png", f"/data/upload/3/0a1b2c3d-{IDS[1]}.png"]
    tasks: list[Any] = [{"data": {"image": a}, "annotations": [{"result": [broken()]}]} for a in addresses]
    tasks.append(
        {"data": {"image_id": IDS[2]}, "annotations": [{"result": [broken()], "was_cancelled": True}]}
    )
    tasks.append({"data": {"image_id": IDS[2]}, "annotations": []})
    path.write_text(json.dumps(tasks))
    assert {found.stem for found in small.back("label-studio", path).iterdir()} == set(IDS[:2])
    tasks.append({"data": {"image": "../../etc/passwd"}, "annotations": [{"result": [broken()]}]})
    path.write_text(json.dumps(tasks))
    with pytest.raises(DataError, match="'passwd', which is none of the 3 images"):
        small.back("label-studio", path)


MASK = '<mask label="road" rle="0, 6" left="1" top="2" width="3" height="2" z_order="0"/>'


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        (MASK.replace("0, 6", "0, 7"), "its runs are 7 pixels, but it is 3x2|runs of no possible length"),
        (MASK.replace("0, 6", "0, 5"), "its runs are 5 pixels, but it is 3x2"),
        (MASK.replace("0, 6", "9, -3"), "runs of no possible length"),
        (MASK.replace("0, 6", f"0, {10**18}"), "runs of no possible length"),
        (MASK.replace("0, 6", "0, x"), "a mask cannot be read"),
        (MASK.replace('left="1"', 'left="39"'), "its box does not lie in the image"),
        (MASK.replace('width="3"', 'width="-3"'), "width is '-3'"),
        (MASK.replace('height="2"', 'height="999999999"'), "its box does not lie in the image"),
        (MASK.replace("road", "tank"), "label 'tank' is no class"),
        (MASK.replace('z_order="0"', 'z_order="up"'), "a mask cannot be read"),
        ('<polygon label="road" points="1,1;2,2;3,1"/>', "has a polygon, but masks are expected"),
    ],
)
def test_a_mask_that_is_none_is_refused(inside: str, told: str, small: World) -> None:
    path = small.root / "annotations.xml"
    path.write_text(f'<annotations><image name="{IDS[0]}.png">{inside}</image></annotations>')
    with pytest.raises(DataError, match=told):
        small.back("cvat", path)


def test_masks_above_others_hide_them(small: World) -> None:
    above = MASK.replace("road", "car").replace('z_order="0"', 'z_order="2"')
    path = small.root / "annotations.xml"
    path.write_text(f'<annotations><image name="x/{IDS[0]}.png">{above}{MASK}</image></annotations>')
    label = np.asarray(Image.open(small.back("cvat", path) / f"{IDS[0]}.png"))
    assert set(np.unique(label).tolist()) == {13, 255} and (label[2:4, 1:4] == 13).all()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('<!DOCTYPE a [<!ENTITY b "bb">]><annotations>&b;</annotations>', "has a document type"),
        ("<annotations><image", "not valid XML"),
        ("<annotations/>", "no label of any image in it"),
        ('<annotations><track id="0"/></annotations>', "tracks of a video"),
        ('<annotations><image name="../../x.png"/></annotations>', "'x.png', which is none of the 3"),
        (
            f'<annotations><image name="{IDS[0]}.png" width="9" height="9"/></annotations>',
            "9x9 pixels, but the image",
        ),
        ("PK\3\4 and no more", "a damaged zip file"),
    ],
)
def test_a_file_that_cvat_did_not_write_is_refused(text: str, told: str, small: World) -> None:
    path = small.root / "annotations.xml"
    path.write_text(text)
    with pytest.raises(DataError, match=told):
        small.back("cvat", path)


def test_a_zip_that_unpacks_to_absurdly_much_is_refused(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("endauda_cli.annotating.cvat.INDEX_BYTES", 1 << 20)
    path = small.root / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", "<annotations>" + " " * (4 << 20))
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"more than 1\.0 MB of annotations"):
        small.back("cvat", path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.xml", "")
    with pytest.raises(DataError, match=r"0 files annotations\.xml in it"):
        small.back("cvat", path)


def panoptic(small: World, **changes: Any) -> Path:
    out = small.out("coco-panoptic")
    told = json.loads((out / "panoptic.json").read_text())
    told["annotations"] = told["annotations"][:1]
    told["annotations"][0] |= changes
    (out / "panoptic.json").write_text(json.dumps(told))
    return out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"file_name": "../../labels/a.png"}, "is no image id"),
        ({"file_name": 3}, "is no image id"),
        ({"segments_info": []}, "segment 1 is not among its segments_info"),
        ({"segments_info": [{"id": 2**40, "category_id": 1}]}, "is no number of a segment"),
        ({"segments_info": [{"id": 1, "category_id": 99}]}, "label None is no class"),
        ({"segments_info": "x"}, "no list of segments_info"),
    ],
)
def test_segments_that_are_none_are_refused(changes: dict[str, Any], told: str, small: World) -> None:
    with pytest.raises(DataError, match=told):
        small.back("coco-panoptic", panoptic(small, **changes))


@pytest.mark.parametrize("name", ["cvat", "label-studio", "coco-panoptic"])
@pytest.mark.parametrize(
    "text", ["", "[", "{}", "[1]", "[" * 100_000, "null", '[{"data": {}, "annotations": 3}]', "\xff"]
)
def test_a_file_of_another_kind_is_refused(name: str, text: str, small: World) -> None:
    path = small.root / "file"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=str(path)):
        small.back(name, path)
    with pytest.raises(DataError):
        small.back(name, small.root / "nothing")


def test_an_image_that_comes_twice_is_refused(small: World) -> None:
    image = f'<image name="{IDS[0]}.png">{MASK}</image>'
    path = small.root / "annotations.xml"
    path.write_text(f"<annotations>{image}{image}</annotations>")
    with pytest.raises(DataError, match="is in it twice"):
        small.back("cvat", path)


def test_labels_of_another_size_are_refused(small: World) -> None:
    write_label(small.root / "labels" / f"{IDS[0]}.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError, match="5x4 pixels, but the image has 41x23"):
        small.out("cvat")
    write_label(small.root / "alone" / f"{IDS[0]}.png", np.zeros((4, 5), np.uint8))
    for name in ("cityscapes", "ultralytics"):
        with pytest.raises(DataError, match="5x4 pixels, but the image has 41x23"):
            small.back(name, small.root / "alone")


def test_train_ids_are_no_results_of_cityscapes(small: World) -> None:
    with pytest.raises(DataError, match=r"value 255 is no label id of Cityscapes; are these train ids\?"):
        small.back("cityscapes", small.root / "labels")


def test_what_was_written_before_an_error_stays(small: World) -> None:
    broken = small.root / "labels" / f"{IDS[2]}.png"
    kept = broken.read_bytes()
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match="truncated or not an image"):
        small.out("cvat", workers=1)
    broken.write_bytes(kept)
    small.out("cvat")
    assert small.result.skipped == 2
