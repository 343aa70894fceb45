"""What a step is shown: crops of decoded images, pure functions of (seed, position)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from endauda_cli.augmentation import drawn
from endauda_cli.distributed import barrier, rank, world_size
from endauda_cli.domains import IGNORE, Domain
from endauda_cli.errors import DataError
from endauda_cli.labels import read_image
from endauda_cli.progress import Note, Reporter
from endauda_cli.threads import ordered_map
from endauda_cli.training.cache import RowFile, cached_rows
from endauda_cli.training.feeding import Crops, Fed
from endauda_cli.training.pruning import Use
from endauda_cli.transforms import STUDENT, cut, random_crop, resize, scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from endauda_cli.config import TrainConfig

    UInt8 = NDArray[np.uint8]

HISTOGRAM_IMAGES = 200
"""More than twice as many are not all counted, unless the sample lacks a class."""
BEYOND = [round(value) for value in reversed(STUDENT.mean)]
"""RGB of what lies beyond an image: nothing, to the network."""
DECODING = "2"
"""Version of how files become rows; what an earlier one put into the cache is not used."""


class Example(NamedTuple):
    """A training image and the file of its labels, if it has one."""

    id: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Stream:
    """Images that crops are drawn from.

    Attributes:
        examples: images and label files.
        domain: class table of the label files.
        read: a label file as (H, W) uint8 train ids.
        label_ids: whether the files hold the table's label ids; fused ones hold train ids.
        contents: digests of image and label files, if they were looked at before; see ``contents.survey``.
    """

    examples: Sequence[Example]
    domain: Domain
    read: Callable[[Path, Domain], NDArray[np.uint8]]
    label_ids: bool = True
    contents: tuple[str, str] | None = field(default=None, compare=False)


class Rows(NamedTuple):
    """A stream, decoded and resized, memory mapped where the disk can."""

    images: UInt8 | RowFile
    """(N, h, w, 3) uint8 RGB."""
    labels: UInt8 | RowFile
    """(N, h, w) uint8 train ids, 255 = none."""


def load_rows(
    config: TrainConfig,
    stream: Stream,
    contents: tuple[str, str],
    cache: Path,
    report: Reporter,
    user: tuple[Path, str] | None = None,
) -> Rows:
    """The stream's images and labels at the recipe's size, from the cache as far as they are there.

    Args:
        config: the recipe.
        stream: what is read.
        contents: digests of the image files and of the label files; others make another cache.
        cache: folder of caches.
        report: told of progress.
        user: folder of the run and the stream's name in it; what they no longer use is removed.

    Raises:
        DataError: if a file cannot be read, or there is no room.
    """
    width, height = config.size
    examples = stream.examples

    def image(i: int) -> UInt8:
        return resize(read_image(examples[i].image), config.size, STUDENT.filter)

    def label(i: int) -> UInt8:
        file = examples[i].label
        if file is None:
            return np.full((height, width), IGNORE, np.uint8)
        return resize(stream.read(file, stream.domain), config.size, "nearest")

    def use(kind: str) -> Use | None:
        return None if user is None else Use(f"{kind} {width}x{height}", *user)

    if rank() > 0:
        barrier()  # the first rank fills the cache
    images = cached_rows(
        cache, "caching images", [e.image for e in examples], f"{DECODING} {config.size} {contents[0]}",
        (height, width, 3), image, config.workers, report, use("images"),
    )  # fmt: skip
    labels = cached_rows(
        cache, "caching labels", [e.label or e.image for e in examples],
        f"{DECODING} {config.size} {config.method} {contents[1]}", (height, width), label, config.workers,
        report, use(f"labels of {stream.domain.name} for {config.method}"),
    )  # fmt: skip
    if rank() == 0:
        barrier()
    return Rows(images, labels)


def batches(
    config: TrainConfig, rows: Mapping[str, Rows], first: int, pool: ThreadPoolExecutor
) -> Iterator[Fed]:
    """This rank's part of each batch from step ``first`` on, prepared ahead in threads, on the CPU."""
    share = config.batch_size // world_size()

    def prepare(step: int) -> Fed:
        start = step * config.batch_size + rank() * share
        positions = range(start, start + share)
        changes = torch.tensor([drawn(config.augment, config.seed, position) for position in positions])
        batch = {}
        labelled = 0
        for stream in rows:
            crops = [crop_at(config, rows[stream], position) for position in positions]
            pixels, classes = zip(*crops, strict=True)
            batch[stream] = Crops(torch.stack(pixels), torch.stack(classes), changes)
            labelled += int(torch.count_nonzero(batch[stream].labels != IGNORE))
        return Fed(step, batch, labelled)

    return ordered_map(pool, prepare, range(first, config.steps), 2 * config.workers)


def crop_at(config: TrainConfig, rows: Rows, position: int) -> tuple[Tensor, Tensor]:
    """The crop at a position of the run's endless sequence: (h, w, 3) and (h, w) uint8.

    Windows of other scales are resized here: a device would be sent up to 1/scale^2 as many pixels, of many sizes.
    """
    images, labels = rows
    epoch, place = divmod(position, len(images))
    index = int(order_of(config.seed, epoch, len(images))[place])
    rng = random.Random(f"{config.seed} {position}")
    width, height = config.crop
    scale = scale_at(config, position)
    window = max(1, round(height / scale)), max(1, round(width / scale))
    crop = random_crop((images.shape[1], images.shape[2]), window, rng, config.mirror, beyond=scale < 1)
    pixels = scaled(cut(images[index], crop, window, BEYOND), (height, width), smooth=True)
    return pixels, scaled(cut(labels[index], crop, window, [IGNORE]), (height, width), smooth=False)


def scale_at(config: TrainConfig, position: int) -> float:
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


def tell_histogram(labels: UInt8 | RowFile, domain: Domain, report: Reporter) -> None:
    """Say what the labels hold, before hours are spent on them: of a sample, if it shows all classes, else of all.

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
    absent = [name for name, n in zip(domain.classes, classes, strict=True) if n == 0]
    if absent:
        report(Note(f"the labels never show {', '.join(absent)}; the student cannot learn them", "warning"))


def _count(labels: UInt8 | RowFile, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many pixels of the chosen images have each value."""
    counts = np.zeros(256, np.int64)
    for i in chosen:
        counts += np.bincount(labels[i].ravel(), minlength=256)
    return counts
