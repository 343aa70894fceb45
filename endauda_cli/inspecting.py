"""Engine: what a certainty archive holds, as facts and pictures."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.archive import CertaintyReader, stored_bytes, verify
from endauda_cli.compiling import compiling_told
from endauda_cli.domains import palette_of
from endauda_cli.errors import ArchiveError, DataError
from endauda_cli.files import free_bytes, size_text
from endauda_cli.labels import colourise, write_certainty, write_label, write_png
from endauda_cli.names import checked_id
from endauda_cli.progress import Reporter, Tick, counted, phase
from endauda_cli.report import Gallery, PictureRow, contact_sheet
from endauda_cli.results import ClassFacts, InspectResult, WrittenBack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.archive import VerifyResult

    UInt8 = NDArray[np.uint8]

SAMPLED_IMAGES = 50


def inspect_archive(
    path: Path, image: str | None, out: Path, check: bool, report: Reporter, export: Path | None = None
) -> InspectResult:
    """Look into an archive.

    Args:
        path: its folder.
        image: id of an image to draw, or ``None``.
        out: folder for the pictures.
        check: read and decode everything, and compare it with its checksums.
        report: told of progress.
        export: folder to write all images back to, as files; or ``None``. Damaged ones are left out.

    Raises:
        ArchiveError: if it is no archive, has no such image, or the image is damaged.
        DataError: if a file cannot be written.
    """
    damage: dict[str, ArchiveError] = {}
    with compiling_told(report), ExitStack() as stack:
        checked = verify(path, report) if check else None
        with phase(report, "opening the archive"):
            reader = stack.enter_context(CertaintyReader(path))
        pictures = _draw(reader, image, out) if image is not None else ()
        exported = _write_back(reader, export, damage, report) if export is not None else None
        looked_at = _spread(reader.ids)
        known_damage = checked is not None and not checked.intact
        classes = () if known_damage else _classes(reader, looked_at, damage, report)
        verdict = _verdict(checked) if checked is not None else _damage_met(damage)
        return InspectResult(
            archive=path,
            facts=_facts(path, reader, looked_at),
            classes=classes,
            pictures=pictures,
            verified=verdict,
            intact=False if damage else None if checked is None else checked.intact,
            exported=exported,
        )


def _damage_met(damage: Mapping[str, ArchiveError]) -> str | None:
    if not damage:
        return None
    error = next(iter(damage.values()))
    return f"damaged: {len(damage)} images cannot be read, first {error}; --verify names them all"


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


def _facts(path: Path, reader: CertaintyReader, looked_at: Sequence[str]) -> dict[str, str]:
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
    if codecs := _codecs(reader, looked_at):
        facts["codec"] = ", ".join(sorted(codecs))
    if len(looked_at) < len(reader):
        facts["sample"] = f"shares and means below are of {len(looked_at)} images, evenly spread"
    # What was counted here is true; an attribute of the same name does not hide it.
    return facts | {key: _text(value) for key, value in reader.attributes.items() if key not in facts}


def _codecs(reader: CertaintyReader, ids: Sequence[str]) -> set[str]:
    found = set()
    for image in ids:
        with contextlib.suppress(ArchiveError):  # told elsewhere
            found.add(str(reader.codec(image)))
    return found


def _text(value: Any) -> str:
    """An attribute in a line: a size as 1024x512, other lists with commas, a map of names by what it changes."""
    if isinstance(value, dict):
        changed = {key: other for key, other in value.items() if key != other}
        return ", ".join(f"{key} -> {other or 'none'}" for key, other in changed.items()) or "by name"
    if isinstance(value, (list, tuple)):
        return ("x" if all(isinstance(v, int) for v in value) else ", ").join(str(v) for v in value)
    return str(value)


def _spread(ids: Sequence[str]) -> Sequence[str]:
    return ids[:: max(1, -(-len(ids) // SAMPLED_IMAGES))]


def _classes(
    reader: CertaintyReader, ids: Sequence[str], damage: dict[str, ArchiveError], report: Reporter
) -> tuple[ClassFacts, ...]:
    """Shares and mean certainties over those of the images that are not damaged."""
    num_classes = len(reader.classes)
    pixels, total, seen = np.zeros(num_classes), np.zeros(num_classes), 0
    for image in counted(ids, len(ids), "inspecting", report):
        try:
            labels = reader.labels(image)
            present = [int(c) for c in np.unique(labels[labels < num_classes])]
            planes = reader.planes(image, present)
        except ArchiveError as error:
            damage[image] = error
        else:
            seen += labels.size
            for c, plane in zip(present, planes, strict=True):
                here = labels == c
                pixels[c] += here.sum()
                total[c] += plane[here].sum()
    return tuple(
        ClassFacts(name, float(pixels[c] / max(seen, 1)), float(total[c] / pixels[c]) if pixels[c] else None)
        for c, name in enumerate(reader.classes)
    )


def _write_back(
    reader: CertaintyReader, folder: Path, damage: dict[str, ArchiveError], report: Reporter
) -> WrittenBack:
    """The images as the reference keeps them, ``<id>.png`` and ``<id>.npy``; one image in memory at a time.

    Files of an earlier export are written anew. Damaged images go to ``damage``.
    """
    files = {
        image: (_file(reader, folder, image, ".png"), _file(reader, folder, image, ".npy"))
        for image in reader.ids
    }
    _check_room(reader, folder, [certainty for _, certainty in files.values()])
    written = size = 0
    report(Tick("writing back", 0, len(files)))
    for done, (image, (label_file, certainty_file)) in enumerate(files.items(), 1):
        try:
            labels, certainty = reader.labels(image), reader.certainty(image)
        except ArchiveError as error:
            damage[image] = error
        else:
            _make_folder(certainty_file.parent)
            write_certainty(certainty_file, certainty)
            write_label(label_file, labels)
            written += 1
            size += certainty_file.stat().st_size + label_file.stat().st_size
        report(Tick("writing back", done, len(files), image))
    return WrittenBack(folder, written, size, len(files) - written)


def _file(reader: CertaintyReader, folder: Path, image: str, ending: str) -> Path:
    """The file of an image below the folder: a slash in its id is a folder of its own.

    Raises:
        ArchiveError: for an id that leads elsewhere, which the reader lets nobody see.
    """
    return folder / f"{checked_id(image, reader.path, ArchiveError)}{ending}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot make this folder ({error.strerror}); name another one") from error


def _check_room(reader: CertaintyReader, folder: Path, files: Sequence[Path]) -> None:
    """Refuse to fill the disk: unlike an archive's, the size of ``.npy`` files is known before.

    Raises:
        DataError: says how much there is to free.
    """
    sizes = [reader.size(image) for image in reader.ids]
    needed = sum(h * w * len(reader.classes) for h, w in sizes)
    needed -= sum(path.stat().st_size for path in files if path.is_file())  # to be replaced
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise DataError(
            f"{folder}: {len(files):,} images take {size_text(needed)} as .npy, but {size_text(free)} are free; "
            "free some space, or name a folder on another disk"
        )


def _draw(reader: CertaintyReader, image: str, out: Path) -> tuple[Path, ...]:
    if image not in reader:
        some = ", ".join(reader.ids[:3])
        raise ArchiveError(f"{reader.path}: holds no image {image!r}; it has {len(reader)}, such as {some}")
    kinds = ("label", "certainty", "classes")
    files = tuple(_file(reader, out, image, f"_{kind}.png") for kind in kinds)
    labels, certainty = reader.labels(image), reader.certainty(image)
    _make_folder(files[0].parent)
    palette = palette_of(reader.classes)
    pictures = colourise(labels, palette), heat(certainty.max(0)), _class_sheet(reader.classes, certainty)
    for file, picture in zip(files, pictures, strict=True):
        write_png(file, picture)
    return files


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
