"""Zstandard, of planes as they are or of differences. Higher levels take twice as long for a few percent."""

from __future__ import annotations

import hdf5plugin
import imagecodecs

from endauda_cli.archive.codecs.base import Bytes, Filter, FilterCodec, expect_whole


def _encode(plane: Bytes, level: int) -> bytes:
    return bytes(imagecodecs.zstd_encode(plane.reshape(-1).data, level))


def _decode(data: bytes | memoryview, out: Bytes) -> None:
    expect_whole(imagecodecs.zstd_decode(data, out=out.reshape(-1).data), out)


_FILTER = Filter(int(hdf5plugin.Zstd.filter_id), _encode, _decode)
ZSTD = FilterCodec(_FILTER, level=1)
DELTA_ZSTD = FilterCodec(_FILTER, level=1, delta=True)
QUICK_ZSTD = FilterCodec(_FILTER, level=7)
"""For label maps beside grids, which take no longer."""
DENSE_ZSTD = FilterCodec(_FILTER, level=11)
"""For label maps, which are flat (dictionaries beat prediction; there is one for C planes), and for models."""
