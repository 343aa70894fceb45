"""What every codec has to do: one suite for all rows of the table."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from endauda_cli.archive import CODECS, PlaneCodec
from endauda_cli.archive.codecs import DECODER_ERRORS, codec_for, crc32, label_codec_for
from endauda_cli.types import Codec
from tests.support.archive_samples import smooth

UInt8 = NDArray[np.uint8]
PLANES = {
    "flat": np.zeros((3, 20, 30), np.uint8),
    "one pixel": np.array([[[7]], [[100]]], np.uint8),
    "noise": np.random.default_rng(0).integers(0, 101, (4, 33, 65)).astype(np.uint8),
    "maps": np.ascontiguousarray(smooth(0, 5, 40, 72)[1]),
}


def test_the_table_has_every_name() -> None:
    assert set(CODECS) == set(Codec) - {Codec.GRID}
    assert {codec.of_planes for codec in Codec} == set(CODECS)


@pytest.fixture(params=list(CODECS))
def codec(request: pytest.FixtureRequest) -> PlaneCodec:
    return CODECS[request.param]


def unpacked(codec: PlaneCodec, planes: UInt8) -> UInt8:
    packed = codec.pack(planes)
    unpack, out = codec.unpacker(packed.model), np.empty_like(planes)
    for chunk, plane in zip(packed.chunks, out, strict=True):
        unpack(chunk, plane)
    return out


@pytest.mark.parametrize("kind", PLANES)
def test_planes_come_back_as_they_were(codec: PlaneCodec, kind: str) -> None:
    planes = PLANES[kind]
    if codec.fits(*planes.shape[1:]):
        np.testing.assert_array_equal(unpacked(codec, planes), planes)


@pytest.mark.parametrize("kind", PLANES)
def test_no_plane_grows_and_every_chunk_has_its_checksum(codec: PlaneCodec, kind: str) -> None:
    planes = PLANES[kind]
    if not codec.fits(*planes.shape[1:]):
        return
    packed = codec.pack(planes)
    assert len(packed.model) == codec.model_bytes
    for chunk in packed.chunks:
        assert len(chunk.data) <= planes[0].size and chunk.crc == crc32(chunk.data)
        assert chunk.raw == (len(chunk.data) == planes[0].size)


def test_each_plane_is_decoded_alone_and_in_any_order(codec: PlaneCodec) -> None:
    planes = PLANES["maps"]
    packed = codec.pack(planes)
    unpack = codec.unpacker(packed.model)
    for i in reversed(range(len(planes))):
        out = np.full_like(planes[i], 255)
        unpack(packed.chunks[i], out)
        np.testing.assert_array_equal(out, planes[i])


def test_a_stream_of_another_size_is_refused(codec: PlaneCodec) -> None:
    planes = PLANES["maps"]
    packed = codec.pack(planes)
    with pytest.raises((ValueError, *DECODER_ERRORS)):
        codec.unpacker(packed.model)(packed.chunks[0], np.empty((400, 720), np.uint8))


def test_the_same_planes_make_the_same_bytes(codec: PlaneCodec) -> None:
    first, second = (codec.pack(PLANES["maps"].copy()) for _ in range(2))
    assert first.chunks == second.chunks and first.model.tobytes() == second.model.tobytes()


def test_flat_and_smooth_planes_become_small(codec: PlaneCodec) -> None:
    for kind, smaller in (("flat", 8), ("maps", 2)):
        planes = PLANES[kind]
        assert sum(len(chunk.data) for chunk in codec.pack(planes).chunks) * smaller < planes.size


@pytest.mark.parametrize("name", list(Codec))
def test_what_a_codec_cannot_take_another_does(name: Codec) -> None:
    for height, width in ((1, 1), (3, 5), (1, 65_536), (65_536, 1), (64, 64)):
        assert CODECS[codec_for(name, height, width)].fits(height, width)
        assert label_codec_for(name).fits(height, width)
