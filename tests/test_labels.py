"""Label maps and images as files: every published format, and every way to be wrong."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from endauda_cli.domains import CITYSCAPES, DOMAINS, GTA5, IGNORE
from endauda_cli.errors import DataError
from endauda_cli.labels import (
    colourise,
    image_size,
    read_image,
    read_label_ids,
    read_train_ids,
    read_truth,
    write_colour,
    write_label,
    write_png,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.generic]

SYNTHIA = DOMAINS["synthia"]


def png(pixels: Array, bit_depth: int, colour_type: int) -> bytes:
    """A PNG of (H, W, channels), written by hand: Pillow cannot write 16-bit colour."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if bit_depth == 16 else "u1")
    data = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def save(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def ids_of(*values: int) -> Array:
    return np.array([values], np.uint8)


# ---------------------------------------------------------------------------- published formats


def test_cityscapes_grey_png(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(ids_of(7, 8, 0, 29, 33, 255)))
    assert read_truth(path, CITYSCAPES).tolist() == [[0, 1, IGNORE, IGNORE, 18, IGNORE]]


def test_gta5_palette_png(tmp_path: Path) -> None:
    """The ids are the indices; the colours in the file are a picture, not the label."""
    image = Image.fromarray(ids_of(7, 34, 26, 0))
    image.putpalette([(37 * i) % 256 for i in range(768)])
    path = save(tmp_path / "a.png", image)
    with Image.open(path) as written:
        assert written.mode == "P"
    assert read_truth(path, GTA5).tolist() == [[0, IGNORE, 13, IGNORE]]


@pytest.mark.parametrize("colour_type", [2, 6])
def test_synthia_16_bit_colour_png(tmp_path: Path, colour_type: int) -> None:
    """Class in the first channel, instance in the second. Read at 8 bits, all ids would be 0."""
    pixels = np.zeros((2, 3, 3 if colour_type == 2 else 4), np.uint16)
    pixels[..., 0] = [[3, 1, 600], [0, 65535, 256]]
    pixels[..., 1] = 4711
    path = tmp_path / "a.png"
    path.write_bytes(png(pixels, 16, colour_type))
    assert read_label_ids(path, first_channel=True).tolist() == pixels[..., 0].tolist()
    pixels[..., 0] = [[3, 1, 22], [0, 15, 11]]
    path.write_bytes(png(pixels, 16, colour_type))
    assert read_truth(path, SYNTHIA).tolist() == [[0, 9, IGNORE], [IGNORE, 6, 15]]


def test_synthia_8_bit_grey_png(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(ids_of(3, 1, 16)))
    assert read_truth(path, SYNTHIA).tolist() == [[0, 9, IGNORE]]
    assert read_truth(path, DOMAINS["synthia-19"]).tolist() == [[0, 10, 9]]


def test_16_bit_grey_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(np.array([[[7], [300]]]), 16, 0))
    assert read_label_ids(path).tolist() == [[7, 300]]


def test_16_bit_colour_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(np.zeros((2, 2, 3)), 16, 2))
    with pytest.raises(DataError, match=r"a\.png: an image of mode RGB, but one channel of label ids"):
        read_truth(path, CITYSCAPES)


# ---------------------------------------------------------------------------- refusals name the file


@pytest.mark.parametrize(
    ("value", "domain", "known"),
    [(34, CITYSCAPES, "0-33"), (35, GTA5, "0-34"), (254, SYNTHIA, "0-22")],
)
def test_unknown_label_ids(tmp_path: Path, value: int, domain: object, known: str) -> None:
    assert domain in DOMAINS.values()
    path = save(tmp_path / "odd.png", Image.fromarray(ids_of(7, value, 255)))
    with pytest.raises(DataError, match=rf"odd\.png: label id {value} is not in the table.*known: {known}"):
        read_truth(path, domain)  # type: ignore[arg-type]


def test_label_ids_beyond_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "odd.tif"
    Image.fromarray(np.array([[7, 70_000]], np.int32)).save(path)
    with pytest.raises(DataError, match=r"odd\.tif: label id 70000 is not in the table"):
        read_truth(path, CITYSCAPES)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_image_of_a_wrong_mode(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "odd.tif", Image.new(mode, (3, 2)))
    with pytest.raises(DataError, match=rf"odd\.tif: an image of mode {mode}, but 8-bit RGB is expected"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "F"])
def test_label_of_a_wrong_mode(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "odd.tif", Image.new(mode, (3, 2)))
    with pytest.raises(DataError, match=rf"odd\.tif: an image of mode {mode}, but one channel of label ids"):
        read_truth(path, CITYSCAPES)
    with pytest.raises(DataError, match=r"odd\.tif: an image of mode"):
        read_train_ids(path, 19)


def test_absent_files(tmp_path: Path) -> None:
    path = tmp_path / "absent.png"
    for read in (
        read_image,
        image_size,
        read_label_ids,
        lambda path: read_truth(path, SYNTHIA),
        lambda path: read_train_ids(path, 19),
    ):
        with pytest.raises(DataError, match=r"absent\.png: no such file"):
            read(path)


@pytest.mark.parametrize("value", [19, 200, 254])
def test_train_ids_of_another_class_table(tmp_path: Path, value: int) -> None:
    path = save(tmp_path / "odd.png", Image.fromarray(ids_of(0, value, 255)))
    with pytest.raises(
        DataError, match=rf"odd\.png: value {value}, but train ids are 0 to 18, and 255 for none"
    ):
        read_train_ids(path, 19)
    assert read_train_ids(save(path, Image.fromarray(ids_of(0, 18, 255))), 19).tolist() == [[0, 18, 255]]


def sample_png(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 19, (16, 24, 3))
    if kind == "16-bit":
        return png(pixels, 16, 2)
    return png(pixels if kind == "colour" else pixels[..., :1], 8, 2 if kind == "colour" else 0)


def read_anything(path: Path, kind: str) -> None:
    if kind == "colour":
        assert read_image(path).dtype == np.uint8
    else:
        read_truth(path, SYNTHIA)


@pytest.mark.parametrize("kind", ["grey", "colour", "16-bit"])
def test_truncated_png_is_never_half_an_image(tmp_path: Path, kind: str) -> None:
    whole = sample_png(kind)
    path = tmp_path / "cut.png"
    path.write_bytes(whole)
    read_anything(path, kind)
    for length in [*range(0, 60, 7), len(whole) // 2, len(whole) - 40]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.png: truncated or not an image"):
            read_anything(path, kind)


@pytest.mark.parametrize("kind", ["grey", "colour", "16-bit"])
@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_damaged_png_is_refused_or_read(
    kind: str, place: int, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(sample_png(kind))
    damaged[place % len(damaged)] ^= flip
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(damaged)
    try:
        read_anything(path, kind)
    except DataError as error:
        assert str(error).startswith(f"{path}: ")


# ---------------------------------------------------------------------------- writing


def test_written_labels_are_read_back(tmp_path: Path) -> None:
    label = np.random.default_rng(0).choice([*range(19), 255], (20, 30)).astype(np.uint8)
    write_label(tmp_path / "a.png", label)
    np.testing.assert_array_equal(read_train_ids(tmp_path / "a.png", 19), label)
    assert image_size(tmp_path / "a.png") == (20, 30)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "L"


def test_colour_pictures(tmp_path: Path) -> None:
    label = ids_of(0, 10, 255).astype(np.uint8)
    expected = [list(CITYSCAPES.palette[0]), list(CITYSCAPES.palette[10]), [0, 0, 0]]
    write_colour(tmp_path / "a.png", label, CITYSCAPES.palette)
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image.convert("RGB"))[0].tolist() == expected
    np.testing.assert_array_equal(read_train_ids(tmp_path / "a.png", 19), label)
    assert colourise(label, CITYSCAPES.palette)[0].tolist() == expected
    write_png(tmp_path / "b.png", colourise(label, CITYSCAPES.palette))
    assert read_image(tmp_path / "b.png")[0].tolist() == expected


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    label = ids_of(1, 2).astype(np.uint8)
    with pytest.raises(DataError, match=r"a\.png: cannot be written"):
        write_label(tmp_path / "absent" / "a.png", label)
    (tmp_path / "a.png").mkdir()  # a file cannot replace a folder
    with pytest.raises(DataError, match=r"a\.png: cannot be written"):
        write_label(tmp_path / "a.png", label)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
