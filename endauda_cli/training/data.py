"""What a step is shown: crops of decoded images, pure functions of (seed, position)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from endauda_cli.adaptation import size_of
from endauda_cli.augmentation import drawn
from endauda_cli.config import SOFT_STRIDE
from endauda_cli.distributed import barrier, rank, world_size
from endauda_cli.domains import IGNORE, Domain
from endauda_cli.errors import DataError
from endauda_cli.labels import read_image
from endauda_cli.losses import TRUE
from endauda_cli.progress import Note, Reporter
from endauda_cli.threads import ordered_map
from endauda_cli.training.cache import RowFile, cached_rows, missing_bytes
from endauda_cli.training.feeding import Crops, Fed
from endauda_cli.training.pruning import Use
from endauda_cli.transforms import STUDENT, Crop, Preprocessing, cut, random_crop, resize, scaled
from endauda_cli.types import Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.config import TrainConfig

    UInt8 = NDArray[np.uint8]

MAIN = "main"
"""Name of the stream that a run counts its images and epochs by."""
LABELLED = "labelled"
"""Name of the stream of true labels beside it: its crops take places in the main stream's batches."""
FURTHER = "source "
"""What names of streams of further labelled sources begin with: their crops take places there likewise."""
TARGET = "target"
"""Name of the target's stream beside the source's, where a method adapts from one to the other."""
HISTOGRAM_IMAGES = 200
"""More than twice as many are not all counted, unless the sample lacks a class."""


def beyond(preprocessing: Preprocessing) -> tuple[int, ...]:
    """RGB of what lies beyond an image: nothing, to the network."""
    mean = preprocessing.mean[::-1] if preprocessing.bgr else preprocessing.mean
    return tuple(min(255, max(0, round(value * preprocessing.divisor))) for value in mean)


BEYOND = beyond(STUDENT)
DECODING = "2"
"""Version of how files become rows; what an earlier one put into the cache is not used."""
KINDS = 10
"""A crop with more kinds of label is taken, whatever is left of ``crop_tries``."""


class Example(NamedTuple):
    """A training image and the file of its labels, if it has one."""

    id: str
    image: Path
    label: Path | None


class Certainties(Protocol):
    """The mean certainty of some teachers, as a loss wants it. Threads may share it."""

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Of a row of an image whose labels are of this size (h, w)."""

    def row(self, image: str, labels: UInt8) -> UInt8:
        """Uint8 percent of an image, whose labels (h, w) at the recipe's size are given.

        Raises:
            ArchiveError: if there is no such image, or it is damaged.
        """

    def digest(self, image: str) -> str:
        """Another one means other certainties."""


@dataclass(frozen=True)
class Stream:
    """Images that crops are drawn from.

    Attributes:
        examples: images and label files.
        domain: class table of the label files.
        read: a label file as (H, W) uint8 train ids.
        label_ids: whether the files hold the table's label ids; fused ones hold train ids.
        labels: folder of the label set, if the files are of one.
        contents: digests of image and label files, if they were looked at before; see ``contents.survey``.
        certainties: of the teachers, if they are learnt from beside the labels.
        of_source: whether a method adapts from these images to others: they may have a size of their own.
        rounds: how many of the examples each round takes, one after another, of a method of rounds.
        still: crops are neither mirrored nor scaled, and the first is taken.
    """

    examples: Sequence[Example]
    domain: Domain
    read: Callable[[Path, Domain], NDArray[np.uint8]]
    label_ids: bool = True
    labels: Path | None = None
    contents: tuple[str, str] | None = field(default=None, compare=False)
    certainties: Certainties | None = None
    of_source: bool = False
    rounds: tuple[int, ...] = ()
    still: bool = False


class Rows(NamedTuple):
    """A stream, decoded and resized, memory mapped where the disk can."""

    images: UInt8 | RowFile | Joined
    """(N, h, w, 3) uint8 RGB."""
    labels: UInt8 | RowFile | Joined
    """(N, h, w) uint8 train ids, 255 = none."""
    certainty: UInt8 | RowFile | Joined | None = None
    """The teachers' mean certainty, uint8 percent: of the labels (N, h, w) with ``--loss weighted``, of all classes
    (N, C, h / 4, w / 4) with ``soft``."""
    beyond: tuple[int, ...] = BEYOND
    """RGB of what lies beyond an image."""
    centre: Callable[[int, random.Random], tuple[int, int] | None] | None = None
    """Of an image's number, the (row, column) that its crop is to lie around, if anywhere in particular."""
    still: bool = False
    """As of the stream."""


class Joined:
    """Rows of several kinds one after another, all of them or some: each kind may have its own (h, w)."""

    def __init__(self, *parts: tuple[Rowed, Sequence[int]]) -> None:
        """Args: the rows of each kind, and which of them."""
        self._places = [(rows, number) for rows, numbers in parts for number in numbers]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> UInt8:
        rows, number = self._places[i]
        return rows[number]


class Rowed(Protocol):
    """Rows of uint8 by their number."""

    def __getitem__(self, i: int, /) -> UInt8: ...


def load_rows(
    config: TrainConfig,
    stream: Stream,
    contents: tuple[str, str, str],
    cache: Path,
    report: Reporter,
    user: tuple[Path, str] | None = None,
    preprocessing: Preprocessing = STUDENT,
) -> Rows:
    """The stream's images and labels at the recipe's size, from the cache as far as they are there.

    Args:
        config: the recipe.
        stream: what is read.
        contents: digests of the image files, the label files and the certainties; others make another cache.
        cache: folder of caches.
        report: told of progress.
        user: folder of the run and the stream's name in it; what they no longer use is removed.
        preprocessing: of the network; its filter resizes the images.

    Raises:
        DataError: if a file cannot be read, or there is no room.
    """
    width, height = size = size_of(config, stream.of_source)
    examples = stream.examples
    recipes = _recipes(config, size, contents, preprocessing)

    def image(i: int) -> UInt8:
        return resize(read_image(examples[i].image), size, preprocessing.filter)

    def label(i: int) -> UInt8:
        file = examples[i].label
        if file is None:
            return np.full((height, width), IGNORE, np.uint8)
        return resize(stream.read(file, stream.domain), size, "nearest")

    def use(kind: str) -> Use | None:
        return None if user is None else Use(f"{kind} {width}x{height}", *user)

    if rank() > 0:
        barrier()  # the first rank fills the cache
    images = cached_rows(
        cache, "caching images", [e.image for e in examples],
        recipes[0],
        (height, width, 3), image, config.workers, report, use("images"),
    )  # fmt: skip
    labels = cached_rows(
        cache, "caching labels", [e.label or e.image for e in examples],
        recipes[1], (height, width), label, config.workers,
        report, use(f"labels of {stream.domain.name} for {config.method}"),
    )  # fmt: skip
    certainties, said = None, stream.certainties
    if said is not None:
        certainties = cached_rows(
            cache, "caching certainties", [e.label or e.image for e in examples],
            recipes[2],
            said.shape((height, width)), lambda i: said.row(examples[i].id, labels[i]), config.workers, report,
            use(f"certainties of {stream.domain.name} for {config.loss}"),
        )  # fmt: skip
    if rank() == 0:
        barrier()
    return Rows(images, labels, certainties, beyond(preprocessing), still=stream.still)


def _recipes(
    config: TrainConfig, of: tuple[int, int], contents: tuple[str, str, str], preprocessing: Preprocessing
) -> tuple[str, str, str]:
    """What the cached rows of images, labels and certainties depend on, beside their files."""
    of_images, of_labels, of_certainties = contents
    size = f"{DECODING} {of}"
    return (
        f"{size} {of_images}{filter_word(preprocessing)}",
        f"{size} {config.method} {of_labels}",
        f"{size} {config.loss} {of_labels} {of_certainties}",
    )


def uncached_bytes(
    config: TrainConfig,
    stream: Stream,
    contents: tuple[str, str, str],
    cache: Path,
    preprocessing: Preprocessing,
) -> int:
    """What :func:`load_rows` would write into the cache; nothing is.

    Raises:
        DataError: if a file is not there.
    """
    width, height = size = size_of(config, stream.of_source)
    images, labels, certainties = _recipes(config, size, contents, preprocessing)
    pictures = [example.image for example in stream.examples]
    files = [example.label or example.image for example in stream.examples]
    total = missing_bytes(cache, pictures, images, (height, width, 3))
    total += missing_bytes(cache, files, labels, (height, width))
    if stream.certainties is not None:
        total += missing_bytes(cache, files, certainties, stream.certainties.shape((height, width)))
    return total


def filter_word(preprocessing: Preprocessing) -> str:
    """What tells apart caches of images that were resized by another filter than our own."""
    return "" if preprocessing.filter == STUDENT.filter else f" {preprocessing.filter}"


def batches(
    config: TrainConfig,
    rows: Mapping[str, Rows],
    first: int,
    pool: ThreadPoolExecutor,
    until: int | None = None,
) -> Iterator[Fed]:
    """This rank's part of each batch from step ``first`` on, prepared ahead in threads, on the CPU.

    The last one is that before step ``until``, or of the run.

    Crops with true labels follow those of the main stream in one batch: one forward pass, one loss, one count of
    classes. In place of certainties, where the others have some, they have ``TRUE``.
    """

    def crops_of(stream: str, step: int) -> list[Crops]:
        every = images_of(config, stream)
        mine = every // world_size()
        start = step * every + rank() * mine
        # Or it would mirror the main stream's crops.
        draw = {MAIN: "", LABELLED: "true "}.get(stream, f"{stream} ")
        return [crop_at(config, rows[stream], position, draw) for position in range(start, start + mine)]

    def prepare(step: int) -> Fed:
        crops = {stream: crops_of(stream, step) for stream in rows}
        for further in of_sources(rows)[1:]:
            crops[MAIN] += crops.pop(further)
        for true in crops.pop(LABELLED, []):
            known = crops[MAIN][0].certainties
            crops[MAIN].append(
                true._replace(certainties=None if known is None else torch.full_like(known, TRUE))
            )
        batch = {stream: _stacked(found) for stream, found in crops.items()}
        labelled = sum(int(torch.count_nonzero(found.labels != IGNORE)) for found in batch.values())
        return Fed(step, batch, labelled)

    steps = range(first, config.steps if until is None else until)
    return ordered_map(pool, prepare, steps, 2 * config.workers)


def images_of(config: TrainConfig, stream: str) -> int:
    """How many images of a stream a batch has, over all devices: of several labelled sources, equally many."""
    if stream == LABELLED:
        return config.true_images
    if stream == MAIN or stream.startswith(FURTHER):
        return (config.batch_size - config.true_images) // max(1, len(config.domains))
    return config.batch_size


def of_sources(streams: Iterable[str]) -> list[str]:
    """The names of the main stream and of further sources' beside it."""
    return [MAIN, *(name for name in streams if name.startswith(FURTHER))]


def _stacked(crops: Sequence[Crops]) -> Crops:
    """Single crops as a batch of them."""
    pixels, labels, changes, certainties = zip(*crops, strict=True)
    known = None if certainties[0] is None else torch.stack(certainties)
    return Crops(torch.stack(pixels), torch.stack(labels), torch.stack(changes), known)


def crop_at(config: TrainConfig, rows: Rows, position: int, draw: str = "") -> Crops:
    """The crop at a position of the stream's endless sequence: (h, w, 3) and (h, w) uint8, and so on.

    Windows of other scales are resized here: a device would be sent up to 1/scale^2 as many pixels, of many sizes.
    Streams with another ``draw`` draw other windows and changes at equal positions.
    """
    images, labels, certainties, outside, centre, still = rows
    epoch, place = divmod(position, len(images))
    index = int(order_of(config.seed, epoch, len(images))[place])
    rng = random.Random(f"{config.seed} {draw}{position}")
    width, height = config.crop
    scale = 1.0 if still else scale_at(config, f"{draw}{position}")
    window = max(1, round(height / scale)), max(1, round(width / scale))
    image = images[index]
    size = (image.shape[0], image.shape[1])
    another = partial(random_crop, size, window, rng, config.mirror and not still, beyond=scale < 1)
    crop = another()
    for _ in range(0 if still else config.crop_tries - 1):
        if _kinds(cut(labels[index], crop, window, [IGNORE])) > KINDS:
            break
        crop = another()
    if centre is not None and (around := centre(index, rng)) is not None:
        row, column = (
            start if side >= whole else min(max(0, middle - side // 2), whole - side)
            for start, middle, side, whole in zip(crop, around, window, size, strict=False)
        )
        crop = crop._replace(row=row, column=column)
    if config.loss == Loss.SOFT:  # whole rows and columns of the targets
        crop = crop._replace(
            row=crop.row - crop.row % SOFT_STRIDE, column=crop.column - crop.column % SOFT_STRIDE
        )
    pixels = scaled(cut(image, crop, window, outside), (height, width), smooth=True)
    classes = scaled(cut(labels[index], crop, window, [IGNORE]), (height, width), smooth=False)
    changes = torch.tensor(drawn(config.augment, config.seed, f"{draw}{position}"))
    if certainties is None:
        return Crops(pixels, classes, changes)
    percent = certainties[index]
    if percent.ndim == 2:
        known = scaled(cut(percent, crop, window, [0]), (height, width), smooth=False)
        return Crops(pixels, classes, changes, known)
    if config.loss != Loss.SOFT:  # soft pseudo labels, at their full size
        known = scaled(cut(percent.transpose(1, 2, 0), crop, window, [0]), (height, width), smooth=False)
        return Crops(pixels, classes, changes, known.permute(2, 0, 1).contiguous())
    coarse = Crop(crop.row // SOFT_STRIDE, crop.column // SOFT_STRIDE, crop.mirrored)
    part = cut(percent.transpose(1, 2, 0), coarse, (height // SOFT_STRIDE, width // SOFT_STRIDE))
    return Crops(pixels, classes, changes, torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1))))


def _kinds(labels: UInt8) -> int:
    """How many values labels have; 255 is one."""
    return int(np.count_nonzero(np.bincount(labels.ravel(), minlength=256)))


def scale_at(config: TrainConfig, position: int | str) -> float:
    """How much larger than the resized image the crop at a position shows things; as often halved as doubled."""
    if config.scale_jitter is None:
        return 1.0
    least, most = config.scale_jitter
    return float(least * (most / least) ** random.Random(f"{config.seed} {position} scale").random())


@lru_cache(maxsize=16)
def order_of(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """The order in which an epoch shows the images: (N,), not to be written to.

    Kept, for every crop asks; two epochs of each stream, for some threads are ahead in the next one.
    """
    order = np.random.default_rng([seed, epoch]).permutation(length)
    order.flags.writeable = False
    return order


def tell_histogram(
    labels: UInt8 | RowFile | Joined,
    domain: Domain,
    report: Reporter,
    true: UInt8 | RowFile | Joined | None = None,
) -> None:
    """Say what the labels hold, before hours are spent on them: of a sample, if it shows all classes, else of all.

    What only the ``true`` labels beside them show is not said to be absent.

    Raises:
        DataError: if they hold nothing.
    """
    every = len(labels)
    # Drawn, for what is taken at equal distances may all be of one camera.
    some = np.sort(np.random.default_rng(0).choice(every, min(every, HISTOGRAM_IMAGES), replace=False))
    chosen = some if every > 2 * HISTOGRAM_IMAGES else np.arange(every)
    counts = _count(labels, chosen)
    num_classes = len(domain.classes)
    if not counts[:num_classes].all() and len(chosen) < every:
        chosen, counts = np.arange(every), counts + _count(labels, np.setdiff1d(np.arange(every), chosen))
    classes = counts[:num_classes]
    if not classes.any():
        raise DataError("the labels hold no class at all, only 255; lower --threshold when fusing")
    shares = ", ".join(
        f"{name} {100 * n / counts.sum():.1f}" for name, n in zip(domain.classes, classes, strict=True)
    )
    sample = f" ({len(chosen)} of {every} images)" if len(chosen) < every else ""
    none = f"none {100 * counts[IGNORE] / counts.sum():.1f}"
    report(Note(f"labels in percent of pixels{sample}: {shares}, {none}"))
    if true is not None and not classes.all():
        classes = classes + _count(true, np.arange(len(true)))[:num_classes]
    absent = [name for name, n in zip(domain.classes, classes, strict=True) if n == 0]
    if absent:
        report(Note(f"the labels never show {', '.join(absent)}; the student cannot learn them", "warning"))


def _count(labels: UInt8 | RowFile | Joined, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many pixels of the chosen images have each value."""
    counts = np.zeros(256, np.int64)
    for i in chosen:
        counts += np.bincount(labels[i].ravel(), minlength=256)
    return counts
