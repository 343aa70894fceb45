"""Store: the door for image files, which anybody may have made: regular, bounded, upright, exact.

Every picture and label map is opened here and nowhere else. Pillow decodes, but four things are not left to it: what
kind of file it is given and how large; whether so many pixels as the header claims can be in so few bytes; which way is
up (EXIF orientation is applied, to images and label maps alike); and how many bits a value has in the file, for Pillow
stretches 1, 2 and 4 bits over the byte and cuts 16 bits of colour down to it.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from endauda_cli.errors import DataError
from endauda_cli.files import IMAGE_BYTES, open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

MOST_PIXELS = 500_000_000
"""More than any camera or scanner gives in one file."""
SMALL_PIXELS = 1 << 24
"""So many may be claimed by any file."""
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP", "DIB", "PPM", "GIF", "TGA", "SGI", "PCX")
"""Those that hold pixels, and whose decoders take no more than the header tells. Pillow knows more: EPS starts another
program, JPEG 2000 takes 7 GB and a minute for a file of 300 bytes (of blocks of one pixel), AVIF is decoded at
a size that its header hides, QOI in Python."""
_PLUGINS = ("Mpo", "Tiff", "WebP", "Tga", "Sgi", "Pcx")
"""Of ``FORMATS``, those that ``preinit`` leaves out."""
DEFLATE = 1040
"""Bytes that one byte of deflated data can become."""
_MOST_PER_BYTE = {
    "JPEG": 2_000, "MPO": 2_000, "PPM": 8, "SGI": 130, "GIF": 2_000, "PCX": 504, "TGA": 128, "BMP": 255, "DIB": 255,
}  # fmt: skip
"""Pixels that one byte of a file can stand for; the rest: one bit per pixel, deflated."""
_MOST_SCANS = 50
"""Of a progressive JPEG; programs write about ten. Each goes over all pixels, and may be empty."""
_RUN_LENGTHS, _WIDEST_RUNS = (1, 2), 65_535
"""A BMP's kinds of compression, and its widest row: four bytes can skip 255 rows, for which Pillow makes room."""
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_OTHER_BYTE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""Pillow's names for 16-bit colour as PNG stores it, and for the same with swapped bytes."""
_PLAIN: dict[str, tuple[int, ...]] = {"L": (), "RGB": (3,)}
"""Kinds of PNG that hold the bytes that are wanted, and their last dimensions."""
_STRETCHED = {"L;2": 85, "L;4": 17}
_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262
_TILE = (322, 323)
_TURNS: dict[int, Callable[[Array], Array]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""What sets an image upright, by its EXIF orientation."""
_EXIF_PLACES = ("exif", "Raw profile type exif", "XML:com.adobe.xmp")

# Its bound knows neither the file's size nor that an image may be large; ours is asked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Raster:
    """An image file that is open; nothing of it is decoded yet.

    Attributes:
        path: the file.
        file: the same, as bytes.
        image: Pillow's view of it.
        orientation: by EXIF, 1 to 8; 1 is upright.
        stored: how a value stands in the file, as Pillow calls it (``L;4``, ``RGB;16B``).
        maximum: what a PPM or PGM file calls its brightest value, where Pillow stretches it.
    """

    path: Path
    file: BufferedReader
    image: Image.Image
    orientation: int
    stored: str
    maximum: int | None

    @property
    def mode(self) -> str:
        """Pillow's name of the kind of pixels."""
        return self.image.mode

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), upright."""
        width, height = self.image.size
        return (width, height) if self.orientation >= 5 else (height, width)

    def pixels(self) -> Array:
        """As Pillow decodes them, upright: (H, W) or (H, W, channels)."""
        plain = _PLAIN.get(self.stored) if self.image.format == "PNG" else None
        quick = self._quick((*reversed(self.image.size), *plain)) if plain is not None else None
        return self._upright(np.asarray(self.image) if quick is None else quick)

    def _quick(self, shape: tuple[int, ...]) -> Array | None:
        """What libpng makes of a PNG of plain bytes, in half of Pillow's time; ``None`` if that is not ``shape``.

        A file that it refuses is Pillow's to judge, as all others are.
        """
        here = self.file.tell()
        self.file.seek(0)
        with suppress(Exception):
            pixels: Array = imagecodecs.png_decode(self.file.read())
            if pixels.shape == shape and pixels.dtype == np.uint8:
                return pixels
        self.file.seek(here)
        return None

    def ids(self) -> Array:
        """The values of a file with one channel as they stand in it: (H, W), whatever Pillow stretches them to.

        Raises:
            DataError: if they cannot be had exactly.
        """
        kind = self.image.format
        if kind in ("JPEG", "MPO"):
            raise DataError(
                f"{self.path}: a JPEG, which blurs label ids at every edge; write the labels anew as PNG"
            )
        if kind == "TIFF" and self.mode == "L" and self.image.tag_v2.get(_PHOTOMETRIC) == 0:  # type: ignore[attr-defined]
            raise DataError(
                f"{self.path}: a TIFF whose zero means white, which turns label ids around; write it as PNG"
            )
        values = self.pixels()
        if values.dtype == bool:
            return values.astype(np.uint8)
        if kind == "PPM" and (most := self.maximum) is not None:
            full = 255 if self.mode == "L" else 65535
            return (
                values
                if most == full
                else np.rint(values.astype(np.float64) * (most / full)).astype(np.int32)
            )
        factor = next((f for raw, f in _STRETCHED.items() if self.stored.startswith(raw)), 1)
        return values // factor if factor > 1 else values

    def deep(self) -> bool:
        """Whether the file has more than 8 bits per channel of colour, of which Pillow keeps the upper eight."""
        if self.image.format == "TIFF":
            return bool(max(self.image.tag_v2.get(_BITS, (8,))) > 8)  # type: ignore[attr-defined]
        return ";16" in self.stored or (self.maximum or 0) > 255

    def palette(self) -> list[tuple[int, int, int]]:
        """The colours of a palette file, by index."""
        flat = self.image.getpalette("RGB") or []
        return list(zip(flat[::3], flat[1::3], flat[2::3], strict=False))

    def _upright(self, array: Array) -> Array:
        turn = _TURNS.get(self.orientation)
        return array if turn is None else np.ascontiguousarray(turn(array))


@contextmanager
def open_raster(path: Path) -> Iterator[Raster]:
    """An image file, open within the block.

    Raises:
        DataError: also for what goes wrong in the block: if the file is absent, no regular file, truncated, no image,
            or claims more pixels than it can hold.
    """
    try:
        with open_regular(path, IMAGE_BYTES) as file, Image.open(file, formats=_formats()) as image:
            _refuse_claims(path, image, file)
            yield Raster(path, file, image, _orientation(image, file), *_stored(image))
    except DataError:
        raise
    except Exception as error:  # a decoder of strangers' bytes; it has raised nearly every kind by now
        raise DataError(_unreadable(path, error)) from error


def first_channel(path: Path) -> Array | None:
    """The first channel of a 16-bit RGB PNG as (H, W) int32, or ``None`` for any other file.

    Pillow keeps the upper byte of such a value, which turns every id into 0. Told that the bytes stand in
    the other order, it keeps the lower one. (torchvision reads 16 bits, but its decoders are deprecated.)

    Raises:
        DataError: as :func:`open_raster`.
    """
    with open_raster(path) as upper, open_raster(path) as lower:
        if upper.image.format != "PNG" or upper.stored not in _OTHER_BYTE:
            return None
        assert isinstance(upper.image, ImageFile) and isinstance(lower.image, ImageFile)
        lower.image.tile = [upper.image.tile[0]._replace(args=_OTHER_BYTE[upper.stored])]
        high, low = (raster.pixels()[..., 0].astype(np.int32) for raster in (upper, lower))
    return 256 * high + low


@cache
def _formats() -> list[str]:
    """Those of ``FORMATS`` that this Pillow has; the plugins of its others, some forty, are not loaded."""
    Image.preinit()
    for plugin in _PLUGINS:
        with suppress(ImportError):
            import_module(f"PIL.{plugin}ImagePlugin")
    return [name for name in FORMATS if name in Image.OPEN]


def _stored(image: Image.Image) -> tuple[str, int | None]:
    """The last two fields of a ``Raster``; Pillow forgets them when it decodes."""
    arguments = image.tile[0].args if isinstance(image, ImageFile) and image.tile else ""
    if not isinstance(arguments, tuple) or not arguments:
        return str(arguments), None
    most = arguments[1] if image.format == "PPM" else None
    return str(arguments[0]), most if isinstance(most, int) and most else None


def _refuse_claims(path: Path, image: Image.Image, file: BufferedReader) -> None:
    """Before anything is allocated: what the header says must be possible and must fit into the file."""
    width, height = image.size
    pixels, size = width * height, file.seek(0, 2)
    if pixels == 0:
        raise DataError(f"{path}: an image of {width}x{height} pixels; write the file again")
    if pixels > MOST_PIXELS:
        raise DataError(
            f"{path}: {width}x{height} are {pixels / 1e6:,.0f} million pixels, and {MOST_PIXELS // 10**6} million are "
            "the most that is read; cut it into tiles"
        )
    if (why := _work(image, file)) is not None:
        raise DataError(f"{path}: {why}, which no honest file has; write it anew, as PNG for instance")
    if pixels > SMALL_PIXELS or image.format in ("JPEG", "MPO"):
        most = size * _MOST_PER_BYTE.get(image.format or "", 8 * DEFLATE)
        if image.format == "PNG":
            file.seek(24)
            depth, kind = file.read(2)
            most = size * DEFLATE * 8 // (depth * _PNG_CHANNELS.get(kind, 1))
        if pixels > most:
            raise DataError(
                f"{path}: says that it has {width}x{height} pixels, but its {size:,} bytes cannot hold them; "
                "fetch or write the file again"
            )


def _work(image: Image.Image, file: BufferedReader) -> str | None:
    """What would cost memory or time beyond the pixels themselves."""
    width, height = image.size
    if image.format == "TIFF":
        across, down = (image.tag_v2.get(tag, 0) for tag in _TILE)  # type: ignore[attr-defined]
        if across * down > max(4 * width * height, SMALL_PIXELS // 16):
            return f"{width}x{height} pixels in tiles of {across}x{down}"
    elif image.format in ("BMP", "DIB"):
        if image.info.get("compression") in _RUN_LENGTHS and width > _WIDEST_RUNS:
            return f"rows of {width} pixels, in run lengths"
    elif image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        file.seek(0)
        if (scans := file.read().count(b"\xff\xda")) > _MOST_SCANS:
            return f"a progressive JPEG of {scans} scans"
    return None


def _orientation(image: Image.Image, file: BufferedReader) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns these itself, their size too
    if image.format == "PNG" and not any(place in image.info for place in _EXIF_PLACES):
        if (exif := _late_exif(file)) is None:
            return 1
        image.info["exif"] = exif
    with suppress(Exception):  # an image whose EXIF is damaged is an image
        orientation = image.getexif().get(_ORIENTATION, 1)
        return orientation if orientation in _TURNS else 1
    return 1


def _late_exif(file: BufferedReader) -> bytes | None:
    """The EXIF chunk of a PNG where it stands behind the pixels; nothing is decoded to find it."""
    here, found = file.tell(), None
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        length = struct.unpack(">I", head[:4])[0]
        if head[4:] == b"eXIf":
            found = b"Exif\0\0" + file.read(min(length, 1 << 20))
            break
        file.seek(length + 4, 1)
    file.seek(here)
    return found


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) or not path.exists():
        return f"{path}: no such file"
    if isinstance(error, MemoryError):
        return f"{path}: no memory for its pixels; free some, or cut the image into tiles"
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return f"{path}: cannot be read ({error.strerror}); put an image there"
    why = (
        f"none of {', '.join(FORMATS)}"
        if isinstance(error, UnidentifiedImageError)
        else f"{error}"[:200] or type(error).__name__
    )
    return f"{path}: truncated or not an image ({why}); fetch or write the file again"
