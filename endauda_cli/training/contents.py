"""What the files of a run hold, as check sums: by these a run and its cache know what they were made from.

Names, sizes and times do not tell: labels are corrected at equal size, and a workspace that was copied has other times.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from endauda_cli.errors import DataError
from endauda_cli.files import IMAGE_BYTES, open_regular
from endauda_cli.progress import Reporter, counted
from endauda_cli.threads import ordered_map

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedReader
    from pathlib import Path

    from endauda_cli.domains import Domain
    from endauda_cli.training.data import Example, Stream

TAIL_BYTES = 4096


class Contents(NamedTuple):
    """Digests over all examples of a stream, in their order."""

    images: str
    labels: str
    """With the class table, if the files hold its label ids."""
    certainty: str = ""
    """Of what the teachers said of the images, if that is learnt from."""


class Sums(NamedTuple):
    """Of the files of an example."""

    image: str
    """Of its size and end: there a PNG has the check sum of all its pixels, a JPEG what follows from those before."""
    label: str
    """Of the whole file, which is small; empty if there is none."""


def survey(stream: Stream, workers: int, report: Reporter) -> Contents:
    """Reads what ``Sums`` says, unless the stream has been looked at already.

    Raises:
        DataError: if a file cannot be read.
    """
    if stream.contents is not None:
        return Contents(*stream.contents, _certainty(stream))
    examples = stream.examples

    def look(example: Example) -> Sums:
        image = _checksum(example.image, TAIL_BYTES)
        return Sums(image, "" if example.label is None else _checksum(example.label))

    with ThreadPoolExecutor(workers) as pool:
        looks = ordered_map(pool, look, examples, 16 * workers)
        sums = list(counted(looks, len(examples), "looking at labels", report))
    return digest(stream, sums)


def digest(stream: Stream, sums: Sequence[Sums]) -> Contents:
    """Of all examples; ``sums`` are theirs, in their order."""
    images, labels = hashlib.sha256(), hashlib.sha256(_table(stream.domain, stream.label_ids).encode())
    for example, (image, label) in zip(stream.examples, sums, strict=True):
        images.update(f"{example.id}\0{image}\n".encode())
        labels.update(f"{example.id}\0{label}\n".encode())
    return Contents(images.hexdigest()[:32], labels.hexdigest()[:32], _certainty(stream))


def _certainty(stream: Stream) -> str:
    """Archives know digests of what is in them: nothing is decoded."""
    if stream.certainties is None:
        return ""
    digest = hashlib.sha256()
    for example in stream.examples:
        digest.update(f"{example.id}\0{stream.certainties.digest(example.id)}\n".encode())
    return digest.hexdigest()[:32]


def digest_of_truth(domain: Domain, files: Sequence[Path]) -> str:
    """Of the table and labels that a score was taken by.

    Raises:
        DataError: if a file cannot be read.
    """
    digest = hashlib.sha256(_table(domain, True).encode())
    for file in files:
        digest.update(f"{file.name}\0{_checksum(file)}\n".encode())
    return digest.hexdigest()[:32]


def _table(domain: Domain, label_ids: bool) -> str:
    """What labels depend on beside their files. A user may correct the table of a TOML file."""
    return f"{domain.classes} {domain.label_table if label_ids else None}\n"


def _checksum(path: Path, tail: int | None = None) -> str:
    try:
        with open_regular(path, IMAGE_BYTES) as file:
            return checksum(file, tail)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def checksum(file: BufferedReader, tail: int | None = None) -> str:
    """Of a file's size and its content, or so many bytes at its end."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0 if tail is None else max(0, size - tail))
    return f"{size} {zlib.crc32(file.read())}"
