"""Reading images from their files: where the chunks of each lie, and what decodes them.

Chunks are read with plain system calls, by any number of threads. C classes, H rows, W columns of one image, N images
of one size and codec in a shard.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from endauda_cli.archive import grids, hdf5
from endauda_cli.archive.codecs import (
    CODECS,
    JPEGLS,
    MODEL_CODEC,
    Bytes,
    Chunk,
    PlaneCodec,
    crc32,
    label_codec_for,
)
from endauda_cli.archive.grids import Deriver, GridForm
from endauda_cli.archive.manifest import ForeignIdError, ImageEntry
from endauda_cli.archive.shard import content_digest, expect, grid_name, read_image_file
from endauda_cli.errors import ArchiveError
from endauda_cli.files import open_regular
from endauda_cli.names import checked_id
from endauda_cli.types import Codec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from io import BufferedReader
    from pathlib import Path

    from numpy.typing import NDArray

_ROWS_OF_A_TASK = 8 * Deriver.block


@dataclass(frozen=True)
class StoredImage:
    """Where the chunks of an image lie in its file: as many each, in the order, of ``CodedImage.chunks``."""

    entry: ImageEntry
    codec: Codec
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    raw: NDArray[np.bool_]
    crcs: NDArray[np.uint32]
    form: GridForm | None = None

    def count(self, classes: int) -> int:
        """Of its chunks."""
        return 2 + (classes if self.form is None else len(self.form.sizes))


class ImageFile:
    """A file of images, open for reading by any number of threads.

    classes: those of its archive; a file of others, copied from elsewhere, is refused.

    Raises FileNotFoundError if it is gone, ArchiveError and ValueError on damage.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self._file = open_regular(path, None)
        self._descriptor = self._file.fileno()
        self._lock = threading.Lock()
        shard = path.suffix == ".h5"
        self.classes = len(classes)
        self.images = _shard_images(path, self._file, classes) if shard else _single_image(path)
        for image in self.images.values():
            expect(len(image.sizes) == image.count(len(classes)), "it is of other classes than its archive")
            if image.form is not None:
                size = (image.entry.height, image.entry.width)
                expect(image.form.fits(len(classes), size), "grids that do not fit their image")

    # The file is closed when the last reader has gone, also if another one has put it aside meanwhile: no sooner.
    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def find(self, id: str, entry: ImageEntry) -> StoredImage:
        """The image, which the manifest says is ``entry``. Raises ArchiveError if it is another, or not there."""
        image = self.images.get(id)
        expect(image is not None, "the image is not in the file")
        assert image is not None
        expect(image.entry == entry, "it is of another size or content than its manifest says")
        return image

    def chunks(self, image: StoredImage, rows: Sequence[int]) -> list[Chunk]:
        """The chunks of these numbers; those that lie side by side are read at once.

        Raises ArchiveError if they are not the bytes that were stored.
        """
        offsets, sizes = image.offsets.tolist(), image.sizes.tolist()
        found: list[Chunk] = []
        while len(found) < len(rows):
            together = [rows[len(found)]]
            for row in rows[len(found) + 1 :]:
                if offsets[row] != offsets[together[-1]] + sizes[together[-1]]:
                    break
                together.append(row)
            data = memoryview(self._read(offsets[together[0]], sum(sizes[row] for row in together)))
            for row in together:
                part, data = data[: sizes[row]], data[sizes[row] :]
                crc = int(image.crcs[row])
                expect(len(part) == sizes[row] and crc32(part) == crc, "a checksum does not match")
                found.append(Chunk(part, bool(image.raw[row]), crc))
        return found

    def _read(self, offset: int, size: int) -> bytes:
        # Before so much memory is asked for.
        expect(offset + size <= os.fstat(self._descriptor).st_size, "the file is cut short")
        data = self._read_some(offset, size)
        # Systems may give less than was asked for: Linux 2 GiB, network shares what came in one piece.
        while len(data) < size and (more := self._read_some(offset + len(data), size - len(data))):
            data += more
        return data

    def _read_some(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, size)


def _single_image(path: Path) -> dict[str, StoredImage]:
    image = read_image_file(path)
    sizes = np.array([len(chunk.data) for chunk in image.chunks])
    first = path.stat().st_size - sizes.sum()
    return {
        image.id: StoredImage(
            image.entry,
            image.codec,
            first + np.concatenate([[0], np.cumsum(sizes)[:-1]]),
            sizes,
            np.array([chunk.raw for chunk in image.chunks]),
            np.array([chunk.crc for chunk in image.chunks], np.uint32),
            image.form,
        )
    }


def _shard_images(path: Path, file: BufferedReader, classes: Sequence[str]) -> dict[str, StoredImage]:
    images: dict[str, StoredImage] = {}
    shard = hdf5.File(file)
    root = shard.group(shard.root)
    expect(root.attributes.get("classes") == list(classes), "it is of other classes than its archive")
    for address in root.members.values():
        for id, image in _group_images(path, shard, shard.group(address), len(classes)):
            expect(id not in images, f"image {id!r} is there twice")
            images[id] = image
    return images


def _group_images(
    path: Path, shard: hdf5.File, group: hdf5.Group, classes: int
) -> Iterable[tuple[str, StoredImage]]:
    names = group.attributes.get("codec", [])
    expect(len(names) == 1 and names[0] in list(Codec), f"it has planes of the unknown codec {names!r:.40}")
    codec, form = Codec(names[0]), _form(group) if names[0] == Codec.GRID else None
    coded = ["model"] if codec == Codec.SOFTMAX else []
    coded += ["certainty"] if form is None else map(grid_name, range(len(form.sizes)))
    wanted = {"label", "id", "digest", "crc32", *coded}
    expect(group.members.keys() >= wanted, "a group lacks a data set")
    members = {key: shard.dataset(group.members[key]) for key in wanted}
    label = members["label"]
    expect(len(label.shape) == 3 and label.shape[0] > 0, "label maps are of another shape")
    count, height, width = label.shape
    model = np.zeros((count, 1, 3), np.int64)
    if "model" in members:
        size = members["model"].shape[-1:]  # decoding says whether it is right
        model = _located(members["model"], (count, 1, *size), MODEL_CODEC, count)
    labels = _located(label, (count, height, width), label_codec_for(codec), count)
    if form is None:
        planes = [_located(members["certainty"], (count * classes, height, width), CODECS[codec], count)]
    else:
        planes = [
            _located(members[grid_name(i)], (count, classes * h, w), JPEGLS, count, item=2)
            for i, (h, w) in enumerate(form.sizes)
        ]
    where = np.concatenate([model, labels, *planes], axis=1)
    chunks = where.shape[1]
    shapes = [members[key].shape for key in ("crc32", "id", "digest")]
    expect(shapes == [(count, chunks), (count,), (count,)], "checksums or names are of other images")
    expect(members["crc32"].type.size == 4, "checksums are of another type")
    crcs = np.frombuffer(shard.whole(members["crc32"], hdf5.INTEGER), "<u4").reshape(count, chunks)
    ids, digests = (
        np.frombuffer(shard.whole(members[key], hdf5.TEXT), f"S{members[key].type.size}")
        for key in ("id", "digest")
    )
    for i, (id, digest) in enumerate(zip(ids.tolist(), digests.tolist(), strict=True)):
        yield (
            checked_id(id.decode(), path, ForeignIdError),
            StoredImage(
                ImageEntry(height, width, digest.decode()),
                codec,
                where[i, :, 0],
                where[i, :, 1],
                where[i, :, 2] != 0,
                crcs[i],
                form,
            ),
        )


def _form(group: hdf5.Group) -> GridForm:
    texts = group.attributes.get("grids", [])
    expect(len(texts) == 1, "a group does not say what its grids are")
    try:
        return GridForm.from_text(texts[0])
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise ArchiveError(f"its grids are none ({exc!r:.80})") from exc


def _located(
    data: hdf5.Dataset, shape: tuple[int, ...], codec: PlaneCodec, count: int, item: int = 1
) -> NDArray[np.int64]:
    """(N, planes, 3): offset, size and filter mask of each chunk of whole numbers of ``item`` bytes.

    Raises ArchiveError if it is not as expected.
    """
    expect(
        data.shape == shape and data.type.kind == hdf5.INTEGER and data.type.size == item,
        "planes of another shape",
    )
    expect(data.chunk == (1, *shape[1:]), "a chunk is not a plane")
    expect(data.filter == codec.filter[0], "planes are coded otherwise than their group says")
    expect(("delta" in data.attributes) == codec.delta, "planes are coded otherwise than their group says")
    plane = shape[1] * shape[2]
    most = plane if item == 1 else 2 * item * plane + 64  # grids are never stored as they are
    expect(bool((data.where[:, 1] <= most).all()), "a chunk is larger than its plane")
    return data.where.reshape(count, -1, 3)


class Task(NamedTuple):
    """A part of an image's certainties; parts may be done at once."""

    cost: int
    """In proportion to the time it takes."""
    do: Callable[[Bytes], None]
    """Fills its part of the (planes, H, W) zeros that it is given. Decoders raise many things on damage."""


def decode_planes(file: ImageFile, image: StoredImage, classes: Sequence[int]) -> list[Task]:
    """What makes the planes of these classes."""
    if image.form is not None:
        deriver = Deriver(_read_grids(file, image), (image.entry.height, image.entry.width))
        step = _ROWS_OF_A_TASK
        return [
            Task(1, partial(deriver.fill, classes, first, min(first + step, image.entry.height)))
            for first in range(0, image.entry.height, step)
        ]
    codec, entry = CODECS[image.codec], image.entry
    fits = codec.fits(entry.height, entry.width)
    expect(fits, f"planes of {entry.width}x{entry.height} pixels, which {image.codec} has none of")
    rows = [2 + int(c) for c in classes]
    if not codec.model_bytes:
        chunks, unpack = file.chunks(image, rows), codec.unpacker(np.empty(0, np.uint8))
    else:
        packed, *chunks = file.chunks(image, [0, *rows])
        model = np.empty((1, codec.model_bytes), np.uint8)
        MODEL_CODEC.unpacker(model)(packed, model)
        unpack = codec.unpacker(model[0])
    return [
        Task(len(chunk.data), lambda planes, i=i, chunk=chunk: unpack(chunk, planes[i]))  # type: ignore[misc]
        for i, chunk in enumerate(chunks)
    ]


def _read_grids(file: ImageFile, image: StoredImage) -> grids.Grids:
    assert image.form is not None
    chunks = file.chunks(image, range(2, len(image.sizes)))
    return grids.unpack(image.form, file.classes, chunks)


def entries(images: Mapping[str, StoredImage]) -> dict[str, ImageEntry]:
    return {id: image.entry for id, image in images.items()}


def read_label(file: ImageFile, image: StoredImage) -> Bytes:
    """(H, W) uint8. Raises ArchiveError, and what decoders raise, on damage."""
    (chunk,) = file.chunks(image, [1])
    label = np.empty((image.entry.height, image.entry.width), np.uint8)
    codec = label_codec_for(image.codec)
    codec.unpacker(np.empty(0, np.uint8))(chunk, label)
    return label


def check_image(file: ImageFile, id: str, entry: ImageEntry) -> None:
    """Decodes the whole image. Raises ArchiveError if it is not what was stored; decoders raise many things."""
    image = file.find(id, entry)
    label = read_label(file, image)
    if image.form is not None:
        digest = grids.digest(label, _read_grids(file, image))
    else:
        certainty = np.empty((file.classes, entry.height, entry.width), np.uint8)
        for task in decode_planes(file, image, range(file.classes)):
            task.do(certainty)
        digest = content_digest(label, certainty)
    expect(digest == entry.digest, "the content digest does not match")
