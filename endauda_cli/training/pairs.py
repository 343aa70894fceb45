"""What is looked at before the first step: whether each image and its labels are of one size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from endauda_cli.errors import DataError
from endauda_cli.labels import Strays, read_truth
from endauda_cli.progress import Note, counted
from endauda_cli.rasters import open_raster
from endauda_cli.threads import ordered_map
from endauda_cli.training.contents import TAIL_BYTES, Sums, checksum, digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from endauda_cli.progress import Reporter
    from endauda_cli.training.data import Example, Stream

LOOKED_AT = 50
"""Label files whose values are looked at before the first step."""


def matched(streams: Mapping[str, Stream], drop: bool, workers: int, report: Reporter) -> dict[str, Stream]:
    """The streams, of which each image has the size of its labels, with digests of what their files hold.

    Args:
        streams: what is learnt from.
        drop: leave pairs out that do not fit, and count them. GTA5 has a few.
        workers: threads.
        report: told of progress, of what is left out and of values without a name.

    Raises:
        DataError: if a pair does not fit, or a file cannot be read.
    """
    return {name: _matched(stream, drop, workers, report) for name, stream in streams.items()}


def _matched(stream: Stream, drop: bool, workers: int, report: Reporter) -> Stream:
    kept, sums, others, total = [], [], [], len(stream.examples)
    with ThreadPoolExecutor(workers) as pool:
        looks = ordered_map(pool, _look, stream.examples, 4 * workers)
        told = counted(looks, total, "comparing sizes", report)
        for example, (misfit, found) in zip(stream.examples, told, strict=True):
            if misfit is None:
                kept.append(example)
                sums.append(found)
            else:
                others.append(misfit)
    if others and not drop:
        more = f" (so it is with {len(others)} of {total} pairs)" if len(others) > 1 else ""
        raise DataError(
            f"{others[0]}{more}; write labels of the image's size, or leave such pairs out with --drop-mismatched"
        )
    if not kept:
        raise DataError(f"{others[0]}, and none of the {total} pairs fits; write labels of the images' size")
    if others:
        report(Note(f"{len(others)} of {total} pairs are left out, first {others[0]}", "warning"))
    stream = replace(stream, examples=kept)
    if None not in sums:
        known = digest(stream, [found for found in sums if found is not None])
        stream = replace(stream, contents=(known.images, known.labels))
    _tell_strays(stream, report)
    return stream


def _look(example: Example) -> tuple[str | None, Sums | None]:
    """How a pair does not fit, if so; and its check sums, for which its files need not be opened again.

    Nothing where there is no label file: if there should be one, training tells by itself.
    """
    if example.label is None or not example.label.exists():
        return None, None
    with open_raster(example.label) as raster:
        label, label_sum = raster.size, checksum(raster.file)
    with open_raster(example.image) as raster:
        image, image_sum = raster.size, checksum(raster.file, TAIL_BYTES)
    sums = Sums(image_sum, label_sum)
    if label == image:
        return None, sums
    return (
        f"{example.label}: {label[1]}x{label[0]} pixels, but the image {example.image} has {image[1]}x{image[0]}",
        sums,
    )


def _tell_strays(stream: Stream, report: Reporter) -> None:
    """Of ground truth, values that the data set's table does not name; of some files, evenly spread."""
    if stream.read is not read_truth or not stream.domain.others_ignored:
        return
    files = [example.label for example in stream.examples if example.label is not None]
    looked_at, strays = files[:: max(1, -(-len(files) // LOOKED_AT))], Strays(stream.domain)
    for file in looked_at:
        read_truth(file, stream.domain, strays)
    if text := strays.warning():
        report(Note(f"{text} (seen in {len(looked_at)} of {len(files)} label files)", "warning"))
