"""What annotation tools export, and the journal of an export."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.annotating.formats import FORMATS
from endauda_cli.annotating.kinds import Handout, Labelled
from endauda_cli.annotating.records import Record
from endauda_cli.annotating.runs import of_row_runs, pack_brush, unpack_brush
from endauda_cli.annotating.taking_back import import_labels
from endauda_cli.datasets import Sample
from endauda_cli.domains import CITYSCAPES
from endauda_cli.errors import EndaudaError
from endauda_cli.labels import write_label, write_png
from endauda_cli.progress import silent
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIZE = (6, 9)
HANDOUT = Handout(CITYSCAPES, "train", "labels", "/")
LABEL = np.array([[(x + y) % 19 if x else 255 for x in range(SIZE[1])] for y in range(SIZE[0])], np.uint8)


def reading(name: str, file: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        """Whatever comes out is a label of the image, in the folder that was named."""
        image = folder / "a.png"
        write_png(image, np.zeros((*SIZE, 3), np.uint8))
        (folder / file).write_bytes(data)
        (folder / "panoptic").mkdir()
        write_png(folder / "panoptic" / "a.png", np.stack([LABEL % 20, LABEL * 0, LABEL * 0], -1))
        out = folder / "out"
        try:
            import_labels(folder / file, name, CITYSCAPES, [Sample("a", image, None)], out, silent, 1)
        finally:
            assert {path.name for path in folder.iterdir()} <= {"a.png", file, "panoptic", "out"}
            assert {path.name for path in out.glob("*")} <= {"a.png"}

    return read


def written(name: str, index: str) -> bytes:
    """The index of one image."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        entry = FORMATS[name].entry(Labelled(Sample("a", folder / "a.png", None), LABEL, 0.5), HANDOUT)
        FORMATS[name].index(folder, HANDOUT, [entry])
        return (folder / index).read_bytes()


def cvat() -> Sequence[bytes]:
    xml = written("cvat", "annotations.xml")
    with zipfile.ZipFile(packed := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", xml)
    return [xml, packed.getvalue()]


def label_studio() -> Sequence[bytes]:
    tasks = json.loads(written("label-studio", "tasks.json"))
    tasks[0]["annotations"] = tasks[0].pop("predictions")
    return [json.dumps(tasks).encode()]


def coco_panoptic() -> Sequence[bytes]:
    return [written("coco-panoptic", "panoptic.json")]


def read_runs(data: bytes, folder: Path) -> None:
    """Of any bytes a mask of the size, or an error."""
    with suppress(ValueError):
        assert unpack_brush(data, *SIZE).shape == SIZE
    with suppress(ValueError):
        assert of_row_runs(np.frombuffer(data[: len(data) & ~7], np.int64), *SIZE).shape == SIZE


def read_record(data: bytes, folder: Path) -> None:
    """Nothing outside the export is removed, and the index is written or refused."""
    outside = folder / "outside.png"
    write_label(outside, LABEL)
    out = folder / "out"
    out.mkdir()
    (out / "export-train.jsonl").write_bytes(data)
    record = Record(out, {"version": 1}, "train")
    record.begin(["a"])
    try:
        if record.done("a", "same"):
            for name in ("cvat", "coco-panoptic", "label-studio"):
                with suppress(EndaudaError, LookupError, TypeError, ValueError):  # which export_labels tells
                    FORMATS[name].index(out, HANDOUT, record.entries(["a"]))
    finally:
        record.close()
        assert outside.exists()


def records() -> Sequence[bytes]:
    entry = FORMATS["cvat"].entry(Labelled(Sample("a", Path("a.png"), None), LABEL, 0.5), HANDOUT)
    lines = [{"version": 1}, {"id": "a", "inputs": "same", "files": {}, "entry": entry}]
    gone = {"id": "b", "inputs": "", "files": {"images/../../outside.png": 1}, "entry": {}}
    return ["".join(json.dumps(line) + "\n" for line in (*lines, gone)).encode()]


TARGETS = (
    Target("cvat", reading("cvat", "annotations.xml"), cvat, 400),
    Target("label-studio", reading("label-studio", "export.json"), label_studio, 400),
    Target("coco-panoptic", reading("coco-panoptic", "panoptic.json"), coco_panoptic, 400),
    Target(
        "runs", read_runs, lambda: [pack_brush(LABEL == 3), np.array([4, 9, 41], np.int64).tobytes()], 2000
    ),
    Target("export-record", read_record, records, 400),
)
