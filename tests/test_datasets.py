"""Which files belong to a data set: published layouts, TOML descriptions, and sentences that name the file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from endauda_cli.datasets import Sample, find_samples, load_domain
from endauda_cli.domains import CITYSCAPES, DOMAINS, GTA5, IGNORE
from endauda_cli.errors import ConfigError, DataError
from endauda_cli.progress import Note
from endauda_cli.workspace import Workspace

if TYPE_CHECKING:
    from endauda_cli.domains import Domain


def touch(root: Path, *names: str) -> None:
    """Files that need no content: finding them opens none."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(domain: Domain, root: Path, split: str) -> list[tuple[str, str, str | None]]:
    """(id, image, label) with paths relative to the workspace."""
    samples = find_samples(domain, Workspace(root).data_roots(domain), split)
    return [
        (s.id, str(s.image.relative_to(root)), str(s.label.relative_to(root)) if s.label else None)
        for s in samples
    ]


# ---------------------------------------------------------------------------- published layouts


@pytest.mark.parametrize("root", ["Warehouse/Cityscapes/data", "Warehouse/Cityscapes", "Cityscapes/data"])
@pytest.mark.parametrize("city", ["ulm/", ""])
@pytest.mark.parametrize("images", ["leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit"])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_cityscapes(tmp_path: Path, root: str, city: str, images: str, kind: str) -> None:
    first = f"{root}/{images}/val/{city}ulm_000000_000019_leftImg8bit.{kind}"
    second = f"{root}/{images}/val/{city}ulm_000001_000019_leftImg8bit.{kind}"
    label = f"{root}/gtFine/val/{city}ulm_000000_000019_gtFine_labelIds.png"
    others = [label.replace("labelIds", other) for other in ("labelTrainIds", "instanceIds", "color")]
    touch(tmp_path, first, second, label, *others, f"{root}/{images}/train/{city}x_leftImg8bit.{kind}")
    assert found(CITYSCAPES, tmp_path, "val") == [
        ("ulm_000000_000019_leftImg8bit", first, label),
        ("ulm_000001_000019_leftImg8bit", second, None),
    ]


def test_fused_labels_beside_the_truth_are_not_taken_for_it(tmp_path: Path) -> None:
    data = "Warehouse/Cityscapes/data"
    image = f"{data}/leftImg8bit/train/ulm/ulm_1_leftImg8bit.png"
    touch(tmp_path, image, f"{data}/gtFine/plf/ulm_1_leftImg8bit.png", f"{data}/gtFine/train/.hidden.png")
    assert found(CITYSCAPES, tmp_path, "train") == [("ulm_1_leftImg8bit", image, None)]


def test_gta5(tmp_path: Path) -> None:
    touch(tmp_path, *(f"Warehouse/GTA5/{part}/0000{i}.png" for part in ("images", "labels") for i in (2, 1)))
    assert found(GTA5, tmp_path, "train") == [
        (f"0000{i}", f"Warehouse/GTA5/images/0000{i}.png", f"Warehouse/GTA5/labels/0000{i}.png")
        for i in (1, 2)
    ]


@pytest.mark.parametrize(
    ("images", "labels"), [("images", "labels"), ("RGB", "GT/LABELS"), ("RGB", "parsed_LABELS")]
)
@pytest.mark.parametrize("root", ["Warehouse/SYNTHIA", "Warehouse/SYNTHIA/RAND_CITYSCAPES"])
def test_synthia(tmp_path: Path, root: str, images: str, labels: str) -> None:
    image, label = f"{root}/{images}/0000000.png", f"{root}/{labels}/0000000.png"
    touch(tmp_path, image, label)
    assert found(DOMAINS["synthia"], tmp_path, "train") == [("0000000", image, label)]


# ---------------------------------------------------------------------------- refusals name the file


def test_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "Warehouse/Cityscapes/data/leftImg8bit/train/ulm/a_leftImg8bit.png")
    with pytest.raises(DataError) as caught:
        found(CITYSCAPES, tmp_path, "val")
    assert "cityscapes: no image of split 'val' in" in str(caught.value)
    assert str(tmp_path / "Warehouse/Cityscapes/data") in str(caught.value)
    assert "expected files like leftImg8bit/val/*/*_leftImg8bit.png" in str(caught.value)


def test_two_images_of_one_name(tmp_path: Path) -> None:
    data = "Warehouse/Cityscapes/data/leftImg8bit/train"
    touch(tmp_path, f"{data}/ulm/a_leftImg8bit.png", f"{data}/bonn/a_leftImg8bit.png")
    with pytest.raises(DataError, match=r"two images are called a_leftImg8bit: .*bonn/a_.* and .*ulm/a_"):
        found(CITYSCAPES, tmp_path, "train")


def test_missing_label(tmp_path: Path) -> None:
    data = "Warehouse/Cityscapes/data"
    touch(
        tmp_path,
        f"{data}/leftImg8bit/val/ulm/a_leftImg8bit.png",
        f"{data}/leftImg8bit/val/ulm/b_leftImg8bit.png",
        f"{data}/gtFine/val/ulm/a_gtFine_labelIds.png",
    )
    with pytest.raises(
        DataError, match=r"b_leftImg8bit\.png: no label file belongs to it; expected in .*gtFine/val"
    ):
        find_samples(CITYSCAPES, [tmp_path / data], "val", need_labels=True)


# ---------------------------------------------------------------------------- data sets of the user's own

README = """
name = "camvid"
classes = ["sky", "building", "pole"]            # order = train id
palette = [[128, 128, 128], [128, 0, 0], [192, 192, 128]]
label_ids = { "0" = "sky", "7" = "building" }
[train]
images = "images/train/*.png"
[val]
images = "images/val/*.png"
labels = "labels/val/*.png"
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_description_of_the_readme(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/a.png", "images/val/b.png", "labels/val/b.png")
    domain = load_domain(str(write(tmp_path, README)))
    assert (domain.name, domain.classes) == ("camvid", ("sky", "building", "pole"))
    assert domain.palette == ((128, 128, 128), (128, 0, 0), (192, 192, 128))
    assert [domain.train_id(i) for i in (0, 7, 1, 2)] == [0, 1, IGNORE, IGNORE]
    # Paths are relative to the file, wherever the workspace is.
    roots = Workspace(Path("/elsewhere")).data_roots(domain)
    assert find_samples(domain, roots, "train") == [Sample("a", tmp_path / "images/train/a.png", None)]
    assert find_samples(domain, roots, "val", need_labels=True) == [
        Sample("b", tmp_path / "images/val/b.png", tmp_path / "labels/val/b.png")
    ]
    with pytest.raises(DataError, match=r"camvid has no split 'test', only train, val; add it to the TOML"):
        find_samples(domain, roots, "test")
    with pytest.raises(
        DataError, match=r"a\.png: no label file belongs to it; this data set has no labels for"
    ):
        find_samples(domain, roots, "train", need_labels=True)


def test_shortest_description(tmp_path: Path) -> None:
    """Name of the file, pixel value = class, colours of Cityscapes where the names are its."""
    text = 'classes = ["road", "tram"]\n[test]\nimages = "*.png"\n'
    domain = load_domain(str(write(tmp_path, text, "trams.toml")))
    assert domain.name == "trams"
    assert [domain.train_id(i) for i in (0, 1, 2, 255)] == [0, 1, IGNORE, IGNORE]
    assert domain.palette[0] == (128, 64, 128)
    assert domain.labels_root == "labels/trams"


def test_ignore_ids_make_other_ids_unknown(tmp_path: Path) -> None:
    text = 'ignore_ids = [11]\nclasses = ["road", "tram"]\n[val]\nimages = "*.png"\n'
    domain = load_domain(str(write(tmp_path, text)))
    assert [domain.train_id(i) for i in (0, 1, 11, 255)] == [0, 1, IGNORE, IGNORE]
    assert domain.train_id(2) is None


def test_class_called_ignored(tmp_path: Path) -> None:
    """It does not get the pixels of ``ignore_ids``."""
    text = 'ignore_ids = [11]\nclasses = ["road", "ignored"]\n[val]\nimages = "*.png"\n'
    domain = load_domain(str(write(tmp_path, text)))
    assert [domain.train_id(i) for i in (0, 1, 11, 255)] == [0, 1, IGNORE, IGNORE]


def test_lists_suffixes_and_absolute_patterns(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    touch(tmp_path, "here/a_rgb.png", "here/c_rgb.png", "truth/a_id.png", "truth/b_id.png")
    touch(elsewhere, "b_rgb.png")
    text = f"""
classes = ["road", "tram"]
[val]
images = ["{elsewhere}/*_rgb.png", "here/*_rgb.png"]
labels = ["truth/*.png"]
image_suffix = "_rgb"
label_suffix = "_id"
"""
    domain = load_domain(str(write(tmp_path, text)))
    assert find_samples(domain, Workspace(tmp_path).data_roots(domain), "val") == [
        Sample("a_rgb", tmp_path / "here/a_rgb.png", tmp_path / "truth/a_id.png"),
        Sample("b_rgb", elsewhere / "b_rgb.png", tmp_path / "truth/b_id.png"),
        Sample("c_rgb", tmp_path / "here/c_rgb.png", None),
    ]


CLASSES = 'classes = ["road", "tram"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes = [", "not valid TOML"),
        ("", "classes must be a list, but is missing"),
        ("classes = 3", "classes must be a list, but is 3"),
        ('classes = ["road", 3]', "classes must hold strings"),
        ("classes = []", "0 classes, but 2 to 255 are possible"),
        ('classes = ["road"]', "1 classes, but 2 to 255"),
        ('classes = ["road", "car", "road"]', "class 'road' is listed twice"),
        ('klasses = ["road", "tram"]', "unknown key klasses; did you mean classes?"),
        (CLASSES + "frobnicate = 1", "unknown key frobnicate; known are classes, "),
        (CLASSES + '[val]\nimage = "*.png"', r"unknown key \[val\] image; did you mean images?"),
        (CLASSES + "[val]", r"\[val\] images must be a list, but is missing"),
        (CLASSES + "val = 3", r"\[val\] must be a table with images and labels"),
        (CLASSES + '[val]\nimages = ""', r"\[val\] images must hold strings"),
        (CLASSES + "[val]\nimages = [1]", r"\[val\] images must hold strings"),
        (CLASSES + '[val]\nimages = "{city}/*.png"', r"\[val\] images: '{city}/\*\.png'"),
        (CLASSES + '[val]\nimages = "{/*.png"', r"\[val\] images: '{/\*\.png'"),
        pytest.param(
            CLASSES + '[val]\nimages = "a**/*.png"',
            r"\[val\] images: 'a\*\*/\*\.png'",
            marks=pytest.mark.skipif(sys.version_info >= (3, 13), reason="a pattern since Python 3.13"),
        ),
        (CLASSES + '[val]\nimages = "*.png"\nlabels = "{x}"', r"\[val\] labels: '{x}'"),
        (CLASSES + "palette = [[1, 2, 3]]", "1 colours for 2 classes"),
        (CLASSES + "palette = [[1, 2, 3], [1, 2]]", r"palette holds \[1, 2\], but a colour is three"),
        (CLASSES + "palette = [[1, 2, 3], [1, 2, 256]]", r"palette holds \[1, 2, 256\]"),
        (CLASSES + "palette = [[1, 2, 3], [0.1, 0.2, 0.3]]", r"palette holds \[0\.1, 0\.2, 0\.3\]"),
        (CLASSES + "palette = 3", "palette must be a list, but is 3"),
        (CLASSES + "label_ids = [1, 2]", "label_ids must be a table such as"),
        (CLASSES + 'label_ids = { road = "0" }', "label id 'road' is not a whole number"),
        (CLASSES + 'label_ids = { "²" = "road" }', "label id '²' is not a whole number"),
        (CLASSES + 'label_ids = { "-1" = "road" }', "label id '-1' is not a whole number"),
        (
            CLASSES + 'label_ids = { "70000" = "road" }',
            "label id '70000' is not a whole number from 0 to 65535",
        ),
        (
            CLASSES + 'label_ids = { "0" = "raod" }',
            "label id 0 means 'raod', which is not one of the classes",
        ),
        (CLASSES + 'ignore_ids = ["11"]', "ignore_ids holds '11', which is no id or names a class"),
        (CLASSES + "ignore_ids = [1]", "ignore_ids holds 1, which is no id or names a class"),
        (CLASSES + "ignore_ids = 11", "ignore_ids must be a list, but is 11"),
        (CLASSES + "label_ids = { " + "9" * 5000 + ' = "road" }', "label id '9999"),
        (CLASSES + "ignore_ids = [true]", "ignore_ids holds True, which is no id"),
        (CLASSES + "ignore_ids = [70000]", "ignore_ids holds 70000, which is no id"),
        (CLASSES + "ignore_ids = [" + "9" * 5000 + "]", "not valid TOML"),
        (CLASSES + "x = " + "[" * 20000, "not valid TOML"),
        (f'classes = ["road", "{"x" * 20000}"]', "class name 'xxx.*… is empty, longer than 200 letters"),
        ('classes = ["road", " "]', "class name ' ' is empty"),
        (r'classes = ["road", "\u001b[2J"]', "class name .* characters that cannot be shown"),
        (CLASSES + '[val]\nimages = "{split.foo}/*.png"', r"only \{split\} may stand in braces"),
        (CLASSES + '[val]\nimages = "{split:1500000000}"', r"only \{split\} may stand in braces"),
        (CLASSES + r"[val]" + "\n" + r'images = "a\u0000b"', "it holds a NUL"),
        (
            CLASSES + '[val]\nimages = "*.png"\nimage_suffix = 3',
            r"\[val\] image_suffix must be a string, but is 3",
        ),
        (CLASSES + r'name = "a\u0000b"', "name must be a word that can name a folder"),
        (CLASSES + f'name = "{"x" * 300}"', "which is longer than 230 bytes"),
        (CLASSES + 'name = "a/b"', "name must be a word that can name a folder, found 'a/b'"),
        (CLASSES + 'name = ".."', "name must be a word that can name a folder, found '..'"),
        (CLASSES + "name = 3", "name must be a word that can name a folder, found 3"),
    ],
)
def test_descriptions_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=f"^{path}: .*{message}") as caught:
        load_domain(str(path))
    assert str(caught.value).count(str(path)) == 1


def test_names_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data set 'citiscapes': .*did you mean cityscapes\?"):
        load_domain("citiscapes")
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file; --source and --target take"):
        load_domain(str(tmp_path / "absent.toml"))
    assert load_domain("gta5") is GTA5


def test_binary_file_is_no_description(tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"odd\.toml: not valid TOML"):
        load_domain(str(path))


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + README.encode())
    assert load_domain(str(path)).name == "camvid"


def test_description_that_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"odd\.toml: cannot be read \(a named pipe"):
        load_domain(str(path))


# ---------------------------------------------------------------------------- several, and left out


def described(folder: Path, images: str = "images/*.png", labels: str = "labels/*.png") -> Domain:
    text = f"{CLASSES}[val]\nimages = '{images}'\nlabels = '{labels}'\n"
    return load_domain(str(write(folder, text)))


def test_two_labels_of_one_image(tmp_path: Path) -> None:
    domain = described(tmp_path, labels="*/labels/*.png")
    touch(
        tmp_path, "images/a.png", "v1/labels/a.png", "v2/labels/a.png", "v1/labels/b.png", "v2/labels/b.png"
    )
    for version in (1, 2):  # b is no image: what it has does not matter
        (tmp_path / f"v{version}/labels/b.png").write_text(str(version))
    (sample,) = find_samples(domain, [tmp_path], "val")
    assert sample.label == tmp_path / "v1/labels/a.png"  # equal in content
    (tmp_path / "v2/labels/a.png").write_text("another")
    with pytest.raises(DataError, match=r"images/a\.png: two label files belong to it, .*v1.* and .*v2"):
        find_samples(domain, [tmp_path], "val")


def test_label_in_another_unicode_form(tmp_path: Path) -> None:
    domain = described(tmp_path)
    touch(tmp_path, "images/Z\u00fcrich.png", "labels/Zu\u0308rich.png")
    (sample,) = find_samples(domain, [tmp_path], "val", need_labels=True)
    assert sample == Sample(
        "Z\u00fcrich", tmp_path / "images/Z\u00fcrich.png", tmp_path / "labels/Zu\u0308rich.png"
    )


def test_file_names_that_cannot_be_ids(tmp_path: Path) -> None:
    domain = described(tmp_path)
    (tmp_path / "images").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/images/Z\xfcrich.png")).touch()
    with pytest.raises(DataError, match=r"images/Z.udcfcrich\.png: the name of the file .*; rename it"):
        find_samples(domain, [tmp_path], "val")


def test_other_endings_are_told(tmp_path: Path) -> None:
    domain = described(tmp_path, images="images/*.jpg")
    touch(tmp_path, "images/a.jpg", "images/b.JPG", "images/c.jpeg", "images/d.png", "images/a.JPG")
    told: list[str] = []
    samples = find_samples(
        domain, [tmp_path], "val", report=lambda e: told.append(e.text) if isinstance(e, Note) else None
    )
    assert [sample.id for sample in samples] == ["a"]
    assert len(told) == 1 and "mine val: 2 files beside the 1 images are left out" in told[0]


def test_no_split_at_all(tmp_path: Path) -> None:
    domain = load_domain(str(write(tmp_path, CLASSES)))
    with pytest.raises(
        DataError, match=r"mine has no split 'train', nor any other; add it .* \[train\] with images"
    ):
        find_samples(domain, [tmp_path], "train")


def test_linked_folders(tmp_path: Path) -> None:
    domain = described(tmp_path, images="images/**/*.png")
    touch(tmp_path, "images/a/1.png", "elsewhere/2.png", "elsewhere/3.png")
    (tmp_path / "images/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "images")
    assert [sample.id for sample in find_samples(domain, [tmp_path], "val")] == ["1", "2", "3"]
