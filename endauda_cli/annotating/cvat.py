"""CVAT: an XML file of the form "CVAT for images 1.1", whose masks are runs of pixels within their box.

It is the form that keeps masks apart, so that people can edit them, and that CVAT takes and gives again without loss.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from endauda_cli.annotating.kinds import (
    INDEX_BYTES,
    LabelFormat,
    Returned,
    box_of,
    class_number,
    classes_in,
    write_pieces,
)
from endauda_cli.annotating.runs import of_row_runs, row_runs
from endauda_cli.domains import IGNORE
from endauda_cli.errors import DataError
from endauda_cli.files import open_regular, size_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import IO

    from numpy.typing import NDArray

    from endauda_cli.annotating.kinds import Entry, Handout, Labelled
    from endauda_cli.domains import Domain

    UInt8 = NDArray[np.uint8]

INDEX, LABELS = "annotations.xml", "labels.json"
SHAPES = ("box", "polygon", "polyline", "points", "ellipse", "cuboid", "skeleton")
"""Shapes that are no masks; CVAT converts polygons to masks, but only if it is asked to."""
_BLOCK = 1 << 16
_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, LookupError, OverflowError,
)  # fmt: skip
"""What the standard library raises on damaged zip files."""


def entry(one: Labelled, handout: Handout) -> Entry:
    masks = []
    for c in classes_in(one.label):
        mask = one.label == c
        left, top, width, height = box_of(mask)
        runs = row_runs(mask[top : top + height, left : left + width])
        masks.append([c, left, top, width, height, ", ".join(map(str, runs.tolist()))])
    height, width = one.label.shape
    return {"file": one.sample.image.name, "height": height, "width": width, "masks": masks}


def index(out: Path, handout: Handout, entries: Iterable[Entry]) -> None:
    domain = handout.domain
    colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in domain.palette]
    labels = [
        {"name": name, "color": colour, "type": "mask", "attributes": []}
        for name, colour in zip(domain.classes, colours, strict=True)
    ]
    write_pieces(out / LABELS, [json.dumps(labels, indent=1), "\n"])
    write_pieces(out / INDEX, _xml(handout, colours, entries))


def _xml(handout: Handout, colours: list[str], entries: Iterable[Entry]) -> Iterator[str]:
    yield '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta>\n<task>\n'
    yield f"<name>{escape(handout.said_by)}</name>\n<mode>annotation</mode>\n<labels>\n"
    for name, colour in zip(handout.domain.classes, colours, strict=True):
        yield f"<label><name>{escape(name)}</name><color>{colour}</color><type>mask</type><attributes/></label>\n"
    yield "</labels>\n</task>\n</meta>\n"
    names = [quoteattr(name) for name in handout.domain.classes]
    for number, one in enumerate(entries):
        size = f'width="{one["width"]}" height="{one["height"]}"'
        yield f'<image id="{number}" name={quoteattr(one["file"])} {size}>\n'
        for c, left, top, width, height, runs in one["masks"]:
            yield f'<mask label={names[c]} source="auto" occluded="0" rle="{runs}" left="{left}" top="{top}" '
            yield f'width="{width}" height="{height}" z_order="0"/>\n'
        yield "</image>\n"
    yield "</annotations>\n"


@dataclass
class _Image:
    """An image element."""

    name: str
    size: tuple[str, str]
    masks: list[dict[str, str]] = field(default_factory=list)


def read(source: Path, domain: Domain) -> Iterator[Returned]:
    """Of ``annotations.xml``, or of a zip that holds it."""
    finished: list[_Image] = []
    current: list[_Image] = []

    def begin(tag: str, about: dict[str, str]) -> None:
        if tag == "image":
            current[:] = [_Image(about.get("name", ""), (about.get("height", ""), about.get("width", "")))]
        elif tag == "track":
            raise DataError(f"{source}: tracks of a video; export the task as 'CVAT for images 1.1'")
        elif current and tag == "mask":
            current[0].masks.append(about)
        elif current and tag in SHAPES:
            raise DataError(
                f"{source}: {current[0].name[:80]} has a {tag}, but masks are expected; convert its shapes to masks in "
                "CVAT, and export again"
            )

    def end(tag: str) -> None:
        if tag == "image":
            finished.extend(current)
            current.clear()

    def refuse(*_: Any) -> None:
        raise DataError(
            f"{source}: has a document type, which CVAT writes none of; export it from CVAT again"
        )

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = begin, end, refuse
    with _opened(source) as file:
        total, last = 0, False
        while not last:
            block = file.read(_BLOCK)
            total, last = total + len(block), not block
            if total > INDEX_BYTES:
                raise DataError(
                    f"{source}: more than {size_text(INDEX_BYTES)} of annotations; export fewer at once"
                )
            try:
                parser.Parse(block, last)
            except (expat.ExpatError, UnicodeError) as error:
                raise DataError(
                    f"{source}: not valid XML ({error!s:.200}); export it from CVAT again"
                ) from error
            for image in finished:
                yield _returned(source, image, domain)
            finished.clear()


def _returned(source: Path, image: _Image, domain: Domain) -> Returned:
    where = f"{source}: {image.name[:80]}"

    def load(size: tuple[int, int]) -> UInt8:
        if image.size != ("", "") and image.size != (str(size[0]), str(size[1])):
            raise DataError(
                f"{where}: {image.size[1]:.20}x{image.size[0]:.20} pixels, but the image has {size[1]}x{size[0]}; is "
                "it another image of this name?"
            )
        label = np.full(size, IGNORE, np.uint8)
        try:
            for about in sorted(image.masks, key=lambda about: int(about.get("z_order", "0")[:20])):
                _paint(label, about, class_number(domain, about.get("label"), where))
        except ValueError as error:
            raise DataError(
                f"{where}: a mask cannot be read: {error!s:.200}; export it from CVAT again"
            ) from error
        return label

    return Returned(PurePosixPath(image.name).name, load)


def _paint(label: UInt8, about: dict[str, str], c: int) -> None:
    """A mask over what lies below it.

    Raises:
        ValueError: if it is none, or does not lie in the image.
    """
    left, top, width, height = (_number(about, key) for key in ("left", "top", "width", "height"))
    if not (0 < width <= label.shape[1] - left and 0 < height <= label.shape[0] - top):
        raise ValueError("its box does not lie in the image")
    counts = np.array([int(run[:20]) for run in about.get("rle", "").split(",")], np.int64)
    part = label[top : top + height, left : left + width]
    part[of_row_runs(counts, height, width)] = c


def _number(about: dict[str, str], key: str) -> int:
    text = about.get(key, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"{key} is {text!r:.40}, no number of pixels")
    return int(text)


@contextmanager
def _opened(source: Path) -> Iterator[IO[bytes]]:
    """The XML file, or the one in a zip.

    Raises:
        DataError: if there is none, or the zip is damaged.
    """
    try:
        with open_regular(source, None) as file:
            if file.read(4) != b"PK\3\4":
                file.seek(0)
                yield file
                return
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                inside = [name for name in archive.namelist() if PurePosixPath(name).name == INDEX]
                if len(inside) != 1:
                    raise DataError(
                        f"{source}: {len(inside)} files {INDEX} in it, but one is expected; export the task as 'CVAT "
                        "for images 1.1'"
                    )
                with archive.open(inside[0]) as xml:
                    yield xml
    except OSError as error:
        raise DataError(
            f"{source}: cannot be read ({error.strerror or error}); name {INDEX} or the zip that CVAT exports"
        ) from error
    except _ERRORS as error:
        raise DataError(
            f"{source}: a damaged zip file ({error!s:.200}); export it from CVAT again"
        ) from error


FORMAT = LabelFormat(
    pictures="images",
    masks=None,
    write_mask=None,
    entry=entry,
    index=index,
    read=read,
    reads=f"{INDEX}, or the zip of 'CVAT for images 1.1'",
    next=(
        f"in CVAT, make a task with the labels of {LABELS} (Raw) and the files in images/",
        f"its menu, Upload annotations, CVAT 1.1: {INDEX}",
        "once corrected: Export task dataset, CVAT for images 1.1",
    ),
)
