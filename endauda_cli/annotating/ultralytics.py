"""Ultralytics' data sets for semantic segmentation: images and masks in folders side by side, and a YAML file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from endauda_cli.annotating.kinds import LabelFormat, Returned, of_size, plain_entry, write_pieces
from endauda_cli.annotating.pngs import masks_below
from endauda_cli.datasets import SPLITS
from endauda_cli.labels import read_train_ids, write_label

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from endauda_cli.annotating.kinds import Entry, Handout
    from endauda_cli.domains import Domain

YAML = "data.yaml"


def write(path: Path, label: NDArray[np.uint8], handout: Handout) -> None:
    write_label(path, label)


def index(out: Path, handout: Handout, entries: Iterable[Entry]) -> None:
    """Both ``train`` and ``val`` have to be there; where only one was exported, it stands for the other, too."""
    splits = [split for split in SPLITS if (out / "masks" / split).is_dir()]
    lines = [f"# Labels of endauda: {json.dumps(handout.said_by)}\n", "path: .\n"]
    for split in ("train", "val", "test"):
        if split in splits or split != "test":
            lines.append(f"{split}: images/{split if split in splits else splits[0]}\n")
    lines += ["masks_dir: masks\n", "names:\n"]
    lines += [f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(handout.domain.classes)]
    write_pieces(out / YAML, lines)


def read(source: Path, domain: Domain) -> Iterator[Returned]:
    classes = len(domain.classes)
    for image, path in masks_below(source, "masks").items():
        yield Returned(image, lambda size, path=path: of_size(read_train_ids(path, classes), size, path))  # type: ignore[misc]


FORMAT = LabelFormat(
    pictures="images/{split}",
    masks="masks/{split}",
    write_mask=write,
    entry=plain_entry,
    index=index,
    read=read,
    reads="its folder, or any folder of PNGs of train ids",
    next=(
        "train with it: yolo semantic train data=data.yaml; a second --split into the same folder adds to it",
    ),
)
