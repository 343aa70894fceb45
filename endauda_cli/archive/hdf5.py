"""Reads HDF5 files, but only as shards are made: never by the HDF5 library, which bytes of a stranger hang or crash.

HDF5 writes shards (``shard.shard_file``), so that any program reads them. Here is what reading takes of its file
format (version 3.0 of the specification, libraries from 1.10 on): groups, linked from their parent; data sets of one
piece or of chunks under one filter; attributes. All else is refused: soft and external links, external files,
virtual data sets, shared messages, other indices. Every structure is checked against its checksum, every address
and size against the file, and the work is bounded by the file's size. Raises ArchiveError for all that is amiss.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from endauda_cli.archive.lookup3 import lookup3
from endauda_cli.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

    from numpy.typing import NDArray

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NOWHERE = (1 << 64) - 1
_MAX_STRUCTURE = 64 << 20
"""Bytes that one structure has at most: the index of five million chunks."""
_MAX_PARTS = 256
"""Of one object header."""
_MAX_OBJECTS = 1 << 20
"""Links, attributes and texts that a file has at most, seen more than once or not."""

# Messages of an object header
_NIL, _SPACE, _LINK_INFO, _TYPE, _FILL_OLD, _FILL, _LINK = range(7)
_LAYOUT, _GROUP_INFO, _FILTERS, _ATTRIBUTE, _CONTINUED, _TIME, _ATTRIBUTE_INFO = 8, 10, 11, 12, 16, 18, 21
_KNOWN = {
    *(_NIL, _SPACE, _LINK_INFO, _TYPE, _FILL_OLD, _FILL, _LINK, _LAYOUT, _GROUP_INFO, _FILTERS, _ATTRIBUTE),
    *(_CONTINUED, _TIME, _ATTRIBUTE_INFO),
}
INTEGER, TEXT, VARIABLE_TEXT = 0, 3, 9
"""Kinds of elements."""


class DataType(NamedTuple):
    """Unsigned or signed integers, texts of one length, or texts of any as ``kind`` says."""

    kind: int
    flags: int
    size: int


@dataclass(frozen=True)
class Dataset:
    """Where its data lie.

    Attributes:
        shape: of the whole.
        type: of an element.
        chunk: shape of a chunk; ``None`` if it is in one piece.
        filter: number of its only filter; ``None`` without any.
        where: (chunks, 3): offset, size and filter mask of each chunk, or of the one piece.
        attributes: names of its attributes.
    """

    shape: tuple[int, ...]
    type: DataType
    chunk: tuple[int, ...] | None
    filter: int | None
    where: NDArray[np.int64]
    attributes: frozenset[str]


@dataclass(frozen=True)
class Group:
    """Its attributes that are texts, and the addresses of its members."""

    attributes: dict[str, list[str]]
    members: dict[str, int]


class _Bytes:
    """A structure, read from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        _expect(size <= self.left, "a structure is cut short")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def expect(self, value: bytes, otherwise: str) -> None:
        _expect(self.take(len(value)) == value, otherwise)


@dataclass
class File:
    """An open shard. For one thread at a time."""

    file: BufferedReader
    size: int = 0
    root: int = 0
    _heaps: dict[int, dict[int, bytes]] = field(default_factory=dict)
    _objects: int = 0

    def __post_init__(self) -> None:
        self.size = os.fstat(self.file.fileno()).st_size
        head = self._checked(0, 48, _SIGNATURE)
        head.expect(b"\x03\x08\x08", "not of the HDF5 version that shards are written in")
        head.take(1)
        addresses = [head.number(8) for _ in range(4)]  # base, extension, end of file, root
        _expect(addresses[:2] == [0, _NOWHERE], "its superblock is of another form")
        _expect(addresses[2] <= self.size, "the file is cut short")
        self.root = addresses[3]

    def group(self, address: int) -> Group:
        """The group there."""
        attributes: dict[str, list[str]] = {}
        members: dict[str, int] = {}
        for kind, message in self._messages(address):
            if kind == _ATTRIBUTE:
                name, type_, shape, content = self._attribute(message)
                if type_.kind == VARIABLE_TEXT:
                    attributes[name] = self._texts(shape, content)
            elif kind == _LINK:
                self._link(_Bytes(message), members)
            elif kind == _LINK_INFO:
                self._dense_links(_Bytes(message), members)
            else:
                _expect(kind in (_GROUP_INFO, _ATTRIBUTE_INFO, _TIME), "a group is no group")
        return Group(attributes, members)

    def dataset(self, address: int) -> Dataset:
        """The data set there, without its data."""
        found: dict[int, bytes] = {}
        attributes = set()
        for kind, message in self._messages(address):
            if kind == _ATTRIBUTE:
                attributes.add(self._attribute(message)[0])
            else:
                _expect(kind not in found and kind not in (_LINK, _LINK_INFO), "a data set is none")
                found[kind] = message
        _expect(found.keys() >= {_SPACE, _TYPE, _LAYOUT}, "a data set is none")
        shape, type_ = _shape(_Bytes(found[_SPACE])), _type(_Bytes(found[_TYPE]))
        filter_ = _filter(_Bytes(found[_FILTERS])) if _FILTERS in found else None
        layout = _Bytes(found[_LAYOUT])
        version, class_ = layout.number(1), layout.number(1)
        if class_ == 1:
            _expect(version in (3, 4) and filter_ is None, "a data set is of another layout")
            chunk, where = None, np.array([[layout.number(8), layout.number(8), 0]], np.uint64)
        else:
            _expect((version, class_) == (4, 2) and filter_ is not None, "a data set is of another layout")
            chunk, where = self._chunks(layout, shape, type_)
        _expect(bool((where[:, :2] <= self.size).all()), "data lie behind the file's end")
        _expect(bool((where[:, :2].sum(1) <= self.size).all()), "data lie behind the file's end")
        return Dataset(shape, type_, chunk, filter_, where.astype(np.int64), frozenset(attributes))

    def whole(self, data: Dataset, kind: int) -> bytes:
        """The data of a set in one piece, whose elements are of that kind."""
        _expect(data.chunk is None and data.type.kind == kind, "a list is of another type")
        offset, size, _ = data.where[0].tolist()
        count = math.prod(data.shape)
        _expect(size == count * data.type.size, "a list is of another length")
        return self._read(offset, size)

    # Object headers

    def _messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        """Kind and content of each message of an object."""
        head = _Bytes(self._read(address, min(64, self.size - address)) if address < self.size else b"")
        head.expect(b"OHDR\x02", "an object is of another form")
        flags = head.number(1)
        _expect(flags & 0xC0 == 0, "an object is of another form")
        head.take((16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0))
        size = head.number(1 << (flags & 3))
        parts = [(address, head.at, head.at + size + 4)]
        for number, (begin, skip, length) in enumerate(parts):  # grows meanwhile
            _expect(number < _MAX_PARTS, "an object has too many parts")
            part = self._checked(begin, length, b"OCHK" if number else b"OHDR")
            part.at = skip
            header = 6 if flags & 4 else 4
            while part.left >= header:
                kind, size, shared = part.number(1), part.number(2), part.number(1) & 2
                part.take(header - 4)
                message = part.take(size)
                _expect(kind in _KNOWN and not shared, f"an object has something of the unknown kind {kind}")
                self._count()
                if kind == _CONTINUED:
                    where = _Bytes(message)
                    parts.append((where.number(8), 4, where.number(8)))
                elif kind != _NIL:
                    yield kind, message

    def _attribute(self, message: bytes) -> tuple[str, DataType, tuple[int, ...], _Bytes]:
        content = _Bytes(message)
        content.expect(b"\x03\x00", "an attribute is of another form")
        name, type_, space = content.number(2), content.number(2), content.number(2)
        content.take(1)
        text = _text(content.take(name))
        found = _type(_Bytes(content.take(type_)))
        return text, found, _shape(_Bytes(content.take(space))), content

    def _texts(self, shape: tuple[int, ...], content: _Bytes) -> list[str]:
        count = math.prod(shape)
        _expect(count * 16 <= content.left, "an attribute is cut short")
        texts = []
        for _ in range(count):
            length, heap, index = content.number(4), content.number(8), content.number(4)
            text = self._heap(heap).get(index, b"") if length else b""
            _expect(len(text) >= length, "a text is cut short")
            texts.append(_text(text[:length]))
        return texts

    def _heap(self, address: int) -> dict[int, bytes]:
        """A collection of texts by number."""
        if address not in self._heaps:
            head = _Bytes(self._read(address, 16))
            head.expect(b"GCOL\x01\0\0\0", "texts are of another form")
            size = head.number(8)
            _expect(16 <= size <= _MAX_STRUCTURE, "texts are of another form")
            heap = _Bytes(self._read(address, size))
            heap.take(16)
            objects: dict[int, bytes] = {}
            while heap.left >= 16:
                self._count()
                index, _ = heap.number(2), heap.take(6)
                length = heap.number(8)
                if index == 0:  # free from here on
                    break
                objects[index] = heap.take(length)
                heap.take(min(-length % 8, heap.left))
            self._heaps[address] = objects
        return self._heaps[address]

    # Links

    def _link(self, link: _Bytes, members: dict[str, int]) -> None:
        self._count()
        link.expect(b"\x01", "a link is of another form")
        flags = link.number(1)
        _expect(flags & 0xE0 == 0, "a link is of another form")
        kind = link.number(1) if flags & 8 else 0
        _expect(kind == 0, "it has links to elsewhere, which no shard has")
        link.take((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
        name = _text(link.take(link.number(1 << (flags & 3))))
        _expect(name not in members, "two of its members have one name")
        members[name] = link.number(8)

    def _dense_links(self, info: _Bytes, members: dict[str, int]) -> None:
        """Links of a group with more than eight: they lie one after another in the blocks of a heap."""
        info.expect(b"\0", "links are of another form")
        flags = info.number(1)
        info.take(8 if flags & 1 else 0)
        address = info.number(8)
        if address == _NOWHERE:
            return
        heap = self._checked(address, 146, b"FRHP")
        heap.expect(b"\0", "links are of another form")
        _, filtered, checksummed = heap.number(2), heap.number(2), heap.number(1) & 2
        heap.take(4 + 7 * 8)
        counts = [heap.number(8) for _ in range(5)]
        width, first, largest, bits, _ = (heap.number(size) for size in (2, 8, 8, 2, 2))
        root, rows = heap.number(8), heap.number(2)
        _expect(not filtered and counts[2] == counts[4] == 0, "links are of another form")
        _expect(
            width in (2, 4, 8) and bits <= 64 and 64 <= first <= largest <= 1 << 20,
            "links are of another form",
        )
        prefix = 13 + (bits + 7) // 8
        blocks = [(root, first)]
        if rows:
            sizes = [first << max(0, row - 1) for row in range(min(rows, 64)) for _ in range(width)]
            _expect(sizes[-1] <= largest, "there are too many links")
            table = self._checked(root, prefix + 8 * len(sizes) + 4, b"FHIB")
            table.at = prefix
            blocks = [(table.number(8), size) for size in sizes]
        before = len(members)
        for begin, size in blocks:
            if begin == _NOWHERE:
                continue
            block = _Bytes(self._read(begin, size))
            block.expect(b"FHDB\0", "links are of another form")
            block.at = prefix + (4 if checksummed else 0)
            if checksummed:
                data = block.data[:prefix] + bytes(4) + block.data[prefix + 4 :]
                stored = int.from_bytes(block.data[prefix : prefix + 4], "little")
                _expect(lookup3(data) == stored, "a structure's checksum does not match")
            while block.left and block.data[block.at] == 1:
                self._link(block, members)
        _expect(len(members) - before == counts[0], "some of its links are not to be found")

    # Data

    def _chunks(
        self, layout: _Bytes, shape: tuple[int, ...], type_: DataType
    ) -> tuple[tuple[int, ...], NDArray[np.uint64]]:
        """Shape of a chunk, and where each of them lies."""
        flags, rank, length = layout.number(1), layout.number(1), layout.number(1)
        _expect(rank == len(shape) + 1 and 1 <= length <= 8, "chunks are of another rank")
        *chunk, element = (layout.number(length) for _ in range(rank))
        _expect(element == type_.size and 0 not in chunk, "chunks are of another type")
        index = layout.number(1)
        _expect(all(c == s for c, s in zip(chunk[1:], shape[1:], strict=True)), "a chunk is not a plane")
        _expect(chunk[0] == 1, "a chunk is not a plane")
        if index == 1:
            _expect(flags & 2 != 0 and shape[0] == 1, "a chunk is not a plane")
            size, mask = layout.number(8), layout.number(4)
            where = np.array([[layout.number(8), size, mask]], np.uint64)
            _expect(int(where[0, 0]) != _NOWHERE, "a plane was never written")
            return tuple(chunk), where
        _expect(index == 3, "chunks are listed in another way than shards list theirs")
        layout.take(1)
        return tuple(chunk), self._fixed_array(layout.number(8), shape[0])

    def _fixed_array(self, address: int, count: int) -> NDArray[np.uint64]:
        """Offset, size and filter mask of each of so many chunks."""
        _expect(address != _NOWHERE, "a plane was never written")
        head = self._checked(address, 28, b"FAHD")
        head.expect(b"\0\x01", "a list of chunks is of another form")
        entry, bits, entries, block = (head.number(size) for size in (1, 1, 8, 8))
        _expect(12 < entry <= 20 and bits < 32 and entries == count, "a list of chunks is of another length")
        _expect(block != _NOWHERE, "a plane was never written")
        page = 1 << bits
        pages = -(-count // page) if count > page else 0
        prefix = 14 + (pages + 7) // 8
        if not pages:
            part = self._checked(block, prefix + count * entry + 4, b"FADB")
            table = part.data[prefix:]
        else:
            part = self._checked(block, prefix + 4, b"FADB")
            written = np.unpackbits(np.frombuffer(part.data[14:], np.uint8))[:pages]
            _expect(bool(written.all()), "a plane was never written")
            at, tables = block + prefix + 4, []
            for first in range(0, count, page):
                size = min(page, count - first) * entry + 4
                tables.append(self._checked(at, size).data)
                at += size
            table = b"".join(tables)
        rows = np.frombuffer(table, np.uint8).reshape(count, entry)
        where = np.stack([_numbers(rows[:, :8]), _numbers(rows[:, 8:-4]), _numbers(rows[:, -4:])], 1)
        _expect(not (where[:, 0] == _NOWHERE).any(), "a plane was never written")
        return where

    # Bytes

    def _checked(self, address: int, size: int, signature: bytes = b"") -> _Bytes:
        """A structure that ends in its checksum, without that; after its signature."""
        _expect(size > len(signature) + 4, "a structure is cut short")
        data = self._read(address, size)
        part = _Bytes(data[:-4])
        part.expect(signature, "a structure is of another kind")
        _expect(
            lookup3(part.data) == int.from_bytes(data[-4:], "little"), "a structure's checksum does not match"
        )
        return part

    def _read(self, address: int, size: int) -> bytes:
        _expect(0 <= size <= _MAX_STRUCTURE and address + size <= self.size, "the file is cut short")
        self.file.seek(address)
        data = self.file.read(size)
        _expect(len(data) == size, "the file is cut short")
        return data

    def _count(self) -> None:
        self._objects += 1
        _expect(self._objects <= _MAX_OBJECTS, "it has more objects than any shard")


def _numbers(columns: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Little-endian numbers, a row each."""
    padded = np.zeros((len(columns), 8), np.uint8)
    padded[:, : columns.shape[1]] = columns
    return padded.view("<u8")[:, 0].astype(np.uint64)


def _shape(space: _Bytes) -> tuple[int, ...]:
    space.expect(b"\x02", "a shape is of another form")
    rank, _, kind = space.number(1), space.number(1), space.number(1)
    _expect(kind == (1 if rank else 0), "a shape is of another form")
    return tuple(space.number(8) for _ in range(rank))


def _type(content: _Bytes) -> DataType:
    kind, flags, size = content.number(1) & 15, content.number(3), content.number(4)
    _expect(size > 0, "data of an unknown type")
    _expect(kind != INTEGER or flags & 1 == 0, "numbers are not little-endian")
    _expect(kind != VARIABLE_TEXT or (flags & 15 == 1 and size == 16), "data of an unknown type")
    return DataType(kind, flags, size)


def _filter(pipeline: _Bytes) -> int:
    pipeline.expect(b"\x02\x01", "data are coded by other filters than shards have")
    return pipeline.number(2)


def _text(data: bytes) -> str:
    try:
        return data.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise ArchiveError("a text is no UTF-8") from None


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ArchiveError(otherwise)
