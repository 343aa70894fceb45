"""What a data set is made of: its description, images and label maps; and the workspace's settings."""

from __future__ import annotations

import io
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from endauda_cli.datasets import find_samples, load_domain
from endauda_cli.domains import CITYSCAPES, DOMAINS
from endauda_cli.errors import EndaudaError, NoImagesError
from endauda_cli.foreign import read_foreign
from endauda_cli.labels import image_size, read_image, read_train_ids, read_truth
from endauda_cli.rasters import FORMATS
from endauda_cli.terminal.settings import Option, resolve
from endauda_cli.workspace import Workspace
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DESCRIPTION = b"""
name = "camvid"
classes = ["sky", "building", "pole"]
palette = [[128, 128, 128], [128, 0, 0], [192, 192, 128]]
label_ids = { "0" = "sky", "7" = "building" }
ignore_ids = [11]
[train]
images = "images/{split}/**/*.png"
[val]
images = ["images/val/*.png", "a [v2]/*_rgb.jpg"]
labels = "labels/val/*.png"
image_suffix = "_rgb"
label_suffix = "_id"
"""
SETTINGS = b"""
target = "street.toml"
workers = 4
[fuse]
threshold = 60
teachers = ["dacs", "crst=weights/a.pth"]
json = true
[train]
cache = "decoded"
"""
OPTIONS = (
    Option("target", "target"), Option("workers", "workers"), Option("threshold", "threshold"),
    Option("teachers", "teachers", several=True), Option("json", "json", switch=True), Option("cache", "cache"),
)  # fmt: skip


def read_description(data: bytes, folder: Path) -> None:
    """The domain, and the images of its splits where there are none."""
    path = folder / "mine.toml"
    path.write_bytes(data)
    domain = load_domain(str(path))
    for split in ("train", "val", "test"):
        try:
            find_samples(domain, [folder / "nothing"], split)
        except NoImagesError:
            pass


def read_settings(data: bytes, folder: Path) -> None:
    (folder / "endauda.toml").write_bytes(data)
    for command in ("fuse", "train"):
        try:
            resolve(command, OPTIONS, ("fuse", "train", "config"), Workspace(folder), {})
        except EndaudaError as error:
            assert len(str(error)) < 5000


def read_picture(data: bytes, folder: Path) -> None:
    """All readers; the size in the header is that of the pixels."""
    if len(data) > 2048:  # whose honest pixels, all of one colour, may take gigabytes
        return
    path = folder / "a.png"
    path.write_bytes(data)
    size = image_size(path)
    for read in (
        read_image,
        lambda file: read_truth(file, CITYSCAPES),
        lambda file: read_truth(file, DOMAINS["synthia"]),
        lambda file: read_train_ids(file, 19),
        lambda file: read_foreign(file, CITYSCAPES),
    ):
        try:
            assert read(path).shape[:2] == size
        except EndaudaError:
            pass


def pictures() -> Sequence[bytes]:
    """Small files of all kinds that are read."""
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5) % 19
    colour = np.stack([grey * 10, grey * 5, grey], -1)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = []
    Image.init()
    for kind in sorted(set(FORMATS) & set(Image.OPEN) & set(Image.SAVE)):
        ways: tuple[str | None, ...] = (None,)
        if kind == "TIFF":
            ways = (
                None,
                "packbits",
                "tiff_lzw",
                "tiff_adobe_deflate",
                "tiff_ccitt",
                "jpeg",
                "lzma",
                "zstd",
                "webp",
            )
        for array, way in product((grey, colour), ways):
            more: dict[str, Any] = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
            with suppress(OSError, ValueError):  # not for this kind of pixels, or not in this Pillow
                Image.fromarray(array).save(buffer := io.BytesIO(), kind, **more, compression=way)
                made.append(buffer.getvalue())
    palette = Image.fromarray(grey)
    palette.putpalette([value for entry in CITYSCAPES.palette for value in entry])
    for kind, bits, compression in (("PNG", 8, None), ("PNG", 4, None), ("TIFF", 8, "tiff_deflate")):
        palette.save(buffer := io.BytesIO(), kind, bits=bits, compression=compression)
        made.append(buffer.getvalue())
    Image.fromarray(grey.astype(np.uint16)).save(buffer := io.BytesIO(), "PNG")
    return [*made, buffer.getvalue()]


TARGETS = (
    Target("domain", read_description, lambda: [DESCRIPTION], 400),
    Target("settings", read_settings, lambda: [SETTINGS], 400),
    Target("picture", read_picture, pictures, 600),
)
