"""Engine: what people corrected in an annotation tool -> label PNGs that ``train --labelled`` takes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from endauda_cli.annotating.formats import FORMATS
from endauda_cli.domains import IGNORE
from endauda_cli.errors import ConfigError, DataError
from endauda_cli.label_results import LabelImport
from endauda_cli.labels import image_size, write_label
from endauda_cli.masking import printable
from endauda_cli.progress import Tick
from endauda_cli.threads import ordered_map
from endauda_cli.workspace import JOURNALS, make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from endauda_cli.annotating.kinds import Returned
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Domain
    from endauda_cli.progress import Reporter


def import_labels(
    source: Path,
    name: str,
    domain: Domain,
    samples: Sequence[Sample],
    out: Path,
    report: Reporter,
    workers: int = 2,
) -> LabelImport:
    """Read corrected labels; each image's becomes ``out/IMAGE.png``, a grey PNG of train ids, 255 = none.

    Args:
        source: what the tool exported, see ``LabelFormat.reads``.
        name: of the format.
        domain: classes.
        samples: images that they can be of.
        out: folder; made if need be. Labels of other images in it stay.
        report: told of progress.
        workers: threads.

    Raises:
        DataError: if something of it cannot be read, or is of no image of these. What came before it stays.
        ConfigError: if the folder holds a label set of ``fuse``.
    """
    if any(out.glob(JOURNALS)):
        raise ConfigError(f"{out}: labels of 'endauda fuse' lie there; name another folder with --out")
    make_folder(out)

    def one(found: tuple[Sample, Returned]) -> tuple[str, bool]:
        sample, returned = found
        label = returned.load(image_size(sample.image))
        if (label == IGNORE).all():
            return sample.id, False
        write_label(out / f"{sample.id}.png", label)
        return sample.id, True

    empty = done = 0
    with ThreadPoolExecutor(workers) as pool:
        report(Tick("reading labels", 0, None))
        for image, labelled in ordered_map(pool, one, _of_images(source, name, domain, samples), workers + 2):
            empty += not labelled
            done += 1
            report(Tick("reading labels", done, None, image, kept=done))
    report(Tick("reading labels", done, done))
    if done == empty:
        raise DataError(f"{source}: no label of any image in it; it is to be {FORMATS[name].reads}")
    return LabelImport(out, name, done - empty, empty)


def _of_images(
    source: Path, name: str, domain: Domain, samples: Sequence[Sample]
) -> Iterator[tuple[Sample, Returned]]:
    """What came back beside its image. No image comes twice: two threads would write one file."""
    known = {sample.image.name: sample for sample in samples} | {sample.id: sample for sample in samples}
    seen: set[str] = set()
    for returned in FORMATS[name].read(source, domain):
        sample = known.get(returned.image) or known.get(PurePosixPath(returned.image).stem)
        if sample is None:
            raise DataError(
                f"{source}: holds labels of {printable(returned.image)[:80]!r}, which is none of the {len(samples):,} "
                f"images of {domain.name} that were asked for; name their split with --split"
            )
        if sample.id in seen:
            raise DataError(f"{source}: image {sample.id} is in it twice; leave one of them out")
        seen.add(sample.id)
        yield sample, returned
