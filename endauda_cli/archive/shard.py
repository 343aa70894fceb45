"""Files of images: shards, which are HDF5, and single images that wait for one.

HDF5 writes shards; ``hdf5`` says where in one each chunk lies, and chunks are read with plain system calls, by
any number of threads. C classes, H rows, W columns of one image, N images of one size and codec in a shard.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections import defaultdict
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

from endauda_cli.archive import hdf5
from endauda_cli.archive.codecs import (
    CODECS,
    DECODER_ERRORS,
    MODEL_CODEC,
    Bytes,
    Chunk,
    PlaneCodec,
    codec_for,
    crc32,
    label_codec_for,
)
from endauda_cli.archive.layout import MAX_HEADER
from endauda_cli.archive.manifest import FORMAT, FORMAT_VERSION, ArchiveInfo, ForeignIdError, ImageEntry
from endauda_cli.errors import ArchiveError
from endauda_cli.files import open_regular
from endauda_cli.names import checked_id
from endauda_cli.types import Codec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from io import BufferedReader
    from pathlib import Path

    from numpy.typing import NDArray

# HDF5 1.10's file layout: every structure but the data is checksummed, HDF5 of 2016 and later reads it.
_LIBRARY = ("v110", "v110")
_GROWTH = 4 << 20  # an HDF5 file in memory grows by so many bytes


class CodedImage(NamedTuple):
    """An image, compressed; all that is left to do is to store the bytes."""

    id: str
    entry: ImageEntry
    codec: Codec
    chunks: tuple[Chunk, ...]
    """Of the model (empty if the codec has none), of the label map, of each class plane."""


def code_image(codec: Codec, id: str, label: Bytes, certainty: Bytes) -> CodedImage:
    """Compress one image; for as many threads at once as there are cores.

    label: (H, W) uint8; certainty: (C, H, W) uint8; both contiguous and checked by the caller.
    """
    height, width = label.shape
    entry = ImageEntry(height, width, content_digest(label, certainty))
    codec = codec_for(codec, height, width)
    packed = CODECS[codec].pack(certainty)
    models = MODEL_CODEC.pack(packed.model[None, None]).chunks if packed.model.size else (_NO_MODEL,)
    return CodedImage(
        id, entry, codec, (*models, *label_codec_for(codec).pack(label[None]).chunks, *packed.chunks)
    )


_NO_MODEL = Chunk(b"", True, crc32(b""))


def content_digest(label: Bytes, certainty: Sequence[Bytes] | Bytes) -> str:
    """Tells contents apart, whatever the codec. From CRCs: hashing 40 MB takes as long as packing."""
    crcs = [crc32(np.ascontiguousarray(plane)) for plane in (label, *certainty)]
    content = json.dumps([(len(certainty), *label.shape), crcs]).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


# Single images: a line of JSON, then the chunks


def image_file(image: CodedImage) -> bytes:
    """A file, as bytes, of one image."""
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "id": image.id,
        "image": astuple(image.entry),
        "codec": str(image.codec),
        "chunks": [[len(chunk.data), chunk.raw, chunk.crc] for chunk in image.chunks],
    }
    return b"".join([json.dumps(header).encode(), b"\n", *(chunk.data for chunk in image.chunks)])


def read_image_file(path: Path) -> CodedImage:
    """Raises FileNotFoundError if it is gone, ArchiveError if it is not what ``image_file`` made."""
    with open_regular(path, None) as file:
        try:
            header = json.loads(file.readline(MAX_HEADER))
            _expect((header["format"], header["version"]) == (FORMAT, FORMAT_VERSION), "of another format")
            entry, codec = ImageEntry(*header["image"]), Codec(header["codec"])
            sizes = [size for size, _, _ in header["chunks"]]
            rest = os.fstat(file.fileno()).st_size - file.tell()
            _expect(all(type(size) is int and size >= 0 for size in sizes), "of chunks that have no size")
            _expect(sum(sizes) == rest, "of another length than its header says")
            chunks = [Chunk(file.read(size), bool(raw), crc) for size, raw, crc in header["chunks"]]
            _expect(all(crc32(chunk.data) == chunk.crc for chunk in chunks), "a checksum does not match")
            return CodedImage(checked_id(header["id"], path, ForeignIdError), entry, codec, tuple(chunks))
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ArchiveError(f"not the file of an image ({exc!r:.80})") from exc


# Shards


def shard_file(info: ArchiveInfo, images: Iterable[CodedImage]) -> bytes:
    """An HDF5 file, as bytes, with these images."""
    groups: dict[tuple[int, int, Codec], list[CodedImage]] = defaultdict(list)
    for image in images:
        groups[image.entry.height, image.entry.width, image.codec].append(image)
    with h5py.File(
        "memory", "w", driver="core", backing_store=False, block_size=_GROWTH, libver=_LIBRARY
    ) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = FORMAT_VERSION
        file.attrs["classes"] = list(info.classes)
        file.attrs["attributes"] = json.dumps(dict(info.attributes), ensure_ascii=False)
        for (height, width, codec), members in groups.items():
            _write_group(file.create_group(f"{height}x{width}-{codec}"), codec, members)
        file.flush()
        data: bytes = file.id.get_file_image()
        return data


def _write_group(group: h5py.Group, codec: Codec, images: Sequence[CodedImage]) -> None:
    group.attrs["codec"] = str(codec)
    count, classes = len(images), len(images[0].chunks) - 2
    height, width = images[0].entry.height, images[0].entry.width
    planes = CODECS[codec]
    datasets = [
        (_create(group, "label", (count, height, width), label_codec_for(codec)), 1, 2),
        (_create(group, "certainty", (count * classes, height, width), planes), 2, 2 + classes),
    ]
    if planes.model_bytes:
        datasets.insert(0, (_create(group, "model", (count, 1, planes.model_bytes), MODEL_CODEC), 0, 1))
    # In the order in which they are read: what belongs to an image lies side by side.
    for i, image in enumerate(images):
        for dataset, first, last in datasets:
            for row, chunk in enumerate(image.chunks[first:last], i * (last - first)):
                dataset.write_direct_chunk((row, 0, 0), chunk.data, filter_mask=int(chunk.raw))
    group["id"] = np.array([image.id.encode() for image in images])
    group["digest"] = np.array([image.entry.digest.encode() for image in images])
    group["crc32"] = np.array([[chunk.crc for chunk in image.chunks] for image in images], np.uint32)


def _create(group: h5py.Group, name: str, shape: tuple[int, int, int], codec: PlaneCodec) -> Any:
    """An empty data set of one chunk per plane. HDF5 need not know the filter to be handed its chunks.

    Three dimensions, because the filter for JPEG-LS takes no more.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, *shape[1:]))
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    filter_id, arguments = codec.filter
    properties.set_filter(filter_id, h5py.h5z.FLAG_OPTIONAL, arguments)
    space = h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(group.id, name.encode(), h5py.h5t.STD_U8LE, space, properties)
    if codec.delta:
        h5py.Dataset(dataset).attrs["delta"] = np.uint8(1)
    return dataset


# Reading both


@dataclass(frozen=True)
class StoredImage:
    """Where the chunks of an image lie in its file: (C + 2,) each, in the order of ``CodedImage.chunks``."""

    entry: ImageEntry
    codec: Codec
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    raw: NDArray[np.bool_]
    crcs: NDArray[np.uint32]


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
        self.images = _shard_images(path, self._file, classes) if shard else _single_image(path)
        for image in self.images.values():
            _expect(len(image.sizes) == len(classes) + 2, "it is of other classes than its archive")

    # The file is closed when the last reader has gone, also if another one has put it aside meanwhile: no sooner.
    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def find(self, id: str, entry: ImageEntry) -> StoredImage:
        """The image, which the manifest says is ``entry``. Raises ArchiveError if it is another, or not there."""
        image = self.images.get(id)
        _expect(image is not None, "the image is not in the file")
        assert image is not None
        _expect(image.entry == entry, "it is of another size or content than its manifest says")
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
                _expect(len(part) == sizes[row] and crc32(part) == crc, "a checksum does not match")
                found.append(Chunk(part, bool(image.raw[row]), crc))
        return found

    def _read(self, offset: int, size: int) -> bytes:
        # Before so much memory is asked for.
        _expect(offset + size <= os.fstat(self._descriptor).st_size, "the file is cut short")
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
        )
    }


def _shard_images(path: Path, file: BufferedReader, classes: Sequence[str]) -> dict[str, StoredImage]:
    images: dict[str, StoredImage] = {}
    shard = hdf5.File(file)
    root = shard.group(shard.root)
    _expect(root.attributes.get("classes") == list(classes), "it is of other classes than its archive")
    for address in root.members.values():
        for id, image in _group_images(path, shard, shard.group(address), len(classes)):
            _expect(id not in images, f"image {id!r} is there twice")
            images[id] = image
    return images


def _group_images(
    path: Path, shard: hdf5.File, group: hdf5.Group, classes: int
) -> Iterable[tuple[str, StoredImage]]:
    names = group.attributes.get("codec", [])
    _expect(len(names) == 1 and names[0] in list(Codec), f"it has planes of the unknown codec {names!r:.40}")
    codec = Codec(names[0])
    wanted = {"label", "certainty", "id", "digest", "crc32"} | (
        {"model"} if codec == Codec.SOFTMAX else set()
    )
    _expect(group.members.keys() >= wanted, "a group lacks a data set")
    members = {key: shard.dataset(group.members[key]) for key in wanted}
    label = members["label"]
    _expect(len(label.shape) == 3 and label.shape[0] > 0, "label maps are of another shape")
    count, height, width = label.shape
    model = np.zeros((count, 1, 3), np.int64)
    if "model" in members:
        size = members["model"].shape[-1:]  # decoding says whether it is right
        model = _located(members["model"], (count, 1, *size), MODEL_CODEC, count)
    labels = _located(label, (count, height, width), label_codec_for(codec), count)
    planes = _located(members["certainty"], (count * classes, height, width), CODECS[codec], count)
    where = np.concatenate([model, labels, planes], axis=1)
    shapes = [members[key].shape for key in ("crc32", "id", "digest")]
    _expect(shapes == [(count, classes + 2), (count,), (count,)], "checksums or names are of other images")
    _expect(members["crc32"].type.size == 4, "checksums are of another type")
    crcs = np.frombuffer(shard.whole(members["crc32"], hdf5.INTEGER), "<u4").reshape(count, classes + 2)
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
            ),
        )


def _located(data: hdf5.Dataset, shape: tuple[int, ...], codec: PlaneCodec, count: int) -> NDArray[np.int64]:
    """(N, planes, 3): offset, size and filter mask of each chunk. Raises ArchiveError if it is not as expected."""
    _expect(
        data.shape == shape and data.type.kind == hdf5.INTEGER and data.type.size == 1,
        "planes of another shape",
    )
    _expect(data.chunk == (1, *shape[1:]), "a chunk is not a plane")
    _expect(data.filter == codec.filter[0], "planes are coded otherwise than their group says")
    _expect(("delta" in data.attributes) == codec.delta, "planes are coded otherwise than their group says")
    plane = shape[1] * shape[2]
    _expect(bool((data.where[:, 1] <= plane).all()), "a chunk is larger than its plane")
    return data.where.reshape(count, -1, 3)


def decode_planes(file: ImageFile, image: StoredImage, classes: Sequence[int]) -> tuple[list[Chunk], Any]:
    """The chunks of these classes, and the function that decodes them into (H, W) arrays."""
    codec, entry = CODECS[image.codec], image.entry
    fits = codec.fits(entry.height, entry.width)
    _expect(fits, f"planes of {entry.width}x{entry.height} pixels, which {image.codec} has none of")
    rows = [2 + int(c) for c in classes]
    if not codec.model_bytes:
        return file.chunks(image, rows), codec.unpacker(np.empty(0, np.uint8))
    packed, *chunks = file.chunks(image, [0, *rows])
    model = np.empty((1, codec.model_bytes), np.uint8)
    MODEL_CODEC.unpacker(model)(packed, model)
    return chunks, codec.unpacker(model[0])


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
    chunks, unpack = decode_planes(file, image, range(len(image.sizes) - 2))
    certainty = np.empty((len(chunks), entry.height, entry.width), np.uint8)
    for chunk, plane in zip(chunks, certainty, strict=True):
        unpack(chunk, plane)
    digest = content_digest(read_label(file, image), certainty)
    _expect(digest == entry.digest, "the content digest does not match")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entries(images: Mapping[str, StoredImage]) -> dict[str, ImageEntry]:
    return {id: image.entry for id, image in images.items()}


def reason(error: Exception) -> str:
    """In a few words, what keeps a file from being read."""
    if isinstance(error, OSError) and error.errno:
        return error.strerror or os.strerror(error.errno)
    return str(error) or type(error).__name__


def is_damage(error: Exception) -> bool:
    """Whether it lies in the file's bytes. If not, the file may be whole, and nobody should delete it.

    A compiler or a library that fails says nothing of the file.
    """
    if isinstance(error, OSError):
        return error.errno == errno.EIO
    return isinstance(error, (ArchiveError, ValueError, *DECODER_ERRORS))


def unreadable(path: Path, error: Exception) -> ArchiveError:
    """For a file that may be whole."""
    return ArchiveError(
        f"{path}: cannot be read: {reason(error)}; the file may be whole, so mend that and try again"
    )


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ArchiveError(otherwise)
