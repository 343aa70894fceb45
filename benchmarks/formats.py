"""What the formats of ``export-labels`` cost, on label maps of 1024x2048 and 19 classes.

    python benchmarks/formats.py

The labels are those of generated softmax maps, which have more small areas than fused ones. CPU seconds an image in one
thread, out and back again, and kB an image without the image itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.annotating.formats import FORMATS
from endauda_cli.annotating.handing_out import export_labels, maps_in_folder
from endauda_cli.annotating.kinds import Handout
from endauda_cli.annotating.taking_back import import_labels
from endauda_cli.datasets import Sample
from endauda_cli.doctor.speed import softmax_map
from endauda_cli.domains import CITYSCAPES
from endauda_cli.labels import write_label, write_png
from endauda_cli.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = 3
HANDOUT = Handout(CITYSCAPES, "train", "labels", "/")


def submitted(out: Path) -> Path:
    """Tasks of Label Studio, as if somebody had submitted what was predicted."""
    tasks = json.loads((out / "tasks.json").read_text())
    for task in tasks:
        task["annotations"] = task.pop("predictions")
    path = out / "export.json"
    path.write_text(json.dumps(tasks))
    return path


BACK: dict[str, Callable[[Path], Path]] = {
    "cityscapes": lambda out: out / "results",
    "cvat": lambda out: out / "annotations.xml",
    "label-studio": submitted,
    "coco-panoptic": lambda out: out,
    "ultralytics": lambda out: out,
}


def main() -> None:
    """One row per format."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        samples = []
        for number in range(IMAGES):
            image = f"aachen_{number:06}_000019_leftImg8bit"
            for folder in ("labels", "pictures"):
                (root / folder).mkdir(exist_ok=True)
            label = softmax_map(19, 1024, 2048, seed=number).argmax(0).astype(np.uint8)
            write_label(root / "labels" / f"{image}.png", label)
            write_png(root / "pictures" / f"{image}.png", np.zeros((1024, 2048, 3), np.uint8))
            samples.append(Sample(image, root / "pictures" / f"{image}.png", None))
        print("| format | out | back | kB |\n|---|---|---|---|")
        for name in FORMATS:
            out, began = root / name, time.process_time()
            maps = maps_in_folder(root / "labels", samples, CITYSCAPES)
            export_labels(maps, samples, HANDOUT, name, out, silent, 1)
            written = time.process_time()
            files = [path for path in out.rglob("*") if path.is_file() and "images" not in path.parts]
            size = sum(path.stat().st_size for path in files if not path.match("export-*.jsonl"))
            source, read = BACK[name](out), time.process_time()
            import_labels(source, name, CITYSCAPES, samples, root / f"{name} back", silent, 1)
            back = time.process_time() - read
            costs = (written - began) / IMAGES, back / IMAGES
            print(f"| `{name}` | {costs[0]:.2f} | {costs[1]:.2f} | {size / IMAGES / 1e3:.0f} |", flush=True)


if __name__ == "__main__":
    main()
