"""The door for image files: upright, exact, bounded; and a sentence for whatever else lies there."""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from endauda_cli.domains import CITYSCAPES
from endauda_cli.errors import DataError
from endauda_cli.labels import image_size, read_image, read_label_ids, read_truth
from endauda_cli.rasters import open_raster

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

IDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 3, 2]], np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, depth: int, kind: int, rows: bytes, before: bytes = b"", after: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + after
        + chunk(b"IEND", b"")
    )  # fmt: skip


def packed(ids: NDArray[np.uint8], depth: int) -> bytes:
    """Rows of a PNG with so many bits per value."""
    bits = np.unpackbits(ids[..., None], axis=-1)[..., 8 - depth :].reshape(len(ids), -1)
    return b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=-1))


# ---------------------------------------------------------------------------- upright


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = np.zeros((5, 9, 3), np.uint8)
    pixels[:2, :3] = 200
    pixels[4, 8, 0] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(pixels).save(path, exif=exif, lossless=True)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    found = read_image(path)
    assert np.array_equal(found, expected)
    assert image_size(path) == found.shape[:2] == ((9, 5) if orientation >= 5 else (5, 9))


@pytest.mark.parametrize("late", [False, True])
def test_labels_and_sizes_are_upright_wherever_the_chunk_stands(tmp_path: Path, late: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mark = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    path = tmp_path / "a.png"
    rows = packed(IDS, 8)
    path.write_bytes(png(4, 3, 8, 0, rows, **{"after" if late else "before": mark}))
    assert image_size(path) == (4, 3)
    assert np.array_equal(read_label_ids(path), np.rot90(IDS, -1))


def test_damaged_exif_is_no_damaged_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 3, 8, 0, packed(IDS, 8), before=chunk(b"eXIf", b"nonsense")))
    assert np.array_equal(read_label_ids(path), IDS) and image_size(path) == (3, 4)


# ---------------------------------------------------------------------------- exact


@pytest.mark.parametrize("kind", [0, 3])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_ids_of_few_bits(tmp_path: Path, depth: int, kind: int) -> None:
    ids = IDS & np.uint8((1 << depth) - 1)
    palette = chunk(b"PLTE", bytes(range(12)) if depth > 1 else bytes(6)) if kind == 3 else b""
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 3, depth, kind, packed(ids, depth), before=palette))
    assert np.array_equal(read_label_ids(path), ids)


@pytest.mark.parametrize("head", [b"P5 4 3 3\n", b"P5 4 3 7\n", b"P5 4 3 255\n"])
def test_ids_of_pgm(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(head + IDS.tobytes())
    assert np.array_equal(read_label_ids(path), IDS)


@pytest.mark.parametrize("head", [b"P5 4 3 1000\n", b"P5 4 3 65535\n"])
def test_ids_of_deep_pgm(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(head + (IDS.astype(int) + 300).astype(">u2").tobytes())
    assert np.array_equal(read_label_ids(path), IDS.astype(int) + 300)


@pytest.mark.parametrize("order", ["<", ">"])
def test_ids_of_16_bit_tiff(tmp_path: Path, order: str) -> None:
    path = tmp_path / "a.tif"
    values = (IDS.astype(int) + 7).astype(f"{order}u2").tobytes()
    Image.frombytes("I;16B" if order == ">" else "I;16", (4, 3), values).save(path)
    assert np.array_equal(read_label_ids(path), IDS + 7)


def test_negative_id_is_the_one_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[7, -1], [33, 34]], np.int32)).save(path)
    with pytest.raises(DataError, match=r"a\.tif: label id -1 is not in the table of cityscapes"):
        read_truth(path, CITYSCAPES)


def test_labels_as_jpeg_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(IDS).save(path)
    with pytest.raises(DataError, match=r"a\.jpg: a JPEG, which blurs label ids"):
        read_label_ids(path)


def rgb16(pixels: NDArray[np.uint16]) -> bytes:
    height, width = pixels.shape[:2]
    return png(width, height, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))


def test_16_bit_colour_that_holds_12_bits_is_refused(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.png", np.linspace(0, 4095, 36).astype(np.uint16).reshape(3, 4, 3)
    path.write_bytes(rgb16(pixels))
    with pytest.raises(DataError, match=r"a\.png: 16 bits per channel, but no value above 4095 of 65535"):
        read_image(path)
    path.write_bytes(rgb16(16 * pixels))
    assert np.array_equal(read_image(path), (16 * pixels) >> 8)


# ---------------------------------------------------------------------------- bounded


def test_claims_that_cannot_be_true_allocate_nothing(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for width, height, depth, kind, message in (
        (30_000, 30_000, 8, 2, "900 million pixels"),
        (20_000, 20_000, 8, 2, "cannot hold them"),
        (20_000, 20_000, 1, 0, "cannot hold them"),
        (2**31 - 1, 2**31 - 1, 8, 0, "million pixels"),
        (0, 4, 8, 2, "write the file again"),
    ):
        path = tmp_path / "a.png"
        path.write_bytes(png(width, height, depth, kind, b"\0" * 1000))
        for read in (read_image, read_label_ids, image_size):
            with pytest.raises(DataError, match=rf"a\.png: .*{message}"):
                read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def tiled_tiff(side: int) -> bytes:
    """64x64 pixels in one deflated tile of so many by so many."""
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 200, 325: 17}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries).ljust(200, b"\0") + zlib.compress(
        bytes(1000)
    )


def skipping_bmp(width: int) -> bytes:
    """One row of so many pixels; its only command skips 255 rows."""
    info = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 8, 1, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + info + bytes(1024) + b"\0\2\xff\xff"


def many_scans(count: int) -> bytes:
    """A progressive JPEG with so many empty scans more."""
    Image.new("RGB", (64, 64)).save(buffer := io.BytesIO(), "JPEG", progressive=True)
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\x05\x10"
    return buffer.getvalue()[:-2] + scan * count + b"\xff\xd9"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiled_tiff(16_384), "64x64 pixels in tiles of 16384x16384, which no honest file has"),
        (skipping_bmp(16_000_000), "rows of 16000000 pixels, in run lengths"),
        (many_scans(1000), r"a progressive JPEG of \d+ scans"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200), "not an image .none of PNG, JPEG, "),
    ],
)
def test_small_files_that_cost_much_are_refused_before_they_are_decoded(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_image, read_label_ids, image_size):
        with pytest.raises(DataError, match=rf"a\.png: .*{message}"):
            read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_honest_tiles_run_lengths_and_scans(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for content, size in ((many_scans(0), (64, 64)), (skipping_bmp(65_000), (1, 65_000))):
        path.write_bytes(content)
        assert image_size(path) == size
    path.write_bytes(tiled_tiff(1024))
    assert image_size(path) == (64, 64)


def test_more_pixels_than_pillow_likes(tmp_path: Path) -> None:
    """Its bound is 179 million; 1-bit rows keep this quick."""
    path = tmp_path / "a.png"
    path.write_bytes(png(20_000, 10_000, 1, 0, (b"\0" + b"\xff" * 2500) * 10_000))
    assert image_size(path) == (10_000, 20_000)


@pytest.mark.parametrize(
    "what", ["device", "pipe", "folder", "link to a device", "postscript", "nothing", "empty"]
)
def test_what_is_no_image_ends_in_a_sentence(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.png"
    if what == "device":
        path = path.__class__("/dev/zero")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "link to a device":
        path.symlink_to("/dev/zero")
    elif what == "postscript":  # Pillow would start Ghostscript
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    elif what == "empty":
        path.touch()
    for read in (read_image, read_label_ids, image_size):
        with pytest.raises(
            DataError, match=rf"^{path}: (no such file|cannot be read|truncated or not an image)"
        ):
            read(path)


# ---------------------------------------------------------------------------- libpng beside Pillow


def _saved(tmp_path: Path, kind: str) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (13, 17, 3), np.uint8)
    image = Image.fromarray(pixels if kind.startswith("rgb") else pixels[..., 0])
    more: dict[str, Any] = {}
    if kind.endswith("transparent"):
        more["transparency"] = (1, 2, 3) if kind.startswith("rgb") else 5
    if kind.endswith("moving"):
        more |= {"save_all": True, "append_images": [Image.fromarray(255 - np.asarray(image))]}
    if kind.endswith("gamma"):
        more["pnginfo"] = PngInfo()
        more["pnginfo"].add(b"gAMA", struct.pack(">I", 100_000))
    if kind.endswith("turned"):
        more["exif"] = Image.Exif()
        more["exif"][0x0112] = 6
    path = tmp_path / f"{kind}.png"
    image.save(path, **more)
    if kind.endswith("endless"):
        path.write_bytes(path.read_bytes()[:-12])
    return path


@pytest.mark.parametrize("more", ["", " transparent", " moving", " gamma", " turned", " endless"])
@pytest.mark.parametrize("kind", ["rgb", "grey"])
def test_a_png_is_what_pillow_makes_of_it(tmp_path: Path, kind: str, more: str) -> None:
    path = _saved(tmp_path, kind + more)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    with open_raster(path) as raster:
        np.testing.assert_array_equal(raster.pixels(), expected)


@pytest.mark.parametrize("kind", ["rgb", "grey"])
def test_plain_pngs_are_decoded_by_libpng(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(tmp_path, kind)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("Pillow decoded it"))
    with open_raster(path) as raster:
        assert raster.pixels().shape[:2] == (13, 17)


@pytest.mark.parametrize("cut", [40, 300, 500])
def test_what_libpng_refuses_is_pillows_to_judge(tmp_path: Path, cut: int) -> None:
    path = _saved(tmp_path, "rgb")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="truncated or not an image"), open_raster(path) as raster:
        raster.pixels()
