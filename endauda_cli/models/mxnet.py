"""MXNet's ``.params`` files without MXNet: arrays and their names, as ``mx.nd.save`` wrote them.

Little-endian throughout. A file: u64 0x112, u64 0, u64 count, arrays; u64 count, names (u64 length, bytes). An array:
u32 magic (one of three versions; before there were any, this is already the number of dimensions), in version 2 and
3 i32 storage type (0 = dense), u32 dimensions and their sizes (u32 before version 1, else i64), then, unless it is
empty, i32 device type, i32 device, i32 type and the values. A name is ``arg:`` (parameter) or ``aux:`` (statistic)
and the layer's with a suffix.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing import Any

FILE_MAGIC = struct.pack("<QQ", 0x112, 0)
_VERSIONS = {0xF993FAC8: 1, 0xF993FAC9: 2, 0xF993FACA: 3}
_TYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8"}
_MOST_DIMENSIONS = 8

# MXNet's names of what a layer has -> torch's.
_SUFFIXES = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}
_NAME = re.compile(rf"(?:arg|aux):(?P<layer>.+)_(?P<suffix>{'|'.join(_SUFFIXES)})")


def is_params(head: bytes) -> bool:
    """Whether a file that begins so is one of MXNet's."""
    return head.startswith(FILE_MAGIC)


def read_params(content: bytes) -> dict[str, Tensor]:
    """The arrays as tensors, under torch's names: ``arg:bn7_gamma`` is ``bn7.weight``.

    The classifier is called after its number of classes there (``linear19``); here it is ``linear``.

    Raises:
        ValueError: if the content is cut short or of another form.
    """
    reader = _Reader(content)
    if reader.take(16) != FILE_MAGIC:
        raise ValueError("no MXNet parameters")
    tensors = [reader.array() for _ in range(reader.count())]
    names = [reader.text() for _ in range(reader.count())]
    if len(names) != len(tensors) or len(set(names)) != len(names):
        raise ValueError(f"{len(tensors)} arrays with {len(set(names))} names")
    return {_torch_name(name): tensor for name, tensor in zip(names, tensors, strict=True)}


def _torch_name(name: str) -> str:
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    layer = re.sub(r"^linear\d+$", "linear", match["layer"])
    return f"{layer}.{_SUFFIXES[match['suffix']]}"


class _Reader:
    """Takes values off the front of a buffer; never more than there are."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position = memoryview(content), 0

    def take(self, size: int) -> memoryview:
        end = self._position + size
        if size < 0 or end > len(self._content):
            raise ValueError("it ends in the middle")
        part, self._position = self._content[self._position : end], end
        return part

    def numbers(self, form: str) -> tuple[Any, ...]:
        form = f"<{form}"
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def count(self) -> int:
        (number,) = self.numbers("Q")
        if number > len(self._content):
            raise ValueError(f"it claims {number} entries")
        return int(number)

    def text(self) -> str:
        return str(self.take(self.count()), "utf-8")

    def array(self) -> Tensor:
        (magic,) = self.numbers("I")
        version = _VERSIONS.get(magic, 0)
        if version >= 2 and self.numbers("i") != (0,):
            raise ValueError("it holds a sparse array")
        dimensions = self.numbers("I")[0] if version else magic
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"it holds an array of {dimensions} dimensions")
        shape = self.numbers(f"{dimensions}{'q' if version else 'I'}")
        if not shape:
            return torch.zeros(())
        _device_type, _device, kind = self.numbers("iii")
        if kind not in _TYPES or min(shape) < 0:
            raise ValueError(f"it holds an array of type {kind} and shape {shape}")
        dtype = np.dtype(_TYPES[kind])
        size = dtype.itemsize
        for side in shape:  # in Python's integers, which do not overflow
            size *= side
        return torch.from_numpy(np.frombuffer(self.take(size), dtype).reshape(shape).copy())
