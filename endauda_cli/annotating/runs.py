"""Masks as runs of pixels, in the two ways in which annotation tools write them.

A mask is an (H, W) array of booleans. Both readers are told the size that the mask must have, from the image itself:
whatever a stranger's file claims, nothing larger is made, and runs that end before or after the mask are a ValueError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool]

CHANNELS = 4
"""Of a brush: it is a picture of red, green, blue and alpha, all four equal."""
OPAQUE = 128
"""Alpha from which a pixel is painted: brushes have soft edges."""
LENGTH_BITS = (3, 4, 8, 16)
"""Of a brush's runs: the sizes among which each chooses the smallest that its length, less one, fits into."""
VALUE_BITS = 8
_AT_ONCE = 1 << 16
"""Runs whose bits are spread out together, eight bytes each."""


def row_runs(mask: Mask) -> NDArray[np.int64]:
    """Lengths of the runs, row by row: alternately unset and set; the first is 0 where the first pixel is set."""
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return np.concatenate([[0], counts]) if flat[0] else counts


def of_row_runs(counts: NDArray[np.int64], height: int, width: int) -> Mask:
    """:func:`row_runs` backwards.

    Raises:
        ValueError: if the runs are not exactly those of ``height`` x ``width`` pixels.
    """
    pixels = height * width
    if len(counts) > 2 * pixels + 1 or (len(counts) and (counts.min() < 0 or counts.max() > pixels)):
        raise ValueError("it has runs of no possible length")
    if (total := int(counts.sum())) != pixels:
        raise ValueError(f"its runs are {total:,} pixels, but it is {width}x{height}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)


def pack_brush(mask: Mask) -> bytes:
    """A mask as Label Studio's brush: a header of 53 bits, then a bit string of runs of bytes.

    The header has the number of values (32 bits), the bits of a value less one (5) and those of the four sizes of
    lengths, each less one (4 x 4). A run is: 1, which size (2), its length less one, its value.
    """
    counts = CHANNELS * row_runs(mask)
    values = np.where(np.arange(len(counts)) % 2 == 1, 255, 0)
    longest = 1 << LENGTH_BITS[-1]
    pieces = -(-counts // longest)  # none of a run of no pixels
    last = np.cumsum(pieces)[pieces > 0] - 1
    lengths = np.full(int(pieces.sum()), longest, np.int64)
    lengths[last] = (counts - (pieces - 1) * longest)[pieces > 0]
    kinds = np.searchsorted([1 << bits for bits in LENGTH_BITS], lengths)
    sizes = np.array(LENGTH_BITS)[kinds]
    words = ((((4 | kinds) << sizes) | (lengths - 1)) << VALUE_BITS) | np.repeat(values, pieces)
    head = (CHANNELS * mask.size << 5 | VALUE_BITS - 1) << 16
    for place, bits in enumerate(reversed(LENGTH_BITS)):
        head |= bits - 1 << 4 * place
    words, sizes = np.r_[head, words], np.r_[53, 3 + sizes + VALUE_BITS]
    parts = [
        _bits(words[at : at + _AT_ONCE], sizes[at : at + _AT_ONCE]) for at in range(0, len(words), _AT_ONCE)
    ]
    return np.packbits(np.concatenate(parts)).tobytes()


def _bits(words: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The lowest bits of each word, so many of each, highest first."""
    ends = np.cumsum(sizes)
    below = np.repeat(ends, sizes) - np.arange(1, int(ends[-1]) + 1)
    return (np.repeat(words, sizes) >> below & 1).astype(np.uint8)


def unpack_brush(packed: bytes, height: int, width: int) -> Mask:
    """:func:`pack_brush` backwards; values that are written one by one are understood, too.

    Raises:
        ValueError: if it is no brush of ``height`` x ``width`` pixels.
    """
    total, read = CHANNELS * height * width, _Reader(packed)
    if (said := read.number(32)) != total:
        raise ValueError(f"it has {said:,} values, but {CHANNELS} x {width}x{height} were expected")
    if read.number(5) + 1 != VALUE_BITS:
        raise ValueError("its values are no bytes")
    sizes = [read.number(4) + 1 for _ in LENGTH_BITS]
    values, at = np.zeros(total, np.uint8), 0
    while at < total:
        run, size = read.number(1), sizes[read.number(2)]
        end = at + read.number(size) + 1
        if end > total:
            raise ValueError("its runs go on past its end")
        values[at:end] = read.number(VALUE_BITS) if run else read.bytes(end - at)
        at = end
    return values[CHANNELS - 1 :: CHANNELS].reshape(height, width) >= OPAQUE


class _Reader:
    """Numbers out of a string of bits."""

    def __init__(self, packed: bytes) -> None:
        self._packed, self._at, self._end = packed, 0, 8 * len(packed)

    def number(self, bits: int) -> int:
        """Of the next bits. Raises ValueError at the end."""
        first, self._at = self._at, self._at + bits
        if self._at > self._end:
            raise ValueError("it ends too early")
        word = int.from_bytes(self._packed[first >> 3 : self._at + 7 >> 3])
        return word >> (-self._at & 7) & (1 << bits) - 1

    def bytes(self, count: int) -> NDArray[Any]:
        """The next bytes."""
        return np.frombuffer(self.number(8 * count).to_bytes(count), np.uint8)
