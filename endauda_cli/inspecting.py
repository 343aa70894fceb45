"""Engine: what a certainty archive holds, as facts and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.archive import CertaintyReader, stored_bytes, verify
from endauda_cli.domains import palette_of
from endauda_cli.errors import ArchiveError
from endauda_cli.events import Reporter, Tick
from endauda_cli.labels import colourise, write_png
from endauda_cli.report import Gallery, PictureRow, contact_sheet
from endauda_cli.results import ClassFacts, InspectResult

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.archive import VerifyResult

    UInt8 = NDArray[np.uint8]

SAMPLED_IMAGES = 50


def inspect_archive(path: Path, image: str | None, out: Path, check: bool, report: Reporter) -> InspectResult:
    """Look into an archive.

    Args:
        path: its folder.
        image: id of an image to draw, or ``None``.
        out: folder for the pictures.
        check: read and decode everything, and compare it with its checksums.
        report: told of progress.

    Raises:
        ArchiveError: if it is no archive, or has no such image.
    """
    checked = verify(path, report) if check else None
    with CertaintyReader(path) as reader:
        return InspectResult(
            archive=path,
            facts=_facts(path, reader),
            classes=() if checked is not None and not checked.intact else _classes(reader, report),
            pictures=_draw(reader, image, out) if image is not None else (),
            verified=None if checked is None else _verdict(checked),
            intact=None if checked is None else checked.intact,
        )


def _verdict(checked: VerifyResult) -> str:
    """What is wrong, and how to mend it, in a sentence."""
    if checked.intact:
        return f"verified: all {checked.ok} images are intact"
    found = [f"{shard.file}: {shard.reason}" for shard in checked.damaged]
    if checked.missing:
        found.append(f"{len(checked.missing)} images are in no whole file, first {checked.missing[0]}")
    # A shard that only lacks its manifest names no images; the next export reads it again.
    delete = [shard.file for shard in checked.damaged if shard.ids]
    advice = f"delete {', '.join(delete)} and export again" if delete else "export again"
    return f"damaged: {'; '.join(found)}; {advice} to mend the archive"


def _facts(path: Path, reader: CertaintyReader) -> dict[str, str]:
    sizes = [reader.size(image) for image in reader.ids]
    raw = sum(h * w * (len(reader.classes) + 1) for h, w in sizes)
    stored = stored_bytes(path)
    shapes = sorted({f"{w}x{h}" for h, w in sizes})
    facts = {
        "images": str(len(reader)),
        "size": ", ".join(shapes[:3]) + (", ..." if len(shapes) > 3 else ""),
        "classes": f"{len(reader.classes)}: {', '.join(reader.classes)}",
        "on disk": f"{stored / 1e6:.1f} MB, {raw / stored:.1f} times smaller than raw bytes"
        if stored
        else "0",
    }
    return facts | {key: _text(value) for key, value in reader.attributes.items()}


def _text(value: Any) -> str:
    return "x".join(str(v) for v in value) if isinstance(value, (list, tuple)) else str(value)


def _classes(reader: CertaintyReader, report: Reporter) -> tuple[ClassFacts, ...]:
    """Shares and mean certainties over evenly spread images."""
    num_classes = len(reader.classes)
    ids = reader.ids[:: max(1, -(-len(reader) // SAMPLED_IMAGES))]
    pixels, total, seen = np.zeros(num_classes), np.zeros(num_classes), 0
    for done, image in enumerate(ids, 1):
        labels = reader.labels(image)
        seen += labels.size
        for c in np.unique(labels[labels < num_classes]):
            here = labels == c
            pixels[c] += here.sum()
            total[c] += reader.plane(image, int(c))[here].sum()
        report(Tick("inspecting", done, len(ids)))
    return tuple(
        ClassFacts(name, float(pixels[c] / max(seen, 1)), float(total[c] / pixels[c]) if pixels[c] else None)
        for c, name in enumerate(reader.classes)
    )


def _draw(reader: CertaintyReader, image: str, out: Path) -> tuple[Path, ...]:
    if image not in reader:
        some = ", ".join(reader.ids[:3])
        raise ArchiveError(f"{reader.path}: holds no image {image!r}; it has {len(reader)}, such as {some}")
    labels, certainty = reader.labels(image), reader.certainty(image)
    out.mkdir(parents=True, exist_ok=True)
    palette = palette_of(reader.classes)
    pictures = {
        f"{image}_label.png": colourise(labels, palette),
        f"{image}_certainty.png": heat(certainty.max(0)),
        f"{image}_classes.png": _class_sheet(reader.classes, certainty),
    }
    for name, picture in pictures.items():
        write_png(out / name, picture)
    return tuple(out / name for name in pictures)


def _class_sheet(classes: Sequence[str], certainty: UInt8) -> UInt8:
    """All class planes as heat maps, five in a row, each with its name over it."""
    step = max(1, certainty.shape[2] // 320)
    tiles = [contact_sheet(Gallery("", [n], [PictureRow("", [heat(p[::step, ::step])])])) for n, p in zip(
        classes, certainty, strict=True)]  # fmt: skip
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 5)
    return np.concatenate([np.concatenate(tiles[i : i + 5], 1) for i in range(0, len(tiles), 5)], 0)


_HEAT = np.array([[13, 8, 60], [95, 20, 110], [185, 50, 85], [240, 125, 40], [250, 240, 160]], np.float64)


def heat(percent: UInt8) -> UInt8:
    """(H, W) uint8 0..100 as an (H, W, 3) picture from dark (0) to bright (100)."""
    stops = np.linspace(0, 100, len(_HEAT))
    table = np.stack([np.interp(np.arange(256), stops, _HEAT[:, c]) for c in range(3)], 1)
    return table.round().astype(np.uint8)[percent]
