"""Lossless compressions of class planes: a file per codec, and their table.

HDF5 works under one lock for all threads, its filters too. So planes are coded and decoded here, in as many
threads as there are cores, and HDF5 only stores the bytes: in the form that its own filters write and read, but
for ``softmax``, which is ours.
"""

from __future__ import annotations

from endauda_cli.archive.codecs.base import (
    DECODER_ERRORS,
    Bytes,
    Chunk,
    FilterCodec,
    Packed,
    PlaneCodec,
    Unpack,
    crc32,
)
from endauda_cli.archive.codecs.gzip import DENSE_GZIP, GZIP
from endauda_cli.archive.codecs.jpegls import JPEGLS
from endauda_cli.archive.codecs.softmax import SOFTMAX
from endauda_cli.archive.codecs.zstd import DELTA_ZSTD, DENSE_ZSTD, QUICK_ZSTD, ZSTD
from endauda_cli.types import Codec

__all__ = [
    "CODECS", "DECODER_ERRORS", "JPEGLS", "MODEL_CODEC", "Bytes", "Chunk", "FilterCodec", "Packed", "PlaneCodec",
    "Unpack", "codec_for", "crc32", "label_codec_for",
]  # fmt: skip

CODECS: dict[Codec, PlaneCodec] = {
    Codec.SOFTMAX: SOFTMAX,
    Codec.JPEGLS: JPEGLS,
    Codec.DELTA_ZSTD: DELTA_ZSTD,
    Codec.ZSTD: ZSTD,
    Codec.GZIP: GZIP,
}
MODEL_CODEC = DENSE_ZSTD


def codec_for(name: Codec, height: int, width: int) -> Codec:
    """The codec of planes: the one asked for, or zstd for the few sizes that it cannot take. Readers need not know."""
    name = name.of_planes
    return name if CODECS[name].fits(height, width) else Codec.ZSTD


def label_codec_for(name: Codec) -> PlaneCodec:
    """The codec of label maps in an archive of that codec."""
    return {Codec.GZIP: DENSE_GZIP, Codec.GRID: QUICK_ZSTD}.get(name, DENSE_ZSTD)
