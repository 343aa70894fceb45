"""Cityscapes' own results: a grey PNG of label ids per image, as its server and cityscapesScripts read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.annotating.kinds import LabelFormat, Returned, no_index, of_size, plain_entry
from endauda_cli.annotating.pngs import masks_below
from endauda_cli.domains import CITYSCAPES_LABEL_IDS
from endauda_cli.errors import DataError
from endauda_cli.labels import read_label_ids, write_label

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.annotating.kinds import Handout
    from endauda_cli.domains import Domain

    UInt8 = NDArray[np.uint8]

NONE = 0
"""``unlabeled``: not 255, which is no label id."""


def write(path: Path, label: UInt8, handout: Handout) -> None:
    write_label(path, id_table(handout.domain)[label])


def id_table(domain: Domain) -> UInt8:
    """(256,): the label id of each train id.

    Raises:
        DataError: if a class is none of Cityscapes'.
    """
    ids = {name: number for number, name in CITYSCAPES_LABEL_IDS.items()}
    strange = [name for name in domain.classes if name not in ids]
    if strange:
        raise DataError(
            f"--format cityscapes: class {strange[0]!r} of {domain.name} is not one of Cityscapes', which has no label "
            "id for it; choose another format"
        )
    table = np.full(256, NONE, np.uint8)
    table[: len(domain.classes)] = [ids[name] for name in domain.classes]
    return table


def read(source: Path, domain: Domain) -> Iterator[Returned]:
    for image, path in masks_below(source).items():
        yield Returned(image, lambda size, path=path: of_size(_train_ids(path, domain), size, path))  # type: ignore[misc]


def _train_ids(path: Path, domain: Domain) -> UInt8:
    table = id_table(domain)  # refuses classes that are not Cityscapes'
    ids = read_label_ids(path)
    if ids.min() < 0 or ids.max() not in CITYSCAPES_LABEL_IDS:
        raise DataError(f"{path}: value {int(ids.max())} is no label id of Cityscapes; are these train ids?")
    back = np.full(256, 255, np.uint8)
    back[table[: len(domain.classes)]] = np.arange(len(domain.classes))
    return back[ids]


FORMAT = LabelFormat(
    pictures=None,
    masks="results",
    write_mask=write,
    entry=plain_entry,
    index=no_index,
    read=read,
    reads="a folder of PNGs of label ids",
    next=("pack the PNGs in results/ into a zip, and upload that on cityscapes-dataset.com",),
)
