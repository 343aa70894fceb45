"""Store: images, label maps and certainties as files.

Label maps are (H, W) uint8 arrays of train ids with ``IGNORE`` (255) for no class; images are (H, W, 3)
uint8 RGB in 0..255. A file that is not exactly what it should be is refused by name: a label map read
with the wrong channel or mode is the field's commonest silent error.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from threading import Lock
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
from PIL import Image

from endauda_cli import rasters
from endauda_cli.domains import IGNORE, Colour, Domain
from endauda_cli.errors import DataError
from endauda_cli.files import cannot_write, replacing
from endauda_cli.rasters import Raster, open_raster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import Any, BinaryIO

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]

IMAGE_MODES = ("RGB",)
LABEL_MODES = ("L", "P", "I;16", "I;16B", "I")
MOST_STRAYS = 0.01
"""Share of pixels whose values have no name, above which it is told."""
DARKEST = 64
"""Of 16-bit colour: an image whose brightest value is below it, of 255, has fewer bits than its file says."""
_BAND = 16
_GREY, _INDEXED, _UP = 0, 3, 2
"""Numbers of the PNG format: colour types, and the filter that subtracts the row above."""
_LEVEL = 3


def read_image(path: Path) -> UInt8:
    """An image as (H, W, 3) uint8 RGB, upright.

    Raises:
        DataError: if the file is absent, truncated, no image, or not RGB; or if its 16 bits per channel hold fewer.
    """
    with open_raster(path) as raster:
        _refuse_mode(raster, IMAGE_MODES, "8-bit RGB")
        pixels = raster.pixels().astype(np.uint8, copy=False)
        if raster.deep() and pixels.max() < DARKEST:
            raise DataError(
                f"{path}: 16 bits per channel, but no value above {256 * int(pixels.max()) + 255} of 65535, as if it "
                "held values of 12 bits or so; read as it is it would be all but black; scale it to 8 bits per channel"
            )
        return pixels


def read_label_ids(path: Path, first_channel: bool = False) -> NDArray[np.int32]:
    """The pixel values of a label file as (H, W) int32, upright; of a palette file the indices.

    Args:
        path: the file.
        first_channel: the id stands in the first of several channels (SYNTHIA's 16-bit RGB).

    Raises:
        DataError: if the file is absent, truncated, no image, or of a mode that holds no ids.
    """
    if first_channel and (deep := rasters.first_channel(path)) is not None:
        return deep
    with open_raster(path) as raster:
        return label_ids_of(raster)


class Strays:
    """Values of label files without a name in the data set's table, and how many pixels have them.

    Such a table may name some ids alone; but a mask that was stretched to 0, 85, 170, 255 looks the same.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._pixels = 0
        self._of: Counter[int] = Counter()
        self._lock = Lock()

    def count(self, ids: NDArray[Any], unnamed: NDArray[np.bool], counts: NDArray[np.int64] | None) -> None:
        """One file's values, which of them have no name, and how many pixels each stands for, if not for one."""
        number = np.ones_like(ids, np.int64) if counts is None else counts
        found, places = np.unique(ids[unnamed], return_inverse=True)
        of_each = np.bincount(places, number[unnamed], len(found)).astype(np.int64)
        with self._lock:
            self._pixels += int(number.sum())
            self._of.update(dict(zip(found.tolist(), of_each.tolist(), strict=True)))

    def warning(self) -> str | None:
        """What to tell, if they are more than a few."""
        named = {value: count for value, count in self._of.items() if value != IGNORE}
        if sum(named.values()) <= MOST_STRAYS * self._pixels:
            return None
        shown = sorted(self._of, key=lambda value: -self._of[value])
        shares = ", ".join(f"{value} ({100 * self._of[value] / self._pixels:.2g} %)" for value in shown[:8])
        return (
            f"{self._domain.name}: {100 * self._of.total() / self._pixels:.3g} % of the labels' pixels have values "
            f"without a name in label_ids and count as no class: {shares}{', ...' if len(shown) > 8 else ''}; name "
            "those that mean a class, and list the others in ignore_ids"
        )


def read_truth(path: Path, domain: Domain, strays: Strays | None = None) -> UInt8:
    """A ground truth file as (H, W) uint8 train ids of the domain.

    Args:
        path: the file.
        domain: whose table says what its ids mean.
        strays: told of those that have no name there.

    Raises:
        DataError: as :func:`read_label_ids`, or if an id is not in the domain's table.
    """
    return truth_of_ids(path, read_label_ids(path, domain.labels_in_first_channel), domain, strays)


def truth_of_ids(
    path: Path,
    ids: NDArray[Any],
    domain: Domain,
    strays: Strays | None = None,
    counts: NDArray[np.int64] | None = None,
) -> UInt8:
    """Values of a ground truth file as uint8 train ids; ``counts``, if given, says how many pixels each stands for.

    Raises:
        DataError: if an id is not in the domain's table.
    """
    lowest, highest = int(ids.min(initial=0)), int(ids.max(initial=0))
    if highest > 0xFFFF or lowest < 0:
        raise DataError(_unknown_id(path, lowest if lowest < 0 else highest, domain))
    table = np.array(
        [IGNORE if (t := domain.train_id(i)) is None else t for i in range(highest + 1)], np.uint8
    )
    unknown = np.array([domain.train_id(i) is None for i in range(highest + 1)])
    if unknown.any() and (found := np.unique(ids[unknown[ids]])).size:
        raise DataError(_unknown_id(path, int(found[0]), domain))
    if strays is not None:
        unnamed = np.array([i not in domain.label_ids for i in range(highest + 1)])
        strays.count(ids, unnamed[ids], counts)
    found_ids: UInt8 = table[ids]
    return found_ids


def shows_class(files: Iterable[Path], domain: Domain) -> bool:
    """Whether any of these ground truth files shows a class; looks no further than the first that does.

    Raises:
        DataError: if a file before that cannot be read.
    """
    return any(bool((read_truth(file, domain) != IGNORE).any()) for file in files)


def refuse_empty_truth(files: Sequence[Path], domain: Domain, what: str) -> None:
    """Refuse labelled images of which not one pixel has a class; looks at no more files than it needs.

    Args:
        files: ground truth.
        domain: its class table.
        what: the images, as the sentence begins.

    Raises:
        DataError: if there is no class in any, or one cannot be read.
    """
    if files and not shows_class(files, domain):
        raise DataError(
            f"{what}: the truth of all {len(files)} images holds no class at all, every pixel of it is ignored (as in "
            "Cityscapes' own test labels), so nothing can be learnt from it or scored on it; use labelled images"
        )


def read_train_ids(path: Path, num_classes: int) -> UInt8:
    """A label map that holds train ids already (fused labels, predictions) as (H, W) uint8.

    Raises:
        DataError: as :func:`read_label_ids`, or if a value is neither below ``num_classes`` nor 255.
    """
    return train_ids_of(path, read_label_ids(path), num_classes)


def train_ids_of(path: Path, ids: NDArray[np.int32], num_classes: int) -> UInt8:
    """Values of a label map, if they are train ids, as uint8.

    Raises:
        DataError: if a value is neither below ``num_classes`` nor 255.
    """
    stray = ((ids >= num_classes) & (ids != IGNORE)) | (ids < 0)
    if stray.any():
        raise DataError(
            f"{path}: value {int(ids[stray].min())}, but train ids are 0 to {num_classes - 1}, and {IGNORE} "
            "for none; are these label ids, or labels of another class table?"
        )
    return ids.astype(np.uint8)


def write_label(path: Path, label: UInt8) -> None:
    """Write (H, W) uint8 train ids as an 8-bit grey PNG, whole or not at all."""
    _write_bytes(path, _label_png(label.shape, _packed(label)))


def write_colour(path: Path, label: UInt8, palette: Sequence[Colour]) -> None:
    """Write (H, W) uint8 train ids as a palette PNG; ``IGNORE`` is black."""
    _write_bytes(path, _label_png(label.shape, _packed(label), palette))


def write_label_and_colour(path: Path, colour_path: Path, label: UInt8, palette: Sequence[Colour]) -> None:
    """Both files of a label map; their pixels are the same bytes, so they are compressed once."""
    packed = _packed(label)
    _write_bytes(colour_path, _label_png(label.shape, packed, palette))
    _write_bytes(path, _label_png(label.shape, packed))


def write_png(path: Path, picture: UInt8) -> None:
    """Write an (H, W, 3) uint8 RGB picture, whole or not at all."""
    _write_png(path, Image.fromarray(picture))


def write_certainty(path: Path, certainty: UInt8) -> None:
    """Write (C, H, W) uint8 percent as the (H, W, C) ``.npy`` that ``numpy.save`` makes, whole or not at all."""
    classes, height, width = certainty.shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (height, width, classes)}

    def save(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, header)
        for y in range(0, height, _BAND):  # in bands: no second copy of the whole image
            file.write(np.ascontiguousarray(certainty[:, y : y + _BAND].transpose(1, 2, 0)).data)

    _write(path, save)


def colourise(label: UInt8, palette: Sequence[Colour]) -> UInt8:
    """(H, W) uint8 train ids as an (H, W, 3) uint8 RGB picture; ``IGNORE`` is black."""
    return _colours(palette)[label]


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image file from its header, upright.

    Raises:
        DataError: if the file is absent or no image.
    """
    with open_raster(path) as raster:
        return raster.size


def label_ids_of(raster: Raster) -> NDArray[np.int32]:
    """As :func:`read_label_ids`, of a file that is open."""
    return stored_ids_of(raster).astype(np.int32)


def stored_ids_of(raster: Raster) -> NDArray[Any]:
    """The same in the width that they have in the file: uint8 for nearly all."""
    one_bit = raster.mode == "1" and raster.image.format == "PNG"
    if not one_bit:
        _refuse_mode(raster, LABEL_MODES, "one channel of label ids (mode L, P or I;16)")
    return raster.ids()


def _unknown_id(path: Path, value: int, domain: Domain) -> str:
    return (
        f"{path}: label id {value} is not in the table of {domain.name} "
        f"(known: {_ranges(sorted(domain.label_ids))}); is this the right data set and label format?"
    )


def _refuse_mode(raster: Raster, modes: tuple[str, ...], expected: str) -> None:
    if raster.mode not in modes:
        raise DataError(
            f"{raster.path}: an image of mode {raster.mode}, but {expected} is expected; convert the file"
        )


def _write_png(path: Path, image: Image.Image) -> None:
    _write(path, lambda file: image.save(file, "PNG", compress_level=1))


def _packed(label: UInt8) -> bytes:
    """The rows of a PNG, each as its difference to the one above, compressed.

    Measured on 1024x2048 fused labels: 10 ms and 128 kB, where Pillow takes 42 ms and 173 kB at its level 1, and
    73 ms and 126 kB at level 6, because it tries all five filters on each row. Label maps like one best.
    """
    rows = np.empty((label.shape[0], 1 + label.shape[1]), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = label[0]
    np.subtract(label[1:], label[:-1], out=rows[1:, 1:])
    return bytes(imagecodecs.deflate_encode(rows.tobytes(), level=_LEVEL))


def _label_png(size: tuple[int, ...], packed: bytes, palette: Sequence[Colour] | None = None) -> bytes:
    """An 8-bit PNG file, grey or with a palette, around compressed rows."""
    height, width = size
    kind = _GREY if palette is None else _INDEXED
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))]
    if palette is not None:
        chunks.append((b"PLTE", _colours(palette).tobytes()))
    chunks += [(b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _colours(palette: Sequence[Colour]) -> UInt8:
    """(256, 3); ``IGNORE`` and what is no class are black."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    return colours


def label_files(folder: Path, image: str) -> tuple[Path, Path]:
    """The label PNG of an image, and its colour preview."""
    return folder / f"{image}.png", folder / f"{image}_color.png"


def _write_bytes(path: Path, content: bytes) -> None:
    _write(path, lambda file: file.write(content))


def _write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Put what ``save`` writes under ``path``, whole or not at all."""
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            save(file)
    except OSError as error:
        raise DataError(f"{path}: {cannot_write(error)}") from error


def _ranges(ids: Sequence[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2, 5``."""
    parts: list[list[int]] = []
    for value in ids:
        if parts and value == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], value]
        else:
            parts.append([value])
    return ", ".join("-".join(str(v) for v in part) for part in parts)
