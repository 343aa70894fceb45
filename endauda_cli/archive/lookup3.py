"""The checksum of HDF5's structures: Bob Jenkins' lookup3 of 2006, ``hashlittle`` with the initial value 0."""

from __future__ import annotations

import struct

_MASK = 0xFFFFFFFF


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _MASK


def lookup3(data: bytes) -> int:
    """32 bits."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    if not data:
        return c
    words: tuple[int, ...] = struct.unpack(f"<{-(-len(data) // 12) * 3}I", data + bytes(-len(data) % 12))
    last = len(words) - 3
    for i in range(0, last, 3):
        a, b, c = a + words[i], b + words[i + 1], c + words[i + 2]
        a = (a - c & _MASK) ^ (c << 4 & _MASK | (c & _MASK) >> 28)
        c += b
        b = (b - a & _MASK) ^ (a << 6 & _MASK | a >> 26)
        a += c
        c = (c - b & _MASK) ^ (b << 8 & _MASK | b >> 24)
        b += a
        a = (a - c & _MASK) ^ (c << 16 & _MASK | c >> 16)
        c += b
        b = (b - a & _MASK) ^ (a << 19 & _MASK | (a & _MASK) >> 13)
        a += c
        c = (c - b & _MASK) ^ (b << 4 & _MASK | (b & _MASK) >> 28)
        b += a
        a, b, c = a & _MASK, b & _MASK, c & _MASK
    a, b, c = a + words[last] & _MASK, b + words[last + 1] & _MASK, c + words[last + 2] & _MASK
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotated(b, bits) & _MASK
        a, b, c = b, c, a
    return b
