"""What a network said on its own grid of cells, as archives keep it: a tenth of the certainties enlarged from it.

A network of this field says what it says on an eighth of its input, and whoever uses it enlarges that bilinearly.
Softmax does not see what is added to all classes of a cell, so each value becomes a *depth*: how far it is below the
cell's largest class, in natural logarithms of probability. Depths are whole numbers: fine steps near 0, where a step
is percents of certainty, growing ones below. A class that is so far below that no certainty of the cell or its
neighbours would change is ``NOTHING``, which makes up half of a sure network's grid. Numbers are coded by JPEG-LS, one
stream per grid, all classes below each other.

Certainties are derived when they are asked for (``grid_loops``): equal on every CPU, and to those of the network but
for 0.1 % of the bytes, by 1.

Legend of shapes: C classes; h, w of a grid; H, W of the image.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import imagecodecs
import numpy as np

from endauda_cli.archive.codecs.base import Bytes, Chunk, crc32

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from numpy.typing import NDArray

    Numbers = NDArray[np.uint16]

Size = tuple[int, int]
"""(h, w) of a grid, (H, W) of an image."""

FINE, GROWTH, COARSE = 700, 2.1, 0.25
"""Steps per unit at depth 0; the depth in which a step grows by e; the largest step."""
DEEPEST = 60.0
NEGLIGIBLE = 16.0
"""A class that is so far below another at all corners of a square of cells has no part in any certainty there."""
MEETING = GROWTH * math.log(FINE * COARSE)
"""The depth from which on steps are ``COARSE``."""
MEETING_NUMBER = FINE * GROWTH * (1 - 1 / (FINE * COARSE))
NOTHING = round(MEETING_NUMBER + (NEGLIGIBLE - MEETING) / COARSE)
"""Amid the numbers, where its neighbours are; those of greater depths are one up."""
LARGEST = round(MEETING_NUMBER + (DEEPEST - MEETING) / COARSE) + 1

CELLS_TO_PIXELS = 1 / 50
"""A grid is kept if its cells are at most this share of the image's pixels; larger ones do not pay."""
_MAX_SIDE = 65_535  # of a JPEG-LS stream
_MAX_GRIDS = 64


@dataclass(frozen=True)
class GridForm:
    """What the grids of an image are, and how they become its certainties.

    Attributes:
        sizes: of each grid; one per size that the network was run at, mirrored passes and equal sizes averaged.
        shares: of each grid in the mean.
        softmax: ``last``: logits, enlarged, averaged, softmax. ``first``: probabilities, enlarged, averaged.
        align_corners: convention of the bilinear enlarging.

    Raises ValueError if it cannot be one.
    """

    sizes: tuple[Size, ...]
    shares: tuple[float, ...]
    softmax: Literal["first", "last"]
    align_corners: bool

    def __post_init__(self) -> None:
        whole = all(len(size) == 2 and all(type(n) is int and n > 0 for n in size) for size in self.sizes)
        if not whole or not 0 < len(self.sizes) == len(self.shares) <= _MAX_GRIDS:
            raise ValueError("grids of no sizes")
        if not all(type(share) is float and 0 < share <= 1 for share in self.shares):
            raise ValueError("grids of no share")
        if abs(sum(self.shares) - 1) > 1e-3 or self.softmax not in ("first", "last"):
            raise ValueError("grids of no procedure")

    @property
    def cells(self) -> int:
        """Of all grids, of one class."""
        return sum(h * w for h, w in self.sizes)

    def fits(self, classes: int, size: Size) -> bool:
        """Whether images of this size can be kept so, and it pays."""
        within = all(h <= size[0] and w <= size[1] for h, w in self.sizes)
        codable = all(classes * h <= _MAX_SIDE and w <= _MAX_SIDE for h, w in self.sizes)
        return within and codable and self.cells <= CELLS_TO_PIXELS * size[0] * size[1]

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: object) -> Self:
        """The inverse of ``to_text``. Raises ValueError, TypeError or KeyError."""
        if not isinstance(text, str):
            raise TypeError("no text")
        said = json.loads(text)
        sizes = tuple((h, w) for h, w in said["sizes"])
        return cls(sizes, tuple(said["shares"]), said["softmax"], bool(said["align_corners"]))


class Grids(NamedTuple):
    """What a network said of one image."""

    form: GridForm
    numbers: tuple[Numbers, ...]
    """Of each grid, (C, h, w) uint16: ``depth_number`` of each value."""


@cache
def depths() -> NDArray[np.float32]:
    """(LARGEST + 1,): the depth of each number."""
    number = np.arange(LARGEST + 1, dtype=np.float64)
    number[NOTHING + 1 :] -= 1
    growing = -GROWTH * np.log1p(-np.minimum(number, MEETING_NUMBER) / (FINE * GROWTH))
    depth = np.where(number < MEETING_NUMBER, growing, MEETING + (number - MEETING_NUMBER) * COARSE)
    depth[NOTHING] = DEEPEST
    return np.minimum(depth, DEEPEST).astype(np.float32)


def check(grids: Grids, classes: int, size: Size) -> None:
    """Raises ValueError, which says what is wrong, if these are not the grids of an image."""
    shapes = [(classes, *cells) for cells in grids.form.sizes]
    if [numbers.shape for numbers in grids.numbers] != shapes:
        raise ValueError(f"grids of shapes {[n.shape for n in grids.numbers]}; expected {shapes}")
    if any(numbers.dtype != np.uint16 or numbers.max() > LARGEST for numbers in grids.numbers):
        raise ValueError(f"grids with other numbers than uint16 up to {LARGEST}")
    if not grids.form.fits(classes, size):
        raise ValueError(f"grids that do not fit an image of {size[1]}x{size[0]} pixels")


def pack(grids: Grids) -> tuple[Chunk, ...]:
    """A chunk per grid."""
    chunks = []
    for numbers in grids.numbers:
        data = bytes(imagecodecs.jpegls_encode(np.ascontiguousarray(numbers).reshape(-1, numbers.shape[2])))
        chunks.append(Chunk(data, False, crc32(data)))
    return tuple(chunks)


def unpack(form: GridForm, classes: int, chunks: Sequence[Chunk]) -> Grids:
    """The inverse of ``pack``. On damaged bytes it raises one of many things, or returns others."""
    found = []
    for (h, w), chunk in zip(form.sizes, chunks, strict=True):
        _check_stream(chunk.data, classes * h, w)
        numbers = np.empty((classes * h, w), np.uint16)
        imagecodecs.jpegls_decode(chunk.data, out=numbers)
        if numbers.max() > LARGEST:
            raise ValueError("a number that stands for no depth")
        found.append(numbers.reshape(classes, h, w))
    return Grids(form, tuple(found))


def _check_stream(data: bytes | memoryview, height: int, width: int) -> None:
    """Raises ValueError if the decoder would ask for other memory, or more time, than such a stream needs."""
    # Start of image; SPIFF's header, in segments that say their length; then the frame.
    at = 2
    while data[at : at + 2] == b"\xff\xe8":
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    frame = b"\xff\xf7\x00\x0b\x10" + height.to_bytes(2, "big") + width.to_bytes(2, "big")
    if bytes(data[:2]) != b"\xff\xd8" or bytes(data[at : at + len(frame)]) != frame:
        raise ValueError("the header of a grid is damaged")
    if bytes(data[-2:]) != b"\xff\xd9" or 8 * len(data) < height * -(-width // (1 << 15)):
        raise ValueError("a grid is cut short")


def digest(label: Bytes, grids: Grids) -> str:
    """Tells contents apart: of the label map, of the numbers and of what they are."""
    crcs = [crc32(np.ascontiguousarray(array).view(np.uint8)) for array in (label, *grids.numbers)]
    shapes = [label.shape, *(numbers.shape for numbers in grids.numbers)]
    content = json.dumps([grids.form.to_text(), shapes, crcs]).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


# ---------------------------------------------------------------------------- deriving


class Deriver:
    """Makes certainties of an image's grids; its methods may be called by several threads at once.

    grids: of the image.
    size: (H, W) of the image.
    """

    block = 16
    """Rows are derived in multiples of so many."""

    def __init__(self, grids: Grids, size: Size) -> None:
        form = grids.form
        self._loops = _loops()
        self._classes = len(grids.numbers[0])
        self._geometry = _geometry(form.sizes, form.align_corners, self._classes, size)
        self._numbers = np.concatenate([numbers.ravel() for numbers in grids.numbers])
        self._last = form.softmax == "last"
        make = _logits if self._last else _percents
        self._values = np.concatenate(
            [make(n, share).ravel() for n, share in zip(grids.numbers, form.shares, strict=True)]
        )

    def fill(self, classes: Sequence[int], first: int, last: int, out: Bytes) -> None:
        """Rows ``first`` to ``last`` of some classes' certainties into ``out``, (len(classes), H, W) uint8 zeros."""
        wanted = np.full(self._classes, -1, np.int64)
        wanted[list(classes)] = range(len(classes))  # the last place of a class that is asked for twice
        self._loops.percents(
            self._numbers,
            NOTHING,
            self._values,
            self._geometry,
            self._classes,
            self._last,
            wanted,
            first,
            last,
            out,
        )
        for place, c in enumerate(classes):
            if wanted[c] != place:
                out[place, first:last] = out[wanted[c], first:last]


def enlarged_labels(
    values: Sequence[NDArray[np.float32]], shares: Sequence[float], align_corners: bool, size: Size
) -> Bytes:
    """The class of the largest mean of grids (C, h, w), enlarged: (H, W) uint8."""
    classes = len(values[0])
    sizes = tuple((grid.shape[1], grid.shape[2]) for grid in values)
    flat = np.concatenate(
        [(grid * np.float32(share)).ravel() for grid, share in zip(values, shares, strict=True)]
    )
    out = np.empty(size, np.uint8)
    _loops().winners(flat, _geometry(sizes, align_corners, classes, size), classes, 0, size[0], out)
    return out


@cache
def _loops() -> ModuleType:
    """Only imported by those who use it: numba takes its time."""
    from endauda_cli.archive import grid_loops

    assert Deriver.block == grid_loops.ROWS
    return grid_loops


def _logits(numbers: Numbers, share: float) -> NDArray[np.float32]:
    return (depths() * np.float32(-share))[numbers]


def _percents(numbers: Numbers, share: float) -> NDArray[np.float32]:
    odds = _odds()[numbers]
    total = odds[0].copy()
    for c in range(1, len(odds)):  # in this order on every machine
        total += odds[c]
    odds *= np.float32(100 * share) / total
    return odds


@cache
def _odds() -> NDArray[np.float32]:
    """(LARGEST + 1,): the exponential of each number's depth below 0."""
    odds = np.exp(-depths().astype(np.float64)).astype(np.float32)
    odds[NOTHING] = 0
    return odds


@lru_cache(maxsize=16)
def _geometry(sizes: tuple[Size, ...], align_corners: bool, classes: int, size: Size) -> Any:
    rows = [_positions(size[0], h, align_corners) for h, _ in sizes]
    columns = [_positions(size[1], w, align_corners) for _, w in sizes]
    cells = [classes * h * w for h, w in sizes]
    return _loops().Geometry(
        np.cumsum([0, *cells[:-1]]),
        np.array([h for h, _ in sizes]),
        np.array([w for _, w in sizes]),
        np.stack([first for first, _ in rows]),
        np.stack([share for _, share in rows]),
        np.stack([_ends(*row) for row in rows]),
        np.stack([first for first, _ in columns]),
        np.stack([share for _, share in columns]),
        np.stack([_ends(*column) for column in columns]),
    )


def _positions(length: int, cells: int, align_corners: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each of ``length`` pixels: the cell at or before it, and the next one's share."""
    pixel = np.arange(length, dtype=np.float64)
    if align_corners:
        at = pixel * ((cells - 1) / max(1, length - 1))
    else:
        at = np.clip((pixel + 0.5) * (cells / length) - 0.5, 0, cells - 1)
    first = np.minimum(np.floor(at).astype(np.int64), cells - 1)
    return first, (at - first).astype(np.float32)


def _ends(first: NDArray[np.int64], share: NDArray[np.float32]) -> NDArray[np.int64]:
    """Of each pixel: the next one that lies between other cells, or at another distance from the one before it."""
    ends = np.full(len(first), len(first))
    for pixel in range(len(first) - 2, -1, -1):
        steady = (
            ends[pixel + 1] <= pixel + 2 or abs(share[pixel + 2] - 2 * share[pixel + 1] + share[pixel]) < 1e-5
        )
        ends[pixel] = ends[pixel + 1] if steady and first[pixel] == first[pixel + 1] else pixel + 1
    return ends
