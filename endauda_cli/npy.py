"""Tools: what a ``.npy`` says of itself, before anything of it is read or memory is taken for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing import BinaryIO

_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # the same, but that names are UTF-8
}
_TRIES = 20


def read_header(stream: BinaryIO | Any, most: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type; leaves the stream where the data begin.

    Args:
        stream: at its beginning, to which it can be set back.
        most: letters that the header may have.

    Raises:
        ValueError: if it is none; NumPy, which evaluates it, raises others, too.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            version = np.lib.format.read_magic(stream)
            if version not in _READERS:
                raise ValueError(f"a NumPy file of format {version[0]}.{version[1]}")
            shape, fortran, dtype = _READERS[version](stream, max_header_size=most)
            return tuple(shape), bool(fortran), dtype
        except SystemError:
            # Python 3.11's parser, which reads the header, trips over other threads' parsing (gh-106905).
            if not tries_left:
                raise
            stream.seek(0)
    raise AssertionError
