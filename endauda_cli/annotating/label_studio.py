"""Label Studio: tasks as JSON, whose predictions are brushes (run lengths, bit by bit)."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from endauda_cli.annotating.kinds import (
    LabelFormat,
    Returned,
    class_number,
    classes_in,
    text_of,
    write_pieces,
)
from endauda_cli.annotating.runs import pack_brush, unpack_brush
from endauda_cli.domains import IGNORE
from endauda_cli.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.annotating.kinds import Entry, Handout, Labelled
    from endauda_cli.domains import Domain

    UInt8 = NDArray[np.uint8]

INDEX, CONFIG = "tasks.json", "label_config.xml"
TAG, IMAGE, ID = "label", "image", "image_id"
"""Names of the two tags in the labelling configuration, and of the datum that says which image a task is of."""
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio writes before the name of a file that is uploaded."""
_SPACE = re.compile(r"[\s,]*")


def entry(one: Labelled, handout: Handout) -> Entry:
    height, width = one.label.shape
    regions = [[c, b64encode(pack_brush(one.label == c)).decode()] for c in classes_in(one.label)]
    about = {"file": one.sample.image.name, "id": one.sample.id, "height": height, "width": width}
    return about | {"agreed": one.agreed, "regions": regions}


def index(out: Path, handout: Handout, entries: Iterable[Entry]) -> None:
    domain = handout.domain
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="rgba({red}, {green}, {blue}, 0.7)"/>\n'
        for name, (red, green, blue) in zip(domain.classes, domain.palette, strict=True)
    )
    tags = f'  <BrushLabels name="{TAG}" toName="{IMAGE}">\n{labels}  </BrushLabels>\n'
    write_pieces(
        out / CONFIG, [f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}" zoom="true"/>\n{tags}</View>\n']
    )
    write_pieces(out / INDEX, _tasks(handout, entries))


def _tasks(handout: Handout, entries: Iterable[Entry]) -> Iterator[str]:
    between = "[\n"
    for one in entries:
        yield between + json.dumps(_task(handout, one))
        between = ",\n"
    yield "\n]\n" if between != "[\n" else "[]\n"


def _task(handout: Handout, one: Entry) -> dict[str, Any]:
    results = [
        {
            "id": f"class{c}",
            "from_name": TAG,
            "to_name": IMAGE,
            "type": "brushlabels",
            "original_width": one["width"],
            "original_height": one["height"],
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": list(b64decode(packed)),
                "brushlabels": [handout.domain.classes[c]],
            },
        }
        for c, packed in one["regions"]
    ]
    said: dict[str, Any] = {"model_version": handout.said_by, "result": results}
    if one["agreed"] is not None:
        said["score"] = one["agreed"]
    data = {IMAGE: handout.image_url + quote(one["file"]), ID: one["id"]}
    return {"data": data, "predictions": [said]}


def read(source: Path, domain: Domain) -> Iterator[Returned]:
    """Of an export as JSON: the last annotation of each task that was not cancelled; predictions are nobody's."""
    text, decoder = text_of(source), json.JSONDecoder()
    start = text.find("[")
    if text[: max(start, 0)].strip() or start < 0:
        raise DataError(f"{source}: no list of tasks; export the project from Label Studio as JSON")
    at = _after_space(text, start + 1)
    while text[at : at + 1] != "]":
        try:
            task, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: not valid JSON ({error!s:.200}); export it again") from error
        at = _after_space(text, at)
        if (found := _of_task(source, task, domain)) is not None:
            yield found


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _of_task(source: Path, task: Any, domain: Domain) -> Returned | None:
    data = task.get("data") if isinstance(task, dict) else None
    annotations = task.get("annotations", []) if isinstance(task, dict) else None
    if not isinstance(data, dict) or not isinstance(annotations, list):
        raise DataError(
            f"{source}: an entry is no task with data and annotations; export as JSON, not as JSON-MIN"
        )
    image = data.get(ID)
    if not isinstance(image, str):
        image = _file_of(data.get(IMAGE))
    where = f"{source}: {image[:80]}"
    kept = [one for one in annotations if isinstance(one, dict) and not one.get("was_cancelled")]
    if not kept:
        return None
    results = kept[-1].get("result")
    if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
        raise DataError(f"{where}: its annotation has no list of results; export it again")
    return Returned(image, lambda size: _load(results, size, domain, where))


def _file_of(address: Any) -> str:
    """The file's name in an address."""
    if not isinstance(address, str):
        return ""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    name = PurePosixPath(unquote(parts.query.removeprefix("d=") or parts.path)).name
    return _UPLOADED.sub("", name)


def _load(results: list[dict[str, Any]], size: tuple[int, int], domain: Domain, where: str) -> UInt8:
    label = np.full(size, IGNORE, np.uint8)
    for one in results:
        value = one.get("value")
        if one.get("type") != "brushlabels" or not isinstance(value, dict):
            raise DataError(
                f"{where}: a region of type {one.get('type')!r:.40}, but brushes are expected; paint it"
            )
        if (one.get("original_height"), one.get("original_width")) != size or one.get("image_rotation"):
            raise DataError(
                f"{where}: a brush of {one.get('original_width')!r:.20}x{one.get('original_height')!r:.20} pixels, "
                f"rotated by {one.get('image_rotation')!r:.20}, but the image has {size[1]}x{size[0]}; is it another "
                "image of this name?"
            )
        names = value.get("brushlabels")
        c = class_number(domain, names[0] if isinstance(names, list) and len(names) == 1 else names, where)
        try:
            label[unpack_brush(bytes(_numbers(value.get("rle"))), *size)] = c
        except (ValueError, TypeError) as error:
            raise DataError(f"{where}: a brush cannot be read: {error!s:.200}; export it again") from error
    return label


def _numbers(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise ValueError("it has no list of bytes")
    return value


FORMAT = LabelFormat(
    pictures="images",
    masks=None,
    write_mask=None,
    entry=entry,
    index=index,
    read=read,
    reads="the project's export as JSON",
    next=(
        "serve the images: LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=this folder, then label-studio start",
        f"make a project with the code of {CONFIG}; Settings, Cloud Storage: local files, images/",
        f"import {INDEX}; in the Data Manager order by prediction score",
        "once corrected and submitted: Export, JSON",
    ),
)
