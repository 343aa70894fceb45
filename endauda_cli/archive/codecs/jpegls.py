"""JPEG-LS: prediction from three neighbours suits softmax planes too: half the bytes of zstd, a sixth of its speed."""

from __future__ import annotations

import hdf5plugin
import imagecodecs

from endauda_cli.archive.codecs.base import Bytes, Filter, FilterCodec

_SPIFF = b"\xff\xe8"
_END = b"\xff\xd9"


def _encode(plane: Bytes, level: int) -> bytes:
    stream = bytes(imagecodecs.jpegls_encode(plane))
    # Less the SPIFF header, which says what HDF5 knows: up to 44 bytes, where an empty plane takes 100.
    start = 2
    while stream[start : start + 2] == _SPIFF:
        start += 2 + int.from_bytes(stream[start + 2 : start + 4], "big")
    return stream[:2] + stream[start:]


def _head(height: int, width: int) -> bytes:
    """How the stream of an 8-bit plane of that size begins: its start, frame and scan markers."""
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return (
        b"\xff\xd8\xff\xf7\x00\x0b\x08" + size + b"\x01\x01\x11\x00\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00"
    )


def _decode(data: bytes | memoryview, out: Bytes) -> None:
    head = _head(*out.shape)
    if data[: len(head)] != head:
        raise ValueError("the header of a plane is damaged")  # it may ask the decoder for gigabytes
    height, width = out.shape
    # Behind the last byte CharLS reads on in zeros, two billion of them, where no marker stops it.
    if data[-2:] != _END:
        raise ValueError("a plane is cut short")
    # A bit stands for a run of 2^15 pixels of one row at most: a few bytes are not worth seconds.
    if 8 * len(data) < height * -(-width // (1 << 15)):
        raise ValueError("a plane is cut short")
    imagecodecs.jpegls_decode(data, out=out)


JPEGLS = FilterCodec(
    Filter(
        int(hdf5plugin.FciDecomp.filter_id), _encode, _decode, levels=False, min_pixels=16, max_side=65_535
    )
)
