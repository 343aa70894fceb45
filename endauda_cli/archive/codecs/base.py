"""What a codec is, and one around an HDF5 filter, which most are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import h5py
import imagecodecs
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Unpack = Callable[["Chunk", Bytes], None]
"""Fills an (H, W) array with a chunk's plane. On damaged bytes it raises one of many things, or fills in others."""


DECODER_ERRORS = (
    imagecodecs.ZlibError,
    imagecodecs.DeflateError,
    imagecodecs.ZstdError,
    imagecodecs.JpeglsError,
)
"""What decoders raise on damaged bytes besides ``ValueError``."""


class Chunk(NamedTuple):
    """A coded plane as it is stored, or the model of an image's planes."""

    data: bytes | memoryview
    raw: bool
    """Stored as it is, because coding would have made it larger."""
    crc: int
    """CRC-32 of ``data``: damage is to be found before decoding, for some bytes keep a decoder busy for seconds."""


class Packed(NamedTuple):
    """The planes of an image."""

    chunks: tuple[Chunk, ...]
    model: Bytes
    """What decoding any of them needs besides; empty for most codecs."""


class PlaneCodec(Protocol):
    """A way to code planes of values 0..100, each on its own."""

    @property
    def filter(self) -> tuple[int, tuple[int, ...]]:
        """Number and arguments of the HDF5 filter that reads the chunks."""

    @property
    def model_bytes(self) -> int:
        """Length of ``Packed.model``."""

    @property
    def delta(self) -> bool:
        """Whether the filter gives differences, which have to be added up."""

    def fits(self, height: int, width: int) -> bool:
        """Whether it takes planes of this size."""

    def pack(self, planes: Bytes) -> Packed:
        """Codes (N, H, W) planes. Free of HDF5's lock, and mostly of Python's."""

    def unpacker(self, model: Bytes) -> Unpack:
        """Decodes the planes of one image, in as many threads as one likes. Raises ValueError on a bad model."""


def chunk_of(coded: bytes, plane: Bytes) -> Chunk:
    """The coded plane, or the plane itself if that is shorter."""
    data, raw = (coded, False) if len(coded) < plane.size else (plane.tobytes(), True)
    return Chunk(data, raw, crc32(data))


def crc32(data: bytes | memoryview | Bytes) -> int:
    """The usual CRC-32, at several bytes a cycle."""
    return int(imagecodecs.deflate_crc32(data))


class Filter(NamedTuple):
    """An HDF5 filter by its registered number, and the same outside HDF5."""

    id: int
    encode: Callable[[Bytes, int], bytes]
    decode: Callable[[bytes | memoryview, Bytes], None]
    levels: bool = True
    """Whether it has levels of compression."""
    min_pixels: int = 1
    max_side: float = math.inf


@dataclass(frozen=True)
class FilterCodec:
    """One HDF5 filter with its arguments, and the same outside HDF5.

    Attributes:
        by: HDF5's filter.
        level: of its compression; JPEG-LS has none.
        delta: code the difference to the left and upper neighbours instead of the plane. HDF5 has no filter for
            that, so programs that read the file without endauda have to add it up again.

    Raises:
        ValueError: if this installation lacks the filter.
    """

    by: Filter
    level: int = 0
    delta: bool = False
    model_bytes = 0

    def __post_init__(self) -> None:
        if not h5py.h5z.filter_avail(self.by.id):
            raise ValueError(f"this HDF5 has no filter {self.by.id}; is hdf5plugin installed?")

    @property
    def filter(self) -> tuple[int, tuple[int, ...]]:
        return self.by.id, (self.level,) if self.by.levels else ()

    def fits(self, height: int, width: int) -> bool:
        """HDF5 would store a plane that a filter cannot take raw, but the filter complain."""
        return height * width >= self.by.min_pixels and max(height, width) <= self.by.max_side

    def pack(self, planes: Bytes) -> Packed:
        changed = (difference(plane) if self.delta else plane for plane in planes)
        chunks = tuple(chunk_of(self.by.encode(plane, self.level), plane) for plane in changed)
        return Packed(chunks, np.empty(0, np.uint8))

    def unpacker(self, model: Bytes) -> Unpack:
        return self._unpack

    def _unpack(self, chunk: Chunk, out: Bytes) -> None:
        if chunk.raw:
            out[:] = np.frombuffer(chunk.data, np.uint8).reshape(out.shape)
        else:
            self.by.decode(chunk.data, out)
        if self.delta:
            out[:] = undo_difference(out)


def difference(plane: Bytes) -> Bytes:
    """(H, W) uint8: each pixel less its left neighbour, and that less the same of the row above, modulo 256."""
    both: Bytes = imagecodecs.delta_encode(imagecodecs.delta_encode(plane, axis=1), axis=0)
    return both


def undo_difference(plane: Bytes) -> Bytes:
    """The inverse of :func:`difference`."""
    whole: Bytes = imagecodecs.delta_decode(imagecodecs.delta_decode(plane, axis=0), axis=1)
    return whole


def expect_whole(decoded: Any, out: Bytes) -> None:
    """Refuse a stream of another length than its plane. Raises ValueError."""
    if len(decoded) != out.size:
        raise ValueError(f"{len(decoded):,} bytes in a plane of {out.size:,}")
