"""COCO's panoptic format: a JSON file, and a PNG per image whose colours are the numbers of segments.

A semantic label map has one segment per class, all of them stuff. Segment and category number are the class's position
plus one; 0, black, is what has no class.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.annotating.kinds import (
    LabelFormat,
    Returned,
    box_of,
    class_number,
    classes_in,
    json_of,
    of_size,
    write_pieces,
)
from endauda_cli.domains import IGNORE
from endauda_cli.errors import DataError
from endauda_cli.labels import read_image, write_png
from endauda_cli.names import checked_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.annotating.kinds import Entry, Handout, Labelled
    from endauda_cli.domains import Domain

    UInt8 = NDArray[np.uint8]

INDEX, MASKS = "panoptic.json", "panoptic"
MOST_SEGMENT = 1 << 24


def write(path: Path, label: UInt8, handout: Handout) -> None:
    red = np.where(label == IGNORE, 0, label + np.uint8(1))
    write_png(path, np.stack([red, np.zeros_like(red), np.zeros_like(red)], -1))


def entry(one: Labelled, handout: Handout) -> Entry:
    segments = []
    for c in classes_in(one.label):
        mask = one.label == c
        segments.append(
            {
                "id": c + 1,
                "category_id": c + 1,
                "area": int(mask.sum()),
                "bbox": [*box_of(mask)],
                "iscrowd": 0,
            }
        )
    height, width = one.label.shape
    return {
        "file": one.sample.image.name,
        "mask": f"{one.sample.id}.png",
        "height": height,
        "width": width,
        "segments": segments,
    }


def index(out: Path, handout: Handout, entries: Iterable[Entry]) -> None:
    domain, images, annotations = handout.domain, [], []
    for number, one in enumerate(entries, 1):
        images.append(
            {"id": number, "file_name": one["file"], "height": one["height"], "width": one["width"]}
        )
        annotations.append({"image_id": number, "file_name": one["mask"], "segments_info": one["segments"]})
    categories = [
        {"id": number, "name": name, "supercategory": name, "isthing": 0, "color": [*colour]}
        for number, (name, colour) in enumerate(zip(domain.classes, domain.palette, strict=True), 1)
    ]
    told = {
        "info": {"description": handout.said_by},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    write_pieces(out / INDEX, [json.dumps(told, indent=1), "\n"])


def read(source: Path, domain: Domain) -> Iterator[Returned]:
    """Of the JSON file, or its folder; PNGs lie in the folder of its name without ``.json``, or in ``panoptic``."""
    path = source / INDEX if source.is_dir() else source
    told = json_of(path)
    listed = [_list(path, told, key) for key in ("annotations", "categories")]
    names = {_number(path, one.get("id")): one.get("name") for one in listed[1]}
    folder = path.with_suffix("") if path.with_suffix("").is_dir() else path.parent / MASKS
    for one in listed[0]:
        name = one.get("file_name")
        image = checked_id(name.removesuffix(".png") if isinstance(name, str) else name, path)
        classes = {}
        for segment in _list(path, one, "segments_info"):
            number = _number(path, segment.get("id"))
            said = names.get(_number(path, segment.get("category_id")))
            classes[number] = class_number(domain, said, f"{path}: image {image}")
        mask = folder / f"{image}.png"

        def load(size: tuple[int, int], mask: Path = mask, classes: dict[int, int] = classes) -> UInt8:
            return of_size(_of_segments(mask, classes), size, mask)

        yield Returned(image, load)


def _of_segments(mask: Path, classes: dict[int, int]) -> UInt8:
    colours = read_image(mask).astype(np.int32)
    numbers = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
    found, places = np.unique(numbers, return_inverse=True)
    unknown = [number for number in found.tolist() if number and number not in classes]
    if unknown:
        raise DataError(f"{mask}: segment {unknown[0]} is not among its segments_info; export it again")
    table = np.array(
        [classes.get(number, IGNORE) if number else IGNORE for number in found.tolist()], np.uint8
    )
    return table[places].reshape(numbers.shape)


def _list(path: Path, told: Any, key: str) -> list[dict[str, Any]]:
    value = told.get(key) if isinstance(told, dict) else None
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{path}: no list of {key}, which COCO's panoptic format has; name its JSON file")
    return value


def _number(path: Path, value: Any) -> int:
    if type(value) is not int or not 0 <= value < MOST_SEGMENT:
        raise DataError(f"{path}: {value!r:.80} is no number of a segment or category")
    return value


FORMAT = LabelFormat(
    pictures="images",
    masks=MASKS,
    write_mask=write,
    entry=entry,
    index=index,
    read=read,
    reads=f"{INDEX} or its folder, with {MASKS}/",
    next=(f"{INDEX} names the images in images/ and the PNGs in {MASKS}/",),
)
