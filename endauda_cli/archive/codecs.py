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

# Numbers registered with the HDF Group.
_JPEGLS = int(hdf5plugin.FciDecomp.filter_id)
_ZSTD = int(hdf5plugin.Zstd.filter_id)
_DEFLATE = int(h5py.h5z.FILTER_DEFLATE)

_JPEGLS_MIN_PIXELS = 16
_JPEGLS_MAX_SIDE = 65_535
_LEVEL = 1
"""Of zstd and deflate: on real maps higher levels take twice as long for a few percent."""


class Chunk(NamedTuple):
    """A coded plane as HDF5 stores it. ``raw``: as it is, because coding would have made it larger."""

    data: bytes
    raw: bool


def _jpegls_encode(plane: Bytes) -> bytes | bytearray:
    return imagecodecs.jpegls_encode(plane)


def _jpegls_decode(data: bytes, shape: tuple[int, int]) -> Bytes:
    # Into an array of the right size: a damaged header may ask for gigabytes.
    plane: Bytes = imagecodecs.jpegls_decode(data, out=np.empty(shape, np.uint8))
    return plane


def _zstd_encode(plane: Bytes) -> bytes | bytearray:
    return imagecodecs.zstd_encode(plane.tobytes(), _LEVEL)


def _zstd_decode(data: bytes, shape: tuple[int, int]) -> Bytes:
    plane = np.empty(shape, np.uint8)
    imagecodecs.zstd_decode(data, out=plane.reshape(-1).data)
    return plane


def _deflate_encode(plane: Bytes) -> bytes | bytearray:
    return imagecodecs.zlib_encode(plane.tobytes(), _LEVEL)


def _deflate_decode(data: bytes, shape: tuple[int, int]) -> Bytes:
    plane = np.empty(shape, np.uint8)
    imagecodecs.zlib_decode(data, out=plane.reshape(-1).data)
    return plane


@dataclass(frozen=True)
class PlaneCodec:
    """One HDF5 filter with its arguments, and the same outside HDF5.

    Attributes:
        name: on the command line.
        filter_id: HDF5's number of the filter.
        options: the filter's, as HDF5 has them.
        encode: a contiguous (H, W) uint8 plane to the filter's bytes.
        decode: the filter's bytes and (H, W) to the plane; raises one of many things on damage.
        delta: code the difference to the left and upper neighbours instead of the plane. HDF5 has no filter for
            that, so programs that read the file without endauda have to add it up again.
    """

    name: Codec
    filter_id: int
    options: tuple[int, ...]
    encode: Callable[[Bytes], bytes | bytearray]
    decode: Callable[[bytes, tuple[int, int]], Bytes]
    delta: bool = False

    def __post_init__(self) -> None:
        if not h5py.h5z.filter_avail(self.filter_id):
            raise ValueError(
                f"{self.name}: this HDF5 has no filter {self.filter_id}; is hdf5plugin installed?"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``h5py.Group.create_dataset`` takes."""
        if self.filter_id == _DEFLATE:  # built into h5py, which takes it by name only
            return {"compression": "gzip", "compression_opts": self.options[0]}
        return {"compression": self.filter_id, "compression_opts": self.options}

    def fits(self, height: int, width: int) -> bool:
        """Whether the filter takes planes of this size (HDF5 would store them raw, the filter complain)."""
        if self.filter_id == _JPEGLS:
            return height * width >= _JPEGLS_MIN_PIXELS and max(height, width) <= _JPEGLS_MAX_SIDE
        return True

    def pack(self, plane: Bytes) -> Chunk:
        """An (H, W) uint8 plane as HDF5 stores it. Free of HDF5's lock and of Python's."""
        coded = self.encode(difference(plane) if self.delta else plane)
        if len(coded) < plane.size:
            return Chunk(bytes(coded), False)
        return Chunk((difference(plane) if self.delta else plane).tobytes(), True)

    def unpack(self, chunk: Chunk, shape: tuple[int, int]) -> Bytes:
        """The plane of a chunk; raises one of many things, or returns other data, if the bytes are damaged."""
        if chunk.raw:
            plane = np.frombuffer(chunk.data, np.uint8).reshape(shape).copy()
        else:
            plane = self.decode(chunk.data, shape)
        return undo_difference(plane) if self.delta else plane


def difference(plane: Bytes) -> Bytes:
    """(H, W) uint8: each pixel less its left neighbour, and that less the same of the row above, modulo 256."""
    both: Bytes = imagecodecs.delta_encode(imagecodecs.delta_encode(plane, axis=1), axis=0)
    return both


def undo_difference(plane: Bytes) -> Bytes:
    """The inverse of :func:`difference`."""
    whole: Bytes = imagecodecs.delta_decode(imagecodecs.delta_decode(plane, axis=0), axis=1)
    return whole


CODECS: dict[Codec, PlaneCodec] = {
    codec.name: codec
    for codec in (
        # Prediction from three neighbours suits softmax planes: half the bytes of zstd, a third of its speed.
        PlaneCodec(Codec.JPEGLS, _JPEGLS, (), _jpegls_encode, _jpegls_decode),
        PlaneCodec(Codec.DELTA_ZSTD, _ZSTD, (_LEVEL,), _zstd_encode, _zstd_decode, delta=True),
        PlaneCodec(Codec.ZSTD, _ZSTD, (_LEVEL,), _zstd_encode, _zstd_decode),
        # Any HDF5 reads it, without hdf5plugin.
        PlaneCodec(Codec.GZIP, _DEFLATE, (_LEVEL,), _deflate_encode, _deflate_decode),
    )
}  # fmt: skip


def codec_for(name: Codec, height: int, width: int) -> PlaneCodec:
    """The codec asked for, or zstd for the few sizes that it cannot take. Readers need not know."""
    codec = CODECS[name]
    return codec if codec.fits(height, width) else CODECS[Codec.ZSTD]


def codec_of(dataset: h5py.Dataset) -> PlaneCodec:
    """The codec that a stored dataset's chunks need. Raises ValueError for a filter that is none of ours."""
    filter_id = dataset.id.get_create_plist().get_filter(0)[0]
    delta = bool(dataset.attrs.get("delta", 0))
    for codec in CODECS.values():
        if (codec.filter_id, codec.delta) == (filter_id, delta):
            return codec
    raise ValueError(f"the filter {filter_id} is none of {', '.join(CODECS)}")
