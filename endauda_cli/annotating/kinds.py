"""What a format is, and what it is told of the images that it is to hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.domains import IGNORE
from endauda_cli.errors import DataError
from endauda_cli.files import cannot_write, read_text, replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Domain

    UInt8 = NDArray[np.uint8]

INDEX_BYTES = 1 << 30
"""More than the corrections of any round of annotating take, in a file of runs of pixels."""


@dataclass(frozen=True)
class Handout:
    """What all images of an export have in common.

    Attributes:
        domain: classes, colours and label ids.
        split: of the images.
        said_by: what the labels are, for people.
        image_url: what is written before an image's file name, where a format needs an address.
    """

    domain: Domain
    split: str
    said_by: str
    image_url: str


@dataclass(frozen=True)
class Labelled:
    """One image with its labels.

    Attributes:
        sample: image.
        label: (H, W) uint8 train ids, 255 = none.
        agreed: share of pixels to which all teachers give one class, 0..1, if that is known.
    """

    sample: Sample
    label: UInt8
    agreed: float | None


Entry = dict[str, Any]
"""What the index of a format says of an image, as plain values; ``file`` is the image's file name."""


@dataclass(frozen=True)
class Returned:
    """What came back of one image: its id or the name of its file, and how to get (H, W) uint8 train ids.

    ``load`` is told the (height, width) that the image has and raises ``DataError``, also for labels of another size.
    """

    image: str
    load: Callable[[tuple[int, int]], UInt8]


@dataclass(frozen=True)
class LabelFormat:
    """A way to write label maps; each is a row of ``formats.FORMATS``.

    Attributes:
        pictures: folder for copies of the images; ``None`` if it has none. ``{split}`` is the split's name.
        masks: folder for a PNG per image, likewise.
        write_mask: writes one.
        entry: what the index says of an image.
        index: writes what is written once, from the entries in the order of the images.
        read: what people made of it, image by image; of a file, a zip or a folder, as ``reads`` says.
        reads: what that is, in a few words.
        next: what to do with the folder, in sentences.
    """

    pictures: str | None
    masks: str | None
    write_mask: Callable[[Path, UInt8, Handout], None] | None
    entry: Callable[[Labelled, Handout], Entry]
    index: Callable[[Path, Handout, Iterable[Entry]], None]
    read: Callable[[Path, Domain], Iterator[Returned]]
    reads: str
    next: tuple[str, ...]


def plain_entry(one: Labelled, handout: Handout) -> Entry:
    """Of formats without an index."""
    return {"file": one.sample.image.name}


def no_index(out: Path, handout: Handout, entries: Iterable[Entry]) -> None:
    """Of formats in which every image stands for itself."""


def classes_in(label: UInt8) -> list[int]:
    """The train ids that occur, ascending."""
    return [c for c in np.flatnonzero(np.bincount(label.ravel(), minlength=256)).tolist() if c != IGNORE]


def box_of(mask: NDArray[np.bool]) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is set; something is."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """A text file whole or not at all, of which no more than a piece is held.

    Raises:
        DataError: if the disk refuses.
    """
    try:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(pieces)
    except OSError as error:
        raise DataError(f"{path}: {cannot_write(error)}") from error


def json_of(path: Path) -> Any:
    """What a JSON file of a stranger holds.

    Raises:
        DataError: if it cannot be read, is too large or no JSON.
    """
    try:
        return json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error!s:.200}); export it again") from error


def text_of(path: Path) -> str:
    """Its text. Raises DataError: as :func:`json_of`."""
    try:
        return read_text(path, INDEX_BYTES)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); name the tool's export"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text in UTF-8; name the tool's export") from error


def of_size(label: UInt8, size: tuple[int, int], where: Path | str) -> UInt8:
    """The labels, if they have the image's size.

    Raises:
        DataError: says which they have.
    """
    if label.shape != size:
        raise DataError(
            f"{where}: {label.shape[1]}x{label.shape[0]} pixels, but the image has {size[1]}x{size[0]}; export "
            "labels at the image's own size"
        )
    return label


def class_number(domain: Domain, name: object, where: str) -> int:
    """The train id of a class by its name.

    Raises:
        DataError: if there is none.
    """
    if not isinstance(name, str) or name not in domain.classes:
        raise DataError(
            f"{where}: label {name!r:.80} is no class of {domain.name}; its labels are to be called "
            f"{', '.join(domain.classes[:8])}{', ...' if len(domain.classes) > 8 else ''}"
        )
    return domain.classes.index(name)
