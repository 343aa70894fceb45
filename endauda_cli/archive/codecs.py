"""Lossless compressions of class planes: values around HDF5 filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h5py
import hdf5plugin

from endauda_cli.types import Codec

# Numbers registered with the HDF Group.
_JPEGLS = int(hdf5plugin.FciDecomp.filter_id)
_ZSTD = int(hdf5plugin.Zstd.filter_id)
_DEFLATE = int(h5py.h5z.FILTER_DEFLATE)

_JPEGLS_MIN_PIXELS = 16
_JPEGLS_MAX_SIDE = 65_535


@dataclass(frozen=True)
class PlaneCodec:
    """One HDF5 filter with its arguments."""

    name: Codec
    filter_id: int
    options: tuple[int, ...] = ()

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


CODECS: dict[Codec, PlaneCodec] = {
    codec.name: codec
    for codec in (
        # Prediction from three neighbours suits softmax planes: half the bytes of zstd, a third of its speed.
        PlaneCodec(Codec.JPEGLS, _JPEGLS),
        PlaneCodec(Codec.ZSTD, _ZSTD, (1,)),
        # Any HDF5 reads it, without hdf5plugin.
        PlaneCodec(Codec.GZIP, _DEFLATE, (1,)),
    )
}


def codec_for(name: Codec, height: int, width: int) -> PlaneCodec:
    """The codec asked for, or zstd for the few sizes that it cannot take. Readers need not know."""
    codec = CODECS[name]
    return codec if codec.fits(height, width) else CODECS[Codec.ZSTD]
