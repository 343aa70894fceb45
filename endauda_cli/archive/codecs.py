"""Lossless compressions of class planes: values around HDF5 filters.

HDF5 works under one lock for all threads, its filters too. So planes are coded and decoded here, in as many
threads as there are cores, and HDF5 only stores the bytes, in the form that its own filters write and read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import hdf5plugin
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from endauda_cli.types import Codec

if TYPE_CHECKING:
    from collections.abc import Callable

Bytes = NDArray[np.uint8]

_JPEGLS_MIN_PIXELS = 16
_JPEGLS_MAX_SIDE = 65_535
_SPIFF = b"\xff\xe8"


class Chunk(NamedTuple):
    """A coded plane as HDF5 stores it. ``raw``: as it is, because coding would have made it larger."""

    data: bytes
    raw: bool


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


def _jpegls_decode(data: bytes, shape: tuple[int, int]) -> Bytes:
    if not data.startswith(_jpegls_head(*shape)):
        raise ValueError("the header of a plane is damaged")  # it may ask the decoder for gigabytes
    plane: Bytes = imagecodecs.jpegls_decode(data, out=np.empty(shape, np.uint8))
    return plane


def _zstd_encode(plane: Bytes, level: int) -> bytes:
    return bytes(imagecodecs.zstd_encode(plane.tobytes(), level))


def _zstd_decode(data: bytes, shape: tuple[int, int]) -> Bytes:
    plane = np.empty(shape, np.uint8)
    imagecodecs.zstd_decode(data, out=plane.reshape(-1).data)
    return plane


def _deflate_encode(plane: Bytes, level: int) -> bytes:
    return bytes(imagecodecs.zlib_encode(plane.tobytes(), level))


def _deflate_decode(data: bytes, shape: tuple[int, int]) -> Bytes:
    plane = np.empty(shape, np.uint8)
    imagecodecs.zlib_decode(data, out=plane.reshape(-1).data)
    return plane


class _Filter(NamedTuple):
    """An HDF5 filter by its registered number, and the same outside HDF5."""

    id: int
    encode: Callable[[Bytes, int], bytes]
    decode: Callable[[bytes, tuple[int, int]], Bytes]


JPEGLS = _Filter(int(hdf5plugin.FciDecomp.filter_id), _jpegls_encode, _jpegls_decode)
ZSTD = _Filter(int(hdf5plugin.Zstd.filter_id), _zstd_encode, _zstd_decode)
DEFLATE = _Filter(int(h5py.h5z.FILTER_DEFLATE), _deflate_encode, _deflate_decode)
_FILTERS = {filter.id: filter for filter in (JPEGLS, ZSTD, DEFLATE)}


@dataclass(frozen=True)
class PlaneCodec:
    """One HDF5 filter with its arguments, and the same outside HDF5.

    Attributes:
        filter: HDF5's filter.
        level: of its compression; JPEG-LS has none.
        delta: code the difference to the left and upper neighbours instead of the plane. HDF5 has no filter for
            that, so programs that read the file without endauda have to add it up again.

    Raises:
        ValueError: if this installation lacks the filter.
    """

    filter: _Filter
    level: int = 0
    delta: bool = False

    def __post_init__(self) -> None:
        if not h5py.h5z.filter_avail(self.filter.id):
            raise ValueError(f"this HDF5 has no filter {self.filter.id}; is hdf5plugin installed?")

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``h5py.Group.create_dataset`` takes."""
        if self.filter == DEFLATE:  # built into h5py, which takes it by name only
            return {"compression": "gzip", "compression_opts": self.level}
        options = () if self.filter == JPEGLS else (self.level,)
        return {"compression": self.filter.id, "compression_opts": options}

    def fits(self, height: int, width: int) -> bool:
        """Whether the filter takes planes of this size (HDF5 would store them raw, the filter complain)."""
        if self.filter == JPEGLS:
            return height * width >= _JPEGLS_MIN_PIXELS and max(height, width) <= _JPEGLS_MAX_SIDE
        return True

    def pack(self, plane: Bytes) -> Chunk:
        """An (H, W) uint8 plane as HDF5 stores it. Free of HDF5's lock and of Python's."""
        plane = difference(plane) if self.delta else plane
        coded = self.filter.encode(plane, self.level)
        return Chunk(coded, False) if len(coded) < plane.size else Chunk(plane.tobytes(), True)

    def unpack(self, chunk: Chunk, shape: tuple[int, int]) -> Bytes:
        """The plane of a chunk; raises one of many things, or returns other data, if the bytes are damaged."""
        if chunk.raw:
            plane = np.frombuffer(chunk.data, np.uint8).reshape(shape).copy()
        else:
            plane = self.filter.decode(chunk.data, shape)
        return undo_difference(plane) if self.delta else plane


def difference(plane: Bytes) -> Bytes:
    """(H, W) uint8: each pixel less its left neighbour, and that less the same of the row above, modulo 256."""
    both: Bytes = imagecodecs.delta_encode(imagecodecs.delta_encode(plane, axis=1), axis=0)
    return both


def undo_difference(plane: Bytes) -> Bytes:
    """The inverse of :func:`difference`."""
    whole: Bytes = imagecodecs.delta_decode(imagecodecs.delta_decode(plane, axis=0), axis=1)
    return whole


# On real maps higher levels of zstd and deflate take twice as long for a few percent.
CODECS: dict[Codec, PlaneCodec] = {
    # Prediction from three neighbours suits softmax planes: half the bytes of zstd, a third of its speed.
    Codec.JPEGLS: PlaneCodec(JPEGLS),
    Codec.DELTA_ZSTD: PlaneCodec(ZSTD, level=1, delta=True),
    Codec.ZSTD: PlaneCodec(ZSTD, level=1),
    # Any HDF5 reads it, without hdf5plugin.
    Codec.GZIP: PlaneCodec(DEFLATE, level=1),
}


def codec_for(name: Codec, height: int, width: int) -> PlaneCodec:
    """The codec asked for, or zstd for the few sizes that it cannot take. Readers need not know."""
    codec = CODECS[name]
    return codec if codec.fits(height, width) else CODECS[Codec.ZSTD]


def label_codec_for(name: Codec) -> PlaneCodec:
    """The codec of label maps in an archive of that codec. They are flat: dictionaries beat prediction, and as
    there is one for C planes, a higher level costs little."""
    return PlaneCodec(DEFLATE, level=6) if name == Codec.GZIP else PlaneCodec(ZSTD, level=11)


def codec_of(dataset: h5py.Dataset) -> PlaneCodec:
    """The codec that reads a stored dataset's chunks. Raises ValueError for a filter that is none of ours."""
    filter_id = dataset.id.get_create_plist().get_filter(0)[0]
    if filter_id not in _FILTERS:
        raise ValueError(f"the filter {filter_id} is none of {', '.join(map(str, _FILTERS))}")
    return PlaneCodec(_FILTERS[filter_id], delta=bool(dataset.attrs.get("delta", 0)))
