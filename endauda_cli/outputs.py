"""Store: outputs that a teacher's own code wrote: arrays of certainties, read with a bound and held to their labels."""

from __future__ import annotations

import json
import math
import os
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.errors import DataError
from endauda_cli.files import RECORD_BYTES, file_sha256, open_regular, read_bytes
from endauda_cli.npy import read_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]

SUM_TOLERANCE = 0.02
"""How far a pixel's softmax may be from 1: half precision and a few decimals in a file are no other thing."""
LEAST_AGREEMENT = 0.9
"""Share of the first images' pixels where the label must be the likeliest class."""
LEAST_OF_ONE = 0.5
"""The same of any single image."""

_BELOW_ZERO = 1e-3
"""A softmax may be so far below 0: noise of resampling and of half precision."""
_MAX_MEMBERS = 1000
_HEADER_LETTERS = 10_000
_MAX_ARRAY_BYTES = 16 << 30


def read_certainty(path: Path, num_classes: int, size: tuple[int, ...]) -> UInt8:
    """(C, H, W) uint8 percent from a file of (H, W, C): bytes, or the softmax itself.

    Raises:
        DataError: if it is none, or not of this size.
    """
    array = _read_array(path, num_classes, size)
    expected = _expected(num_classes)
    if array.ndim == 4:
        array = array[0]
    if array.dtype.kind == "f":
        with np.errstate(all="ignore"):  # of NaN and infinities, which sum to nothing
            array = _percent(path, array, expected)
    highest = int(array.max(initial=0))
    if highest > 100:
        raise DataError(f"{path}: certainty {highest}, {expected}; are these 0 to 255, or logits?")
    if highest <= 1:
        raise DataError(f"{path}: no certainty above {highest}, {expected}; was 0 to 1 stored as bytes?")
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _expected(num_classes: int) -> str:
    return f"expected (H, W, {num_classes}) bytes 0 to 100, or a softmax"


def _percent(path: Path, softmax: NDArray[Any], expected: str) -> UInt8:
    """A softmax, 0 to 1 or 0 to 100, as bytes of percent, truncated as published teachers do it."""
    total = softmax.sum(2, dtype=np.float64)
    low, high = float(softmax.min(initial=0)), float(softmax.max(initial=0))
    for scale in (1, 100):
        if low >= -_BELOW_ZERO * scale and np.allclose(total, scale, rtol=SUM_TOLERANCE):
            return np.asarray(np.clip(softmax, 0, scale) * np.float32(100 / scale), np.uint8)
    if low >= -_BELOW_ZERO and high <= 1:
        hint = "a sigmoid of each class is no softmax; write the network's softmax"
    elif low >= -_BELOW_ZERO and high <= 100:
        hint = "write the softmax over the classes"
    elif low >= 0 and np.allclose(total, 255, rtol=SUM_TOLERANCE):
        hint = "divide by 255"
    else:
        hint = "are these logits? write their softmax"
    raise DataError(
        f"{path}: {softmax.dtype} values from {low:g} to {high:g} that do not sum to 1 (or 100) over the classes, "
        f"{expected}; {hint}"
    )


# ---------------------------------------------------------------------------- agreement


def agreement(label: UInt8, certainty: UInt8, ignore: int = 255) -> tuple[int, int]:
    """Pixels whose label is the likeliest class, or as likely as that, and pixels with a label."""
    valid = label != ignore
    own = np.take_along_axis(certainty, np.where(valid, label, 0)[None].astype(np.intp), 0)[0]
    return int(((own == certainty.max(0)) & valid).sum()), int(valid.sum())


def likely_cause(label: UInt8, certainty: UInt8) -> str | None:
    """What was done to certainties (C, H, W) that contradict their label map, if undoing it makes them agree."""
    ways = {
        "the class axis is shifted by one, the first class missing": np.roll(certainty, 1, 0),
        "the class axis is shifted by one, as if there were a class before the first": np.roll(
            certainty, -1, 0
        ),
        "the class axis is reversed": certainty[::-1],
        "mirrored left to right": certainty[:, :, ::-1],
        "upside down": certainty[:, ::-1],
        "turned by 180 degrees": certainty[:, ::-1, ::-1],
    }
    if label.shape[0] == label.shape[1]:
        turned = certainty.transpose(0, 2, 1)
        ways |= {
            "width and height are swapped": turned,
            "turned by 90 degrees": turned[:, ::-1],
            "turned by 270 degrees": turned[:, :, ::-1],
        }
    scores = {name: agreement(label, way) for name, way in ways.items()}
    best = max(scores, key=lambda name: scores[name][0])
    agreed, valid = scores[best]
    return best if valid and agreed >= LEAST_AGREEMENT * valid else None


def refuse_contradiction(path: Path, agreed: int, valid: int, cause: str | None, least: float) -> None:
    """Refuse label maps that are not what the certainties beside them say.

    Raises:
        DataError: names the first file, the share, and the likely cause.
    """
    if agreed >= least * valid:
        return
    reason = (
        f"the certainties look as if {cause}; write them again as (H, W, C), in train id order"
        if cause and cause.startswith(("the class", "width"))
        else f"the certainties look {cause}; write them again as they lie in the image"
        if cause
        else "are they of another image, another model, or in another order of classes? write both from one output"
    )
    raise DataError(
        f"{path}: the label map beside it gives the likeliest class on {100 * agreed / valid:.1f} % of the pixels, but "
        f"{100 * least:.0f} % or more were expected; {reason}"
    )


# ---------------------------------------------------------------------------- reading


def _read_array(path: Path, num_classes: int, size: tuple[int, ...]) -> NDArray[Any]:
    """The array of the expected shape; nothing larger is read."""
    try:
        with open_regular(path, _MAX_ARRAY_BYTES) as file:
            start = file.read(4)
            file.seek(0)
            if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                return _from_zip(path, file, num_classes, size)
            return _from_stream(path, file, os.fstat(file.fileno()).st_size, num_classes, size)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); write it again") from error
    except Exception as error:  # a damaged header or zip can end in an error of almost any type
        raise DataError(f"{path}: truncated or not a NumPy file ({error!s:.200}); write it again") from error


def _from_zip(path: Path, file: BinaryIO, num_classes: int, size: tuple[int, ...]) -> NDArray[Any]:
    with zipfile.ZipFile(file) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        if len(members) > _MAX_MEMBERS:
            raise DataError(f"{path}: holds {len(members):,} arrays, but one is expected")
        if not members:
            raise DataError(f"{path}: holds no array; write it again with numpy.savez")
        if len(members) > 1:
            members = _fitting(path, archive, members, num_classes, size)
        (info,) = members
        with archive.open(info) as stream:
            return _from_stream(path, stream, info.file_size, num_classes, size)


def _fitting(
    path: Path,
    archive: zipfile.ZipFile,
    members: Sequence[zipfile.ZipInfo],
    num_classes: int,
    size: tuple[int, ...],
) -> list[zipfile.ZipInfo]:
    """The one member of several that can be the certainties."""
    found = []
    for info in members:
        with archive.open(info) as stream:
            shape, _, _ = read_header(stream, _HEADER_LETTERS)
        if shape in _shapes(num_classes, size):
            found.append(info)
    if len(found) == 1:
        return found
    names = ", ".join(info.filename.removesuffix(".npy")[:40] for info in members[:8])
    which = (
        "several of which may be the certainties" if found else f"none of them {_expected(num_classes)[9:]}"
    )
    raise DataError(
        f"{path}: holds arrays {names}, but one is expected, {which}; leave that one alone in the file"
    )


def _shapes(num_classes: int, size: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return (*size, num_classes), (1, *size, num_classes)


def _from_stream(
    path: Path, stream: Any, length: int, num_classes: int, size: tuple[int, ...]
) -> NDArray[Any]:
    shape, fortran, dtype = read_header(stream, _HEADER_LETTERS)
    expected = _expected(num_classes)
    if dtype.hasobject:
        raise DataError(
            f"{path}: holds pickled objects, {expected}; such a file can run code and was not opened"
        )
    bare = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    if len(bare) != 3 or bare[2] != num_classes:
        hint = "; if they are of other classes, name their data set with --target FILE.toml"
        if len(bare) == 3 and bare[0] == num_classes:
            hint = "; the class axis must be last"
        shown = str(shape) if len(shape) <= 8 else f"of {len(shape)} axes"
        raise DataError(f"{path}: certainties of shape {shown:.120}, {expected}{hint}")
    if bare[:2] != tuple(size):
        raise DataError(
            f"{path}: certainties of {bare[1]}x{bare[0]} pixels, but the label map beside it has {size[1]}x{size[0]}"
        )
    if dtype.kind != "f" and dtype != np.uint8:
        raise DataError(f"{path}: certainties of type {dtype}, {expected}")
    count = math.prod(shape)
    if length < count * dtype.itemsize:
        raise ValueError(f"{length:,} bytes, but {count * dtype.itemsize:,} are declared")
    data = stream.read(count * dtype.itemsize)
    array: NDArray[Any] = np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C")
    return array


# ---------------------------------------------------------------------------- what an archive was made of

_SOURCES = "sources-{tag}.jsonl"


class Sources:
    """The files that each image of an archive was made of, by size, time and SHA-256: one line per image.

    The record lies in the archive's folder and is only ever asked whether a file changed: what it does not know counts
    as unchanged.
    """

    def __init__(self, archive: Path, tag: str) -> None:
        self._archive, self._path = archive, archive / _SOURCES.format(tag=tag)

    @staticmethod
    def line(image: str, files: Sequence[Path]) -> str:
        """What is recorded of an image; hashing takes its time, so a thread that compresses does it."""
        return json.dumps({"id": image, "files": [[*_stamp(file), file_sha256(file)] for file in files]})

    def add(self, line: str) -> None:
        """To be called before the image is stored: a line too many does no harm, one too few does."""
        with self._path.open("a", encoding="utf-8") as record:
            record.write(f"{line}\n")

    def changed(self, wanted: dict[str, Sequence[Path]]) -> list[str]:
        """Those images that were made of other content than their files have now."""
        known: dict[str, list[Any]] = {}
        for image, files in self._lines():
            if image in wanted:
                known.setdefault(image, []).append(files)
        return [
            image
            for image, made_of in known.items()
            if not any(_same(files, wanted[image]) for files in made_of)
        ]

    def _lines(self) -> Iterator[tuple[str, list[Any]]]:
        for path in sorted(self._archive.glob(_SOURCES.format(tag="*"))):
            try:
                text = read_bytes(path, RECORD_BYTES).decode(errors="replace")
            except OSError:
                continue
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    if isinstance(entry["id"], str) and isinstance(entry["files"], list):
                        yield entry["id"], entry["files"]
                except (ValueError, KeyError, TypeError, RecursionError):  # cut short by a kill
                    continue


def _same(made_of: list[Any], files: Sequence[Path]) -> bool:
    try:
        stored = [tuple(entry) for entry in made_of]
        return len(stored) == len(files) and all(
            size == now[0] and (time == now[1] or digest == file_sha256(file))
            for (size, time, digest), file, now in zip(stored, files, map(_stamp, files), strict=True)
        )
    except (TypeError, ValueError):
        return True  # no record of ours
    except OSError:
        return False


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
