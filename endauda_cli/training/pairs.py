"""What is looked at before the first step: whether each image and its labels are of one size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from endauda_cli.errors import DataError
from endauda_cli.labels import Strays, image_size, read_truth
from endauda_cli.progress import Note, Tick
from endauda_cli.threads import ordered_map

if TYPE_CHECKING:
    from collections.abc import Mapping

    from endauda_cli.progress import Reporter
    from endauda_cli.training.data import Example, Stream

LOOKED_AT = 50
"""Label files whose values are looked at before the first step."""


def matched(streams: Mapping[str, Stream], drop: bool, workers: int, report: Reporter) -> dict[str, Stream]:
    """The streams, of which each image has the size of its labels; only headers are read.

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
    kept, others, total = [], [], len(stream.examples)
    with ThreadPoolExecutor(workers) as pool:
        report(Tick("comparing sizes", 0, total))
        fits = ordered_map(pool, _misfit, stream.examples, 4 * workers)
        for done, (example, misfit) in enumerate(zip(stream.examples, fits, strict=True), 1):
            if misfit is None:
                kept.append(example)
            else:
                others.append(misfit)
            report(Tick("comparing sizes", done, total))
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
    _tell_strays(stream, report)
    return stream


def _misfit(example: Example) -> str | None:
    if example.label is None or not example.label.exists():  # of which training tells by itself
        return None
    label, image = image_size(example.label), image_size(example.image)
    if label == image:
        return None
    return f"{example.label}: {label[1]}x{label[0]} pixels, but the image {example.image} has {image[1]}x{image[0]}"


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
