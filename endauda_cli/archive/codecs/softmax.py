"""The codec that knows what softmax maps are like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.archive.codecs.base import Bytes, Chunk, Packed, Unpack, chunk_of

if TYPE_CHECKING:
    from types import ModuleType

    from endauda_cli.archive.codecs.softmax_planes import Model


@cache
def _planes() -> ModuleType:
    """Only imported by those who use it: numba takes its time."""
    import endauda_cli.jit  # noqa: F401  before numba, whose settings it mends
    from endauda_cli.archive.codecs import softmax_planes

    return softmax_planes


@dataclass(frozen=True)
class SoftmaxCodec:
    """See ``softmax_planes``. Its filter number is from the range that HDF5 leaves to private use: no other
    program reads these planes."""

    filter: tuple[int, tuple[int, ...]] = (305, ())
    delta: bool = False

    @property
    def model_bytes(self) -> int:
        return int(_planes().MODEL_BYTES)

    def fits(self, height: int, width: int) -> bool:
        return width <= int(_planes().MAX_WIDTH)

    def pack(self, planes: Bytes) -> Packed:
        model, streams = _planes().encode(planes)
        chunks = tuple(chunk_of(stream, plane) for stream, plane in zip(streams, planes, strict=True))
        return Packed(chunks, np.frombuffer(model, np.uint8))

    def unpacker(self, model: Bytes) -> Unpack:
        return partial(self._unpack, _planes().read_model(model))

    @staticmethod
    def _unpack(model: Model, chunk: Chunk, out: Bytes) -> None:
        if chunk.raw:
            out[:] = np.frombuffer(chunk.data, np.uint8).reshape(out.shape)
        else:
            _planes().decode(chunk.data, model, out)


SOFTMAX = SoftmaxCodec()
