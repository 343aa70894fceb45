"""Store: which files an ONNX graph reads beside its own, found in its protobuf. Standard library only.

Large networks keep their weights in *external data*: tensors that name a file, in the folder of the graph. The
``onnx`` package, which could tell, need not be installed where graphs are only run.
"""

from __future__ import annotations

import mmap
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from endauda_cli.files import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 2 << 30
"""Protobuf's own limit for a message."""
_MAX_DEPTH = 100
"""Of messages in messages; protobuf's own limit too."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL_DATA = 13
# Message -> field -> message that it holds; what is not named here holds no tensors.
_FIELDS = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {_EXTERNAL_DATA: "Entry"},
}


def external_files(path: Path) -> list[str]:
    """The locations of all external data, as the graph names them, each once, in order.

    Raises:
        OSError: if the graph is no regular file, or larger than ONNX can be.
        ValueError: the end of a sentence: it is no protobuf, or names a file outside of the graph's folder.
    """
    with open_regular(path, MAX_BYTES) as file:
        size = file.seek(0, 2)
        if size == 0:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = sorted(set(locations(data, size)))
    for location in found:
        if not _is_below(location):
            raise ValueError(
                f"it names {location!r:.80} as its weights, which is not in its folder and was not opened; put the "
                "file beside the graph and name it there, or export the graph with its weights inside"
            )
    return found


def _is_below(location: str) -> bool:
    ways = (PurePosixPath(location), PureWindowsPath(location))
    inside = not any(way.is_absolute() or way.drive or way.root or ".." in way.parts for way in ways)
    return inside and location.isprintable() and location.strip(" ./\\") != ""


def locations(data: bytes | mmap.mmap, size: int) -> Iterator[str]:
    """Every ``location`` of external data in a model's bytes.

    Raises:
        ValueError: if they are no protobuf.
    """
    waiting = [("Model", 0, size, 0)]
    while waiting:
        message, start, end, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("its messages are nested too deeply for ONNX")
        held = _FIELDS[message]
        for field, first, last in _fields(data, start, end):
            inner = held.get(field)
            if inner == "Entry":
                pair = {f: (a, b) for f, a, b in _fields(data, first, last)}
                if 1 in pair and data[slice(*pair[1])] == b"location":
                    a, b = pair.get(2, (0, 0))
                    yield data[a : min(b, a + 4096)].decode(errors="surrogateescape")
            elif inner is not None:
                waiting.append((inner, first, last, depth + 1))


def _fields(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, first, last) of the fields of a message that have a length."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind == _BYTES:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise ValueError("it is cut short or no ONNX")
            yield key >> 3, at, at + length
            at += length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("it is no ONNX")
        if at > end:
            raise ValueError("it is cut short or no ONNX")


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("it is cut short or no ONNX")
