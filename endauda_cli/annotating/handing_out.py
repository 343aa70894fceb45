"""Engine: label maps that exist -> a folder in the format of an annotation tool or another program."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from endauda_cli.annotating.formats import FORMATS
from endauda_cli.annotating.kinds import Handout, Labelled, of_size
from endauda_cli.annotating.records import Record
from endauda_cli.datasets import one_per_image
from endauda_cli.errors import ConfigError, DataError
from endauda_cli.files import (
    IMAGE_BYTES,
    WriterLock,
    cannot_write,
    file_sha256,
    free_bytes,
    replacing,
    size_text,
)
from endauda_cli.foreign import read_foreign
from endauda_cli.label_results import DisputedImage, LabelExport
from endauda_cli.labels import image_size
from endauda_cli.patterns import files_below
from endauda_cli.progress import Tick
from endauda_cli.threads import ordered_map
from endauda_cli.workspace import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from endauda_cli.annotating.kinds import Entry, LabelFormat
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Domain
    from endauda_cli.progress import Reporter

    UInt8 = NDArray[np.uint8]

VERSION = 1
"""Grows when what an index says of an image changes."""


@dataclass(frozen=True)
class Maps:
    """Label maps that exist.

    Attributes:
        said_by: what they are, for people.
        read: those of an image, (H, W) uint8 train ids.
        digest: another one means other labels.
        disputed: share of each image's pixels that teachers disagree on, where that is known.
    """

    said_by: str
    read: Callable[[Sample], UInt8]
    digest: Callable[[Sample], str]
    disputed: Mapping[str, float] = field(default_factory=dict)


def maps_in_folder(
    folder: Path, samples: Sequence[Sample], domain: Domain, disputed: Mapping[str, float] | None = None
) -> Maps:
    """Label PNGs: ``IMAGE.png`` below the folder, of train ids or of colours that say the classes.

    Raises:
        DataError: if there is no such folder, or an image's is absent or there twice.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of label PNGs")
    pngs = sorted(path for path in files_below(folder) if path.suffix == ".png")
    files = one_per_image(pngs, {sample.id for sample in samples}, "label map")
    _refuse_missing(folder, [sample.id for sample in samples if sample.id not in files], samples)

    def digest(sample: Sample) -> str:
        try:
            return file_sha256(files[sample.id], IMAGE_BYTES)
        except OSError as error:
            raise DataError(f"{files[sample.id]}: cannot be read ({error.strerror or error})") from error

    return Maps(folder.name, lambda sample: read_foreign(files[sample.id], domain), digest, disputed or {})


def maps_in_archive(archive: Path, samples: Sequence[Sample], classes: Sequence[str]) -> Maps:
    """The labels that a teacher's archive holds.

    Raises:
        DataError, ArchiveError: if it lacks images or classes, or is damaged.
    """
    from endauda_cli.archive import CertaintyReader, join_classes  # HDF5 takes as long to load as the rest

    teacher = join_classes(CertaintyReader(archive), classes)
    _refuse_missing(archive, [sample.id for sample in samples if sample.id not in teacher], samples)
    return Maps(
        archive.name, lambda sample: teacher.labels(sample.id), lambda sample: teacher.digest(sample.id)
    )


def most_disputed(samples: Sequence[Sample], disputed: Mapping[str, float], count: int) -> list[Sample]:
    """So many images, those first on which teachers disagree most; of equal ones by id.

    Raises:
        DataError: if nothing is known of that, or nothing is disputed.
    """
    known = [sample for sample in samples if disputed.get(sample.id, 0) > 0]
    if not known:
        raise DataError(
            "--most-disputed: the label set's journal tells of no pixel that teachers disagree on; fuse two teachers "
            "or more, or leave it out"
        )
    return sorted(known, key=lambda sample: (-disputed[sample.id], sample.id))[:count]


def export_labels(
    maps: Maps,
    samples: Sequence[Sample],
    handout: Handout,
    name: str,
    out: Path,
    report: Reporter,
    workers: int = 2,
    link: bool = False,
) -> LabelExport:
    """Write label maps in another format; what is there already and has not changed stays.

    Args:
        maps: the labels.
        samples: images, in the order in which the index is to list them.
        handout: classes, split, addresses.
        name: of the format.
        out: folder; made if need be.
        report: told of progress.
        workers: threads.
        link: link the images instead of copying them.

    Raises:
        EndaudaError: if labels are not of their image's size, the folder holds something else, or the disk is full.
    """
    kind, domain = FORMATS[name], handout.domain
    about = {"version": VERSION, "format": name, "target": domain.name, "classes": list(domain.classes)}
    record = Record(out, about | {"colours": [list(colour) for colour in domain.palette]}, handout.split)
    wanted = [sample.id for sample in samples]
    with _only_writer(out):
        record.begin(wanted)
        made = _write_all(maps, samples, handout, kind, record, report, workers, link)
        try:
            kind.index(out, handout, record.entries(wanted))
        except (LookupError, TypeError, ValueError) as error:
            raise DataError(f"{record.path}: damaged ({error!r:.200}); delete it, and run again") from error
    return LabelExport(
        out,
        name,
        maps.said_by,
        handout.split,
        len(samples),
        len(samples) - made,
        tuple(DisputedImage(image, maps.disputed[image]) for image in wanted if image in maps.disputed),
        kind.next,
    )


def _write_all(
    maps: Maps,
    samples: Sequence[Sample],
    handout: Handout,
    kind: LabelFormat,
    record: Record,
    report: Reporter,
    workers: int,
    link: bool,
) -> int:
    """Returns how many were made now."""
    pictures = None if kind.pictures is None else record.out / kind.pictures.format(split=handout.split)
    masks = None if kind.masks is None else record.out / kind.masks.format(split=handout.split)
    for folder in filter(None, (pictures, masks)):
        make_folder(folder)
    if pictures is not None and not link:
        _refuse_full(record.out, [s.image for s in samples if not (pictures / s.image.name).exists()])

    def one(sample: Sample) -> tuple[str, str, tuple[dict[str, int], Entry] | None]:
        status = sample.image.stat()
        inputs = f"{maps.digest(sample)} {status.st_size} {status.st_mtime_ns} {link} {maps.disputed.get(sample.id)}"
        if record.done(sample.id, inputs):
            return sample.id, inputs, None
        label = of_size(maps.read(sample), image_size(sample.image), f"{maps.said_by}: {sample.id}")
        agreed = 1 - maps.disputed[sample.id] if sample.id in maps.disputed else None
        written = []
        if masks is not None and kind.write_mask is not None:
            written.append(masks / f"{sample.id}.png")
            kind.write_mask(written[0], label, handout)
        if pictures is not None:
            written.append(pictures / sample.image.name)
            _bring(sample.image, written[-1], link)
        files = {path.relative_to(record.out).as_posix(): path.stat().st_size for path in written}
        return sample.id, inputs, (files, kind.entry(Labelled(sample, label, agreed), handout))

    made = 0
    try:
        with ThreadPoolExecutor(workers) as pool:
            report(Tick("writing labels", 0, len(samples), kept=0))
            for done, (image, inputs, new) in enumerate(ordered_map(pool, one, samples, workers + 2), 1):
                if new is not None:
                    record.add(image, inputs, *new)
                    made += 1
                report(Tick("writing labels", done, len(samples), image, kept=done))
    finally:
        record.close()
    return made


def _bring(image: Path, to: Path, link: bool) -> None:
    try:
        with replacing(to) as temporary:
            if link:
                temporary.unlink(missing_ok=True)
                os.symlink(image.resolve(), temporary)
            else:
                shutil.copyfile(image, temporary)
    except OSError as error:
        raise DataError(f"{to}: {cannot_write(error)}") from error


def _refuse_full(out: Path, images: Sequence[Path]) -> None:
    needed, free = sum(image.stat().st_size for image in images), free_bytes(out)
    if free is not None and free < needed:
        raise DataError(
            f"{out}: the copies of {len(images):,} images take {size_text(needed)}, but {size_text(free)} are free; "
            "link them with --link-images, or name a folder on another disk with --out"
        )


def _refuse_missing(where: Path, missing: Sequence[str], samples: Sequence[Sample]) -> None:
    if missing:
        raise DataError(
            f"{where}: no labels of {len(missing):,} of {len(samples):,} images, first {missing[0]}; name the images' "
            "split with --split, or make the labels whole"
        )


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    lock = WriterLock(out.with_name(f".{out.name}.lock"))
    try:
        held = lock.acquire()
    except OSError as error:
        raise ConfigError(f"{out}: {cannot_write(error)}") from error
    if not held:
        raise ConfigError(
            f"{out}: {lock.holder} writes there now; wait for it, or name another folder with --out"
        )
    try:
        yield
    finally:
        lock.release()
