"""Deflate: any HDF5 reads it, without hdf5plugin."""

from __future__ import annotations

import h5py
import imagecodecs

from endauda_cli.archive.codecs.base import Bytes, Filter, FilterCodec, expect_whole


def _encode(plane: Bytes, level: int) -> bytes:
    return bytes(imagecodecs.zlib_encode(plane.reshape(-1).data, level))


def _decode(data: bytes | memoryview, out: Bytes) -> None:
    expect_whole(imagecodecs.zlib_decode(data, out=out.reshape(-1).data), out)


_FILTER = Filter(int(h5py.h5z.FILTER_DEFLATE), _encode, _decode)
GZIP = FilterCodec(_FILTER, level=1)
DENSE_GZIP = FilterCodec(_FILTER, level=6)
"""For label maps, see ``zstd``."""
