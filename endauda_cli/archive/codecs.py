"""Lossless compressions of class planes.

HDF5 works under one lock for all threads, its filters too. So planes are coded and decoded here, in as many
threads as there are cores, and HDF5 only stores the bytes: in the form that its own filters write and read, but
for ``softmax``, which is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import h5py
import hdf5plugin
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from endauda_cli.types import Codec

if TYPE_CHECKING:
    from types import ModuleType

    from endauda_cli.archive.softmax import Model

Bytes = NDArray[np.uint8]
Unpack = Callable[["Chunk", Bytes], None]
"""Fills an (H, W) array with a chunk's plane. On damaged bytes it raises one of many things, or fills in others."""

_JPEGLS_MIN_PIXELS = 16
_JPEGLS_MAX_SIDE = 65_535
_SPIFF = b"\xff\xe8"


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


# Codecs around an HDF5 filter


def _jpegls_encode(plane: Bytes, level: int) -> bytes:
    stream = bytes(imagecodecs.jpegls_encode(plane))
    # Less the SPIFF header, which says what HDF5 knows: up to 44 bytes, where an empty plane takes 100.
    start = 2
    while stream[start : start + 2] == _SPIFF:
        start += 2 + int.from_bytes(stream[start + 2 : start + 4], "big")
    return stream[:2] + stream[start:]


def _jpegls_head(height: int, width: int) -> bytes:
    """How the stream of an 8-bit plane of that size begins: its start, frame and scan markers."""
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return (
        b"\xff\xd8\xff\xf7\x00\x0b\x08" + size + b"\x01\x01\x11\x00\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00"
    )


def _jpegls_decode(data: bytes | memoryview, out: Bytes) -> None:
    head = _jpegls_head(*out.shape)
    if data[: len(head)] != head:
        raise ValueError("the header of a plane is damaged")  # it may ask the decoder for gigabytes
    imagecodecs.jpegls_decode(data, out=out)


def _zstd_encode(plane: Bytes, level: int) -> bytes:
    return bytes(imagecodecs.zstd_encode(plane.reshape(-1).data, level))


def _zstd_decode(data: bytes | memoryview, out: Bytes) -> None:
    _expect_whole(imagecodecs.zstd_decode(data, out=out.reshape(-1).data), out)


def _deflate_encode(plane: Bytes, level: int) -> bytes:
    return bytes(imagecodecs.zlib_encode(plane.reshape(-1).data, level))


def _deflate_decode(data: bytes | memoryview, out: Bytes) -> None:
    _expect_whole(imagecodecs.zlib_decode(data, out=out.reshape(-1).data), out)


def _expect_whole(decoded: Any, out: Bytes) -> None:
    if len(decoded) != out.size:
        raise ValueError(f"{len(decoded):,} bytes in a plane of {out.size:,}")


class _Filter(NamedTuple):
    """An HDF5 filter by its registered number, and the same outside HDF5."""

    id: int
    encode: Callable[[Bytes, int], bytes]
    decode: Callable[[bytes | memoryview, Bytes], None]


JPEGLS = _Filter(int(hdf5plugin.FciDecomp.filter_id), _jpegls_encode, _jpegls_decode)
ZSTD = _Filter(int(hdf5plugin.Zstd.filter_id), _zstd_encode, _zstd_decode)
DEFLATE = _Filter(int(h5py.h5z.FILTER_DEFLATE), _deflate_encode, _deflate_decode)


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

    by: _Filter
    level: int = 0
    delta: bool = False
    model_bytes = 0

    def __post_init__(self) -> None:
        if not h5py.h5z.filter_avail(self.by.id):
            raise ValueError(f"this HDF5 has no filter {self.by.id}; is hdf5plugin installed?")

    @property
    def filter(self) -> tuple[int, tuple[int, ...]]:
        return self.by.id, () if self.by == JPEGLS else (self.level,)

    def fits(self, height: int, width: int) -> bool:
        """HDF5 would store a plane that JPEG-LS cannot take raw, but its filter complain."""
        if self.by == JPEGLS:
            return height * width >= _JPEGLS_MIN_PIXELS and max(height, width) <= _JPEGLS_MAX_SIDE
        return True

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


# The codec that knows what softmax maps are like


@cache
def _softmax() -> ModuleType:
    """Only imported by those who use it: numba takes its time."""
    from endauda_cli.archive import softmax

    return softmax


@dataclass(frozen=True)
class SoftmaxCodec:
    """:mod:`endauda_cli.archive.softmax`. Its filter number is from the range that HDF5 leaves to private use:
    no other program reads these planes."""

    filter: tuple[int, tuple[int, ...]] = (305, ())
    delta: bool = False

    @property
    def model_bytes(self) -> int:
        return int(_softmax().MODEL_BYTES)

    def fits(self, height: int, width: int) -> bool:
        return width <= int(_softmax().MAX_WIDTH)

    def pack(self, planes: Bytes) -> Packed:
        model, streams = _softmax().encode(planes)
        chunks = tuple(chunk_of(stream, plane) for stream, plane in zip(streams, planes, strict=True))
        return Packed(chunks, np.frombuffer(model, np.uint8))

    def unpacker(self, model: Bytes) -> Unpack:
        return partial(self._unpack, _softmax().read_model(model))

    @staticmethod
    def _unpack(model: Model, chunk: Chunk, out: Bytes) -> None:
        if chunk.raw:
            out[:] = np.frombuffer(chunk.data, np.uint8).reshape(out.shape)
        else:
            _softmax().decode(chunk.data, model, out)


# On real maps higher levels of zstd and deflate take twice as long for a few percent.
CODECS: dict[Codec, PlaneCodec] = {
    Codec.SOFTMAX: SoftmaxCodec(),
    # Prediction from three neighbours suits softmax planes too: half the bytes of zstd, a sixth of its speed.
    Codec.JPEGLS: FilterCodec(JPEGLS),
    Codec.DELTA_ZSTD: FilterCodec(ZSTD, level=1, delta=True),
    Codec.ZSTD: FilterCodec(ZSTD, level=1),
    # Any HDF5 reads it, without hdf5plugin.
    Codec.GZIP: FilterCodec(DEFLATE, level=1),
}

MODEL_CODEC = FilterCodec(ZSTD, level=11)


def codec_for(name: Codec, height: int, width: int) -> Codec:
    """The codec asked for, or zstd for the few sizes that it cannot take. Readers need not know."""
    return name if CODECS[name].fits(height, width) else Codec.ZSTD


def label_codec_for(name: Codec) -> PlaneCodec:
    """The codec of label maps in an archive of that codec. They are flat: dictionaries beat prediction, and as
    there is one for C planes, a higher level costs little."""
    return FilterCodec(DEFLATE, level=6) if name == Codec.GZIP else FilterCodec(ZSTD, level=11)
