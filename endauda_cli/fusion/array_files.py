"""Store: NumPy arrays as files. What they declare is compared with what is expected before anything is allocated."""

from __future__ import annotations

import io
import lzma
import struct
import tokenize
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.errors import DataError
from endauda_cli.files import SETTINGS_BYTES, cannot_write, read_bytes, replacing
from endauda_cli.npy import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    Shape = tuple[int | None, ...]
    Expected = Mapping[str, tuple[type[np.generic], Shape]]
    """Of each array its type and shape; ``None`` for an axis that may have any length."""

HEADER_BYTES = 16_384
NAMES_BYTES = 1 << 20
"""More than the names of all classes and teachers take."""
MALFORMED = (
    OSError, ValueError, TypeError, KeyError, EOFError, SyntaxError, OverflowError, RecursionError, MemoryError,
    NotImplementedError, RuntimeError, SystemError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    tokenize.TokenError,
)  # fmt: skip
"""What NumPy, zipfile and literal_eval raise for what is not theirs, or damaged."""


def read_npy(path: Path) -> NDArray[Any]:
    """A small array of numbers from a ``.npy``.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no such file; says why.
    """
    try:
        content = read_bytes(path, SETTINGS_BYTES)
        return _array(io.BytesIO(content), len(content))
    except FileNotFoundError:
        raise
    except MALFORMED as error:
        raise ValueError(_why(error)) from error


def read_arrays(file: Path, expected: Expected) -> dict[str, NDArray[Any]]:
    """The expected arrays of an ``.npz``; others in it are not looked at.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no such file, or an array is absent or of another type or shape; says why.
    """
    most = NAMES_BYTES + sum(
        np.dtype(kind).itemsize * int(np.prod([1 if n is None else n for n in shape], dtype=object))
        for kind, shape in expected.values()
    )
    if any(None in shape for _, shape in expected.values()):
        most = max(most, SETTINGS_BYTES)
    try:
        # Through memory: NumPy leaves a file open that turns out to be cut short.
        with zipfile.ZipFile(io.BytesIO(read_bytes(file, most + NAMES_BYTES))) as members:
            found = {}
            for name, (kind, shape) in expected.items():
                member = members.getinfo(f"{name}.npy")
                if member.file_size > most:
                    raise ValueError(f"{name} declares {member.file_size:,} bytes")
                with members.open(member) as stream:
                    content = stream.read(most + 1)
                found[name] = _expected(name, _array(io.BytesIO(content), len(content)), kind, shape)
            return found
    except FileNotFoundError:
        raise
    except MALFORMED as error:
        raise ValueError(_why(error)) from error


def write_arrays(file: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write an ``.npz``, whole or not at all.

    Raises:
        DataError: if it cannot be written.
    """
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    try:
        with replacing(file) as temporary:
            temporary.write_bytes(content.getvalue())
    except OSError as error:
        raise DataError(f"{file}: {cannot_write(error)}") from error


def _array(stream: BinaryIO, size: int) -> NDArray[Any]:
    shape, _, dtype = read_header(stream, HEADER_BYTES)
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"an array of {dtype}, which is not read")
    if any(n < 0 for n in shape) or dtype.itemsize * int(np.prod(shape, dtype=object)) > size:
        raise ValueError("an array of fewer bytes than its shape says")
    stream.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _expected(name: str, array: NDArray[Any], kind: type[np.generic], shape: Shape) -> NDArray[Any]:
    fits = len(array.shape) == len(shape) and all(
        n is None or n == found for n, found in zip(shape, array.shape, strict=True)
    )
    if not fits or not np.issubdtype(array.dtype, kind):
        raise ValueError(f"{name} is an array {array.shape} of {array.dtype}")
    return array if kind is np.str_ else np.ascontiguousarray(array, kind)


def _why(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).partition("\n")[0] if not isinstance(error, KeyError) else f"it lacks {error}"
    return f"{text:.120}" if text else type(error).__name__
